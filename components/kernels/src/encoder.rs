//! A transformer encoder of the BERT family: embeddings, then layers of attention and a feed-forward network, each followed by a
//! residual connection and layer normalization. Devlin et al., "BERT", 2018.

use std::fmt;
use std::ops::Range;

use crate::aligned::Aligned;
use crate::attention::{Attention, Buffers};
use crate::isa::Isa;
pub use crate::math::Activation;
use crate::matrix::{INNER_MAX, Matrix};
use crate::normalize::LayerNorm;
use crate::product::Epilogue;
use crate::relative::{self, Bias, Disentangled, LayerDistances, OwnedRelative, PackedDistances, Relative, ScoreTerm};
use crate::rows::Rows;
use crate::table::{Table, Words};
use crate::weights::{Precision, Values};

/// The numbers of an encoder's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Width of a token's state.
    pub hidden: usize,
    /// Attention heads, each `hidden / heads` wide.
    pub heads: usize,
    /// Width of the feed-forward network's inner layer.
    pub intermediate: usize,
    /// The feed-forward network's activation.
    pub activation: Activation,
    /// Added to the variance in layer normalization.
    pub epsilon: f32,
    /// The row of the position table that belongs to a text's first token: 0, and 2 in RoBERTa's family.
    pub first_position: usize,
    /// The factor of attention scores: `1 / sqrt(hidden / heads)`, or 1 where the query weights contain it.
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

/// The embeddings as a file stores them.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings<'a> {
    /// By token id.
    pub words: Table<'a>,
    /// `[positions, hidden]`; empty for a model without position embeddings, whose texts [`Variant::tokens_max`] bounds.
    pub positions: &'a [f32],
    /// `[types, hidden]`; empty for a model without token types.
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

/// The parts of some architectures that BERT's encoder lacks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variant<'a> {
    /// From the normalized embeddings to `hidden`, where they are of another width: ELECTRA, ALBERT.
    pub projection: Option<Linear<'a>>,
    /// The number of layers where it exceeds the number of layers with weights: consecutive layers then share weights, in equal
    /// groups. ALBERT.
    pub layers: Option<usize>,
    /// How attention depends on distances: MPNet, DeBERTa.
    pub relative: Relative<'a>,
    /// The longest text where there are no position embeddings.
    pub tokens_max: usize,
}

/// All weights of an encoder as a file stores them.
#[derive(Clone, Debug)]
pub struct EncoderWeights<'a> {
    /// The embeddings.
    pub embeddings: Embeddings<'a>,
    /// The layers, the first one first.
    pub layers: Vec<LayerWeights<'a>>,
}

/// Why an encoder cannot be built, or cannot compute a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncoderError {
    /// A number of the configuration is out of range.
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

/// A batch of texts, concatenated without padding.
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
    projection: Option<Matrix>,
    relative: OwnedRelative,
    tokens_max: usize,
    /// The number of layers, where it is not the number of layers with weights.
    passes: Option<usize>,
    layers: Vec<Layer>,
}

#[derive(Debug)]
pub(crate) struct OwnedNorm {
    pub(crate) gain: Vec<f32>,
    pub(crate) bias: Vec<f32>,
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
    distances: PackedDistances,
}

/// Scratch memory of one caller; it grows to the size of the largest batch.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[tokens, hidden]`: the states.
    pub(crate) states: Aligned<f32>,
    /// `[tokens, 3 hidden]`
    pub(crate) qkv: Aligned<f32>,
    /// `[tokens, hidden]`
    pub(crate) context: Aligned<f32>,
    /// `[rows of a chunk, intermediate]`
    pub(crate) wide: Aligned<f32>,
    /// `[tokens, intermediate]`, in networks that are gated.
    pub(crate) gate: Aligned<f32>,
    /// `[tokens, hidden]`, where states are normalized before they are used.
    pub(crate) normalized: Aligned<f32>,
    pub(crate) rows: Rows,
    pub(crate) attention: Buffers,
    distances: relative::Buffers,
    pub(crate) texts: Vec<Range<usize>>,
}

impl Scratch {
    pub(crate) fn set_texts(&mut self, texts: &Texts<'_>) {
        self.texts.clear();
        let mut start = 0;
        self.texts.extend(texts.lengths.iter().map(|length| {
            start += length;
            start - length..start
        }));
    }
}

