//! Terms of attention scores that depend on the distance between two tokens.

use std::fmt;
use std::ops::Range;

use crate::isa::Isa;
use crate::matrix::Matrix;
use crate::product::Epilogue;
use crate::rows::Rows;
use crate::weights::{Precision, Values};

/// A term that is added to attention scores before the softmax.
pub(crate) trait ScoreTerm {
    /// Prepares for the queries of a head of a text.
    fn begin(&mut self, text: &Range<usize>, head: usize);

    /// Adds the term to the scores `[keys]` of a query of that head.
    fn add(&self, query: usize, scores: &mut [f32]);
}

/// How attention scores depend on the distance between tokens, as a file stores it.
#[derive(Clone, Copy, Debug, Default)]
pub enum Relative<'a> {
    /// No dependence.
    #[default]
    None,
    /// A bias for each head and distance `key - query`, the same in all layers: `[heads, 2 tokens_max - 1]`, distance 0 in the middle
    /// of a row. Raffel et al., "Exploring the limits of transfer learning", 2020, section 2.1; MPNet.
    Bias(&'a [f32]),
    /// Disentangled attention: products of contents with embeddings of distances. He et al., "DeBERTa", 2021, section 3.1. The embeddings
    /// come with each layer ([`LayerDistances`]).
    Disentangled {
        /// The row of the embeddings for each distance `query - key`: `[2 tokens_max - 1]`, distance 0 in the middle.
        rows: &'a [u32],
        /// The rows of the embeddings.
        span: usize,
    },
}

/// The embeddings of distances in a layer with disentangled attention, projected: `[span, hidden]` each.
#[derive(Clone, Copy, Debug)]
pub struct LayerDistances<'a> {
    /// The factors of queries (content to position).
    pub keys: Option<&'a [f32]>,
    /// The factors of keys (position to content).
    pub queries: Option<&'a [f32]>,
}

/// The owned form of [`Relative`].
#[derive(Debug)]
pub(crate) enum OwnedRelative {
    None,
    Bias { values: Vec<f32>, tokens_max: usize },
    Disentangled { rows: Vec<u32>, span: usize },
}

/// Scores of [`Relative::Bias`].
pub(crate) struct Bias<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) tokens_max: usize,
    pub(crate) head: usize,
}

impl ScoreTerm for Bias<'_> {
    fn begin(&mut self, _text: &Range<usize>, head: usize) {
        self.head = head;
    }

    fn add(&self, query: usize, scores: &mut [f32]) {
        let distances = 2 * self.tokens_max - 1;
        let row = &self.values[self.head * distances..][..distances];
        let row = &row[self.tokens_max - 1 - query..];
        scores.iter_mut().zip(row).for_each(|(score, bias)| *score += bias);
    }
}

/// Masks the scores of keys at a distance of more than `distance_max`. Beltagy et al., "Longformer", 2020, section 3.1.
pub(crate) struct Window {
    pub(crate) distance_max: usize,
}

impl ScoreTerm for Window {
    fn begin(&mut self, _text: &Range<usize>, _head: usize) {}

    fn add(&self, query: usize, scores: &mut [f32]) {
        let keys = scores.len();
        scores[..query.saturating_sub(self.distance_max)].fill(f32::NEG_INFINITY);
        scores[keys.min(query + self.distance_max + 1)..].fill(f32::NEG_INFINITY);
    }
}

/// [`LayerDistances`], packed: a matrix `[head_size, span]` for each head.
#[derive(Debug, Default)]
pub(crate) struct PackedDistances {
    keys: Vec<Matrix>,
    queries: Vec<Matrix>,
}

impl PackedDistances {
    /// Packs the embeddings, whose lengths the caller has checked.
    pub(crate) fn pack(isa: Isa, distances: &LayerDistances<'_>, heads: usize, head_size: usize, span: usize) -> Self {
        let bias = vec![0.0; span];
        let pack = |values: Option<&[f32]>| {
            let each = |head: usize| {
                let rows = values.unwrap_or_default().chunks_exact(heads * head_size);
                let part: Vec<f32> = rows.flat_map(|row| &row[head * head_size..][..head_size]).copied().collect();
                Matrix::pack(isa, Precision::F32, head_size, &[(Values::F32Transposed(&part), &bias)])
            };
            if values.is_some() { (0..heads).map(each).collect() } else { Vec::new() }
        };
        Self { keys: pack(distances.keys), queries: pack(distances.queries) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.queries).map(Matrix::bytes).sum()
    }
}

/// Scratch memory of [`Disentangled`].
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// `[tokens, head_size]`: the queries or keys of a head.
    contents: Vec<f32>,
    /// `[tokens, span]`: queries by the keys of distances.
    queries: Vec<f32>,
    /// `[tokens, span]`: keys by the queries of distances.
    keys: Vec<f32>,
    rows: Rows,
}

/// Scores of [`Relative::Disentangled`].
pub(crate) struct Disentangled<'a> {
    pub(crate) layer: &'a PackedDistances,
    /// `[tokens, 3 heads head_size]`
    pub(crate) qkv: &'a [f32],
    pub(crate) hidden: usize,
    pub(crate) head_size: usize,
    pub(crate) factor: f32,
    /// As in [`Relative::Disentangled`].
    pub(crate) rows: &'a [u32],
    pub(crate) span: usize,
    pub(crate) buffers: &'a mut Buffers,
}

impl fmt::Debug for Disentangled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disentangled").finish_non_exhaustive()
    }
}

impl ScoreTerm for Disentangled<'_> {
    fn begin(&mut self, text: &Range<usize>, head: usize) {
        let Self { layer, qkv, hidden, head_size, span, buffers, .. } = self;
        let Buffers { contents, queries, keys, rows } = &mut **buffers;
        for (matrices, part, to) in [(&layer.keys, 0, queries), (&layer.queries, 1, keys)] {
            let Some(matrix) = matrices.get(head) else { continue };
            contents.clear();
            let tokens = qkv[text.start * 3 * *hidden..text.end * 3 * *hidden].chunks_exact(3 * *hidden);
            contents.extend(tokens.flat_map(|token| &token[part * *hidden + head * *head_size..][..*head_size]));
            to.resize(text.len() * *span, 0.0);
            matrix.multiply(contents, Epilogue::Store, to, rows);
        }
    }

    fn add(&self, query: usize, scores: &mut [f32]) {
        let Self { layer, factor, rows, span, buffers, .. } = self;
        // The distance `query - key` falls as the key rises.
        let zero = rows.len() / 2;
        let rows = rows[zero + query + 1 - scores.len()..=zero + query].iter().rev();
        if !layer.keys.is_empty() {
            let products = &buffers.queries[query * span..][..*span];
            scores.iter_mut().zip(rows.clone()).for_each(|(score, row)| *score += factor * products[*row as usize]);
        }
        if !layer.queries.is_empty() {
            let products = buffers.keys.chunks_exact(*span);
            for ((score, row), products) in scores.iter_mut().zip(rows).zip(products) {
                *score += factor * products[*row as usize];
            }
        }
    }
}
