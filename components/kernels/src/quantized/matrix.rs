//! Quantized weights, packed for an instruction set.

use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::quantized::product::{Multiply, Weights};
use crate::quantized::rows::QuantizedRows;
use crate::quantized::{BLOCK, GROUPS, PANEL};
use crate::simd::{f16_to_f32, f32_to_f16};

/// How the integers of a matrix map to weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// 0 to 15: `scale * (q - center)`.
    Nibbles {
        /// The integer of weight 0, at most 15.
        center: u8,
    },
    /// 0 to 15: `scale * q + minimum`.
    NibblesWithMinimum,
    /// 0 to 255: `scale * (q - center)`.
    Bytes {
        /// The integer of weight 0.
        center: u8,
    },
    /// 0 to 255: `scale * q + minimum`.
    BytesWithMinimum,
}

impl WeightForm {
    pub(crate) fn has_bytes(self) -> bool {
        matches!(self, Self::Bytes { .. } | Self::BytesWithMinimum)
    }

    pub(crate) fn has_minimum(self) -> bool {
        matches!(self, Self::NibblesWithMinimum | Self::BytesWithMinimum)
    }

    pub(crate) fn center(self) -> u8 {
        match self {
            Self::Nibbles { center } | Self::Bytes { center } => center,
            Self::NibblesWithMinimum | Self::BytesWithMinimum => 0,
        }
    }

    /// Bytes of the integers of a panel's block.
    fn block_bytes(self) -> usize {
        if self.has_bytes() { BLOCK * PANEL } else { BLOCK * PANEL / 2 }
    }
}

/// 32 weights of a column.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WeightBlock {
    /// Rounded to f16 when it is packed.
    pub scale: f32,
    /// Rounded to f16 when it is packed; ignored in a form without a minimum.
    pub minimum: f32,
    /// The integers.
    pub values: [u8; BLOCK],
}

/// A matrix `[inner, columns]` of quantized weights.
#[derive(Debug)]
pub struct QuantizedMatrix {
    isa: Isa,
    inner: usize,
    columns: usize,
    form: WeightForm,
    /// The factor of all weights.
    factor: f32,
    /// `[panel][block]`, each block being the integers of [`GROUPS`] groups.
    values: Aligned<u8>,
    /// f16: `[panel][block][column]`.
    scales: Aligned<u16>,
    /// f16: `[panel][block][column]`, empty in a form without a minimum.
    minima: Aligned<u16>,
    /// By column, padded to whole panels; empty without a bias.
    bias: Vec<f32>,
}

impl QuantizedMatrix {
    /// Packs the blocks that `block(column, index)` returns. Every weight is multiplied by `factor`: a power of two moves scales that
    /// are outside the range of f16 into it.
    ///
    /// # Panics
    /// If `inner` is not a multiple of 32.
    pub fn pack(
        isa: Isa,
        (inner, columns): (usize, usize),
        form: WeightForm,
        factor: f32,
        mut block: impl FnMut(usize, usize) -> WeightBlock,
    ) -> Self {
        assert_eq!(inner % BLOCK, 0, "the inner dimension of a quantized matrix");
        let (panels, blocks) = (columns.div_ceil(PANEL), inner / BLOCK);
        let shift = if form.has_bytes() { isa.byte_shift() } else { 0 };
        let mut values = Aligned::zeroed(panels * blocks * form.block_bytes());
        let mut scales = Aligned::zeroed(panels * blocks * PANEL);
        let mut minima = Aligned::zeroed(if form.has_minimum() { scales.len() } else { 0 });
        for column in 0..columns {
            for index in 0..blocks {
                let position = column / PANEL * blocks + index;
                let lane = column % PANEL;
                let block = block(column, index);
                let to: &mut [u8] = &mut values[position * form.block_bytes()..][..form.block_bytes()];
                for (group, values) in block.values.chunks_exact(4).enumerate() {
                    if form.has_bytes() {
                        let to = &mut to[group * 4 * PANEL + lane * 4..][..4];
                        to.iter_mut().zip(values).for_each(|(to, value)| *to = value.wrapping_sub(shift));
                    } else {
                        let to = &mut to[group / 2 * 4 * PANEL + lane * 4..][..4];
                        to.iter_mut().zip(values).for_each(|(to, value)| *to |= (value & 15) << (group % 2 * 4));
                    }
                }
                scales[position * PANEL + lane] = f32_to_f16(block.scale.clamp(-F16_MAX, F16_MAX));
                if form.has_minimum() {
                    minima[position * PANEL + lane] = f32_to_f16(block.minimum.clamp(-F16_MAX, F16_MAX));
                }
            }
        }
        Self { isa, inner, columns, form, factor, values, scales, minima, bias: Vec::new() }
    }

