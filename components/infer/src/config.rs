//! The configuration in a model directory: `config.json`, `tokenizer_config.json`, `sentence_bert_config.json` and
//! `1_Pooling/config.json` in the Hugging Face layout, interpreted as in transformers and sentence-transformers.

use crate::types::{Activation, ModelKind};
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;

/// Lengths above this in `tokenizer_config.json` mean "unknown": the library writes 1e30.
const SANE_TOKENS_MAX: f64 = 1_000_000.0;
/// The longest sequence if no file names one, in tokens.
const DEFAULT_TOKENS_MAX: usize = 512;
/// The number of labels of a configuration that names none.
const DEFAULT_LABELS: usize = 2;
/// Maximum number of labels.
const LABELS_MAX: usize = 100_000;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file is not the JSON that is expected there.
    #[error("{file} is not valid")]
    Json {
        /// The file, relative to the model directory.
        file: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file is JSON but not an object. Deriving `Deserialize` would accept a list, and read `[]` as a file that sets
    /// nothing.
    #[error("{0} must be a JSON object")]
    NoObject(&'static str),
    /// `id2label` is not a list of labels for the ids from 0 on.
    #[error("id2label in config.json does not name the ids from 0 to {0}")]
    Labels(usize),
}

/// How token vectors are pooled to the vector of a text, if the graph does not do it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over the tokens that are not padding.
    Mean,
    /// The first token.
    Cls,
    /// The maximum over the tokens that are not padding, for each dimension.
    Max,
    /// A mode, or a combination of modes, that is not implemented.
    Unsupported,
}

/// The configuration of a model, without its graph.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The task that its architecture names.
    pub kind: ModelKind,
    /// Labels in the order of their ids; empty for feature extraction.
    pub labels: Vec<String>,
    /// The longest sequence in tokens, special tokens included.
    pub tokens_max: usize,
    /// The function that a text classifier applies to its logits, unless the item names one.
    pub activation: Activation,
    /// How token vectors are pooled to the vector of a text.
    pub pooling: Pooling,
    /// True if the model has more than one token type, so that its graph may have the input `token_type_ids`.
    pub uses_types: bool,
    /// The padding id, if `config.json` names one.
    pub pad_id: Option<u32>,
    /// The padding token, if `tokenizer_config.json` names one.
    pub pad_token: Option<String>,
    /// The token for unknown text, if `tokenizer_config.json` names one.
    pub unk_token: Option<String>,
}

#[derive(Deserialize, Default)]
struct ConfigFile {
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default)]
    id2label: Option<BTreeMap<String, String>>,
    #[serde(default)]
    num_labels: Option<usize>,
    #[serde(default)]
    problem_type: Option<String>,
    #[serde(default)]
    function_to_apply: Option<String>,
    #[serde(default)]
    max_position_embeddings: Option<f64>,
    #[serde(default)]
    type_vocab_size: Option<u32>,
    #[serde(default)]
    pad_token_id: Option<i64>,
}

#[derive(Deserialize, Default)]
struct TokenizerConfigFile {
    #[serde(default)]
    model_max_length: Option<f64>,
    #[serde(default)]
    pad_token: Option<TokenName>,
    #[serde(default)]
    unk_token: Option<TokenName>,
}

/// A special token, by its text or as the object that the library saves for an added token.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenName {
    Text(String),
    Added { content: String },
}

