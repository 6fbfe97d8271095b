//! Transformer kernels: products over packed weights, attention by text, layer normalization, softmax and the activation
//! functions, and an [`Encoder`] made of them. No IO, no threads, no dependency but `std`.
//!
//! # Instruction sets
//! Every kernel is written once, in safe code, over the vector operations of a private trait, and compiled once for each
//! instruction set. [`Isa::best`] chooses one when the program starts; [`Isa::available`] lists what this processor can run, so that
//! tests compare them all. `unsafe` occurs in the file of an instruction set, each with its contract at its top, and in `tile`, whose
//! loop reads activations through a pointer after one check of its bounds.
//!
//! # How a product is tiled
//! `[rows, inner] · [inner, columns]`. A [`Matrix`] lies in panels of two vectors of columns:
//! `[panel][step][column]`, where a step is one f32, a pair of bf16 or a group of two or four i8 of the inner
//! dimension: the elements that one instruction multiplies and adds in a lane. A tile is a panel by up to twelve
//! rows (six where there are sixteen registers): its sums stay in registers while a step loads two vectors of
//! weights, and each row's activation is broadcast and multiplied by both. Rows are read where they are in f32; in
//! bf16 and int8 they are lowered once for a product, with an odd number of cache lines from one to the next so
//! that the rows of a tile do not compete for the same lines. All blocks of rows pass one panel before the next
//! panel is read, so weights are read from memory once for a product, and a product of twelve rows is as fast as a
//! large one. Blocks are as equal as possible, because a block of one row is slow. Attention uses the same tile,
//! with keys and values as panels. A product has columns and an inner dimension of any length: panels are padded
//! with zeros, which add nothing.
//!
//! # Batch invariance
//! A batch never changes a result, bit for bit. Each element of a product is one sum in the order of the inner
//! dimension, regardless of the other rows of the batch; attention, normalization and quantization read one text or
//! one row. Results differ between instruction sets (which round and fuse differently), never between batches.
//!
//! # Precision
//! [`Precision::F32`] multiplies f32 by f32. [`Precision::Bf16`] rounds both factors to bf16 and sums in f32; a
//! processor without such an instruction multiplies the same rounded numbers in f32. [`Precision::Int8`] multiplies
//! activations quantized to u8, with a scale and a zero point for each row (token), by i8 weights with a scale for
//! each column, and sums in i32: the integer sums are exact, so they are the same on every instruction set. One
//! scale for a whole batch would let one text change the result of another.

mod aligned;
mod attention;
mod decoder;
mod encoder;
mod isa;
mod math;
mod matrix;
mod modern;
mod normalize;
mod pack;
mod peak;
mod portable;
mod product;
mod quantized;
mod relative;
mod rows;
mod simd;
mod strided;
mod table;
mod tile;
mod weights;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;

pub use decoder::{
    CachePages, PAGE_TOKENS, PageShape, PagedAttention, exponentials, gated_silu, greatest, rms_norm, rotate,
};
pub use encoder::{
    Activation, Embeddings, Encoder, EncoderConfig, EncoderError, EncoderWeights, LayerWeights, Linear, Norm, Scratch,
    Texts, Variant,
};
pub use isa::{Isa, UnknownIsa};
pub use matrix::Matrix;
pub use modern::{ModernConfig, ModernEncoder, ModernLayerWeights};
pub use peak::peak_operations;
pub use product::Epilogue;
pub use quantized::{BLOCK, PANEL, QuantizedMatrix, QuantizedRows, WeightBlock, WeightForm};
pub use relative::{LayerDistances, Relative};
pub use rows::Rows;
pub use table::{Table, TableRows};
pub use weights::{Precision, Values};
