//! Embeddings in the dialects of other servers: OpenAI's `POST /v1/embeddings`, and `POST /embed` of text-embeddings-inference.

use serde_json::{Value, json};

use crate::{
    inference::{
        output::Output,
        query,
        request::{INPUTS_MAX, Input, VALUES_MAX},
        task::Parameters,
    },
    json::{
        field::{FieldError, FieldReason, RequestError},
        members::{Errors, Members},
        to_vec,
        tree::Node,
    },
};

/// A body of `/v1/embeddings`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingsRequest {
    /// The texts.
    pub inputs: Vec<Input>,
    /// The model; `None`: the configured one.
    pub model: Option<String>,
    /// Vectors as Base64 of their little-endian f32 values.
    pub is_base64: bool,
}

/// A body of `/embed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedRequest {
    /// The texts.
    pub inputs: Vec<Input>,
    /// The parameters: `normalize` and `truncate`.
    pub parameters: Parameters,
}

impl EmbeddingsRequest {
    /// Reads a body; unknown fields are ignored.
    ///
    /// # Errors
    ///
    /// The body is not valid; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let mut members = Members::of_lenient_body(body, VALUES_MAX)?;
        let mut errors = Errors::default();
        let inputs = texts(&mut members, "input", &mut errors);
        let model = members.text("model", &mut errors).and_then(|name| match query::model(name) {
            Ok(model) => Some(model),
            Err(error) => {
                errors.push(error);
                None
            }
        });
        let is_base64 = match members.text("encoding_format", &mut errors).as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                errors.push_at("encoding_format", FieldReason::NotAllowed, "must be float or base64");
                false
            }
        };
        if members.integer("dimensions", &mut errors).is_some() {
            let what = "is not known here: a vector has the length that the model gives it";
            errors.push_at("dimensions", FieldReason::Unknown, what);
        }
        errors.finish(Self { inputs, model, is_base64 })
    }
}

impl EmbedRequest {
    /// Reads a body; unknown fields are ignored.
    ///
    /// # Errors
    ///
    /// The body is not valid; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let mut members = Members::of_lenient_body(body, VALUES_MAX)?;
        let mut errors = Errors::default();
        let inputs = texts(&mut members, "inputs", &mut errors);
        let normalize = members.boolean("normalize", &mut errors);
        // text-embeddings-inference truncates only on request.
        let truncation = members.boolean("truncate", &mut errors).or(Some(false));
        let parameters = Parameters { normalize, truncation, ..Parameters::default() };
        errors.finish(Self { inputs, parameters })
    }
}

/// Reads a text, or a list of texts.
fn texts(members: &mut Members<'_>, name: &'static str, errors: &mut Errors) -> Vec<Input> {
    if !members.require(name, errors) {
        return Vec::new();
    }
    let input = |text: String| Input { text, text_pair: None, id: None };
    let items = match members.take(name) {
        Some(Node::Text(text)) => return vec![input(text.into_owned())],
        Some(Node::Array(items)) => items,
        other => {
            errors.push_type(name, "string or array", &other.unwrap_or(Node::Null));
            return Vec::new();
        }
    };
    if items.is_empty() || items.len() > INPUTS_MAX {
        let (bounds, length) = ((1, INPUTS_MAX as i64), items.len() as i64);
        let reason = if items.is_empty() { FieldReason::TooShort } else { FieldReason::TooLong };
        errors.push(FieldError::bounded(name, reason, "have a length of", bounds, length));
        return Vec::new();
    }
    let mut inputs = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        match item {
            Node::Text(text) => inputs.push(input(text.into_owned())),
            Node::Integer(_) | Node::Array(_) => {
                let what = "must be text: tokens of other models mean nothing to this one";
                errors.push_at(&format!("{name}[{at}]"), FieldReason::WrongType, what);
                return inputs;
            }
            other => {
                errors.push_type(format!("{name}[{at}]"), "string", &other);
                return inputs;
            }
        }
    }
    inputs
}

/// The response body of `/v1/embeddings`. `tokens` is the number of tokens of all texts.
pub fn embeddings_json(outputs: &[Output], model: &str, tokens: u64, is_base64: bool) -> Vec<u8> {
    let item = |(index, output): (usize, &Output)| {
        let vector = match output {
            Output::Embedding(vector) if is_base64 => Value::from(base64(vector)),
            Output::Embedding(vector) => json!(vector),
            Output::Labels(_) | Output::Entities(_) => Value::Null,
        };
        json!({ "object": "embedding", "index": index, "embedding": vector })
    };
    let data: Vec<Value> = outputs.iter().enumerate().map(item).collect();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    to_vec(&json!({ "object": "list", "data": data, "model": model, "usage": usage }))
}

/// The response body of `/embed`.
pub fn embed_json(outputs: &[Output]) -> Vec<u8> {
    to_vec(&outputs)
}

/// The values as Base64 (RFC 4648, section 4) of their little-endian bytes.
fn base64(vector: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded_little_endian() {
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
        assert_eq!(base64(&[1.0, -2.0, 0.5]), "AACAPwAAAMAAAAA/");
    }

    #[test]
    fn inputs_are_texts_and_tokens_are_refused() {
        let read = |body: &str| EmbeddingsRequest::from_json(body.as_bytes());
        let request = read(r#"{"input":["a","b"],"model":"m","encoding_format":"base64","user":"u"}"#).unwrap();
        assert_eq!((request.inputs.len(), request.is_base64, request.model.as_deref()), (2, true, Some("m")));
        assert_eq!(read(r#"{"input":"a"}"#).unwrap().inputs[0].text, "a");
        for body in [
            r#"{"input":[1,2]}"#,
            r#"{"input":[[1]]}"#,
            r#"{"input":[]}"#,
            "{}",
            r#"{"input":"a","dimensions":8}"#,
            r#"{"input":"a","encoding_format":"int8"}"#,
        ] {
            assert!(read(body).is_err(), "{body}");
        }
        let embed = EmbedRequest::from_json(br#"{"inputs":"a","normalize":false}"#).unwrap();
        assert_eq!((embed.parameters.normalize, embed.parameters.truncation), (Some(false), Some(false)));
    }
}