impl Encoder {
    /// Packs the weights for an instruction set.
    ///
    /// # Errors
    /// When a tensor's length does not agree with the configuration, or the configuration is invalid.
    pub fn new(
        isa: Isa,
        precision: Precision,
        config: EncoderConfig,
        weights: &EncoderWeights<'_>,
    ) -> Result<Self, EncoderError> {
        let mut encoder = Self::without_layers(isa, config, &weights.embeddings, Variant::default())?;
        weights.layers.iter().try_for_each(|layer| encoder.push_layer(precision, layer, None))?;
        Ok(encoder)
    }

    /// An encoder without layers; [`push_layer`](Self::push_layer) adds them.
    ///
    /// # Errors
    /// When a tensor's length does not agree with the configuration, or the configuration is invalid.
    pub fn without_layers(
        isa: Isa,
        config: EncoderConfig,
        embeddings: &Embeddings<'_>,
        variant: Variant<'_>,
    ) -> Result<Self, EncoderError> {
        let EncoderConfig { hidden, heads, intermediate, first_position, .. } = config;
        if hidden == 0 || heads == 0 || hidden % heads != 0 {
            return Err(EncoderError::Config(format!("{heads} heads cannot share a hidden size of {hidden}")));
        }
        if intermediate == 0 || hidden.max(intermediate) > INNER_MAX {
            return Err(EncoderError::Config(format!(
                "hidden size {hidden} and intermediate size {intermediate} must be within 1 to {INNER_MAX}"
            )));
        }
        let Embeddings { words, positions, types, norm } = *embeddings;
        let width = if variant.projection.is_some() { norm.gain.len() } else { hidden };
        if width == 0 || width > INNER_MAX {
            return Err(EncoderError::Config(format!("an embedding size of {width} is not within 1 to {INNER_MAX}")));
        }
        let words = Words::new(words, width).map_err(|(len, expected)| EncoderError::Length {
            name: "word embeddings".to_owned(),
            len,
            expected,
        })?;
        table("position embeddings", positions.len(), width)?;
        let tokens_max = match positions.len() / width {
            0 => variant.tokens_max,
            rows if rows > first_position => rows - first_position,
            rows => {
                let reason = format!("the first position, {first_position}, is not in a table of {rows}");
                return Err(EncoderError::Config(reason));
            }
        };
        if tokens_max == 0 {
            return Err(EncoderError::Config("it has no positions, and no bound for the length of a text".to_owned()));
        }
        table("token type embeddings", types.len(), width)?;
        let projection = variant.projection.map(|linear| {
            check_linear("", "embedding projection", &linear, width, hidden)?;
            Ok(Matrix::pack(isa, Precision::F32, width, &[(linear.values, linear.bias)]))
        });
        Ok(Self {
            isa,
            config,
            words,
            positions: positions.to_vec(),
            types: types.to_vec(),
            norm: OwnedNorm::new("embeddings", norm, width)?,
            projection: projection.transpose()?,
            relative: OwnedRelative::new(variant.relative, heads, tokens_max)?,
            tokens_max,
            passes: variant.layers,
            layers: Vec::new(),
        })
    }

    /// Packs and appends a layer. `distances` belong to a layer with disentangled attention.
    ///
    /// # Errors
    /// When a tensor's length does not agree with the configuration.
    pub fn push_layer(
        &mut self,
        precision: Precision,
        weights: &LayerWeights<'_>,
        distances: Option<LayerDistances<'_>>,
    ) -> Result<(), EncoderError> {
        let mut layer = Layer::new(self.isa, precision, &self.config, self.layers.len(), weights)?;
        if let (Some(distances), OwnedRelative::Disentangled { span, .. }) = (distances, &self.relative) {
            let EncoderConfig { hidden, heads, .. } = self.config;
            for values in [distances.keys, distances.queries].into_iter().flatten() {
                length(&format!("layer {}: distances", self.layers.len()), values.len(), span * hidden)?;
            }
            layer.distances = PackedDistances::pack(self.isa, &distances, heads, hidden / heads, *span);
        }
        self.layers.push(layer);
        Ok(())
    }

