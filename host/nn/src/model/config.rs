//! The settings of a model in `config.json`, `tokenizer_config.json` and `sentence_bert_config.json`.

use std::collections::BTreeMap;
use std::fmt;

use crate::wording::quoted;
use serde::Deserialize;
use serde_json::Value;

/// A greater length means "no limit" in some tokenizers.
const TOKENS_SANE_MAX: f64 = 1e6;

/// The length of a model that declares none.
const TOKENS_DEFAULT: u32 = 512;

/// The most labels that a model may have.
const LABELS_MAX: usize = 100_000;

/// The task of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Logits `[batch, labels]`.
    TextClassification,
    /// Logits `[batch, tokens, labels]`.
    TokenClassification,
    /// Hidden states or embeddings.
    FeatureExtraction,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextClassification => "text-classification",
            Self::TokenClassification => "token-classification",
            Self::FeatureExtraction => "feature-extraction",
        })
    }
}

/// How the logits of a text classification are interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// Numbers, not classes.
    Regression,
    /// Exactly one label is true.
    SingleLabel,
    /// Each label is true or not.
    MultiLabel,
}

impl fmt::Display for ProblemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Regression => "regression",
            Self::SingleLabel => "single_label_classification",
            Self::MultiLabel => "multi_label_classification",
        })
    }
}

/// The function from logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FunctionToApply {
    /// Each label by itself.
    Sigmoid,
    /// The labels against each other.
    Softmax,
    /// The logits as they are.
    None,
}

impl fmt::Display for FunctionToApply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sigmoid => "sigmoid",
            Self::Softmax => "softmax",
            Self::None => "none",
        })
    }
}

/// The keys of `config.json` that are used. Values are checked by hand, so that an error names the key.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) model_type: Option<String>,
    architectures: Option<Vec<String>>,
    id2label: Option<BTreeMap<String, String>>,
    label2id: Option<BTreeMap<String, Value>>,
    num_labels: Option<u64>,
    problem_type: Option<String>,
    function_to_apply: Option<String>,
    max_position_embeddings: Option<Value>,
    pad_token_id: Option<Value>,
}

/// `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenizerConfig {
    model_max_length: Option<Value>,
    pad_token: Option<Value>,
    added_tokens_decoder: BTreeMap<String, AddedToken>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AddedToken {
    content: String,
}

/// `sentence_bert_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SentenceConfig {
    max_seq_length: Option<Value>,
}

impl Config {
    pub(super) fn task(&self) -> Task {
        let architectures = self.architectures.as_deref().unwrap_or_default();
        let is = |kind: &str| architectures.iter().any(|name| name.ends_with(kind));
        if is("ForSequenceClassification") {
            Task::TextClassification
        } else if is("ForTokenClassification") {
            Task::TokenClassification
        } else {
            Task::FeatureExtraction
        }
    }

    /// Checks that the task is named: without `architectures` a classifier would be served as an embedding model.
    pub(super) fn has_architecture(&self) -> Result<(), String> {
        let named = self.architectures.iter().flatten().any(|name| !name.is_empty());
        let missing = "architectures is missing, and the model's task is read from it: \
                       [\"…ForSequenceClassification\"], [\"…ForTokenClassification\"], or [\"…Model\"] for embeddings";
        if named { Ok(()) } else { Err(missing.to_owned()) }
    }

    /// The labels in the order of their ids; as transformers does, `LABEL_0`, `LABEL_1` when there are none.
    pub(super) fn labels(&self, task: Task) -> Result<Vec<String>, String> {
        if task == Task::FeatureExtraction {
            return Ok(Vec::new());
        }
        let mut by_id: BTreeMap<u64, String> = BTreeMap::new();
        if let Some(id2label) = &self.id2label {
            for (id, label) in id2label {
                let parsed = id.parse().map_err(|_| format!("id2label: {} is no label id", quoted(&id)))?;
                by_id.insert(parsed, label.clone());
            }
        } else if let Some(label2id) = &self.label2id {
            for (label, id) in label2id {
                let id = id.as_u64().ok_or_else(|| format!("label2id: {id} is no label id"))?;
                by_id.insert(id, label.clone());
            }
        } else {
            let count = self.num_labels.unwrap_or(2);
            if count == 0 {
                return Err("num_labels: 0, and a classifier has at least one label".to_owned());
            }
            if count > LABELS_MAX as u64 {
                return Err(format!("num_labels: {count} is more than {LABELS_MAX}"));
            }
            by_id = (0..count).map(|id| (id, format!("LABEL_{id}"))).collect();
        }
        if by_id.is_empty() {
            return Err("id2label is empty".to_owned());
        }
        if by_id.len() > LABELS_MAX {
            return Err(format!("id2label has more than {LABELS_MAX} labels"));
        }
        match by_id.keys().zip(0..).find(|(id, expected)| **id != *expected) {
            Some((_, expected)) => Err(format!("id2label has no label {expected}")),
            None => Ok(by_id.into_values().collect()),
        }
    }

