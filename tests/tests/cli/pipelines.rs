//! `weir pipelines` with a running server, and the JSON of other commands.

use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_tests::{Server, models, weir};

const DEFINITION: &str =
    r#"{"name": "double", "steps": [{"id": "sum", "kind": "map", "expression": "{twice: n * `2`}"}]}"#;

/// Runs a command without blocking the runtime of the test.
async fn run(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(weir()?);
    command.args(arguments);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

fn lines(output: &Output) -> Result<Vec<Value>> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[tokio::test]
async fn pipelines_are_checked_listed_and_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("double.json"), DEFINITION)?;
    std::fs::write(folder.path().join("bad.json"), r#"{"name": "bad", "steps": []}"#)?;
    let folder = folder.path().display().to_string();
    let checked = run(&["pipelines", "check", "--json", &folder]).await?;
    assert_eq!(checked.status.code(), Some(1));
    let valid: Vec<Value> = lines(&checked)?.iter().map(|line| line["valid"].clone()).collect();
    assert_eq!(valid, [json!(false), json!(true)]);
    assert_eq!(run(&["pipelines", "check", "/nowhere.json"]).await?.status.code(), Some(2));

    let server = Server::start_stub(&["--set", &format!("pipelines.dir={folder}")]).await?;
    let url = server.url("");
    let listed = run(&["pipelines", "list", "--json", "--url", &url]).await?;
    let names: Vec<Value> = lines(&listed)?.iter().map(|line| line["name"].clone()).collect();
    assert_eq!((listed.status.code(), names), (Some(0), vec![json!("bad"), json!("double")]));
    let ran = run(&["pipelines", "run", "double", "--input", r#"{"n": 21}"#, "--url", &url]).await?;
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(serde_json::from_slice::<Value>(&ran.stdout)?, json!({"twice": 42}));
    let followed = ["pipelines", "run", "double", "--input", r#"{"n": 1}"#, "--follow", "--json", "--url", &url];
    let followed = lines(&run(&followed).await?)?;
    let types: Vec<&str> = followed.iter().filter_map(|line| line["data"]["event_type"].as_str()).collect();
    assert_eq!((types.first(), types.last()), (Some(&"pipeline_start"), Some(&"pipeline_complete")));
    assert_eq!(followed.last().context("the execution")?["state"], "completed");
    let failed = run(&["pipelines", "run", "double", "--input", r#"{"n": "x"}"#, "--url", &url]).await?;
    assert_eq!(failed.status.code(), Some(1), "{}", String::from_utf8_lossy(&failed.stderr));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("is failed: "));
    let unknown = run(&["pipelines", "run", "nosuch", "--url", &url]).await?;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("404"));
    Ok(())
}

#[tokio::test]
async fn models_and_keys_are_printed_as_json() -> Result<()> {
    let models = models().display().to_string();
    let listed = lines(&run(&["models", "list", "--json", "--models-dir", &models]).await?)?;
    let sentiment = listed.iter().find(|model| model["name"] == "sentiment").context("sentiment")?;
    assert_eq!(
        (&sentiment["task"], sentiment["labels"].as_array().map(Vec::len)),
        (&json!("text-classification"), Some(3))
    );
    let checked = run(&["models", "check", "--json", "sentiment", "nosuch", "--models-dir", &models]).await?;
    assert_eq!(checked.status.code(), Some(1));
    let works: Vec<Value> = lines(&checked)?.iter().map(|line| line["works"].clone()).collect();
    assert_eq!(works, [json!(true), json!(false)]);
    let keys = lines(&run(&["config", "--json"]).await?)?;
    assert!(keys.iter().any(|key| key["name"] == "http.listen" && key["variable"] == "WEIR_HTTP_LISTEN"));
    Ok(())
}
