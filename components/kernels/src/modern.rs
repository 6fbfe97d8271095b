//! A transformer encoder of the ModernBERT family: rotary positions, normalization before each part of a layer, attention that is local
//! in most layers, and gated feed-forward networks. Warner et al., "Smarter, better, faster, longer", 2024.

use std::sync::Arc;

use crate::attention::Attention;
use crate::encoder::{EncoderError, Linear, Norm, OwnedNorm, Scratch, Texts, check_linear, check_texts};
use crate::isa::Isa;
use crate::math::Activation;
use crate::matrix::{INNER_MAX, Matrix};
use crate::normalize::LayerNorm;
use crate::product::Epilogue;
use crate::relative::{ScoreTerm, Window};
use crate::table::{Table, Words};
use crate::weights::Precision;

/// The numbers of a modern encoder's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModernConfig {
    /// Width of a token's state.
    pub hidden: usize,
    /// Attention heads, each `hidden / heads` wide, an even number.
    pub heads: usize,
    /// Width of the feed-forward network's inner layer.
    pub intermediate: usize,
    /// The feed-forward network's activation.
    pub activation: Activation,
    /// Added to the variance in layer normalization.
    pub epsilon: f32,
    /// The longest text, in tokens.
    pub tokens_max: usize,
}

/// A layer as a file stores it. The output of each part is added to the states.
#[derive(Clone, Copy, Debug)]
pub struct ModernLayerWeights<'a> {
    /// Before attention; `None` in the first layer, whose input is normalized already.
    pub attention_norm: Option<Norm<'a>>,
    /// `[hidden, 3 hidden]`: queries, keys and values.
    pub qkv: Linear<'a>,
    /// `[hidden, hidden]`
    pub attention_output: Linear<'a>,
    /// Before the feed-forward network.
    pub feed_forward_norm: Norm<'a>,
    /// `[hidden, intermediate]`; its activation is multiplied by the gate.
    pub input: Linear<'a>,
    /// `[hidden, intermediate]`
    pub gate: Linear<'a>,
    /// `[intermediate, hidden]`
    pub output: Linear<'a>,
    /// The greatest distance of a key from its query; `None` for attention to all keys.
    pub window: Option<usize>,
    /// The base of the rotary positions' wave lengths.
    pub rotary_base: f32,
}

/// A loaded encoder: immutable, shared by all threads.
#[derive(Debug)]
pub struct ModernEncoder {
    isa: Isa,
    config: ModernConfig,
    words: Words,
    norm: OwnedNorm,
    layers: Vec<Layer>,
    final_norm: OwnedNorm,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Option<OwnedNorm>,
    qkv: Matrix,
    attention_output: Matrix,
    feed_forward_norm: OwnedNorm,
    input: Matrix,
    gate: Matrix,
    output: Matrix,
    window: Option<usize>,
    rotary: Arc<Rotary>,
}

impl ModernEncoder {
    /// An encoder without layers; [`push_layer`](Self::push_layer) adds them. `norm` follows the embeddings, `final_norm` the last
    /// layer.
    ///
    /// # Errors
    /// When a tensor's length does not agree with the configuration, or the configuration is invalid.
    pub fn without_layers(
        isa: Isa,
        config: ModernConfig,
        words: Table<'_>,
        norm: Norm<'_>,
        final_norm: Norm<'_>,
    ) -> Result<Self, EncoderError> {
        let ModernConfig { hidden, heads, intermediate, tokens_max, .. } = config;
        if hidden == 0 || heads == 0 || hidden % heads != 0 || !(hidden / heads).is_multiple_of(2) {
            return Err(EncoderError::Config(format!(
                "{heads} heads of even width cannot share a hidden size of {hidden}"
            )));
        }
        if intermediate == 0 || hidden.max(intermediate) > INNER_MAX || tokens_max == 0 {
            return Err(EncoderError::Config(format!(
                "hidden size {hidden} and intermediate size {intermediate} must be within 1 to {INNER_MAX}, and texts have a token"
            )));
        }
        let words = Words::new(words, hidden).map_err(|(len, expected)| EncoderError::Length {
            name: "word embeddings".to_owned(),
            len,
            expected,
        })?;
        let norm = OwnedNorm::new("embeddings", norm, hidden)?;
        Ok(Self {
            isa,
            config,
            words,
            norm,
            layers: Vec::new(),
            final_norm: OwnedNorm::new("final", final_norm, hidden)?,
        })
    }