    /// The shape of the encoder.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The longest text, in tokens.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Bytes of the tables and layers in memory; a shared table does not count.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().map(Layer::bytes).sum::<usize>();
        self.words.bytes() + 4 * (self.positions.len() + self.types.len()) + layers
    }

    /// Computes the states `[tokens, hidden]` of all texts after the last layer, concatenated.
    ///
    /// # Errors
    /// When a text is empty or too long, an id is not in its table, or the lengths do not add up.
    pub fn states<'a>(&self, texts: Texts<'_>, scratch: &'a mut Scratch) -> Result<&'a [f32], EncoderError> {
        let width = self.norm.gain.len();
        // A model without token types takes type 0.
        check_texts(&texts, self.words.rows(width), (self.types.len() / width).max(1), self.tokens_max)?;
        scratch.set_texts(&texts);
        let EncoderConfig { hidden, intermediate, .. } = self.config;
        let tokens = texts.ids.len();
        let Scratch { states, qkv, context, wide, rows, texts: ranges, .. } = scratch;
        states.resize(tokens * hidden);
        qkv.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        let chunk = chunk_rows(intermediate).min(tokens.max(1));
        wide.resize(chunk * intermediate);
        if let Some(projection) = &self.projection {
            // `context` is free until the first layer.
            context.resize(tokens * width);
            self.embed(&texts, ranges, context);
            projection.multiply(context, Epilogue::Store, states, rows);
            context.resize(tokens * hidden);
        } else {
            self.embed(&texts, ranges, states);
        }
        for layer in self.passes() {
            layer.qkv.multiply(&scratch.states, Epilogue::Store, &mut scratch.qkv, &mut scratch.rows);
            self.attend(layer, scratch);
            let Scratch { states, context, wide, rows, .. } = scratch;
            for (states, context) in states.chunks_mut(chunk * hidden).zip(context.chunks(chunk * hidden)) {
                let wide = &mut wide[..states.len() / hidden * intermediate];
                layer.attention_output.multiply(context, Epilogue::Add, states, rows);
                self.normalize(states, &layer.attention_norm);
                layer.intermediate.multiply(states, Epilogue::Activate(self.config.activation), wide, rows);
                layer.output.multiply(wide, Epilogue::Add, states, rows);
                self.normalize(states, &layer.output_norm);
            }
        }
        Ok(&scratch.states)
    }

    /// The layers in the order of computation.
    fn passes(&self) -> impl Iterator<Item = &Layer> {
        let count = self.passes.unwrap_or(self.layers.len());
        (0..count).map(move |pass| &self.layers[pass * self.layers.len() / count])
    }

    fn attend(&self, layer: &Layer, scratch: &mut Scratch) {
        let EncoderConfig { hidden, heads, score_factor: factor, .. } = self.config;
        let head_size = hidden / heads;
        let Scratch { qkv, context, attention, distances, texts, .. } = scratch;
        let mut bias;
        let mut disentangled;
        let term: Option<&mut dyn ScoreTerm> = match &self.relative {
            OwnedRelative::None => None,
            OwnedRelative::Bias { values, tokens_max } => {
                bias = Bias { values, tokens_max: *tokens_max, head: 0 };
                Some(&mut bias)
            }
            OwnedRelative::Disentangled { rows, span } => {
                let (layer, rows, span) = (&layer.distances, rows, *span);
                disentangled = Disentangled { layer, qkv, hidden, head_size, factor, rows, span, buffers: distances };
                Some(&mut disentangled)
            }
        };
        self.isa.run(Attention { qkv, texts, heads, head_size, factor, term, out: context, buffers: attention });
    }

    /// The normalized sums of word, position and type embeddings.
    fn embed(&self, texts: &Texts<'_>, ranges: &[Range<usize>], states: &mut [f32]) {
        let (width, first_position) = (self.norm.gain.len(), self.config.first_position);
        let add = |state: &mut [f32], table: &[f32], row: usize| {
            let row = &table[row * width..][..width];
            state.iter_mut().zip(row).for_each(|(to, value)| *to += value);
        };
        for range in ranges {
            for (index, token) in range.clone().enumerate() {
                let state = &mut states[token * width..][..width];
                self.words.read(texts.ids[token] as usize, state);
                if !self.positions.is_empty() {
                    add(state, &self.positions, first_position + index);
                }
                if !self.types.is_empty() {
                    add(state, &self.types, texts.types.get(token).map_or(0, |kind| *kind as usize));
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
            check_linear(&format!("layer {index}: "), name, linear, inner, columns)
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
            distances: PackedDistances::default(),
        })
    }

    fn bytes(&self) -> usize {
        let matrices = [&self.qkv, &self.attention_output, &self.intermediate, &self.output];
        matrices.into_iter().map(Matrix::bytes).sum::<usize>() + self.distances.bytes()
    }
}

