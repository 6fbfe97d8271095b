//! A transformer encoder of the BERT family: embeddings, then layers of attention and a feed-forward network, each followed by a
//! residual connection and layer normalization. Devlin et al., "BERT", 2018.

use std::fmt;
use std::ops::Range;

use crate::aligned::Aligned;
use crate::attention::{Attention, Buffers};
use crate::isa::Isa;
pub use crate::math::Activation;
use crate::matrix::{INNER_MAX, Matrix, Precision, Values};
use crate::normalize::LayerNorm;
use crate::product::Epilogue;
use crate::rows::Rows;

/// The numbers of an encoder's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Width of a token's state.
    pub hidden: usize,
    /// Attention heads; they share `hidden` equally.
    pub heads: usize,
    /// Width of the feed-forward network's inner layer.
    pub intermediate: usize,
    /// The feed-forward network's activation.
    pub activation: Activation,
    /// Added to the variance in layer normalization.
    pub epsilon: f32,
    /// The row of the position table that belongs to a text's first token: 0, and 2 in RoBERTa's family.
    pub first_position: usize,
    /// What attention scores are multiplied by: `1 / sqrt(hidden / heads)`, or 1 where the query weights contain it.
    pub score_factor: f32,
}

/// A linear layer as a file stores it.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `[inner, columns]`
    pub values: Values<'a>,
    /// `[columns]`
    pub bias: &'a [f32],
}

/// A layer normalization as a file stores it.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[hidden]`
    pub gain: &'a [f32],
    /// `[hidden]`
    pub bias: &'a [f32],
}

/// A table of embeddings `[rows, hidden]` as a file stores it.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// The rows.
    F32(&'a [f32]),
    /// The rows in integers, and the factor `[rows]` of each.
    I8 {
        /// The integers.
        values: &'a [i8],
        /// The factors.
        scales: &'a [f32],
    },
}

/// The embeddings as a file stores them.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings<'a> {
    /// By token id.
    pub words: Table<'a>,
    /// `[positions, hidden]`
    pub positions: &'a [f32],
    /// `[types, hidden]`; empty where a model has none.
    pub types: &'a [f32],
    /// Applied to the sum.
    pub norm: Norm<'a>,
}

/// A layer as a file stores it.
#[derive(Clone, Copy, Debug)]
pub struct LayerWeights<'a> {
    /// `[hidden, hidden]`
    pub query: Linear<'a>,
    /// `[hidden, hidden]`
    pub key: Linear<'a>,
    /// `[hidden, hidden]`
    pub value: Linear<'a>,
    /// `[hidden, hidden]`
    pub attention_output: Linear<'a>,
    /// After the attention's residual connection.
    pub attention_norm: Norm<'a>,
    /// `[hidden, intermediate]`
    pub intermediate: Linear<'a>,
    /// `[intermediate, hidden]`
    pub output: Linear<'a>,
    /// After the feed-forward network's residual connection.
    pub output_norm: Norm<'a>,
}

/// All weights of an encoder as a file stores them.
#[derive(Clone, Debug)]
pub struct EncoderWeights<'a> {
    /// The embeddings.
    pub embeddings: Embeddings<'a>,
    /// The layers, the first one first.
    pub layers: Vec<LayerWeights<'a>>,
}

/// Why an encoder cannot be made, or cannot take a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncoderError {
    /// A number of the configuration is not possible.
    Config(String),
    /// A tensor is not as long as the configuration says.
    Length {
        /// The tensor.
        name: String,
        /// Its elements.
        len: usize,
        /// The elements that it must have.
        expected: usize,
    },
    /// A text has no tokens.
    EmptyText,
    /// The lengths of the texts do not add up to the number of ids.
    Lengths {
        /// The sum of the lengths.
        tokens: usize,
        /// The number of ids.
        ids: usize,
    },
    /// A text is longer than the position table.
    TextTooLong {
        /// Its tokens.
        tokens: usize,
        /// The most that the table has positions for.
        tokens_max: usize,
    },
    /// An id is not in its table.
    Id {
        /// `token` or `token type`.
        kind: &'static str,
        /// The id.
        id: u32,
        /// The rows of the table.
        rows: usize,
    },
}

