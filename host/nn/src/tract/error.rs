//! The texts of errors of tract.

use tract_onnx::prelude::TractError;

use crate::error::one_line;

/// An error with its causes on one line of bounded length: tract prints whole nodes.
pub(super) fn chain(error: &TractError) -> String {
    one_line(&error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": "))
}
