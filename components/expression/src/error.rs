//! Why a text is not an expression, and why an evaluation has no result.

use thiserror::Error;

use super::bounds::OUTPUT_DEPTH_MAX;

/// Why a text is not an expression.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message} at byte {at}")]
pub struct ParseError {
    /// The error, without its position.
    pub message: String,
    /// The position in bytes, from 1.
    pub at: usize,
}

/// Why an evaluation has no result. A retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvaluationError {
    /// The input is not JSON.
    #[error("the input is not JSON")]
    Input,
    /// The evaluation exceeds [`Bounds::steps_max`](crate::Bounds::steps_max).
    #[error("the expression takes more than {0} steps")]
    Steps(u64),
    /// The evaluation exceeds [`Bounds::memory_bytes_max`](crate::Bounds::memory_bytes_max).
    #[error("the expression makes values of more than {0} bytes")]
    Memory(usize),
    /// The result exceeds [`Bounds::output_bytes_max`](crate::Bounds::output_bytes_max).
    #[error("the result has more than {0} bytes")]
    OutputBytes(usize),
    /// The result is nested deeper than [`OUTPUT_DEPTH_MAX`].
    #[error("the result is nested deeper than {OUTPUT_DEPTH_MAX} levels")]
    OutputDepth,
    /// A value has a type that the operator or function does not accept.
    #[error("{operation} takes {expected}, not {actual}")]
    Type {
        /// The operator or function.
        operation: &'static str,
        /// The accepted types.
        expected: &'static str,
        /// The type of the value.
        actual: &'static str,
    },
    /// The result of an operation is not a number, such as that of a division by zero.
    #[error("the result of {0} is no number")]
    NotANumber(&'static str),
}