impl fmt::Display for EncoderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(reason) => f.write_str(reason),
            Self::Length { name, len, expected } => write!(f, "{name} has {len} elements, not {expected}"),
            Self::EmptyText => f.write_str("a text has no tokens"),
            Self::Lengths { tokens, ids } => write!(f, "the texts have {tokens} tokens but there are {ids} ids"),
            Self::TextTooLong { tokens, tokens_max } => {
                write!(f, "a text has {tokens} tokens; the model has positions for {tokens_max}")
            }
            Self::Id { kind, id, rows } => write!(f, "{kind} id {id} is not below {rows}"),
        }
    }
}

impl std::error::Error for EncoderError {}

/// Texts end to end.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// The token ids of all texts.
    pub ids: &'a [u32],
    /// The token types of all texts, as many as ids; empty for type 0 everywhere.
    pub types: &'a [u32],
    /// The tokens of each text.
    pub lengths: &'a [usize],
}

/// A loaded encoder: immutable, shared by all threads.
#[derive(Debug)]
pub struct Encoder {
    isa: Isa,
    config: EncoderConfig,
    words: Words,
    positions: Vec<f32>,
    types: Vec<f32>,
    norm: OwnedNorm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
enum Words {
    F32(Vec<f32>),
    I8 { values: Vec<i8>, scales: Vec<f32> },
}

#[derive(Debug)]
struct OwnedNorm {
    gain: Vec<f32>,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    /// Queries, keys and values beside each other.
    qkv: Matrix,
    attention_output: Matrix,
    attention_norm: OwnedNorm,
    intermediate: Matrix,
    output: Matrix,
    output_norm: OwnedNorm,
}

/// Memory that one caller computes in; it grows to the largest batch that it has seen.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[tokens, hidden]`: the states.
    states: Aligned<f32>,
    /// `[tokens, 3 hidden]`
    qkv: Aligned<f32>,
    /// `[tokens, hidden]`
    context: Aligned<f32>,
    /// `[tokens, intermediate]`
    wide: Aligned<f32>,
    rows: Rows,
    attention: Buffers,
    texts: Vec<Range<usize>>,
}

