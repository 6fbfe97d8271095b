//! Transformer kernels: products over packed weights, attention by text, layer normalization, softmax and the activation
//! functions, and an [`Encoder`] made of them. No IO, no threads, no dependency but `std`.
//!
//! # Instruction sets
//! Every kernel is written once, in safe code, over the vector operations of a private trait, and compiled once for each
//! instruction set. [`Isa::best`] chooses one when the program starts; [`Isa::available`] lists what this processor can run, so that
//! tests compare them all. `unsafe` occurs in the file of an instruction set and nowhere else.
//!
//! # Batch invariance
//! A batch never changes a result, bit for bit. Each element of a product is one sum in the order of the inner dimension,
//! whatever rows stand beside it; attention, normalization and quantization read one text or one row. Results differ
//! between instruction sets (which round and fuse differently), never between batches.
//!
//! # Precision
//! [`Precision::F32`] multiplies f32 by f32. [`Precision::Bf16`] rounds both factors to bf16 and sums in f32; a processor without such
//! an instruction multiplies the same rounded numbers in f32. [`Precision::Int8`] multiplies activations quantized to u8, with a scale and a zero point
//! for each row (token), by i8 weights with a scale for each column, and sums in i32: the integer sums are exact, so they are the same
//! on every instruction set. One scale for a whole batch would let one text change the result of another.

mod aligned;
mod attention;
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
mod relative;
mod rows;
mod simd;
mod table;
mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;

pub use encoder::{
    Activation, Embeddings, Encoder, EncoderConfig, EncoderError, EncoderWeights, LayerWeights, Linear, Norm, Scratch,
    Texts, Variant,
};
pub use isa::{Isa, UnknownIsa};
pub use matrix::{Matrix, Precision, Values};
pub use modern::{ModernConfig, ModernEncoder, ModernLayerWeights};
pub use peak::peak_operations;
pub use product::Epilogue;
pub use relative::{LayerDistances, Relative};
pub use rows::Rows;
pub use table::{Table, TableRows};
