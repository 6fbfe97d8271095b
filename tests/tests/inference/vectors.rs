//! The vectors of transformers through the built infer component, `wasi:nn`, the engines and the models. `components/infer/tests` checks
//! tokenizing and post-processing alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weir_config::{Config, Model};
use weir_runtime::types::{
    Activation, Aggregation, ClassifyOptions, EmbedOptions, Failure, Item, Outcome, Output, Overflow, Task,
    TokenOptions, WhenFull,
};
use weir_runtime::{Builtin, Runtime};
use weir_tests::{PATIENCE, component, models, root};

/// Largest difference of a score to that of transformers.
const TOLERANCE: f64 = 1e-4;
/// Smallest cosine of an embedding to that of the full model.
const COSINE_MIN: f64 = 0.999;

/// A runtime with the models that ship and the toy models, and with the precompiled infer component.
fn start() -> Result<Runtime> {
    let mut config = Config::default();
    config.models.replicas = 1;
    config.models.dir = models();
    // Transformers computes in f32; `scores.rs` measures the default precision.
    config.models.precision = "f32".into();
    for toy in std::fs::read_dir(root().join("tests/models"))? {
        let path = toy?.path();
        if path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str()).context("a name")?.to_string();
            config.model.insert(name, Model { path, ..Default::default() });
        }
    }
    let code = std::fs::read(component("infer.cwasm.zst")?)?;
    let infer: &[u8] = Box::leak(code.into_boxed_slice());
    let builtin = Builtin { infer: Some(infer), ..Builtin::default() };
    Ok(Runtime::start(&config, builtin)?)
}

fn lines(file: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(root().join("tests/vectors").join(file))?;
    weir_tests::ndjson(&text)
}

/// Sends the items of lines as one call; their results by line.
async fn run_lines(runtime: &Runtime, lines: &[Value]) -> Result<BTreeMap<u64, Result<Output, Failure>>> {
    let (sender, mut outcomes) = runtime.call().open();
    let items: Vec<Item> = lines.iter().zip(0..).map(|(line, id)| item(line, id)).collect::<Result<_>>()?;
    let feeding = tokio::spawn(async move {
        for item in items {
            sender.send(item).await?;
        }
        anyhow::Ok(())
    });
    let mut results = BTreeMap::new();
    let reading = async {
        while let Some(Outcome { id, result, .. }) = outcomes.recv().await {
            ensure!(results.insert(id, result).is_none(), "item {id} has two outcomes");
        }
        Ok(())
    };
    tokio::time::timeout(5 * PATIENCE, reading).await.context("no end in time")??;
    feeding.await??;
    ensure!(results.len() == lines.len(), "{} outcomes for {} items", results.len(), lines.len());
    Ok(results)
}

fn item(line: &Value, id: u64) -> Result<Item> {
    let input = &line["input"];
    let text = input.as_str().or(input["text"].as_str()).context("a text")?.to_string();
    let text_pair = input["text_pair"].as_str().map(str::to_owned);
    let model = line["model"].as_str().context("a model")?.to_string();
    let task = task(&line["parameters"])?;
    // The text-classification pipeline truncates only on request; the others always.
    let cut = !matches!(task, Task::Classify(_)) || line["parameters"]["truncation"] == true;
    let overflow = if cut { Overflow::Truncate } else { Overflow::Fail };
    Ok(Item {
        id,
        model,
        text,
        text_pair,
        overflow,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        traceparent: None,
        task,
    })
}

fn task(parameters: &Value) -> Result<Task> {
    if let Some(strategy) = parameters["aggregation_strategy"].as_str() {
        let aggregation = match strategy {
            "none" => Aggregation::None,
            "simple" => Aggregation::Simple,
            "first" => Aggregation::First,
            "average" => Aggregation::Average,
            "max" => Aggregation::Max,
            other => bail!("unknown strategy {other}"),
        };
        let labels = parameters["ignore_labels"].as_array().context("labels")?;
        let ignore_labels = labels.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        return Ok(Task::Tokens(TokenOptions { aggregation, ignore_labels, stride: None }));
    }
    let Some(top_k) = parameters.get("top_k") else { return Ok(Task::Embed(EmbedOptions { normalize: true })) };
    let activation = match parameters["function_to_apply"].as_str() {
        None => None,
        Some("softmax") => Some(Activation::Softmax),
        Some("sigmoid") => Some(Activation::Sigmoid),
        Some("none") => Some(Activation::Identity),
        Some(other) => bail!("unknown function {other}"),
    };
    Ok(Task::Classify(ClassifyOptions { top_k: top_k.as_u64().map(|k| k as u32), activation }))
}

