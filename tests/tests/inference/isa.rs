//! The engine `builtin` with each instruction set of this processor: the labels equal those of the default.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::client::classify;
use weir_tests::{Server, models, ndjson, weir};

/// Texts whose best label is clear.
const TEXTS: [&str; 8] = [
    "I love this so much!",
    "This is awful and I hate it.",
    "The meeting is at ten.",
    "The food was wonderful, and Angela Merkel of Berlin agreed.",
    "We waited an hour for a cold soup. Never again, Acme Corporation.",
    "The train from Paris to Lyon leaves at noon.",
    "What a fantastic concert that was in London!",
    "Terrible service.",
];

fn weir_with(isa: &str, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(weir()?).args(arguments).arg("--models-dir").arg(models()).env("WEIR_MODELS_ISA", isa).output()?)
}

/// The instruction sets of this processor, from the error for one that it lacks.
fn available() -> Result<Vec<String>> {
    let output = weir_with("mmx", &["serve", "--listen", "127.0.0.1:0"])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2) && error.lines().count() == 1, "{output:?}");
    ensure!(error.contains("models.isa") && error.contains("`mmx` is not available"), "{error}");
    let (_, names) = error.trim_end().split_once("this processor has: ").context("a list of instruction sets")?;
    Ok(names.split(", ").map(str::to_owned).collect())
}

/// The labels and entities of `weir run`.
fn labels(isa: &str, precision: &str) -> Result<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("texts.txt");
    std::fs::write(&file, TEXTS.join("\n"))?;
    let file = file.display().to_string();
    let precision = format!("models.precision={precision}");
    let mut labels = Vec::new();
    for task in ["sentiment", "entities"] {
        let output = weir_with(isa, &["run", "--task", task, "--set", &precision, "--replicas", "1", "-q", &file])?;
        ensure!(output.status.success(), "{isa}: {}", String::from_utf8_lossy(&output.stderr));
        for line in ndjson(std::str::from_utf8(&output.stdout)?)? {
            let entities = line["entities"].as_array().into_iter().flatten();
            labels.push(line["label"].clone());
            labels.extend(entities.map(|entity| serde_json::json!([entity["entity_group"], entity["word"]])));
        }
    }
    Ok(labels)
}

#[test]
fn labels_are_the_same_on_every_instruction_set() -> Result<()> {
    let available = available()?;
    ensure!(available.last().is_some_and(|last| last == "portable"), "{available:?}");
    for precision in ["int8", "f32"] {
        let expected = labels("auto", precision)?;
        ensure!(expected.len() > 2 * TEXTS.len(), "{expected:?}");
        for isa in &available {
            ensure!(labels(isa, precision)? == expected, "{isa} in {precision}: {:?}", labels(isa, precision)?);
        }
    }
    Ok(())
}

#[tokio::test]
async fn server_without_vector_instructions_gives_the_same_labels() -> Result<()> {
    let label = |results: Vec<Value>| results.into_iter().map(|result| result[0]["label"].clone()).collect::<Vec<_>>();
    let server = Server::start(&[]).await?;
    let expected = label(classify(&server, &TEXTS).await?);
    ensure!(expected.iter().all(Value::is_string), "{expected:?}");
    drop(server);
    for isa in available()?.iter().filter(|isa| ["portable", "neon", "avx2"].contains(&isa.as_str())) {
        let server = Server::start(&["--set", &format!("models.isa={isa}")]).await?;
        ensure!(label(classify(&server, &TEXTS).await?) == expected, "{isa}");
        server.wait_for_log(&format!("isa={isa}")).await?;
    }
    Ok(())
}

#[test]
fn list_of_models_names_the_instruction_set() -> Result<()> {
    let list = |isa: &str| -> Result<String> {
        let output = weir_with(isa, &["models", "list"])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let best = available()?.into_iter().next().context("an instruction set")?;
    ensure!(list("auto")?.matches(&format!(") on {best}\n")).count() == 3, "{}", list("auto")?);
    let portable = list("portable")?;
    ensure!(portable.matches(") on portable\n").count() == 3, "{portable}");
    ensure!(portable.contains("in f32 (portable does not multiply bf16)"), "{portable}");
    let refused = weir_with("mmx", &["models", "list"])?;
    ensure!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("this processor has"));
    Ok(())
}
