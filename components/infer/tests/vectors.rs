//! Compares tokenizing and post-processing with the results of the transformers library for the same texts and logits.
//!
//! Each line of `tests/vectors/*.jsonl` has one input, the encoding of the tokenizer of transformers and, in the files
//! of the two pipelines, the logits of the model and the result of the pipeline. No graph runs here: its logits come
//! from the file.

// A failing test panics.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use weir_infer::config::ModelConfig;
use weir_infer::job::{ModelFiles, Prepared, RowOutput, prepare};
use weir_infer::tokenize::ModelTokenizer;
use weir_infer::types::{
    Activation, Aggregation, ClassifyOptions, EmbedOptions, Entity, Failure, Item, LabelScore, Output, Overflow, Task,
    TokenOptions, TooLong, WhenFull,
};

/// The largest accepted difference of a score.
const TOLERANCE: f64 = 1e-4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn open(name: &str) -> Rc<ModelFiles> {
    let folders = ["host/nn/models", "tests/models"].map(|folder| root().join(folder).join(name));
    let folder = folders.iter().find(|folder| folder.join("config.json").exists());
    let folder = folder.unwrap_or_else(|| panic!("no model {name} in {folders:?}"));
    let read = |file: &str| std::fs::read(folder.join(file)).ok();
    let config = ModelConfig::parse(
        &read("config.json").unwrap(),
        read("tokenizer_config.json").as_deref(),
        read("sentence_bert_config.json").as_deref(),
        read("1_Pooling/config.json").as_deref(),
    )
    .unwrap();
    let tokenizer = ModelTokenizer::parse(&read("tokenizer.json").unwrap(), &config).unwrap();
    Rc::new(ModelFiles { config, tokenizer })
}

/// The values and the shape of a tensor of any rank.
fn flatten(value: &Value) -> (Vec<f32>, Vec<usize>) {
    match value {
        Value::Array(rows) => {
            let rows: Vec<_> = rows.iter().map(flatten).collect();
            let mut shape = vec![rows.len()];
            shape.extend(rows.first().map(|row| row.1.clone()).unwrap_or_default());
            (rows.into_iter().flat_map(|row| row.0).collect(), shape)
        }
        number => (vec![number.as_f64().unwrap() as f32], Vec::new()),
    }
}

fn item_of(line: &Value, files: &ModelFiles) -> Item {
    use weir_infer::types::ModelKind;
    let parameters = &line["parameters"];
    let task = match files.config.kind {
        ModelKind::TextClassification => Task::Classify(ClassifyOptions {
            // By default the pipeline gives the best label; `null` means all.
            top_k: parameters.get("top_k").map_or(Some(1), |top_k| top_k.as_u64().map(|top_k| top_k as u32)),
            activation: match parameters["function_to_apply"].as_str() {
                None => None,
                Some("sigmoid") => Some(Activation::Sigmoid),
                Some("softmax") => Some(Activation::Softmax),
                Some("none") => Some(Activation::Identity),
                Some(other) => panic!("unknown function {other}"),
            },
        }),
        ModelKind::TokenClassification => Task::Tokens(TokenOptions {
            aggregation: match parameters["aggregation_strategy"].as_str().unwrap_or("none") {
                "none" => Aggregation::None,
                "simple" => Aggregation::Simple,
                "first" => Aggregation::First,
                "average" => Aggregation::Average,
                "max" => Aggregation::Max,
                other => panic!("unknown strategy {other}"),
            },
            ignore_labels: match parameters["ignore_labels"].as_array() {
                Some(labels) => labels.iter().map(|label| label.as_str().unwrap().to_owned()).collect(),
                None => vec!["O".to_owned()],
            },
            stride: None,
        }),
        ModelKind::FeatureExtraction => {
            Task::Embed(EmbedOptions { normalize: parameters["normalize"].as_bool().unwrap_or(false) })
        }
    };
    let input = &line["input"];
    Item {
        id: 1,
        model: line["model"].as_str().unwrap().to_owned(),
        text: input.as_str().or(input["text"].as_str()).unwrap().to_owned(),
        text_pair: input["text_pair"].as_str().map(str::to_owned),
        overflow: Overflow::Truncate,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        traceparent: None,
        task,
    }
}

fn near(score: f32, expected: &Value) -> bool {
    (f64::from(score) - expected.as_f64().unwrap()).abs() <= TOLERANCE
}

fn same_label(got: &LabelScore, expected: &Value) -> bool {
    got.label == expected["label"].as_str().unwrap() && near(got.score, &expected["score"])
}

