//! `[[adapter]]` tables of `weir serve`.

use anyhow::{Context as _, Result, ensure};
use weir_tests::{Server, until};

use super::path;

/// Three adapters run beside HTTP: two process files, and the third cannot connect.
#[tokio::test]
async fn adapters_share_a_model_and_a_failing_one_affects_no_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = String::new();
    for name in ["one", "two"] {
        let text: String =
            (0..500).map(|id| format!("{{\"text\":\"I love {name} {id}\",\"id\":\"{name}-{id}\"}}\n")).collect();
        std::fs::write(dir.path().join(format!("{name}.ndjson")), text)?;
        config += &format!(
            "[[adapter]]\nname = '{name}'\nformat = 'ndjson'\n[adapter.source]\nkind = 'file'\npaths = ['{}']\n[adapter.sink]\nkind = 'file'\npath = '{}'\n",
            path(dir.path(), &format!("{name}.ndjson")),
            path(dir.path(), &format!("{name}.out")),
        );
    }
    config += "[[adapter]]\nname = 'broken'\nreconnect_delay_ms = 20\n[adapter.source]\nkind = 'redis'\nurl = 'redis://127.0.0.1:1/0'\n[adapter.sink]\nkind = 'stdout'\n";
    let file = path(dir.path(), "weir.toml");
    std::fs::write(&file, config)?;
    let mut server = Server::start_stub(&["--config", &file]).await?;
    for name in ["one", "two"] {
        let out = path(dir.path(), &format!("{name}.out"));
        let read = || std::fs::read_to_string(&out).unwrap_or_default();
        until("written", || async { Ok(read().lines().count() == 500) }).await?;
        let foreign = read().lines().filter(|line| !line.contains(&format!("\"id\":\"{name}-"))).count();
        ensure!(foreign == 0, "{name} has {foreign} results of another adapter");
    }
    until("counted", || async { Ok(server.metric("weir_adapter_results_total").await? >= 1000.0) }).await?;
    until("connected again", || async { Ok(server.metric("weir_adapter_reconnects_total").await? >= 2.0) }).await?;
    server.signal("TERM")?;
    let status = server.wait().await?;
    ensure!(status.success(), "{status}: {}", server.log());
    server.wait_for_log("the adapter connects again").await?;
    Ok(())
}

#[test]
fn invalid_adapter_table_stops_the_start_with_its_reason() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = path(dir.path(), "weir.toml");
    for (table, message) in [
        ("[[adapter]]\nname = 'a b'\n", "adapter.name `a b`"),
        ("[[adapter]]\nname = 'a'\n[[adapter]]\nname = 'a'\n", "is used twice"),
        ("[[adapter]]\nname = 'a'\nformat = 'avro'\n", "format `avro` is not decoded here"),
        ("[[adapter]]\nname = 'a'\n[adapter.source]\nkind = 'mqtt'\n", "mqtt"),
        ("[[adapter]]\nname = 'a'\n[adapter.source]\nkind = 'redis'\nurll = ''\n", "urll"),
    ] {
        std::fs::write(&file, table)?;
        let mut command = std::process::Command::new(weir_tests::weir()?);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--config", &file])
            .arg("--models-dir")
            .arg(weir_tests::models());
        let output = command.output()?;
        let stderr = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2) && stderr.contains(message), "{table}: {stderr}");
    }
    Ok(())
}

/// Each record is the input of an execution; one that the pipeline refuses is an error with its original bytes.
#[tokio::test]
async fn pipeline_processes_the_records_of_an_adapter() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pipelines = dir.path().join("pipelines");
    std::fs::create_dir(&pipelines)?;
    let definition =
        r#"{"name": "length", "steps": [{"id": "n", "kind": "map", "after": [], "expression": "length(text)"}]}"#;
    std::fs::write(pipelines.join("length.json"), definition)?;
    let lines: String = (1..=40).map(|n| format!("{{\"text\":\"{}\",\"id\":{n}}}\n", "x".repeat(n))).collect();
    std::fs::write(dir.path().join("in.ndjson"), lines + "broken\n")?;
    let (file, out) = (path(dir.path(), "weir.toml"), path(dir.path(), "out"));
    std::fs::write(
        &file,
        format!(
            "[[adapter]]\nname = 'lengths'\ntask = 'pipeline'\npipeline = 'length'\nformat = 'ndjson'\nin_flight_max = 8\n\
             [adapter.source]\nkind = 'file'\npaths = ['{}']\n[adapter.sink]\nkind = 'file'\npath = '{out}'\n",
            path(dir.path(), "in.ndjson"),
        ),
    )?;
    let set = format!("pipelines.dir={}", pipelines.display());
    let server = Server::start_stub(&["--config", &file, "--set", &set]).await?;
    let read = || std::fs::read_to_string(&out).unwrap_or_default();
    until("written", || async { Ok(read().lines().count() == 41) })
        .await
        .with_context(|| format!("{}{}", read(), server.log()))?;
    let results = weir_tests::ndjson(&read())?;
    for (result, n) in results.iter().zip(1..=40) {
        ensure!(result["id"] == n && result["output"] == n, "{n}: {result}");
    }
    ensure!(results[40]["payload"] == "broken" && results[40]["error"]["category"] == "client", "{}", results[40]);
    Ok(())
}