impl Encoder {
    /// Packs the weights for an instruction set.
    ///
    /// # Errors
    /// When a tensor has not the length that the configuration gives it, or the configuration is not possible.
    pub fn new(
        isa: Isa,
        precision: Precision,
        config: EncoderConfig,
        weights: &EncoderWeights<'_>,
    ) -> Result<Self, EncoderError> {
        let EncoderConfig { hidden, heads, intermediate, .. } = config;
        if hidden == 0 || heads == 0 || hidden % heads != 0 {
            return Err(EncoderError::Config(format!("{heads} heads cannot share a hidden size of {hidden}")));
        }
        if intermediate == 0 || hidden.max(intermediate) > INNER_MAX {
            return Err(EncoderError::Config(format!(
                "hidden size {hidden} and intermediate size {intermediate} must be within 1 to {INNER_MAX}"
            )));
        }
        let Embeddings { words, positions, types, norm } = weights.embeddings;
        let words = match words {
            Table::F32(values) => {
                table("word embeddings", values.len(), hidden)?;
                Words::F32(values.to_vec())
            }
            Table::I8 { values, scales } => {
                length("word embeddings", values.len(), scales.len() * hidden)?;
                Words::I8 { values: values.to_vec(), scales: scales.to_vec() }
            }
        };
        table("position embeddings", positions.len(), hidden)?;
        if positions.len() / hidden <= config.first_position {
            return Err(EncoderError::Config(format!(
                "the first position, {}, is not in a table of {}",
                config.first_position,
                positions.len() / hidden
            )));
        }
        table("token type embeddings", types.len(), hidden)?;
        let layers = weights.layers.iter().enumerate();
        Ok(Self {
            isa,
            config,
            words,
            positions: positions.to_vec(),
            types: types.to_vec(),
            norm: OwnedNorm::new("embeddings", norm, hidden)?,
            layers: layers
                .map(|(index, layer)| Layer::new(isa, precision, &config, index, layer))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Its shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The longest text that it takes, in tokens.
    pub fn tokens_max(&self) -> usize {
        self.positions.len() / self.config.hidden - self.config.first_position
    }

    /// Bytes that its weights take in memory.
    pub fn bytes(&self) -> usize {
        let words = match &self.words {
            Words::F32(values) => 4 * values.len(),
            Words::I8 { values, scales } => values.len() + 4 * scales.len(),
        };
        let layers = self.layers.iter().map(Layer::bytes).sum::<usize>();
        words + 4 * (self.positions.len() + self.types.len()) + layers
    }

    /// The last states `[tokens, hidden]` of all texts, end to end.
    ///
    /// # Errors
    /// When a text is empty or too long, an id is not in its table, or the lengths do not add up.
    pub fn states<'a>(&self, texts: Texts<'_>, scratch: &'a mut Scratch) -> Result<&'a [f32], EncoderError> {
        self.check(&texts)?;
        let EncoderConfig { hidden, heads, intermediate, score_factor, .. } = self.config;
        let tokens = texts.ids.len();
        let Scratch { states, qkv, context, wide, rows, attention, texts: ranges } = scratch;
        ranges.clear();
        let mut start = 0;
        ranges.extend(texts.lengths.iter().map(|length| {
            start += length;
            start - length..start
        }));
        states.resize(tokens * hidden);
        qkv.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        wide.resize(tokens * intermediate);
        self.embed(&texts, ranges, states);
        for layer in &self.layers {
            layer.qkv.multiply(states, Epilogue::Store, qkv, rows);
            self.isa.run(Attention {
                qkv,
                texts: ranges,
                heads,
                head_size: hidden / heads,
                factor: score_factor,
                out: context,
                buffers: attention,
            });
            layer.attention_output.multiply(context, Epilogue::Add, states, rows);
            self.normalize(states, &layer.attention_norm);
            layer.intermediate.multiply(states, Epilogue::Activate(self.config.activation), wide, rows);
            layer.output.multiply(wide, Epilogue::Add, states, rows);
            self.normalize(states, &layer.output_norm);
        }
        Ok(states)
    }

    fn check(&self, texts: &Texts<'_>) -> Result<(), EncoderError> {
        let (tokens, ids) = (texts.lengths.iter().fold(0, |sum: usize, len| sum.saturating_add(*len)), texts.ids.len());
        if tokens != ids {
            return Err(EncoderError::Lengths { tokens, ids });
        }
        if !texts.types.is_empty() && texts.types.len() != ids {
            return Err(EncoderError::Lengths { tokens, ids: texts.types.len() });
        }
        if texts.lengths.contains(&0) {
            return Err(EncoderError::EmptyText);
        }
        let tokens_max = self.tokens_max();
        if let Some(tokens) = texts.lengths.iter().copied().find(|tokens| *tokens > tokens_max) {
            return Err(EncoderError::TextTooLong { tokens, tokens_max });
        }
        let within = |kind, ids: &[u32], rows: usize| match ids.iter().find(|id| **id as usize >= rows) {
            Some(id) => Err(EncoderError::Id { kind, id: *id, rows }),
            None => Ok(()),
        };
        let hidden = self.config.hidden;
        let words = match &self.words {
            Words::F32(values) => values.len() / hidden,
            Words::I8 { scales, .. } => scales.len(),
        };
        within("token", texts.ids, words)?;
        // A model without token types takes type 0.
        within("token type", texts.types, (self.types.len() / hidden).max(1))
    }

    /// The normalized sums of word, position and type embeddings.
    fn embed(&self, texts: &Texts<'_>, ranges: &[Range<usize>], states: &mut [f32]) {
        let EncoderConfig { hidden, first_position, .. } = self.config;
        let row = |table: &'_ [f32], index: usize| -> Range<usize> {
            debug_assert!((index + 1) * hidden <= table.len());
            index * hidden..(index + 1) * hidden
        };
        for range in ranges {
            for (index, token) in range.clone().enumerate() {
                let state = &mut states[token * hidden..][..hidden];
                let id = texts.ids[token] as usize;
                match &self.words {
                    Words::F32(values) => state.copy_from_slice(&values[row(values, id)]),
                    Words::I8 { values, scales } => {
                        let values = &values[id * hidden..][..hidden];
                        state.iter_mut().zip(values).for_each(|(to, value)| *to = f32::from(*value) * scales[id]);
                    }
                }
                let position = &self.positions[row(&self.positions, first_position + index)];
                state.iter_mut().zip(position).for_each(|(to, value)| *to += value);
                if !self.types.is_empty() {
                    let kind = texts.types.get(token).map_or(0, |kind| *kind as usize);
                    let kind = &self.types[row(&self.types, kind)];
                    state.iter_mut().zip(kind).for_each(|(to, value)| *to += value);
                }
            }
        }
        self.normalize(states, &self.norm);
    }

    fn normalize(&self, rows: &mut [f32], norm: &OwnedNorm) {
        self.isa.run(LayerNorm { rows, gain: &norm.gain, bias: &norm.bias, epsilon: self.config.epsilon });
    }
}

impl Layer {
    fn new(
        isa: Isa,
        precision: Precision,
        config: &EncoderConfig,
        index: usize,
        weights: &LayerWeights<'_>,
    ) -> Result<Self, EncoderError> {
        let EncoderConfig { hidden, intermediate, .. } = *config;
        let linear = |name: &str, linear: &Linear<'_>, inner: usize, columns: usize| {
            let values = match linear.values {
                Values::F32(values) | Values::F32Transposed(values) => values.len(),
                Values::I8 { values, scales } => {
                    length(&format!("layer {index}: scales of {name}"), scales.len(), columns)?;
                    values.len()
                }
            };
            length(&format!("layer {index}: {name}"), values, inner * columns)?;
            length(&format!("layer {index}: bias of {name}"), linear.bias.len(), columns)
        };
        let parts = [("query", &weights.query), ("key", &weights.key), ("value", &weights.value)];
        for (name, part) in parts {
            linear(name, part, hidden, hidden)?;
        }
        linear("attention output", &weights.attention_output, hidden, hidden)?;
        linear("intermediate", &weights.intermediate, hidden, intermediate)?;
        linear("output", &weights.output, intermediate, hidden)?;
        let pack = |inner, linears: &[&Linear<'_>]| {
            let parts: Vec<_> = linears.iter().map(|linear| (linear.values, linear.bias)).collect();
            Matrix::pack(isa, precision, inner, &parts)
        };
        let norm = |name: &str, norm| OwnedNorm::new(&format!("layer {index}: {name}"), norm, hidden);
        Ok(Self {
            qkv: pack(hidden, &parts.map(|(_, part)| part)),
            attention_output: pack(hidden, &[&weights.attention_output]),
            attention_norm: norm("attention", weights.attention_norm)?,
            intermediate: pack(hidden, &[&weights.intermediate]),
            output: pack(intermediate, &[&weights.output]),
            output_norm: norm("output", weights.output_norm)?,
        })
    }

    fn bytes(&self) -> usize {
        [&self.qkv, &self.attention_output, &self.intermediate, &self.output].into_iter().map(Matrix::bytes).sum()
    }
}

impl OwnedNorm {
    fn new(name: &str, norm: Norm<'_>, hidden: usize) -> Result<Self, EncoderError> {
        length(&format!("{name} normalization gain"), norm.gain.len(), hidden)?;
        length(&format!("{name} normalization bias"), norm.bias.len(), hidden)?;
        Ok(Self { gain: norm.gain.to_vec(), bias: norm.bias.to_vec() })
    }
}

fn length(name: &str, len: usize, expected: usize) -> Result<(), EncoderError> {
    if len == expected {
        return Ok(());
    }
    Err(EncoderError::Length { name: name.to_owned(), len, expected })
}

/// A table must have whole rows.
fn table(name: &str, len: usize, hidden: usize) -> Result<(), EncoderError> {
    length(name, len, len / hidden * hidden)
}