    pub(super) fn problem_type(&self, task: Task) -> Result<Option<ProblemType>, String> {
        match self.problem_type.as_deref() {
            _ if task != Task::TextClassification => Ok(None),
            None => Ok(None),
            Some("regression") => Ok(Some(ProblemType::Regression)),
            Some("single_label_classification") => Ok(Some(ProblemType::SingleLabel)),
            Some("multi_label_classification") => Ok(Some(ProblemType::MultiLabel)),
            Some(other) => Err(format!(
                "problem_type: {other} is none of regression, single_label_classification, multi_label_classification",
                other = quoted(&other)
            )),
        }
    }

    pub(super) fn function_to_apply(&self) -> Result<Option<FunctionToApply>, String> {
        match self.function_to_apply.as_deref() {
            None => Ok(None),
            Some("sigmoid") => Ok(Some(FunctionToApply::Sigmoid)),
            Some("softmax") => Ok(Some(FunctionToApply::Softmax)),
            Some("none") => Ok(Some(FunctionToApply::None)),
            Some(other) => {
                Err(format!("function_to_apply: {other} is none of sigmoid, softmax, none", other = quoted(&other)))
            }
        }
    }
}

/// The longest input in tokens: the least of the bounds of the tokenizer, the position table and sentence-transformers.
pub(super) fn tokens_max(
    config: &Config,
    tokenizer: &TokenizerConfig,
    sentences: &SentenceConfig,
) -> Result<u32, String> {
    // These count positions from the padding token's id on, so two of the table's rows are never used.
    let offset = match config.model_type.as_deref() {
        Some("roberta" | "xlm-roberta" | "camembert" | "mpnet") => 2.0,
        _ => 0.0,
    };
    let length = |value: &Option<Value>, key: &str| match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(length) if length >= 1.0 => Ok((length <= TOKENS_SANE_MAX).then_some(length)),
            // -1 means that the model has no position table.
            Some(-1.0) => Ok(None),
            _ => Err(format!("{key}: {value} is no length")),
        },
    };
    let positions = length(&config.max_position_embeddings, "max_position_embeddings")?.map(|n| n - offset);
    let tokenizer = length(&tokenizer.model_max_length, "model_max_length of tokenizer_config.json")?;
    let sentences = length(&sentences.max_seq_length, "max_seq_length of sentence_bert_config.json")?;
    let least = [positions, tokenizer, sentences].into_iter().flatten().reduce(f64::min);
    match least {
        None => Ok(TOKENS_DEFAULT),
        Some(least) if least >= 1.0 => Ok(least as u32),
        Some(least) => Err(format!("max_position_embeddings leaves room for {least} tokens")),
    }
}

/// The padding token: that of `config.json`, else the tokenizer's by its name, else 0.
pub(super) fn pad_token_id(config: &Config, tokenizer: &TokenizerConfig) -> Result<u32, String> {
    match &config.pad_token_id {
        None | Some(Value::Null) => {}
        Some(id) => {
            let parsed = id.as_u64().and_then(|id| u32::try_from(id).ok());
            return parsed.ok_or_else(|| format!("pad_token_id: {id} is no token id"));
        }
    }
    let name = match &tokenizer.pad_token {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or_default(),
        _ => "",
    };
    let named = tokenizer.added_tokens_decoder.iter().find(|(_, token)| !name.is_empty() && token.content == name);
    Ok(named.and_then(|(id, _)| id.parse().ok()).unwrap_or(0))
}