impl TokenName {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

#[derive(Deserialize, Default)]
struct SentenceConfigFile {
    #[serde(default)]
    max_seq_length: Option<f64>,
}

#[derive(Deserialize)]
struct PoolingFile {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
}

impl ModelConfig {
    /// Parses the contents of `config.json` and, if they exist, of `tokenizer_config.json` (`tokenizer`),
    /// `sentence_bert_config.json` (`sentences`) and `1_Pooling/config.json` (`pooling`).
    pub fn parse(
        config: &[u8],
        tokenizer: Option<&[u8]>,
        sentences: Option<&[u8]>,
        pooling: Option<&[u8]>,
    ) -> Result<Self, ConfigError> {
        let config: ConfigFile = parse_json("config.json", config)?;
        let tokenizer = match tokenizer {
            Some(bytes) => parse_json("tokenizer_config.json", bytes)?,
            None => TokenizerConfigFile::default(),
        };
        let sentences = match sentences {
            Some(bytes) => parse_json("sentence_bert_config.json", bytes)?,
            None => SentenceConfigFile::default(),
        };
        let pooling = match pooling {
            Some(bytes) => pooling_mode(&parse_json("1_Pooling/config.json", bytes)?),
            None => Pooling::Mean,
        };
        let kind = model_kind(&config);
        let labels = match kind {
            ModelKind::FeatureExtraction => Vec::new(),
            ModelKind::TextClassification | ModelKind::TokenClassification => label_names(&config)?,
        };
        Ok(Self {
            kind,
            tokens_max: tokens_max(&config, &tokenizer, &sentences),
            activation: default_activation(&config, labels.len()),
            labels,
            pooling,
            uses_types: config.type_vocab_size.is_some_and(|size| size > 1),
            pad_id: config.pad_token_id.and_then(|id| u32::try_from(id).ok()),
            pad_token: tokenizer.pad_token.map(TokenName::into_text),
            unk_token: tokenizer.unk_token.map(TokenName::into_text),
        })
    }
}

fn parse_json<'a, T: Deserialize<'a>>(file: &'static str, bytes: &'a [u8]) -> Result<T, ConfigError> {
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let begins_object = text.iter().find(|byte| !byte.is_ascii_whitespace()).is_none_or(|&byte| byte == b'{');
    let parsed = serde_json::from_slice(text).map_err(|source| ConfigError::Json { file, source });
    if begins_object { parsed } else { parsed.and(Err(ConfigError::NoObject(file))) }
}

/// The task is in the name of the architecture (`BertForSequenceClassification`).
fn model_kind(config: &ConfigFile) -> ModelKind {
    let named = |suffix| config.architectures.iter().flatten().any(|name| name.ends_with(suffix));
    if named("ForSequenceClassification") {
        ModelKind::TextClassification
    } else if named("ForTokenClassification") {
        ModelKind::TokenClassification
    } else {
        ModelKind::FeatureExtraction
    }
}

/// `id2label` in the order of its ids; `LABEL_0`, `LABEL_1`, … if there is none.
fn label_names(config: &ConfigFile) -> Result<Vec<String>, ConfigError> {
    let Some(by_id) = &config.id2label else {
        let count = config.num_labels.unwrap_or(DEFAULT_LABELS).min(LABELS_MAX);
        return Ok((0..count).map(|id| format!("LABEL_{id}")).collect());
    };
    (0..by_id.len())
        .map(|id| by_id.get(&id.to_string()).cloned().ok_or(ConfigError::Labels(by_id.len().saturating_sub(1))))
        .collect()
}

/// The smallest maximum of the tokenizer, the model and sentence-transformers. Models of the RoBERTa family number
/// their positions from two, so they have two fewer.
fn tokens_max(config: &ConfigFile, tokenizer: &TokenizerConfigFile, sentences: &SentenceConfigFile) -> usize {
    let reserved = match config.model_type.as_deref() {
        Some(
            "roberta"
            | "xlm-roberta"
            | "xlm-roberta-xl"
            | "camembert"
            | "mpnet"
            | "longformer"
            | "roberta-prelayernorm",
        ) => 2.0,
        _ => 0.0,
    };
    let sane = |length: &f64| (1.0..=SANE_TOKENS_MAX).contains(length);
    let positions = config.max_position_embeddings.map(|positions| positions - reserved).filter(sane);
    let named = tokenizer.model_max_length.filter(sane);
    let sentences = sentences.max_seq_length.filter(sane);
    [positions, named, sentences]
        .into_iter()
        .flatten()
        .reduce(f64::min)
        .map_or(DEFAULT_TOKENS_MAX, |least| least as usize)
}

/// The order of precedence of the transformers pipeline: the problem type, the number of labels, then the configured
/// function.
fn default_activation(config: &ConfigFile, labels: usize) -> Activation {
    match config.problem_type.as_deref() {
        Some("regression") => Activation::Identity,
        Some("multi_label_classification") => Activation::Sigmoid,
        _ if labels == 1 => Activation::Sigmoid,
        Some("single_label_classification") => Activation::Softmax,
        _ if labels > 1 => Activation::Softmax,
        _ => match config.function_to_apply.as_deref() {
            Some("sigmoid") => Activation::Sigmoid,
            Some("softmax") => Activation::Softmax,
            _ => Activation::Identity,
        },
    }
}

fn pooling_mode(file: &PoolingFile) -> Pooling {
    match (file.pooling_mode_mean_tokens, file.pooling_mode_cls_token, file.pooling_mode_max_tokens) {
        (true, false, false) => Pooling::Mean,
        (false, true, false) => Pooling::Cls,
        (false, false, true) => Pooling::Max,
        _ => Pooling::Unsupported,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str, tokenizer: Option<&str>) -> ModelConfig {
        ModelConfig::parse(config.as_bytes(), tokenizer.map(str::as_bytes), None, None).unwrap()
    }

    #[test]
    fn smaller_maximum_applies_and_roberta_reserves_two_positions() {
        let roberta = r#"{"model_type":"roberta","max_position_embeddings":514}"#;
        assert_eq!(parse(roberta, None).tokens_max, 512);
        assert_eq!(parse(roberta, Some(r#"{"model_max_length":1000000000000000019884624838656}"#)).tokens_max, 512);
        assert_eq!(parse(roberta, Some(r#"{"model_max_length":128}"#)).tokens_max, 128);
        assert_eq!(parse(r#"{"max_position_embeddings":-1}"#, None).tokens_max, DEFAULT_TOKENS_MAX);
    }

    #[test]
    fn labels_are_sorted_by_number_not_by_text() {
        let labels: Vec<String> = (0..12).map(|id| format!(r#""{id}":"L{id}""#)).collect();
        let config =
            format!(r#"{{"architectures":["BertForTokenClassification"],"id2label":{{{}}}}}"#, labels.join(","));
        let config = parse(&config, None);
        assert_eq!(config.kind, ModelKind::TokenClassification);
        assert_eq!(config.labels[10], "L10");
    }

    #[test]
    fn labels_with_a_gap_are_refused() {
        let config = br#"{"architectures":["XForSequenceClassification"],"id2label":{"0":"a","2":"b"}}"#;
        assert!(matches!(ModelConfig::parse(config, None, None, None), Err(ConfigError::Labels(1))));
    }

    #[test]
    fn json_that_is_no_object_is_refused_in_every_file() {
        let config: &[u8] = br#"{"architectures":["XForSequenceClassification"]}"#;
        for json in [b"[]".as_slice(), b" [ ]", b"\xEF\xBB\xBF[]"] {
            for (file, parsed) in [
                ("config.json", ModelConfig::parse(json, None, None, None)),
                ("tokenizer_config.json", ModelConfig::parse(config, Some(json), None, None)),
                ("sentence_bert_config.json", ModelConfig::parse(config, None, Some(json), None)),
                ("1_Pooling/config.json", ModelConfig::parse(config, None, None, Some(json))),
            ] {
                assert_eq!(parsed.unwrap_err().to_string(), format!("{file} must be a JSON object"));
            }
        }
        let marked = [b"\xEF\xBB\xBF", config].concat();
        assert_eq!(ModelConfig::parse(&marked, None, None, None).unwrap().kind, ModelKind::TextClassification);
    }

    #[test]
    fn activation_follows_the_problem_type_then_the_labels() {
        let activation = |extra: &str| {
            parse(&format!(r#"{{"architectures":["XForSequenceClassification"]{extra}}}"#), None).activation
        };
        assert_eq!(activation(""), Activation::Softmax);
        assert_eq!(activation(r#","id2label":{"0":"a"}"#), Activation::Sigmoid);
        assert_eq!(activation(r#","id2label":{"0":"a"},"problem_type":"regression""#), Activation::Identity);
        assert_eq!(activation(r#","problem_type":"multi_label_classification""#), Activation::Sigmoid);
        assert_eq!(activation(r#","function_to_apply":"sigmoid""#), Activation::Softmax);
        assert_eq!(activation(r#","id2label":{},"function_to_apply":"sigmoid""#), Activation::Sigmoid);
    }

    #[test]
    fn special_tokens_are_texts_or_objects() {
        let config = parse("{}", Some(r#"{"pad_token":{"content":"<pad>","lstrip":false},"unk_token":"<unk>"}"#));
        assert_eq!(config.pad_token.as_deref(), Some("<pad>"));
        assert_eq!(config.unk_token.as_deref(), Some("<unk>"));
    }
}
