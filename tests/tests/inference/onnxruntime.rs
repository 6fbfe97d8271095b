//! The engines compared through `weir run`: the same components give the same results.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::texts::Random;
use weir_tests::{models, ndjson, onnxruntime, weir};

fn run(engine: &str, texts: &str) -> Result<Vec<Value>> {
    let mut command = Command::new(weir()?);
    command.args(["run", "--task", "sentiment", "--set", &format!("models.engine={engine}"), "--models-dir"]);
    command.arg(models()).args(["--set", "models.precision=f32"]).env("WEIR_ONNXRUNTIME", onnxruntime()?);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("its input")?.write_all(texts.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
    let mut lines = ndjson(&String::from_utf8(output.stdout)?)?;
    lines.sort_by_key(|line| line["index"].as_u64());
    Ok(lines)
}

#[test]
fn engines_give_the_same_results() -> Result<()> {
    let mut random = Random(11);
    let texts: String = (0..80).map(|index| random.text(1 + index % 40) + "\n").collect();
    let tract = run("tract", &texts)?;
    for engine in ["onnxruntime", "builtin"] {
        let results = run(engine, &texts)?;
        ensure!(tract.len() == 80 && results.len() == 80, "{engine}: {} results", results.len());
        for (one, other) in tract.iter().zip(&results) {
            let score = |line: &Value| line["score"].as_f64().context("a score");
            ensure!(one["label"] == other["label"], "{engine}: {one} and {other}");
            ensure!((score(one)? - score(other)?).abs() < 1e-4, "{engine}: {one} and {other}");
        }
    }
    Ok(())
}
