//! Products with weights that are quantized in blocks of 32 of the inner dimension, as language models are distributed.
//!
//! A weight is `scale * (q - center)` or `scale * q + minimum`: `q` has four or eight bits, scale and minimum are f16 and belong to a
//! block, the center to the matrix. Columns lie in panels of sixteen, whatever the instruction set: `[panel][block][group][column]`
//! with groups of four weights, two groups in a vector of nibbles. Activations are quantized to i8 in the same blocks, with an f32
//! scale. The products of a block are summed exactly in i32; blocks are scaled and added in f32 in the order of the inner dimension,
//! independently of the other rows, so that a batch never changes a result.
//!
//! Results are `[panel][row][16]`: threads that compute different panels write to different slices.

mod matrix;
mod product;
mod rows;

pub use matrix::{QuantizedMatrix, WeightBlock, WeightForm};
pub use rows::QuantizedRows;

/// Elements of the inner dimension that share a scale.
pub const BLOCK: usize = 32;
/// Columns of a panel.
pub const PANEL: usize = 16;
/// Groups of four elements in a block.
const GROUPS: usize = BLOCK / 4;
