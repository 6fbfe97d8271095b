//! Hyperparameters, from the metadata.

use std::collections::BTreeMap;
use std::fmt;

use super::error::LoadError;
use crate::gguf::Value;
use weir_core::wording::quoted;

/// The supported architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `llama`: Llama, SmolLM2, TinyLlama, Mistral.
    Llama,
    /// `qwen2`: Qwen2 and Qwen2.5, with biases of queries, keys and values.
    Qwen2,
    /// `qwen3`: with normalized queries and keys.
    Qwen3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The hyperparameters of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// The architecture.
    pub architecture: Architecture,
    /// The number of layers.
    pub layers: usize,
    /// The longest supported sequence, in tokens: the context of the training, or the attention window if that is shorter.
    pub context_tokens: u32,
    /// Elements of a token's state.
    pub embedding: usize,
    /// Width of the inner layer of the feed-forward network.
    pub feed_forward: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of the heads of queries.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Added to the mean square in normalization.
    pub epsilon: f32,
    /// The base of the frequencies of rotary positions.
    pub rope_base: f32,
    /// Elements of a head that are rotated.
    pub rope_elements: usize,
    /// The divisor of positions (linear scaling).
    pub rope_divisor: f32,
}

const LAYERS_MAX: u64 = 256;
const EMBEDDING_MAX: u64 = 1 << 15;
const FEED_FORWARD_MAX: u64 = 1 << 17;
const HEADS_MAX: u64 = 512;
const HEAD_SIZE_MAX: u64 = 1024;
const CONTEXT_TOKENS_MAX: u64 = 1 << 20;

impl Parameters {
    pub(super) fn read(metadata: &BTreeMap<String, Value>) -> Result<Self, LoadError> {
        let name = metadata.get("general.architecture").and_then(Value::as_text);
        let name = name.ok_or_else(|| LoadError::metadata("general.architecture", "is missing or not a text"))?;
        let architecture = Architecture::ALL.into_iter().find(|architecture| architecture.name() == name);
        let architecture = architecture.ok_or_else(|| LoadError::Architecture {
            name: name.to_owned(),
            supported: Architecture::ALL.map(Architecture::name).join(", "),
        })?;
        let keys = Keys { metadata, architecture };
        let embedding = keys.integer("embedding_length", None, 32..=EMBEDDING_MAX)?;
        let heads = keys.integer("attention.head_count", None, 1..=HEADS_MAX)?;
        let kv_heads = keys.integer("attention.head_count_kv", Some(heads), 1..=heads)?;
        if heads % kv_heads != 0 {
            let problem = format!("is {kv_heads}, which is no divisor of the {heads} heads of queries");
            return Err(LoadError::metadata(&keys.name("attention.head_count_kv"), problem));
        }
        let head_size = keys.integer("attention.key_length", Some(embedding / heads), 16..=HEAD_SIZE_MAX)?;
        let value_size = keys.integer("attention.value_length", Some(head_size), 16..=HEAD_SIZE_MAX)?;
        if !head_size.is_multiple_of(16) || value_size != head_size {
            let problem =
                format!("is {head_size} (values: {value_size}); multiples of 16 that are equal are supported");
            return Err(LoadError::metadata(&keys.name("attention.key_length"), problem));
        }
        let rope_elements = keys.integer("rope.dimension_count", Some(head_size), 2..=head_size)?;
        if !rope_elements.is_multiple_of(2) {
            return Err(LoadError::metadata(&keys.name("rope.dimension_count"), "is odd"));
        }
        let context = keys.integer("context_length", None, 1..=u64::from(u32::MAX))?.min(CONTEXT_TOKENS_MAX);
        // Past the window the model attends only to its last tokens, which is not implemented.
        let window = keys.integer("attention.sliding_window", Some(0), 0..=u64::from(u32::MAX))?;
        let context = if window == 0 { context } else { context.min(window) };
        let experts = keys.integer("expert_count", Some(0), 0..=u64::MAX)?;
        if experts > 0 {
            return Err(LoadError::metadata(
                &keys.name("expert_count"),
                "is not 0: mixtures of experts are not supported",
            ));
        }
        Ok(Self {
            architecture,
            layers: keys.integer("block_count", None, 1..=LAYERS_MAX)? as usize,
            context_tokens: context as u32,
            embedding: keys.multiple_of_block("embedding_length", embedding)?,
            feed_forward: keys.multiple_of_block(
                "feed_forward_length",
                keys.integer("feed_forward_length", None, 32..=FEED_FORWARD_MAX)?,
            )?,
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            head_size: head_size as usize,
            epsilon: keys.number("attention.layer_norm_rms_epsilon", None, 0.0..=1.0)?,
            rope_base: keys.number("rope.freq_base", Some(10_000.0), 1.0..=1e12)?,
            rope_elements: rope_elements as usize,
            rope_divisor: keys.rope_divisor()?,
        })
    }

    /// Elements of the queries of a token.
    pub fn query_elements(&self) -> usize {
        self.heads * self.head_size
    }

    /// Elements of the keys of a token; its values have as many.
    pub fn kv_elements(&self) -> usize {
        self.kv_heads * self.head_size
    }

    /// Heads of queries that share a head of keys and values.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

struct Keys<'a> {
    metadata: &'a BTreeMap<String, Value>,
    architecture: Architecture,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn integer(&self, key: &str, default: Option<u64>, range: std::ops::RangeInclusive<u64>) -> Result<u64, LoadError> {
        let name = self.name(key);
        let value = match (self.metadata.get(&name), default) {
            (Some(value), _) => value.as_u64().ok_or_else(|| LoadError::metadata(&name, "is not a single integer"))?,
            (None, Some(default)) => default,
            (None, None) => return Err(LoadError::metadata(&name, "is missing")),
        };
        if range.contains(&value) {
            return Ok(value);
        }
        let problem = format!("is {value}; {} to {} are supported", range.start(), range.end());
        Err(LoadError::metadata(&name, problem))
    }

    fn number(&self, key: &str, default: Option<f64>, range: std::ops::RangeInclusive<f64>) -> Result<f32, LoadError> {
        let name = self.name(key);
        let value = match (self.metadata.get(&name), default) {
            (Some(value), _) => value.as_f64().ok_or_else(|| LoadError::metadata(&name, "is not a number"))?,
            (None, Some(default)) => default,
            (None, None) => return Err(LoadError::metadata(&name, "is missing")),
        };
        if range.contains(&value) {
            return Ok(value as f32);
        }
        let problem = format!("is {value}; {} to {} are supported", range.start(), range.end());
        Err(LoadError::metadata(&name, problem))
    }

    fn multiple_of_block(&self, key: &str, value: u64) -> Result<usize, LoadError> {
        if value.is_multiple_of(32) {
            return Ok(value as usize);
        }
        Err(LoadError::metadata(&self.name(key), format!("is {value}; multiples of 32 are supported")))
    }

    fn rope_divisor(&self) -> Result<f32, LoadError> {
        let name = self.name("rope.scaling.type");
        match self.metadata.get(&name).map(Value::as_text) {
            None | Some(Some("none")) => Ok(1.0),
            Some(Some("linear")) => self.number("rope.scaling.factor", Some(1.0), 1.0..=1e6),
            Some(Some(other)) => {
                Err(LoadError::metadata(&name, format!("is {}; none and linear are supported", quoted(other))))
            }
            Some(None) => Err(LoadError::metadata(&name, "is not a text")),
        }
    }
}
