//! `weir models check --precision`: compares the precisions of the built-in engine on texts of the user.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use weir_config::{Config, Model};
use weir_core::wording::counted;
use weir_nn::model::{self, ModelDir};
use weir_nn::{Choices, Engine, Precision, RegistryConfig, Selection};
use weir_runtime::Runtime;
use weir_runtime::inference::failure;
use weir_runtime::types::{
    Aggregation, ClassifyOptions, EmbedOptions, Failure, Item, Outcome, Output, Overflow, Task, TokenOptions, WhenFull,
};

use crate::builtin::BUILTIN;

/// The most texts that are compared; further ones are ignored.
const TEXTS_MAX: usize = 10_000;
/// The longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// The least agreement with f32 of a recommended precision: the share of texts with the same best label, and of tokens
/// with the same label.
const LABELS_MIN: f64 = 0.995;
const TOKENS_MIN: f64 = 0.998;
/// The least cosine of each embedding with that of f32 of a recommended precision.
const COSINE_MIN: f64 = 0.9999;

/// Compares the precisions on the lines of a file (`-`: of the standard input).
pub(crate) fn check(
    out: &mut impl Write,
    dirs: &[impl AsRef<Path>],
    texts: &Path,
    registry: &RegistryConfig,
    json: bool,
) -> anyhow::Result<()> {
    let texts = read_texts(texts)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for dir in dirs {
        runtime.block_on(check_model(out, dir.as_ref(), &texts, registry, json))?;
    }
    runtime.shutdown_background();
    Ok(())
}

fn read_texts(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?))
    };
    texts_of(&mut reader).with_context(|| path.display().to_string()).and_then(|texts| {
        ensure!(!texts.is_empty(), "{} has no texts: give one on each line", path.display());
        Ok(texts)
    })
}

/// The texts on the first lines.
fn texts_of(reader: &mut impl BufRead) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for number in 1.. {
        let mut line = Vec::new();
        let is_end = texts.len() >= TEXTS_MAX
            || std::io::Read::take(&mut *reader, LINE_BYTES_MAX + 1).read_until(b'\n', &mut line)? == 0;
        if is_end {
            break;
        }
        line.pop_if(|last| *last == b'\n');
        ensure!(line.len() as u64 <= LINE_BYTES_MAX, "line {number} has more than {LINE_BYTES_MAX} bytes");
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            texts.push(text);
        }
    }
    Ok(texts)
}

async fn check_model(
    out: &mut impl Write,
    dir: &Path,
    texts: &[String],
    registry: &RegistryConfig,
    json: bool,
) -> anyhow::Result<()> {
    let folder = dir.display().to_string();
    let model = ModelDir::open(dir)?;
    let selection = Selection::of(dir, Choices::default(), registry)?;
    if selection.engine != Engine::Builtin {
        let (engine, reason) = (selection.engine.to_string(), &selection.reason);
        match json {
            true => writeln!(out, "{}", json!({ "folder": folder, "engine": engine, "reason": reason }))?,
            false => writeln!(out, "{folder}: {engine} computes as the graph says ({reason})")?,
        }
        return Ok(());
    }
    if !json {
        writeln!(out, "{folder}: {}, compared with f32", counted(texts.len(), "text"))?;
    }
    let mut config = Config::default();
    config.models.replicas = 1;
    config.models.isa = registry.isa.to_string();
    config.infer.queue_items_max = config.infer.queue_items_max.max(texts.len().try_into().unwrap_or(u32::MAX));
    for precision in Precision::ALL {
        let model_config = Model {
            path: dir.to_owned(),
            engine: Some(Engine::Builtin.to_string()),
            precision: Some(precision.to_string()),
            ..Default::default()
        };
        config.model.insert(precision.to_string(), model_config);
    }
    let runtime = Runtime::start(&config, BUILTIN)?;
    let mut exact = None;
    let (mut passed, mut compared) = (Vec::new(), Vec::new());
    for precision in Precision::ALL {
        let name = precision.to_string();
        runtime.settled(&name).await.map_err(|reason| anyhow::anyhow!("{name}: {reason}"))?;
        let (outputs, duration) = outputs(&runtime, &name, model.task, texts).await?;
        let each_us = duration.as_secs_f64() * 1e6 / texts.len() as f64;
        let reference = exact.get_or_insert_with(|| outputs.clone());
        let agreement = Agreement::of(reference, &outputs)?;
        if json {
            compared.push(agreement.json(&name, each_us));
        } else {
            writeln!(out, "  {name:5} {each_us:8.0} µs a text  {agreement}")?;
        }
        if agreement.is_good() {
            passed.push(precision);
        }
    }
    // bf16 is no faster than f32 without an instruction for it.
    let is_faster = |precision: &Precision| *precision != Precision::Bf16 || registry.isa.has_bf16_products();
    let recommended = passed.into_iter().rfind(is_faster).unwrap_or_default();
    let (automatic, reason) = (selection.precision.unwrap_or_default(), selection.precision_reason);
    match json {
        true => writeln!(
            out,
            "{}",
            json!({
                "folder": folder, "texts": texts.len(), "precisions": compared, "recommended": recommended.to_string(),
                "automatic": automatic.to_string(), "reason": reason,
            })
        )?,
        false => {
            writeln!(out, "  recommended: models.precision = \"{recommended}\" (auto is {automatic}: {reason})")?;
        }
    }
    Ok(())
}

