//! The number formats of weights, in files and in panels.

use crate::aligned::Aligned;

/// The number format of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 by f32.
    F32,
    /// bf16 by bf16, both rounded to nearest, with sums in f32. An instruction set without such a product multiplies the rounded
    /// numbers in f32.
    Bf16,
    /// Activations in u8 with a scale and a zero point for each row, weights in i8 with a scale for each column, sums in i32.
    Int8,
}

/// Weights as a file stores them.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// `[inner, columns]` by rows.
    F32(&'a [f32]),
    /// `[columns, inner]` by rows, as torch stores the weight of a linear layer.
    F32Transposed(&'a [f32]),
    /// `[inner, columns]` by rows, and the factor `[columns]` of each column.
    I8 {
        /// The integers.
        values: &'a [i8],
        /// The factors.
        scales: &'a [f32],
    },
}

/// The panels.
#[derive(Debug)]
pub(crate) enum Weights {
    /// `[panel][inner][column]`
    F32(Aligned<f32>),
    /// `[panel][pair][column]`, the first of a pair in the low half of the word.
    Bf16(Aligned<u32>),
    /// `[panel][group][column][element of the group]`, and for each column its factor and the sum of its weights.
    Int8 { values: Aligned<i8>, scales: Aligned<f32>, sums: Aligned<i32> },
}

impl Values<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) | Self::F32Transposed(values) => values.len(),
            Self::I8 { values, .. } => values.len(),
        }
    }
}
