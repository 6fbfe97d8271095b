//! A small, total, bounded language over JSON values: a subset of JMESPath, with arithmetic.
//!
//! The standard is [JMESPath](https://jmespath.org/specification.html): identifiers (`a`, `"quoted-a"`), `a.b`, `a[0]`,
//! `a[-1]`, projections (`a[*].b`), filters (``a[?b > `1`]``), flattening (`a[]`), pipes (`a | b`), lists (`[a, b]`),
//! objects (`{x: a, y: b}`), literals (`` `{"any": "json"}` ``, `'raw string'`), `@`, comparison, `&&`, `||`, `!`,
//! parentheses and functions; precedence and truth as specified there. From its enhancement proposals: `+ - * / %`
//! (JEP-16) and the string functions `lower upper trim split replace` (JEP-14).
//!
//! `tests/compliance.rs` runs the compliance suite of JMESPath and lists the unsupported features: slices, the values
//! of an object by `*` (use `values(@)`), and functions by expression other than `map` (`sort_by`, `max_by`, `min_by`).
//!
//! Beyond the standard: comparison orders strings as well as numbers; the keys of a constructed object are sorted;
//! integers are exact up to 64 bits. Numbers are equal by their value, `1` and `1.0`, at every level. A list or an
//! object that is constructed from null is null.
//!
//! There are no loops other than those over the items of arrays, and no recursion. An evaluation has a budget:
//! [`Bounds`].

mod evaluate;
mod functions;
mod input;
mod parse;
mod slices;
#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;

use thiserror::Error;
use weir_core::pipelines::Json;

use evaluate::Evaluation;
use input::Place;
use parse::Node;
use slices::Slices;
use text::{Reader, Writer};

pub use input::Input;

/// Longest expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 8192;
/// Deepest nesting of an expression.
pub const DEPTH_MAX: usize = 48;
/// Deepest nesting of a result. The codec crate parses JSON of this depth, so a result can be the input of another
/// step.
pub const OUTPUT_DEPTH_MAX: usize = 100;

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Expression {
    root: Node,
}

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
    /// The evaluation exceeds [`Bounds::steps_max`].
    #[error("the expression takes more than {0} steps")]
    Steps(u64),
    /// The evaluation exceeds [`Bounds::memory_bytes_max`].
    #[error("the expression makes values of more than {0} bytes")]
    Memory(usize),
    /// The result exceeds [`Bounds::output_bytes_max`].
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

impl Expression {
    /// Parses an expression.
    ///
    /// # Errors
    ///
    /// The text is not an expression, is longer than [`EXPRESSION_BYTES_MAX`], or is nested deeper than [`DEPTH_MAX`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::parse(text).map(|root| Self { root })
    }

    /// Evaluates the expression over a value, within bounds.
    ///
    /// # Errors
    ///
    /// See [`EvaluationError`].
    pub fn evaluate<'a>(&self, input: impl Into<Input<'a>>, bounds: Bounds) -> Result<Json, EvaluationError> {
        let read = |(place, text): (Place<'a>, &'a Json)| {
            let mut reader = Reader::new(text.as_str());
            reader.advance(usize::MAX)?;
            Ok((place, reader.into_value()))
        };
        let values = input.into().texts(&self.root).into_iter().map(read).collect::<Result<_, _>>()?;
        let input = input::assemble(values);
        let result = Evaluation::new(bounds).value(&self.root, &input)?;
        let mut writer = Writer::new(&result, bounds);
        writer.advance(usize::MAX)?;
        Ok(Json::from_checked(writer.into_text()))
    }

    /// Evaluates the expression as [`Expression::evaluate`] does, in slices of bounded work: `pause` is awaited between
    /// slices.
    ///
    /// A slice reads or writes about 32 KiB of JSON text, or takes about 10,000 steps. It is longer if it has a long
    /// string: strings are read, written, copied and searched as a whole.
    ///
    /// # Errors
    ///
    /// See [`EvaluationError`].
    pub async fn evaluate_in_slices<'a>(
        &self,
        input: impl Into<Input<'a>>,
        bounds: Bounds,
        mut pause: impl AsyncFnMut(),
    ) -> Result<Json, EvaluationError> {
        let mut slices = Slices::new(Evaluation::new(bounds), &mut pause);
        let mut values = Vec::new();
        for (place, text) in input.into().texts(&self.root) {
            values.push((place, slices.read(Reader::new(text.as_str())).await?));
        }
        let input = input::assemble(values);
        let text = match slices.value(&self.root, &input).await {
            Ok(result) => {
                let text = slices.write(Writer::new(&result, bounds)).await;
                if let Cow::Owned(result) = result {
                    slices.discard(result).await;
                }
                text
            }
            Err(error) => Err(error),
        };
        slices.discard(input).await;
        text.map(Json::from_checked)
    }
}