    /// Adds a bias to every product.
    ///
    /// # Panics
    /// If its length is not the number of columns.
    pub fn with_bias(mut self, bias: &[f32]) -> Self {
        assert_eq!(bias.len(), self.columns, "the bias of a quantized matrix");
        self.bias = bias.to_vec();
        self.bias.resize(self.panels() * PANEL, 0.0);
        self
    }

    /// Rows of weights.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Columns of weights.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Panels of sixteen columns; the last one is padded.
    pub fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// Bytes of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.values.len() + 2 * (self.scales.len() + self.minima.len()) + 4 * self.bias.len()
    }

    /// Writes the products of the rows and a range of panels to `out`, `[panel][row][16]`.
    ///
    /// # Panics
    /// If the panels are out of range, or the sizes do not agree.
    pub fn multiply(&self, panels: std::ops::Range<usize>, rows: &QuantizedRows, out: &mut [f32]) {
        assert!(panels.start <= panels.end && panels.end <= self.panels(), "the panels of a product");
        assert_eq!(rows.inner(), self.inner, "the inner dimension of a product");
        assert_eq!(out.len(), panels.len() * rows.rows() * PANEL, "the size of a product");
        let (blocks, form) = (self.inner / BLOCK, self.form);
        let cells = panels.start * blocks * PANEL..panels.end * blocks * PANEL;
        let bytes = panels.start * blocks * form.block_bytes()..panels.end * blocks * form.block_bytes();
        let bias = panels.start * PANEL..panels.end * PANEL;
        let shift = if form.has_bytes() { self.isa.byte_shift() } else { 0 };
        let weights = Weights {
            blocks,
            factor: self.factor,
            values: &self.values[bytes],
            scales: &self.scales[cells.clone()],
            minima: if form.has_minimum() { &self.minima[cells] } else { &[] },
            bias: if self.bias.is_empty() { &[] } else { &self.bias[bias] },
            offset: f32::from(shift) - f32::from(form.center()),
        };
        let has_bytes = form.has_bytes();
        self.isa.run(Multiply { weights, has_bytes, rows, out });
    }

    /// Writes the weights of a column to `out`.
    ///
    /// # Panics
    /// If there is no such column, or the length of `out` is not the inner dimension.
    pub fn column(&self, column: usize, out: &mut [f32]) {
        assert!(column < self.columns && out.len() == self.inner, "a column of a quantized matrix");
        let (blocks, lane, form) = (self.inner / BLOCK, column % PANEL, self.form);
        let shift = if form.has_bytes() { self.isa.byte_shift() } else { 0 };
        for (index, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let position = column / PANEL * blocks + index;
            let values = &self.values[position * form.block_bytes()..][..form.block_bytes()];
            let scale = f16_to_f32(self.scales[position * PANEL + lane]);
            let minimum = if form.has_minimum() { f16_to_f32(self.minima[position * PANEL + lane]) } else { 0.0 };
            for (offset, out) in out.iter_mut().enumerate() {
                let (group, element) = (offset / 4, offset % 4);
                let value = if form.has_bytes() {
                    values[group * 4 * PANEL + lane * 4 + element].wrapping_add(shift)
                } else {
                    values[group / 2 * 4 * PANEL + lane * 4 + element] >> (group % 2 * 4) & 15
                };
                *out = self.factor * (scale * (f32::from(value) - f32::from(form.center())) + minimum);
            }
        }
    }
}

/// The greatest f16.
const F16_MAX: f32 = 65504.0;

const _: () = assert!(GROUPS == 8);
