//! The commands of README.md, run one after the other as a new user would type them: in an empty folder, with `weir` on the
//! `PATH`, in one shell. Ports that may be taken on this machine are replaced; nothing else is.
//!
//! A block that cannot run has a comment `<!-- not run: REASON -->` above it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use weir_tests::{PATIENCE, root, weir};

/// The ports that README.md uses.
const PORTS: [&str; 2] = ["8080", "8081"];

/// A fenced block.
#[derive(Debug)]
struct Block {
    /// The line of its fence, from 1.
    line: usize,
    language: String,
    text: String,
    /// Why it is not run.
    not_run: Option<String>,
}

/// The fenced blocks of a Markdown text. Those of lists are indented.
fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    let mut reason = None;
    for (number, line) in (1..).zip(markdown.lines()) {
        let trimmed = line.trim_start();
        match (&mut open, trimmed.strip_prefix("```")) {
            (None, Some(language)) => {
                let indent = line.len() - trimmed.len();
                let (language, not_run) = (language.trim().to_owned(), reason.take());
                open = Some((Block { line: number, language, text: String::new(), not_run }, indent));
            }
            (Some(_), Some("")) => blocks.extend(open.take().map(|(block, _)| block)),
            (Some((block, indent)), _) => {
                block.text.push_str(line.get(*indent..).unwrap_or(trimmed));
                block.text.push('\n');
            }
            (None, None) => {
                if let Some(why) = trimmed.strip_prefix("<!-- not run: ").and_then(|why| why.strip_suffix(" -->")) {
                    reason = Some(why.to_owned());
                } else if !trimmed.is_empty() {
                    reason = None;
                }
            }
        }
    }
    blocks
}

fn readme() -> Result<Vec<Block>> {
    let blocks = blocks(&std::fs::read_to_string(root().join("README.md"))?);
    ensure!(
        blocks.iter().filter(|block| block.language == "sh").count() >= 10,
        "the blocks of README.md are not found"
    );
    Ok(blocks)
}

/// A curl that takes an HTTP error for a failure and does not wait for ever.
const CURL: &str = "#!/bin/sh\nexec CURL --fail-with-body --show-error --max-time 120 \"$@\"\n";

#[test]
fn blocks_are_found_with_their_markers() {
    let found = blocks(
        "<!-- not run: why -->\n\n```sh\na\n```\ntext\n- list\n\n  ```sh\n  b\n    c\n  ```\n```json\n{}\n```\n",
    );
    let shown: Vec<_> =
        found.iter().map(|b| (b.line, b.language.as_str(), b.text.as_str(), b.not_run.as_deref())).collect();
    assert_eq!(shown, [(3, "sh", "a\n", Some("why")), (9, "sh", "b\n  c\n", None), (13, "json", "{}\n", None)]);
}

#[test]
fn every_shell_block_is_run_or_says_why_not() -> Result<()> {
    for block in readme()?.iter().filter(|block| block.language == "sh") {
        let placeholder = ["NAME", "DIR", "FILE"].iter().find(|word| block.text.contains(*word));
        ensure!(
            placeholder.is_none() || block.not_run.is_some(),
            "line {}: `{}` is to be filled in, so the block cannot run and must say why",
            block.line,
            placeholder.unwrap_or(&"")
        );
    }
    for block in readme()?.iter().filter_map(|block| block.not_run.as_ref()) {
        ensure!(block.len() > 10, "`{block}` is no reason");
    }
    Ok(())
}

#[test]
fn shell_blocks_run_in_order_in_an_empty_folder() -> Result<()> {
    let free: Vec<TcpListener> = PORTS.iter().map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let free_ports: Vec<u16> = free.iter().map(|held| Ok(held.local_addr()?.port())).collect::<Result<_>>()?;
    let ported = |text: &str| {
        PORTS.iter().zip(&free_ports).fold(text.to_owned(), |text, (port, free)| text.replace(port, &free.to_string()))
    };
    let mut script = String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n");
    for block in readme()?.iter().filter(|block| block.language == "sh" && block.not_run.is_none()) {
        script.push_str(&format!("echo '=== README.md, line {}'\n{}", block.line, ported(&block.text)));
    }
    // Python and JavaScript without packages are run too, the latter where there is a Node.js.
    let client = |language: &str, program: &str| -> Result<String> {
        let blocks = readme()?;
        let own = blocks.iter().filter(|block| block.language == language && !block.text.contains("huggingface_hub"));
        let own = own.filter(|block| !block.text.contains("WebSocket"));
        let run = |block: &Block| {
            format!(
                "echo '=== README.md, line {}'\n{program} <<'END_OF_BLOCK'\n{}END_OF_BLOCK\n",
                block.line,
                ported(&block.text)
            )
        };
        Ok(own.map(run).collect())
    };
    script.push_str(&client("python", "python3 -")?);
    if Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
        script.push_str(&client("js", "node --input-type=module -")?);
    }
    script.push_str("echo '=== all ran'\n");

    let tools = tempfile::tempdir()?;
    let curl = std::env::split_paths(&std::env::var_os("PATH").context("PATH is not set")?)
        .map(|folder| folder.join("curl"))
        .find(|path| path.is_file())
        .context("curl is not installed")?;
    let shim = tools.path().join("curl");
    std::fs::write(&shim, CURL.replace("CURL", &curl.display().to_string()))?;
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755))?;
    let weir_folder = weir()?.parent().context("weir lies in a folder")?.to_owned();
    let path = std::env::join_paths(
        [tools.path().to_owned(), weir_folder]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;

    let folder = tempfile::tempdir()?;
    let output = tools.path().join("output");
    let file = std::fs::File::create(&output)?;
    drop(free);
    let mut shell = Command::new("bash")
        .arg("-c")
        .arg(&script)
        .current_dir(folder.path())
        .env("PATH", path)
        // The default address may be taken on this machine.
        .env("WEIR_HTTP_LISTEN", format!("127.0.0.1:{}", free_ports[0]))
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()?;
    let began = std::time::Instant::now();
    let status = loop {
        match shell.try_wait()? {
            Some(status) => break Some(status),
            None if began.elapsed() > PATIENCE * 4 => break None,
            None => std::thread::sleep(std::time::Duration::from_millis(50)),
        }
    };
    // Whatever the shell left in the background ends with its group.
    Command::new("kill").args(["-KILL", "--", &format!("-{}", shell.id())]).stderr(Stdio::null()).status()?;
    let said = String::from_utf8_lossy(&std::fs::read(&output)?).into_owned();
    let passed = status.is_some_and(|status| status.success()) && said.contains("=== all ran");
    ensure!(passed, "the blocks of README.md ended with {status:?}:\n{said}");
    // What the text says about the answers: what stands beside a command and a reader would miss first.
    for (part, of) in [
        ("listening on http://127.0.0.1:", "weir serve"),
        (r#""id":7"#, "NDJSON"),
        (r#"{"done":true,"ok":2,"failed":1}"#, "the end of NDJSON"),
        (r#""status":"completed""#, "/process-stream"),
        ("workflow_progress", "channels"),
        ("final_segment", "transcripts"),
        ("202 Accepted", "pipelines"),
        ("pipeline_complete", "the events of an execution"),
    ] {
        ensure!(said.contains(part), "{of}: {part} is not in what the blocks of README.md print:\n{said}");
    }
    Ok(())
}
