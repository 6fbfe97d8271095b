//! The fenced blocks of Markdown documents, and a shell that runs those of a page in order, in an empty folder, with `weir` on the `PATH`.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{PATIENCE, root, tool, weir};

/// The ports in the documents, which are replaced by free ones of this machine.
const PORTS: [&str; 4] = ["8080", "8081", "8443", "6379"];

/// Languages whose blocks are programs: each is run, or has a `from` or a `not run` comment.
pub const PROGRAMS: [&str; 5] = ["sh", "python", "js", "rust", "wit"];

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// The line of the opening fence, from 1.
    pub line: usize,
    /// The info string after the opening fence.
    pub language: String,
    /// The lines between the fences.
    pub text: String,
    /// The reason of the comment `<!-- not run: REASON -->` above it.
    pub not_run: Option<String>,
    /// The file of the comment `<!-- from: FILE -->` above it: the block is a part of that file.
    pub from: Option<String>,
}

impl Block {
    /// Whether [`run_page`] runs it.
    pub fn runs(&self) -> bool {
        self.not_run.is_none() && self.from.is_none() && ["sh", "python", "js"].contains(&self.language.as_str())
    }
}

/// The fenced blocks of a Markdown text. The indentation of blocks in lists is removed.
pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    let (mut not_run, mut from) = (None, None);
    let comment = |line: &str, name: &str| -> Option<String> {
        let rest = line.strip_prefix("<!-- ")?.strip_prefix(name)?;
        Some(rest.strip_suffix(" -->")?.to_owned())
    };
    for (number, line) in (1..).zip(markdown.lines()) {
        let trimmed = line.trim_start();
        match (&mut open, trimmed.strip_prefix("```")) {
            (None, Some(language)) => {
                let language = language.trim().to_owned();
                let (not_run, from) = (not_run.take(), from.take());
                let block = Block { line: number, language, text: String::new(), not_run, from };
                open = Some((block, line.len() - trimmed.len()));
            }
            (Some(_), Some("")) => blocks.extend(open.take().map(|(block, _)| block)),
            (Some((block, indent)), _) => {
                block.text.push_str(line.get(*indent..).unwrap_or(trimmed));
                block.text.push('\n');
            }
            (None, None) if trimmed.is_empty() => {}
            (None, None) => {
                not_run = comment(trimmed, "not run: ");
                from = comment(trimmed, "from: ");
            }
        }
    }
    blocks
}

/// The documents whose commands are tested: README.md and the pages of `docs/` and `examples/`.
pub fn pages() -> Result<Vec<PathBuf>> {
    fn below(folder: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.ends_with("node_modules") {
                continue;
            }
            if path.is_dir() {
                below(&path, pages)?;
            } else if path.extension().is_some_and(|end| end == "md") {
                pages.push(path);
            }
        }
        Ok(())
    }
    let mut pages = vec![root().join("README.md")];
    below(&root().join("docs"), &mut pages)?;
    below(&root().join("examples"), &mut pages)?;
    pages.sort();
    Ok(pages)
}

/// A wrapper of curl that fails on an HTTP error and has a time limit.
const CURL: &str = "#!/bin/sh\nexec CURL --fail-with-body --show-error --max-time 120 \"$@\"\n";

/// The script of a page: its blocks in order, each after an `echo` of its line number.
fn script(page: &str, markdown: &str, node: bool) -> String {
    let mut script = String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n");
    for block in blocks(markdown).iter().filter(|block| block.runs()) {
        let interpreter = match block.language.as_str() {
            "python" => "python3 -",
            "js" if node => "node --input-type=module -",
            "js" => {
                script.push_str(&format!("echo '=== {page}, line {}: not run without Node.js'\n", block.line));
                continue;
            }
            _ => "",
        };
        script.push_str(&format!("echo '=== {page}, line {}'\n", block.line));
        match interpreter {
            "" => script.push_str(&block.text),
            program => script.push_str(&format!("{program} <<'END_OF_BLOCK'\n{}END_OF_BLOCK\n", block.text)),
        }
    }
    script.push_str("echo '=== all ran'\n");
    script
}

/// Whether Node.js, which runs the `js` blocks, is on the `PATH`.
pub fn has_node() -> bool {
    Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Runs the blocks of a page; their output. Without Node.js, `js` blocks are not run. `tools` are variables that name programs, or folders of programs, that the page needs on the
/// `PATH`.
///
/// # Errors
///
/// A command fails, or the page does not end in time.
pub fn run_page(page: &str, tools: &[&str]) -> Result<String> {
    let listeners: Vec<TcpListener> =
        PORTS.iter().map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let ports: Vec<String> =
        listeners.iter().map(|listener| Ok(listener.local_addr()?.port().to_string())).collect::<Result<_>>()?;
    let markdown = std::fs::read_to_string(root().join(page))?;
    let script = PORTS
        .iter()
        .zip(&ports)
        .fold(script(page, &markdown, has_node()), |text, (port, free)| text.replace(port, free));

    let shims = tempfile::tempdir()?;
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    let curl = std::env::split_paths(&path).map(|folder| folder.join("curl")).find(|path| path.is_file());
    let shim = shims.path().join("curl");
    std::fs::write(&shim, CURL.replace("CURL", &curl.context("curl is not installed")?.display().to_string()))?;
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755))?;
    let mut folders = vec![shims.path().to_owned(), weir()?.parent().context("weir lies in a folder")?.to_owned()];
    for variable in tools {
        let path = tool(variable)?;
        let folder = if path.is_dir() { path } else { path.parent().context("a folder")?.to_owned() };
        folders.push(folder);
    }
    folders.extend(std::env::split_paths(&path));

    let folder = tempfile::tempdir()?;
    let output = shims.path().join("output");
    let file = std::fs::File::create(&output)?;
    drop(listeners);
    let mut shell = Command::new("bash")
        .arg("-c")
        .arg(&script)
        .current_dir(folder.path())
        .env("PATH", std::env::join_paths(folders)?)
        // The defaults of the addresses, with the replaced ports.
        .env("WEIR_HTTP_LISTEN", format!("127.0.0.1:{}", ports[0]))
        .env("WEIR_URL", format!("http://127.0.0.1:{}", ports[0]))
        .env("WEIR_EVENTS_REDIS_URL", format!("redis://127.0.0.1:{}/0", ports[3]))
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()?;
    let status = wait_for_exit(&mut shell)?;
    // The group includes the background processes of the shell.
    let _ = crate::send_signal("KILL", &format!("-{}", shell.id()));
    let printed = String::from_utf8_lossy(&std::fs::read(&output)?).into_owned();
    let passed = status.is_some_and(|status| status.success()) && printed.contains("=== all ran");
    ensure!(passed, "the blocks of {page} ended with {status:?}:\n{printed}");
    Ok(printed)
}

/// Waits for the exit of a process; none after the time limit.
fn wait_for_exit(process: &mut std::process::Child) -> Result<Option<ExitStatus>> {
    let began = std::time::Instant::now();
    while began.elapsed() < PATIENCE * 4 {
        if let Some(status) = process.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(None)
}