/// An output in the JSON form of the pipelines.
fn to_json(output: &Output) -> Value {
    match output {
        Output::Labels(labels) => {
            labels.iter().map(|l| json!({"label": l.label, "score": f64::from(l.score)})).collect()
        }
        Output::Entities(entities) => entities
            .iter()
            .map(|e| {
                let (key, score) = (if e.index.is_some() { "entity" } else { "entity_group" }, f64::from(e.score));
                let mut entity = json!({key: e.label, "score": score, "word": e.word, "start": e.start, "end": e.end});
                if let Some(index) = e.index {
                    entity["index"] = index.into();
                }
                entity
            })
            .collect(),
        Output::Embedding(vector) => vector.iter().map(|x| f64::from(*x)).collect(),
        Output::Summary(text) => text.as_str().into(),
    }
}

/// Whether values are equal, with scores within the tolerance.
fn is_close(got: &Value, expected: &Value) -> bool {
    match (got, expected) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() <= TOLERANCE)
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_close(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_close(a, b)))
        }
        _ => got == expected,
    }
}

/// Whether labels are equal, where labels with scores within the tolerance may be in another order.
fn labels_are_close(got: &Value, expected: &Value) -> bool {
    let expected = if expected.is_object() { &json!([expected]) } else { expected };
    if is_close(got, expected) {
        return true;
    }
    let (Some(got), Some(expected)) = (got.as_array(), expected.as_array()) else { return false };
    let score = |label: &Value| label["score"].as_f64().unwrap_or(f64::NAN);
    got.len() == expected.len()
        && got.iter().zip(expected).all(|(g, e)| (score(g) - score(e)).abs() <= TOLERANCE)
        && got.iter().all(|g| expected.iter().any(|e| is_close(g, e)))
}

fn cosine(a: &Value, b: &Value) -> f64 {
    let list = |v: &Value| -> Vec<f64> { v.as_array().into_iter().flatten().filter_map(Value::as_f64).collect() };
    let (a, b) = (list(a), list(b));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

async fn check_vectors(file: &str, is_expected: impl Fn(&Value, &Value) -> bool) -> Result<()> {
    let runtime = start()?;
    let lines = lines(file)?;
    ensure!(lines.len() >= 20, "{file} has only {} lines", lines.len());
    let results = run_lines(&runtime, &lines).await?;
    let (mut wrong, mut too_long) = (Vec::new(), 0);
    for (line, (id, result)) in lines.iter().zip(&results) {
        let got = match result {
            Ok(output) => to_json(output),
            // A text that the pipeline ran past the maximum of the model is refused here, with the token count of the vector.
            Err(Failure::TooLong(counts))
                if line["input_ids"].as_array().map(Vec::len) == Some(counts.tokens as usize) =>
            {
                too_long += 1;
                continue;
            }
            Err(failure) => json!({"failure": format!("{failure:?}")}),
        };
        if !is_expected(&got, &line["expected"]) {
            wrong.push(format!(
                "line {}: {}\n  got      {got}\n  expected {}",
                id + 1,
                line["input"],
                line["expected"]
            ));
        }
    }
    ensure!(too_long <= 8, "{too_long} lines of {file} were refused as too long");
    ensure!(wrong.is_empty(), "{} of {} lines of {file} differ:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn text_classification_equals_transformers() -> Result<()> {
    check_vectors("text_classification.jsonl", labels_are_close).await
}

#[tokio::test]
async fn token_classification_equals_transformers() -> Result<()> {
    check_vectors("token_classification.jsonl", is_close).await
}

#[tokio::test]
async fn embedding_is_close_to_transformers() -> Result<()> {
    check_vectors("embedding.jsonl", |got, expected| cosine(got, expected) >= COSINE_MIN).await
}

#[tokio::test]
async fn concurrent_calls_get_their_own_outcomes() -> Result<()> {
    let runtime = std::sync::Arc::new(start()?);
    let lines: Vec<Value> =
        lines("text_classification.jsonl")?.into_iter().filter(|line| line["model"] == "sentiment").take(24).collect();
    let calls = (0..40).map(|i| {
        let (runtime, mut lines) = (runtime.clone(), lines.clone());
        // Each caller has its own order, so that the batches differ.
        lines.rotate_left(i % 24);
        tokio::spawn(async move {
            let results = run_lines(&runtime, &lines).await?;
            for (line, result) in lines.iter().zip(results.values()) {
                let got = to_json(result.as_ref().map_err(|failure| anyhow::anyhow!("{failure:?}"))?);
                ensure!(labels_are_close(&got, &line["expected"]), "{got} for {line}");
            }
            Ok(())
        })
    });
    for call in futures::future::join_all(calls).await {
        call??;
    }
    Ok(())
}
