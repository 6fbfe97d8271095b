//! The three tasks on items, and their parameters from a JSON object or a query string.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::json::{
    field,
    field::{FieldError, FieldReason, unknown},
    tree::Node,
};

/// Maximum number of labels that can be ignored.
pub const IGNORE_LABELS_MAX: usize = 64;
/// Longest label that can be ignored, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// Longest name of a model, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;

/// The task of each text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// `/v1/classify`
    Classify,
    /// `/v1/tokens`
    Tokens,
    /// `/v1/embed`
    Embed,
}

/// A function from logits to scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Scores of one text add up to 1.
    Softmax,
    /// Each label by itself.
    Sigmoid,
    /// The logits as they are.
    None,
}

/// A side of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its beginning.
    Left,
    /// Its end.
    Right,
}

/// How tokens become entities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Every token by itself.
    None,
    /// Neighbours with the same entity.
    Simple,
    /// A word has the label of its first token.
    First,
    /// A word has the label with the best mean.
    Average,
    /// A word has the label of its best token.
    Max,
}

/// The parameters of a task; `None` for those that the request does not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Number of labels, best first; `None`: all.
    pub top_k: Option<u32>,
    /// `function_to_apply`; `None`: the function of the model's configuration.
    pub activation: Option<Activation>,
    /// `truncation`, or `truncate` for embeddings: whether a text that is too long is truncated.
    pub truncation: Option<bool>,
    /// `truncation_direction`: the side that is cut off.
    pub truncation_direction: Option<Side>,
    /// Overlap of the windows over a long text, in tokens; `None`: the text is truncated.
    pub stride: Option<u32>,
    /// `aggregation_strategy`
    pub aggregation: Option<Aggregation>,
    /// Labels that are left out of the result.
    pub ignore_labels: Option<Vec<String>>,
    /// Whether an embedding has length 1.
    pub normalize: Option<bool>,
    /// Timeout of an item, in milliseconds.
    pub timeout_ms: Option<u32>,
}

impl Task {
    /// The names of its parameters.
    pub fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Classify => &["top_k", "function_to_apply", "truncation", "truncation_direction", "timeout_ms"],
            Self::Tokens => {
                &["aggregation_strategy", "ignore_labels", "stride", "truncation", "truncation_direction", "timeout_ms"]
            }
            Self::Embed => &["normalize", "truncate", "truncation_direction", "timeout_ms"],
        }
    }

    /// The task of a model of this kind.
    pub fn of_kind(kind: &str) -> Option<Self> {
        Some(match kind {
            "text-classification" => Self::Classify,
            "token-classification" => Self::Tokens,
            "feature-extraction" => Self::Embed,
            _ => return None,
        })
    }
}

impl Parameters {
    /// True when a text that is too long is truncated. The defaults are those of the pipelines of transformers: `classify` does not
    /// truncate, the other tasks do.
    pub fn cuts(&self, task: Task) -> bool {
        self.truncation.unwrap_or(task != Task::Classify)
    }

    /// Sets a parameter of the task. `field` is its path in errors; null is ignored.
    pub(crate) fn take(&mut self, name: &str, field: Cow<'static, str>, value: Node<'_>) -> Result<(), FieldError> {
        if value == Node::Null {
            return Ok(());
        }
        match name {
            "top_k" => self.top_k = Some(count(field, value)?),
            "timeout_ms" => self.timeout_ms = Some(count(field, value)?),
            "stride" => self.stride = Some(count(field, value)?),
            "truncation_direction" => {
                self.truncation_direction =
                    Some(choice(field, value, &[("left", Side::Left), ("right", Side::Right)])?);
            }
            "truncation" | "truncate" => self.truncation = Some(flag(field, value)?),
            "normalize" => self.normalize = Some(flag(field, value)?),
            "function_to_apply" => {
                let known =
                    [("softmax", Activation::Softmax), ("sigmoid", Activation::Sigmoid), ("none", Activation::None)];
                self.activation = Some(choice(field, value, &known)?);
            }
            "aggregation_strategy" => {
                let known = [
                    ("none", Aggregation::None),
                    ("simple", Aggregation::Simple),
                    ("first", Aggregation::First),
                    ("average", Aggregation::Average),
                    ("max", Aggregation::Max),
                ];
                self.aggregation = Some(choice(field, value, &known)?);
            }
            "ignore_labels" => self.ignore_labels = Some(labels(field, value)?),
            _ => return Err(unknown(field, &[])),
        }
        Ok(())
    }

