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

mod bounds;
mod error;
mod evaluate;
mod functions;
mod input;
mod parse;
mod slices;
#[cfg(test)]
mod tests;
mod text;
mod tree;

use std::borrow::Cow;

use weir_core::pipelines::Json;

use evaluate::Evaluation;
use input::Place;
use slices::Slices;
use text::{Reader, Writer};
use tree::Node;

pub use bounds::{Bounds, DEPTH_MAX, EXPRESSION_BYTES_MAX, OUTPUT_DEPTH_MAX};
pub use error::{EvaluationError, ParseError};
pub use input::Input;

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Expression {
    root: Node,
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
