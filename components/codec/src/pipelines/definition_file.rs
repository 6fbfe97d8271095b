//! The file of a pipeline: its definition, or its errors for the operator.

use std::fmt;

use weir_core::{pipelines::Definition, text_file};

use super::definition::{self, DEFINITION_BYTES_MAX};
use crate::{
    http::problem::{Problem, ProblemDetails},
    json::{
        JsonError,
        field::{FieldError, RequestError},
    },
};

/// Why a file is not the definition of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct DefinitionFault {
    /// The errors, for people.
    pub detail: String,
    /// The invalid members, if the file is JSON.
    pub errors: Vec<FieldError>,
    /// The line and the column of the error, both from 1, if the file is not JSON.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for DefinitionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl From<String> for DefinitionFault {
    fn from(detail: String) -> Self {
        Self { detail, errors: Vec::new(), position: None }
    }
}

impl DefinitionFault {
    /// The problem for a client that requests the pipeline. It is not retryable: the operator must correct the file.
    pub fn problem(&self, name: &str) -> Problem {
        let detail = format!("the definition of the pipeline `{name}` cannot be used: {}", self.detail);
        let problem = Problem::refused(503, "pipeline_invalid", "The pipeline is not valid", detail, None);
        let more = match self.position {
            Some((line, column)) => ProblemDetails::Position { line, column },
            None if self.errors.is_empty() => ProblemDetails::None,
            None => ProblemDetails::Fields(self.errors.clone()),
        };
        Problem { more, ..problem }
    }
}

/// Reads the file of the pipeline with this name: JSON in UTF-8, with or without a byte order mark.
///
/// # Errors
///
/// The file is too large, not UTF-8 text, not a definition, or the definition of another pipeline.
pub fn read(contents: &[u8], name: &str) -> Result<Definition, DefinitionFault> {
    if contents.len() > DEFINITION_BYTES_MAX {
        return Err(too_large(contents.len() as u64));
    }
    let text = text_file::text(contents).map_err(|error| error.to_string())?;
    let definition = definition::read(text.as_bytes()).map_err(fault)?;
    match definition.name() == name {
        true => Ok(definition),
        false => Err(format!(
            "its `name` is `{}`, and the name of the file is `{name}.json`: both must be the same",
            definition.name()
        )
        .into()),
    }
}

/// The fault of a file that is too large, without reading it.
pub fn too_large(bytes: u64) -> DefinitionFault {
    format!("the file has {bytes} bytes, and may have at most {DEFINITION_BYTES_MAX}").into()
}

fn fault(error: RequestError) -> DefinitionFault {
    // The messages of the JSON reader are about a body.
    let detail = error.to_string().replacen("the body", "the file", 1);
    match error {
        RequestError::Invalid(errors) => DefinitionFault { detail, errors, position: None },
        RequestError::Json(
            JsonError::Malformed { line, column, .. }
            | JsonError::LoneSurrogate { line, column }
            | JsonError::TooDeep { line, column }
            | JsonError::DuplicateKey { line, column, .. },
        ) => DefinitionFault { detail, errors: Vec::new(), position: Some((line, column)) },
        RequestError::Json(_) => detail.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "{\n\"name\": \"p\",\n\"steps\": [{\"id\": \"a\", \"kind\": \"map\", \"expression\": \"@\"}]\n}\n";

    #[test]
    fn definition_with_byte_order_mark_and_windows_line_ends_is_read() {
        for text in [GOOD.to_owned(), GOOD.replace('\n', "\r\n"), format!("\u{feff}{}", GOOD.replace('\n', "\r\n"))] {
            assert_eq!(read(text.as_bytes(), "p").map(|definition| definition.name().to_owned()), Ok("p".to_owned()));
        }
    }

    #[test]
    fn fault_of_a_definition_has_reason_and_position() {
        let fault = |contents: &[u8]| read(contents, "p").unwrap_err();
        let torn = fault(b"{\n  \"name\": ");
        assert_eq!(torn.position.map(|(line, _)| line), Some(2));
        assert!(torn.detail.starts_with("the file is not JSON: "), "{torn}");
        let other = fault(GOOD.replace("\"p\"", "\"q\"").as_bytes());
        assert_eq!(other.detail, "its `name` is `q`, and the name of the file is `p.json`: both must be the same");
        let members = fault(br#"{"name": "p", "steps": [{"id": "a", "kind": "mop", "expression": "@"}], "step": 1}"#);
        let fields: Vec<&str> = members.errors.iter().map(|error| &*error.field).collect();
        // The other members of a step depend on its kind.
        assert_eq!(fields, ["steps[0].kind", "step"]);
        assert_eq!(members.to_string().matches("steps[0].kind").count(), 1, "{members}");
        assert!(members.to_string().contains("steps[0].kind") && members.to_string().contains("`step`"), "{members}");
        let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(fault(&utf16).detail, "the file is UTF-16 or binary; save it as UTF-8 text");
        assert_eq!(fault(b"").detail, "the file is empty; JSON was expected");
        assert!(fault(&vec![b' '; DEFINITION_BYTES_MAX + 1]).detail.contains("at most"));
        let problem = members.problem("p");
        assert_eq!((problem.status, problem.code), (503, "pipeline_invalid"));
        assert!(matches!(problem.more, ProblemDetails::Fields(errors) if errors.len() == 2));
    }
}
