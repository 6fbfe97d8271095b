//! Weights, packed for the products of an instruction set.

use crate::aligned::Aligned;
use crate::isa::{Isa, Layout};
use crate::pack::pack;
use crate::weights::{Precision, Values, Weights};

/// The largest inner dimension: with it a sum of u8 by i8 products stays below 2^31.
pub(crate) const INNER_MAX: usize = 1 << 16;

/// A matrix `[inner, columns]` and a bias `[columns]`, in panels: the columns that a tile computes lie together.
#[derive(Debug)]
pub struct Matrix {
    isa: Isa,
    inner: usize,
    columns: usize,
    pub(crate) layout: Layout,
    /// `[panels * layout.columns]`, zeros past the last column.
    pub(crate) bias: Aligned<f32>,
    pub(crate) weights: Weights,
}

impl Matrix {
    /// Packs matrices with the same inner dimension side by side: `(values, bias)` each, the bias as long as the matrix has columns.
    ///
    /// # Panics
    /// When a slice's length does not agree with the dimensions, there are no columns, or `inner` is 0 or above 65,536.
    pub fn pack(isa: Isa, precision: Precision, inner: usize, parts: &[(Values<'_>, &[f32])]) -> Self {
        assert!((1..=INNER_MAX).contains(&inner), "an inner dimension of {inner} is not within 1 to {INNER_MAX}");
        let columns: usize = parts.iter().map(|(_, bias)| bias.len()).sum();
        assert!(columns > 0, "a matrix needs columns");
        for (values, bias) in parts {
            assert_eq!(values.len(), inner * bias.len(), "values of a matrix [{inner}, {}]", bias.len());
            if let Values::I8 { scales, .. } = values {
                assert_eq!(scales.len(), bias.len(), "a factor for each of {} columns", bias.len());
            }
        }
        let layout = isa.layout();
        let padded = columns.next_multiple_of(layout.columns);
        let mut bias = Aligned::zeroed(padded);
        let all = parts.iter().flat_map(|(_, bias)| bias.iter());
        bias.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        let weights = pack(isa, precision, inner, parts);
        Self { isa, inner, columns, layout, bias, weights }
    }

    /// The dimension that a product sums over.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number format of its products.
    pub fn precision(&self) -> Precision {
        match self.weights {
            Weights::F32(_) => Precision::F32,
            Weights::Bf16(_) => Precision::Bf16,
            Weights::Int8 { .. } => Precision::Int8,
        }
    }

    /// The instruction set that the matrix is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        let weights = match &self.weights {
            Weights::F32(values) => size_of_val::<[f32]>(values),
            Weights::Bf16(values) => size_of_val::<[u32]>(values),
            Weights::Int8 { values, .. } => values.len() + 8 * self.bias.len(),
        };
        weights + 4 * self.bias.len()
    }
}
