//! The commands of README.md and of the pages of `docs/`, each page in an empty folder and a shell of its own (`weir_tests::documents`).
//!
//! A block that cannot run has a comment `<!-- not run: REASON -->` above it; one that is part of a file that another test runs has
//! `<!-- from: FILE -->`.

use anyhow::{Result, ensure};
use weir_tests::documents::{PROGRAMS, blocks, has_node, pages, run_page};
use weir_tests::root;

/// The pages with blocks that run: a test for each, the variables that name the programs it needs, and parts of what it prints.
macro_rules! pages {
    ($($test:ident: $page:literal, $tools:expr, $parts:expr;)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(
            #[test]
            fn $test() -> Result<()> {
                let printed = run_page($page, &$tools)?;
                for part in $parts {
                    ensure!(printed.contains(part), "{}: {part} is not in the output of its blocks:\n{printed}", $page);
                }
                Ok(())
            }
        )*
    };
}

pages! {
    readme_runs: "README.md", [], ["listening on http://127.0.0.1:", r#""id":7"#, r#"{"done":true,"ok":2,"failed":1}"#, r#"{"index":1,"label":"positive""#];
    tutorial_runs: "docs/tutorial.md", [], [r#""status":"completed""#, "event: temporal_status", r#""reason":"finished""#];
    texts_guide_runs: "docs/guides/texts.md", [], ["Ada", r#""outputs":[[0."#, r#"{"done":true,"ok":2,"failed":1}"#, r#""churn_risk""#];
    clients_guide_runs: "docs/guides/clients.md", [], ["'status': 'completed'", " paths"];
    files_guide_runs: "docs/guides/files.md", [], [r#""label":"negative""#, r#""final_segment""#];
    adapters_guide_runs: "docs/guides/adapters.md", [], [r#"{"id":1,"label":"positive""#, r#"{"id":2,"label":"negative""#];
    page_guide_runs: "docs/guides/page.md", [], ["analysis_progress", r#""step":"done","progress":100"#];
    channels_guide_runs: "docs/guides/channels.md", [], ["workflow_progress", r#""type":"disconnected""#];
    sessions_guide_runs: "docs/guides/sessions.md", [], ["partial_segment", "final_segment", "summary_due"];
    pipelines_guide_runs: "docs/guides/pipelines.md", [], ["202 Accepted", "pipeline_complete"];
    models_guide_runs: "docs/guides/models.md", [], ["embeddings", r#""model":"reviews""#];
    authentication_guide_runs: "docs/guides/authentication.md", [], [r#""status":"published""#, "event: temporal_status"];
    proxy_guide_runs: "docs/guides/proxy.md", ["WEIR_TEST_NGINX"], [r#"{"done":true,"ok":2,"failed":0}"#, "event: temporal_status"];
    redis_guide_runs: "docs/guides/redis.md", ["WEIR_TEST_REDIS"], ["workflow_progress", "event: disconnected"];
    operate_guide_runs: "docs/guides/operate.md", [], [r#""healthy""#, "weir_infer_items_total"];
}

#[test]
fn each_page_with_commands_has_a_test() -> Result<()> {
    let mut missing = Vec::new();
    for page in pages()? {
        let name = page.strip_prefix(root())?.display().to_string();
        let runs = blocks(&std::fs::read_to_string(&page)?).iter().any(|block| block.runs());
        if runs != PAGES.contains(&name.as_str()) {
            missing.push(name);
        }
    }
    ensure!(missing.is_empty(), "PAGES of tests/tests/cli/documents.rs against the pages with commands: {missing:?}");
    Ok(())
}

/// Without Node.js the other tests pass, and their pages' `js` blocks are not run.
#[test]
fn javascript_blocks_have_a_program_that_runs_them() -> Result<()> {
    let mut skipped = Vec::new();
    for page in pages()? {
        for block in blocks(&std::fs::read_to_string(&page)?) {
            if block.language == "js" && block.runs() {
                skipped.push(format!("{}, line {}", page.strip_prefix(root())?.display(), block.line));
            }
        }
    }
    ensure!(!skipped.is_empty(), "no page has a `js` block that is run");
    ensure!(has_node(), "`node` is not on the PATH; these blocks are not run: {}", skipped.join("; "));
    Ok(())
}

/// A text without the indentation of its lines.
fn trimmed(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn each_program_block_runs_or_states_a_reason() -> Result<()> {
    let mut count = 0;
    for page in pages()? {
        let name = page.strip_prefix(root())?.display().to_string();
        for block in blocks(&std::fs::read_to_string(&page)?) {
            let at = format!("{name}, line {}", block.line);
            if let Some(file) = &block.from {
                let whole = std::fs::read_to_string(root().join(file))?;
                ensure!(trimmed(&whole).contains(&trimmed(&block.text)), "{at}: the block is not in {file}");
                continue;
            }
            if let Some(reason) = &block.not_run {
                ensure!(reason.len() > 10, "{at}: `{reason}` does not explain why the block is not run");
                continue;
            }
            ensure!(
                !PROGRAMS.contains(&block.language.as_str()) || block.runs(),
                "{at}: {} is not run",
                block.language
            );
            ensure!(block.language != "bash" && !block.language.is_empty(), "{at}: the block names no language");
            let placeholder = ["NAME", "DIR"].iter().find(|word| block.text.contains(*word));
            ensure!(!block.runs() || placeholder.is_none(), "{at}: `{}` is a placeholder", placeholder.unwrap_or(&""));
            count += usize::from(block.runs());
        }
    }
    ensure!(count >= 40, "only {count} blocks are run");
    Ok(())
}

#[test]
fn blocks_are_found_with_their_markers() {
    let parsed = blocks(
        "<!-- not run: why -->\n\n```sh\na\n```\ntext\n- list\n\n  ```sh\n  b\n    c\n  ```\n<!-- from: f -->\n```json\n{}\n```\n",
    );
    let fields: Vec<_> = parsed
        .iter()
        .map(|block| {
            (block.line, block.language.as_str(), block.text.as_str(), block.not_run.as_deref(), block.from.as_deref())
        })
        .collect();
    assert_eq!(
        fields,
        [(3, "sh", "a\n", Some("why"), None), (9, "sh", "b\n  c\n", None, None), (14, "json", "{}\n", None, Some("f"))]
    );
}