impl OwnedNorm {
    pub(crate) fn new(name: &str, norm: Norm<'_>, hidden: usize) -> Result<Self, EncoderError> {
        length(&format!("{name} normalization gain"), norm.gain.len(), hidden)?;
        length(&format!("{name} normalization bias"), norm.bias.len(), hidden)?;
        Ok(Self { gain: norm.gain.to_vec(), bias: norm.bias.to_vec() })
    }
}

impl OwnedRelative {
    fn new(relative: Relative<'_>, heads: usize, tokens_max: usize) -> Result<Self, EncoderError> {
        let distances = 2 * tokens_max - 1;
        Ok(match relative {
            Relative::None => Self::None,
            Relative::Bias(values) => {
                length("bias of distances", values.len(), heads * distances)?;
                Self::Bias { values: values.to_vec(), tokens_max }
            }
            Relative::Disentangled { rows, span } => {
                length("rows of distances", rows.len(), distances)?;
                if rows.iter().any(|row| *row as usize >= span) {
                    return Err(EncoderError::Config(format!("a distance is not among {span} embeddings")));
                }
                Self::Disentangled { rows: rows.to_vec(), span }
            }
        })
    }
}

/// Rows of a feed-forward network that are computed together, in whole blocks of every instruction set: few enough to bound the
/// memory of its inner layer, and enough to amortize reading the weights. A row's result does not depend on the number.
pub(crate) fn chunk_rows(intermediate: usize) -> usize {
    const BYTES_MAX: usize = 2 << 20;
    const BLOCK_ROWS: usize = 12;
    (BYTES_MAX / (intermediate * size_of::<f32>()) / BLOCK_ROWS).max(2) * BLOCK_ROWS
}

/// Checks a batch before anything is computed.
pub(crate) fn check_texts(
    texts: &Texts<'_>,
    words: usize,
    types: usize,
    tokens_max: usize,
) -> Result<(), EncoderError> {
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
    if let Some(tokens) = texts.lengths.iter().copied().find(|tokens| *tokens > tokens_max) {
        return Err(EncoderError::TextTooLong { tokens, tokens_max });
    }
    let within = |kind, ids: &[u32], rows: usize| match ids.iter().find(|id| **id as usize >= rows) {
        Some(id) => Err(EncoderError::Id { kind, id: *id, rows }),
        None => Ok(()),
    };
    within("token", texts.ids, words)?;
    within("token type", texts.types, types)
}

/// Checks the lengths of a linear layer; `scope` precedes the name of the part in an error.
pub(crate) fn check_linear(
    scope: &str,
    name: &str,
    linear: &Linear<'_>,
    inner: usize,
    columns: usize,
) -> Result<(), EncoderError> {
    let values = match linear.values {
        Values::F32(values) | Values::F32Transposed(values) => values.len(),
        Values::I8 { values, scales } => {
            length(&format!("{scope}scales of {name}"), scales.len(), columns)?;
            values.len()
        }
    };
    length(&format!("{scope}{name}"), values, inner * columns)?;
    length(&format!("{scope}bias of {name}"), linear.bias.len(), columns)
}

fn length(name: &str, len: usize, expected: usize) -> Result<(), EncoderError> {
    if len == expected {
        return Ok(());
    }
    Err(EncoderError::Length { name: name.to_owned(), len, expected })
}

/// Checks that a table has whole rows.
fn table(name: &str, len: usize, hidden: usize) -> Result<(), EncoderError> {
    length(name, len, len / hidden * hidden)
}
