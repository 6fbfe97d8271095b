//! The bounds of expressions and of their evaluation.

/// Longest expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 8192;
/// Deepest nesting of an expression.
pub const DEPTH_MAX: usize = 48;
/// Deepest nesting of a result. The codec crate parses JSON of this depth, so a result can be the input of another
/// step.
pub const OUTPUT_DEPTH_MAX: usize = 100;

/// The bounds of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most steps: nodes visited, and values created or compared.
    pub steps_max: u64,
    /// Most bytes of all values that are created during the evaluation, by an estimate.
    pub memory_bytes_max: usize,
    /// Most bytes of the result as JSON.
    pub output_bytes_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { steps_max: 1_000_000, memory_bytes_max: 16 << 20, output_bytes_max: 1 << 20 }
    }
}