    /// Packs and appends a layer.
    ///
    /// # Errors
    /// When a tensor's length does not agree with the configuration.
    pub fn push_layer(&mut self, precision: Precision, weights: &ModernLayerWeights<'_>) -> Result<(), EncoderError> {
        let ModernConfig { hidden, heads, intermediate, tokens_max, .. } = self.config;
        let index = self.layers.len();
        let pack = |name: &str, linear: &Linear<'_>, inner: usize, columns: usize| {
            check_linear(&format!("layer {index}: "), name, linear, inner, columns)?;
            Ok(Matrix::pack(self.isa, precision, inner, &[(linear.values, linear.bias)]))
        };
        let norm = |name: &str, norm| OwnedNorm::new(&format!("layer {index}: {name}"), norm, hidden);
        let rotary = self.layers.iter().map(|layer| &layer.rotary).find(|rotary| rotary.base == weights.rotary_base);
        let layer = Layer {
            attention_norm: weights.attention_norm.map(|weights| norm("attention", weights)).transpose()?,
            qkv: pack("attention", &weights.qkv, hidden, 3 * hidden)?,
            attention_output: pack("attention output", &weights.attention_output, hidden, hidden)?,
            feed_forward_norm: norm("feed-forward", weights.feed_forward_norm)?,
            input: pack("input", &weights.input, hidden, intermediate)?,
            gate: pack("gate", &weights.gate, hidden, intermediate)?,
            output: pack("output", &weights.output, intermediate, hidden)?,
            window: weights.window,
            rotary: rotary
                .cloned()
                .unwrap_or_else(|| Arc::new(Rotary::new(weights.rotary_base, hidden / heads, tokens_max))),
        };
        self.layers.push(layer);
        Ok(())
    }

    /// The shape of the encoder.
    pub fn config(&self) -> &ModernConfig {
        &self.config
    }

    /// Bytes of the tables and layers in memory; a shared table does not count.
    pub fn bytes(&self) -> usize {
        let matrices = |layer: &Layer| {
            let Layer { qkv, attention_output, input, gate, output, .. } = layer;
            [qkv, attention_output, input, gate, output].map(Matrix::bytes).into_iter().sum::<usize>()
        };
        self.words.bytes() + self.layers.iter().map(matrices).sum::<usize>()
    }

    /// Computes the states `[tokens, hidden]` of all texts after the last layer, concatenated.
    ///
    /// # Errors
    /// When a text is empty or too long, an id is not in its table, or the lengths do not add up.
    pub fn states<'a>(&self, texts: Texts<'_>, scratch: &'a mut Scratch) -> Result<&'a [f32], EncoderError> {
        let ModernConfig { hidden, heads, intermediate, activation, tokens_max, .. } = self.config;
        check_texts(&texts, self.words.rows(hidden), 1, tokens_max)?;
        scratch.set_texts(&texts);
        let tokens = texts.ids.len();
        let Scratch { states, qkv, context, wide, gate, normalized, rows, attention, texts: ranges, .. } = scratch;
        states.resize(tokens * hidden);
        normalized.resize(tokens * hidden);
        qkv.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        wide.resize(tokens * intermediate);
        gate.resize(tokens * intermediate);
        for (state, id) in states.chunks_exact_mut(hidden).zip(texts.ids) {
            self.words.read(*id as usize, state);
        }
        self.normalize(states, &self.norm);
        let head_size = hidden / heads;
        for layer in &self.layers {
            normalized.copy_from_slice(states);
            if let Some(norm) = &layer.attention_norm {
                self.normalize(normalized, norm);
            }
            layer.qkv.multiply(normalized, Epilogue::Store, qkv, rows);
            for range in ranges.iter() {
                for (position, token) in range.clone().enumerate() {
                    layer.rotary.rotate(position, &mut qkv[token * 3 * hidden..][..2 * hidden]);
                }
            }
            let mut window = layer.window.map(|distance_max| Window { distance_max });
            let term = window.as_mut().map(|window| -> &mut dyn ScoreTerm { window });
            let factor = 1.0 / (head_size as f32).sqrt();
            self.isa.run(Attention {
                qkv,
                texts: ranges,
                heads,
                head_size,
                factor,
                term,
                out: context,
                buffers: attention,
            });
            layer.attention_output.multiply(context, Epilogue::Add, states, rows);
            normalized.copy_from_slice(states);
            self.normalize(normalized, &layer.feed_forward_norm);
            layer.input.multiply(normalized, Epilogue::Activate(activation), wide, rows);
            layer.gate.multiply(normalized, Epilogue::Store, gate, rows);
            wide.iter_mut().zip(gate.iter()).for_each(|(input, gate)| *input *= gate);
            layer.output.multiply(wide, Epilogue::Add, states, rows);
        }
        self.normalize(states, &self.final_norm);
        Ok(states)
    }

    fn normalize(&self, rows: &mut [f32], norm: &OwnedNorm) {
        self.isa.run(LayerNorm { rows, gain: &norm.gain, bias: &norm.bias, epsilon: self.config.epsilon });
    }
}

/// Rotary positions. Su et al., "RoFormer", 2021; element i of a head forms a pair with element i of its second half.
#[derive(Debug)]
struct Rotary {
    base: f32,
    /// Half the width of a head.
    half: usize,
    /// `[position][half]`: cosine and sine.
    rotations: Vec<(f32, f32)>,
}

impl Rotary {
    fn new(base: f32, head_size: usize, positions: usize) -> Self {
        let half = head_size / 2;
        let frequency = |index: usize| 1.0 / base.powf(2.0 * index as f32 / head_size as f32);
        let rotation = |position: usize, index: usize| {
            let angle = position as f32 * frequency(index);
            (angle.cos(), angle.sin())
        };
        let rotations =
            (0..positions).flat_map(|position| (0..half).map(move |index| rotation(position, index))).collect();
        Self { base, half, rotations }
    }

    /// Rotates all heads of the token at a position.
    fn rotate(&self, position: usize, heads: &mut [f32]) {
        let rotations = &self.rotations[position * self.half..][..self.half];
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (first, second) = head.split_at_mut(self.half);
            for ((x, y), (cosine, sine)) in first.iter_mut().zip(second).zip(rotations) {
                (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
            }
        }
    }
}
