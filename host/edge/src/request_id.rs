//! The id of a request, which names it in logs and responses.

use http::{HeaderMap, HeaderName};

/// The header that carries the id, in requests and responses.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id of a client.
const LENGTH_MAX: usize = 128;

/// The client's id if it is valid, otherwise a new one.
pub(crate) fn of(headers: &HeaderMap, generate: impl FnOnce() -> String) -> String {
    let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if (1..=LENGTH_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) => id.to_string(),
        _ => generate(),
    }
}
