//! Query strings in the form encoding (the URL standard, section 5.1): the parameters of a stream of items.

use std::borrow::Cow;

use crate::{
    inference::task::{MODEL_BYTES_MAX, Parameters, Task},
    json::field::{ERRORS_MAX, FieldError, FieldReason, RequestError, unknown},
};

/// The parameters of a query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// `model`
    pub model: Option<String>,
    /// All other parameters.
    pub parameters: Parameters,
}

impl Query {
    /// Reads a query string without its `?`.
    ///
    /// # Errors
    ///
    /// Every invalid parameter, up to one more than [`ERRORS_MAX`].
    pub fn read(query: &str, task: Task) -> Result<Self, RequestError> {
        let mut read = Self::default();
        let mut errors = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if let Err(error) = read.take(&decode(name), decode(value), task) {
                errors.push(error);
            }
            if errors.len() > ERRORS_MAX {
                break;
            }
        }
        match errors.is_empty() {
            true => Ok(read),
            false => Err(RequestError::Invalid(errors)),
        }
    }

    fn take(&mut self, name: &str, value: Cow<'_, str>, task: Task) -> Result<(), FieldError> {
        if name == "model" {
            if self.model.is_some() {
                return Err(twice("model"));
            }
            self.model = Some(model(value.into_owned())?);
            return Ok(());
        }
        if !task.parameters().contains(&name) {
            let mut known = vec!["model"];
            known.extend(task.parameters());
            return Err(unknown(name.to_owned(), &known));
        }
        self.parameters.take_text(name, value)
    }
}

/// The error of a parameter that may appear once.
pub(crate) fn twice(name: &str) -> FieldError {
    FieldError::new(name.to_owned(), FieldReason::NotAllowed, format!("`{name}` must be given once"))
}

/// Checks the length of the name of a model.
pub(crate) fn model(name: String) -> Result<String, FieldError> {
    match name.len() {
        1..=MODEL_BYTES_MAX => Ok(name),
        length => {
            let reason = if length == 0 { FieldReason::TooShort } else { FieldReason::TooLong };
            let bounds = (1, MODEL_BYTES_MAX as i64);
            Err(FieldError::bounded("model", reason, "have a length in bytes of", bounds, length as i64))
        }
    }
}

/// Percent-decodes a part of a query: `+` is a space, and invalid escapes are kept. Bytes that are not UTF-8 become U+FFFD.
pub fn decode(text: &str) -> Cow<'_, str> {
    decode_with(text, true)
}

/// Percent-decodes a part of a path, in which `+` is not a space.
pub fn decode_path(text: &str) -> Cow<'_, str> {
    decode_with(text, false)
}

fn decode_with(text: &str, plus: bool) -> Cow<'_, str> {
    if !text.bytes().any(|byte| byte == b'%' || (plus && byte == b'+')) {
        return Cow::Borrowed(text);
    }
    let hex = |byte: u8| (byte as char).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    decoded.push((high * 16 + low) as u8);
                    rest = after;
                }
                _ => decoded.push(b'%'),
            },
            (b'+', _) if plus => decoded.push(b' '),
            (byte, _) => decoded.push(*byte),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(query: &str, task: Task, want: Expect) {
        want.assert_eq(&match Query::read(query, task) {
            Ok(Query { model, parameters: p }) => format!(
                "{model:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                p.top_k, p.activation, p.truncation, p.aggregation, p.ignore_labels, p.normalize, p.timeout_ms
            ),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn query_sets_the_parameters() {
        check("", Task::Classify, expect!["None None None None None None None None"]);
        check(
            "model=a%2Fb+c&top_k=3&function_to_apply=None&truncation=true&timeout_ms=250&&",
            Task::Classify,
            expect![[r#"Some("a/b c") Some(3) Some(None) Some(true) None None None Some(250)"#]],
        );
        check(
            "ignore_labels=O&ignore_labels=5&aggregation_strategy=max",
            Task::Tokens,
            expect![[r#"None None None None Some(Max) Some(["O", "5"]) None None"#]],
        );
        check(
            "normalize=false&truncate=false",
            Task::Embed,
            expect!["None None None Some(false) None None Some(false) None"],
        );
    }

    #[test]
    fn all_parameter_errors_are_listed() {
        check(
            "top_k=0&function_to_apply=tanh&truncation=yes&normalize=true&model=&timeout_ms=",
            Task::Classify,
            expect![
                "`top_k` must be 1 to 4294967295, and is 0; `function_to_apply` must be one of softmax, sigmoid, none; `truncation` must be a boolean, and is a string; `normalize` is not known here; there are model, top_k, function_to_apply, truncation, truncation_direction, timeout_ms; `model` must have a length in bytes of 1 to 256, and is 0; `timeout_ms` must be an integer, and is a string"
            ],
        );
        check("model=a&top_k=1&model=b", Task::Classify, expect!["`model` must be given once"]);
        let many = "ignore_labels=O&".repeat(65);
        check(&many, Task::Tokens, expect!["`ignore_labels` must have a length of 0 to 64, and is 65"]);
    }

    #[test]
    fn query_with_thousands_of_errors_has_a_bounded_response() {
        for task in [Task::Classify, Task::Tokens, Task::Embed] {
            let error = Query::read(&"a&".repeat(4096), task).unwrap_err();
            assert!(error.to_string().ends_with("; there are more errors than these 32"), "{error}");
            let body = String::from_utf8(crate::http::problem::Problem::from(error).to_json("r-1")).unwrap();
            assert!(body.len() < 32 * 1024 && body.contains(r#""errors_truncated":true"#), "{} bytes", body.len());
        }
    }

    #[test]
    fn escapes_are_decoded_and_invalid_ones_are_kept() {
        for (text, want) in [
            ("a", "a"),
            ("a+b", "a b"),
            ("%41%c3%a9", "Aé"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(decode(text), want);
        }
        assert_eq!(decode_path("a+b%2b"), "a+b+");
    }
}