fn same_entity(got: &Entity, expected: &Value) -> bool {
    let label = expected["entity_group"].as_str().or(expected["entity"].as_str()).unwrap();
    got.label == label
        && near(got.score, &expected["score"])
        && got.word == expected["word"].as_str().unwrap()
        && u64::from(got.start) == expected["start"].as_u64().unwrap()
        && u64::from(got.end) == expected["end"].as_u64().unwrap()
        && got.index.map(u64::from) == expected["index"].as_u64()
}

/// `Err` with the difference if the line has a list of numbers under `key` that is not `got`.
fn same_numbers(line: &Value, key: &str, got: impl Iterator<Item = usize>) -> Result<(), String> {
    let Some(expected) = line[key].as_array() else { return Ok(()) };
    let expected: Vec<usize> = expected.iter().map(|number| number.as_u64().unwrap() as usize).collect();
    let got: Vec<usize> = got.collect();
    if got == expected { Ok(()) } else { Err(format!("{key} {got:?}, expected {expected:?}")) }
}

/// `Err` with the difference from transformers.
fn check(line: &Value, files: &Rc<ModelFiles>) -> Result<(), String> {
    let tokens = line["input_ids"].as_array().unwrap().len();
    let tokens_max = files.tokenizer.tokens_max();
    if tokens > tokens_max {
        // The vectors were made without truncation; here the maximum of the model always applies.
        let item = Item { overflow: Overflow::Fail, ..item_of(line, files) };
        let too_long = Failure::TooLong(TooLong { tokens: tokens as u32, tokens_max: tokens_max as u32 });
        return match prepare(item, files) {
            Prepared::Done(Err(failure)) if failure == too_long => Ok(()),
            Prepared::Done(other) => Err(format!("{other:?}, expected {too_long:?}")),
            Prepared::Compute(..) => Err(format!("something to compute, expected {too_long:?}")),
        };
    }
    let (mut job, sequences) = match prepare(item_of(line, files), files) {
        Prepared::Compute(job, sequences) => (job, sequences),
        Prepared::Done(result) => return Err(format!("done without computing: {result:?}")),
    };
    let [sequence] = &sequences[..] else { return Err(format!("{} sequences", sequences.len())) };
    same_numbers(line, "input_ids", sequence.ids.iter().map(|&id| id as usize))?;
    same_numbers(line, "token_type_ids", sequence.types.iter().map(|&id| id as usize))?;
    same_numbers(line, "special_tokens_mask", sequence.special.iter().map(|&mark| mark.into()))?;
    if let Some(offsets) = line["offsets"].as_array() {
        let flat = Value::Array(offsets.iter().flat_map(|pair| pair.as_array().unwrap().clone()).collect());
        let line = serde_json::json!({ "offsets": flat });
        same_numbers(&line, "offsets", sequence.offsets.iter().flat_map(|&(start, end)| [start, end]))?;
    }
    if line["logits"].is_null() {
        return Ok(());
    }

    let (values, shape) = flatten(&line["logits"]);
    let result = job.accept(0, sequence, RowOutput { values: &values, shape: &shape });
    // For a pair the pipeline returns a single label instead of a list.
    let bare = [line["expected"].clone()];
    let expected = line["expected"].as_array().map_or(&bare[..], |list| &list[..]);
    let holds = match &result {
        Some(Ok(Output::Labels(got))) => {
            got.len() == expected.len() && got.iter().zip(expected).all(|(got, expected)| same_label(got, expected))
        }
        Some(Ok(Output::Entities(got))) => {
            got.len() == expected.len() && got.iter().zip(expected).all(|(got, expected)| same_entity(got, expected))
        }
        _ => false,
    };
    if holds { Ok(()) } else { Err(format!("got {result:?}, expected {}", line["expected"])) }
}

#[test]
fn results_equal_the_vectors_of_transformers() {
    let mut models: BTreeMap<String, Rc<ModelFiles>> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for entry in std::fs::read_dir(root().join("tests/vectors")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let line: Value = serde_json::from_str(line).unwrap();
            let name = line["model"].as_str().unwrap();
            let files = models.entry(name.to_owned()).or_insert_with(|| open(name));
            if let Err(difference) = check(&line, files) {
                wrong.push(format!("{}:{}: {difference}", path.display(), number + 1));
            }
            checked += 1;
        }
    }
    assert!(checked > 0, "there are no vectors");
    assert!(wrong.is_empty(), "{} of {checked} differ:\n{}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
}