/// The output of the model for each text, by index, and the total duration.
async fn outputs(
    runtime: &Runtime,
    name: &str,
    task: model::Task,
    texts: &[String],
) -> anyhow::Result<(BTreeMap<u64, Output>, Duration)> {
    let task = match task {
        model::Task::TextClassification => Task::Classify(ClassifyOptions { top_k: None, activation: None }),
        model::Task::TokenClassification => {
            Task::Tokens(TokenOptions { aggregation: Aggregation::None, ignore_labels: Vec::new(), stride: None })
        }
        model::Task::FeatureExtraction => Task::Embed(EmbedOptions { normalize: true }),
    };
    let start = Instant::now();
    let (sender, mut outcomes) = runtime.call().open();
    let feed = async {
        for (id, text) in (0..).zip(texts) {
            let item = Item {
                id,
                model: name.to_owned(),
                text: text.clone(),
                text_pair: None,
                overflow: Overflow::Truncate,
                deadline_ms: None,
                when_full: WhenFull::Wait,
                traceparent: None,
                task: task.clone(),
            };
            if sender.send(item).await.is_err() {
                bail!("{name}: the model accepts no more texts");
            }
        }
        drop(sender);
        Ok(())
    };
    let collect = async {
        let mut outputs = BTreeMap::new();
        while let Some(Outcome { id, result, .. }) = outcomes.recv().await {
            match result {
                Ok(output) => {
                    outputs.insert(id, output);
                }
                // A text that no precision accepts is not compared.
                Err(Failure::InvalidInput(_) | Failure::TooLong(_)) => {}
                Err(failure) => bail!("{name}: text {} failed: {}", id + 1, failure::text(&failure)),
            }
        }
        Ok(outputs)
    };
    let ((), outputs) = tokio::try_join!(feed, collect)?;
    Ok((outputs, start.elapsed()))
}

/// The agreement of a precision with f32.
enum Agreement {
    /// The share of texts with the same best label, and the largest difference of a score.
    Labels { same: f64, largest: f32 },
    /// The share of tokens with the same label, and the largest difference of a score.
    Tokens { same: f64, largest: f32 },
    /// The least and the mean cosine.
    Cosine { least: f64, mean: f64 },
}

impl Agreement {
    fn of(exact: &BTreeMap<u64, Output>, outputs: &BTreeMap<u64, Output>) -> anyhow::Result<Self> {
        let (mut same, mut compared, mut largest) = (0usize, 0usize, 0f32);
        let (mut least, mut sum, mut of_tokens, mut of_vectors) = (1f64, 0f64, false, false);
        for (one, other) in exact.iter().filter_map(|(id, one)| Some((one, outputs.get(id)?))) {
            match (one, other) {
                (Output::Labels(one), Output::Labels(other)) => {
                    compared += 1;
                    let best =
                        |labels: &[weir_runtime::types::LabelScore]| labels.first().map(|label| label.label.clone());
                    same += usize::from(best(one) == best(other));
                    let scores: BTreeMap<&str, f32> =
                        other.iter().map(|label| (label.label.as_str(), label.score)).collect();
                    for label in one {
                        let score = scores.get(label.label.as_str()).copied().unwrap_or_default();
                        largest = largest.max((label.score - score).abs());
                    }
                }
                (Output::Entities(one), Output::Entities(other)) => {
                    of_tokens = true;
                    for (one, other) in one.iter().zip(other) {
                        compared += 1;
                        same += usize::from(one.label == other.label);
                        largest = largest.max((one.score - other.score).abs());
                    }
                }
                (Output::Embedding(one), Output::Embedding(other)) => {
                    of_vectors = true;
                    compared += 1;
                    let dot =
                        |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
                    let cosine = dot(one, other) / (dot(one, one) * dot(other, other)).sqrt();
                    (least, sum) = (least.min(cosine), sum + cosine);
                }
                _ => bail!("the precisions give outputs of different kinds"),
            }
        }
        ensure!(compared > 0, "no text can be compared");
        let share = same as f64 / compared as f64;
        Ok(match (of_tokens, of_vectors) {
            (_, true) => Self::Cosine { least, mean: sum / compared as f64 },
            (true, false) => Self::Tokens { same: share, largest },
            (false, false) => Self::Labels { same: share, largest },
        })
    }

    /// The agreement of a precision as JSON.
    fn json(&self, precision: &str, each_us: f64) -> Value {
        let mut value = match self {
            Self::Labels { same, largest } => json!({ "labels_equal": same, "score_difference_max": largest }),
            Self::Tokens { same, largest } => json!({ "token_labels_equal": same, "score_difference_max": largest }),
            Self::Cosine { least, mean } => json!({ "cosine_min": least, "cosine_mean": mean }),
        };
        (value["precision"], value["text_us"]) = (precision.into(), each_us.round().into());
        value
    }

    fn is_good(&self) -> bool {
        match self {
            Self::Labels { same, .. } => *same >= LABELS_MIN,
            Self::Tokens { same, .. } => *same >= TOKENS_MIN,
            Self::Cosine { least, .. } => *least >= COSINE_MIN,
        }
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Labels { same, largest } => {
                write!(f, "{:.2} % of the best labels agree, scores differ by {largest:.4} at most", 100.0 * same)
            }
            Self::Tokens { same, largest } => {
                write!(f, "{:.2} % of the tokens' labels agree, scores differ by {largest:.4} at most", 100.0 * same)
            }
            Self::Cosine { least, mean } => write!(f, "cosine {least:.5} at least, {mean:.5} in the mean"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_over_the_bound_is_refused_with_its_number() -> anyhow::Result<()> {
        let longest = "x".repeat(LINE_BYTES_MAX as usize);
        let texts = texts_of(&mut format!("a\n\n{longest}\nb").as_bytes())?;
        assert_eq!((texts.len(), texts[1].len(), texts[2].as_str()), (3, longest.len(), "b"));
        let error = texts_of(&mut format!("a\n{longest}x\nb").as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "line 2 has more than 1048576 bytes");
        Ok(())
    }
}
