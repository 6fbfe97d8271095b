//! Templates: texts with expressions, such as the prompt `Summarize in one sentence: {{text}}` of a `generate` step.

use weir_core::pipelines::Json;
use weir_expression::Expression;

/// Longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 16 << 10;
/// Maximum number of expressions of a template.
pub const EXPRESSIONS_MAX: usize = 32;

/// A part of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplatePart<'t> {
    /// Literal text.
    Text(&'t str),
    /// An expression that is replaced by its value.
    Expression(&'t str),
}

/// The parts of a template. Expressions are in double braces.
///
/// # Errors
///
/// Braces are not closed, an expression is invalid, or there are too many; the text names the error.
pub fn parts(template: &str) -> Result<Vec<TemplatePart<'_>>, String> {
    let (mut parts, mut rest, mut count) = (Vec::new(), template, 0);
    while let Some((text, after)) = rest.split_once("{{") {
        let Some((expression, after)) = after.split_once("}}") else {
            return Err(format!("braces are not closed: `{{{{{}`", after.chars().take(32).collect::<String>()));
        };
        let expression = expression.trim();
        Expression::parse(expression).map_err(|error| format!("`{expression}` is no expression: {error}"))?;
        count += 1;
        if count > EXPRESSIONS_MAX {
            return Err(format!("there are more than {EXPRESSIONS_MAX} expressions"));
        }
        parts.extend([TemplatePart::Text(text), TemplatePart::Expression(expression)]);
        rest = after;
    }
    parts.push(TemplatePart::Text(rest));
    parts.retain(|part| *part != TemplatePart::Text(""));
    Ok(parts)
}

/// The text of a value in a template: a string without quotes, any other value as JSON.
pub fn value_text(value: &Json) -> String {
    match serde_json::from_str(value.as_str()) {
        Ok(serde_json::Value::String(text)) => text,
        _ => value.as_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expression_in_double_braces_is_a_part() {
        use TemplatePart::{Expression, Text};
        assert_eq!(parts("a {{ b.c }}!"), Ok(vec![Text("a "), Expression("b.c"), Text("!")]));
        assert_eq!(parts("{{@}}{{@}}"), Ok(vec![Expression("@"), Expression("@")]));
        assert_eq!(parts("{a}"), Ok(vec![Text("{a}")]));
        assert_eq!(parts(""), Ok(Vec::new()));
        for template in ["{{", "a {{b", "{{}}", "{{ b. }}", &"{{a}}".repeat(33)] {
            assert!(parts(template).is_err(), "{template}");
        }
    }

    #[test]
    fn string_has_no_quotes_and_other_values_are_json() {
        let json = |text: &str| value_text(&Json::from_checked(text.to_owned()));
        assert_eq!(json("\"a\\n\""), "a\n");
        assert_eq!(json("[1,\"a\"]"), "[1,\"a\"]");
        assert_eq!(json("null"), "null");
    }
}