    /// Sets a parameter from a query string, in which all values are text and lists are repeated parameters.
    pub(crate) fn take_text(&mut self, name: &str, text: Cow<'_, str>) -> Result<(), FieldError> {
        let field = Cow::Owned(name.to_owned());
        let value = match name {
            "ignore_labels" => {
                let mut all: Vec<_> = self.ignore_labels.take().unwrap_or_default();
                all.push(text.into_owned());
                Node::Array(all.into_iter().map(|label| Node::Text(Cow::Owned(label))).collect())
            }
            "top_k" | "timeout_ms" | "stride" => text.parse().map_or_else(|_| Node::Text(text), Node::Integer),
            "truncation" | "truncate" | "normalize" => match &*text {
                "true" => Node::Bool(true),
                "false" => Node::Bool(false),
                _ => Node::Text(text),
            },
            _ => Node::Text(text),
        };
        self.take(name, field, value)
    }
}

fn flag(field: Cow<'static, str>, value: Node<'_>) -> Result<bool, FieldError> {
    match value {
        Node::Bool(flag) => Ok(flag),
        other => Err(FieldError::wrong_type(field, "boolean", other.name())),
    }
}

/// Reads a number from 1 to `u32::MAX`.
fn count(field: Cow<'static, str>, value: Node<'_>) -> Result<u32, FieldError> {
    match value {
        Node::Integer(count) => match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => {
                let bounds = (1, i64::from(u32::MAX));
                Err(FieldError::bounded(field, FieldReason::OutOfRange, "be", bounds, count))
            }
        },
        other => Err(FieldError::wrong_type(field, "integer", other.name())),
    }
}

/// Reads one of the names, without regard to case, as transformers does.
fn choice<T: Copy>(field: Cow<'static, str>, value: Node<'_>, known: &[(&str, T)]) -> Result<T, FieldError> {
    let text = match value {
        Node::Text(text) => text,
        other => return Err(FieldError::wrong_type(field, "string", other.name())),
    };
    if let Some((_, chosen)) = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text)) {
        return Ok(*chosen);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let message = format!("`{field}` {}", field::one_of(&text, &names));
    Err(FieldError::new(field, FieldReason::NotAllowed, message))
}

fn labels(field: Cow<'static, str>, value: Node<'_>) -> Result<Vec<String>, FieldError> {
    let nodes = match value {
        Node::Array(nodes) => nodes,
        other => return Err(FieldError::wrong_type(field, "array", other.name())),
    };
    if nodes.len() > IGNORE_LABELS_MAX {
        let bounds = (0, IGNORE_LABELS_MAX as i64);
        return Err(FieldError::bounded(field, FieldReason::TooLong, "have a length of", bounds, nodes.len() as i64));
    }
    let mut labels = Vec::with_capacity(nodes.len());
    for (at, node) in nodes.into_iter().enumerate() {
        match node {
            Node::Text(label) if label.len() <= LABEL_BYTES_MAX => labels.push(label.into_owned()),
            Node::Text(label) => {
                let (field, bounds) = (format!("{field}[{at}]"), (0, LABEL_BYTES_MAX as i64));
                let length = label.len() as i64;
                return Err(FieldError::bounded(
                    field,
                    FieldReason::TooLong,
                    "have a length in bytes of",
                    bounds,
                    length,
                ));
            }
            other => return Err(FieldError::wrong_type(format!("{field}[{at}]"), "string", other.name())),
        }
    }
    Ok(labels)
}
