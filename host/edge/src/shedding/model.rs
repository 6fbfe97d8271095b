//! The model that a JSON body names, without parsing it.

/// The name of the member.
const MEMBER: &[u8] = b"\"model\"";

/// The string of the first member `model` in a JSON text, without unescaping; `None` if there is none. It only distinguishes
/// kinds of requests, so it may be wrong if a nested object has a member of that name. The name within a string has escaped
/// quotes, which do not match.
pub(super) fn named_in(json: &[u8]) -> Option<&[u8]> {
    let at = json.windows(MEMBER.len()).position(|part| part == MEMBER)?;
    let rest =
        json[at + MEMBER.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    rest.iter().position(|byte| *byte == b'"').map(|end| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_of_a_body_is_found() {
        for (json, model) in [
            (r#"{"inputs":"a","model":"sentiment"}"#, Some("sentiment")),
            (r#"{ "model" : "a b", "inputs":"a"}"#, Some("a b")),
            (r#"{"inputs":"a"}"#, None),
            (r#"{"inputs":"the \"model\": \"x\""}"#, None),
            (r#"{"model":7}"#, None),
            (r#"{"model":"cut"#, None),
            (r#"{"model""#, None),
            ("", None),
        ] {
            assert_eq!(named_in(json.as_bytes()), model.map(str::as_bytes), "{json}");
        }
    }
}
