//! The programs of `examples/`, but for the one in Rust, which `examples/embed/tests` runs.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weir_tests::pipelines::{Folder, run};
use weir_tests::{Server, component, root, tool};

/// Runs a program with text on its standard input; its standard output.
fn run_program(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "{command:?} ended with {status}:\n{stdout}{stderr}");
    Ok(stdout.into_owned())
}

fn node(file: &str) -> Result<Command> {
    // `cargo xtask test` sets the variable where Node.js is installed.
    tool("WEIR_TEST_NPM")?;
    let mut command = Command::new("node");
    command.arg(root().join("examples/javascript").join(file));
    Ok(command)
}

fn python(file: &str) -> Result<Command> {
    let mut command = Command::new(tool("WEIR_TEST_PYTHON")?);
    command.arg(root().join("examples/python").join(file));
    Ok(command)
}

#[tokio::test]
async fn javascript_example_labels_lines() -> Result<()> {
    let server = Server::start(&[]).await?;
    let printed = run_program(
        node("classify.mjs")?.arg(server.url("")),
        "What a wonderful evening!\nThe train leaves at nine.\n",
    )?;
    ensure!(printed.contains("0: positive") && printed.contains("1: neutral"), "{printed}");
    ensure!(printed.ends_with("2 labelled, 0 failed\n"), "{printed}");
    Ok(())
}

#[tokio::test]
async fn javascript_example_follows_to_the_end_of_a_channel() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    run_program(python("publish.py")?.args(["42", &server.url("")]), "")?;
    let printed = run_program(node("follow.mjs")?.args(["workflow/42", &server.url("")]), "")?;
    let types: Vec<&str> = printed.lines().filter_map(|line| line.split(' ').next()).collect();
    let progress = ["workflow_progress"; 3];
    ensure!(types == [&["connected"][..], &progress, &["temporal_status", "disconnected"]].concat(), "{printed}");
    Ok(())
}

#[tokio::test]
async fn python_example_prints_every_step_of_a_document() -> Result<()> {
    let server = Server::start(&[]).await?;
    let mut command = python("process.py")?;
    let printed = run_program(command.arg(root().join("demo/night-train.txt")).arg(server.url("")), "")?;
    ensure!(printed.starts_with("started\n") && printed.ends_with("completed\n"), "{printed}");
    ensure!(printed.contains("100%  chunk 14: ") && printed.contains("Berlin"), "{printed}");
    Ok(())
}

#[tokio::test]
async fn step_example_masks_texts() -> Result<()> {
    let definition: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(root().join("examples/step/mask.json"))?)?;
    let folder = Folder::new(&[("mask", definition["steps"].clone())])?;
    let steps = format!("pipelines.steps=[\"mask={}\"]", component("step_example.wasm")?.display());
    let server = Server::start_stub(&[&folder.arguments()[..], &["--set", &steps]].concat()).await?;
    let execution = run(&server, "mask", &json!({"note": "Call 555-01 or write to ann@example.org."})).await?;
    assert_eq!(execution["output"], json!({"note": "Call ***-** or write to ****************"}), "{execution}");
    Ok(())
}
