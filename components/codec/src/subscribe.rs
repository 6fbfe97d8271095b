//! What a subscription asks for: where it goes on.
//!
//! `Last-Event-ID` is what a browser sends by itself when it connects again; `last_event_id` in the query is for the first
//! connection. A browser that connects again sends both, and the query is old by then: the header counts.

use crate::{
    query::decode,
    request::{FieldError, FieldReason, RequestError},
    sse::NAME_BYTES_MAX,
};

/// The query parameter.
pub const LAST_EVENT_ID: &str = "last_event_id";

/// The id of the last event that a client has, by the header `Last-Event-ID` and the query without its question mark; none
/// for one that has none, or says so with an empty one. Other parameters are passed over: they are others' concern.
///
/// # Errors
///
/// An id is too long or has characters that ids of events have not; the parameter is there twice.
pub fn last_event_id(header: Option<&[u8]>, query: &str) -> Result<Option<String>, RequestError> {
    let mut asked = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name) == LAST_EVENT_ID && asked.replace(decode(value)).is_some() {
            return Err(wrong("must be given once"));
        }
    }
    let id = match header {
        Some(header) => std::str::from_utf8(header).map_err(|_| wrong("must be the id of an event"))?.trim().into(),
        None => asked.unwrap_or_default(),
    };
    if id.len() > NAME_BYTES_MAX || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("must be the id of an event"));
    }
    Ok(Some(id.into_owned()).filter(|id| !id.is_empty()))
}

fn wrong(what: &str) -> RequestError {
    let message = format!("`{LAST_EVENT_ID}` {what}");
    RequestError::Invalid(vec![FieldError::new(LAST_EVENT_ID, FieldReason::NotAllowed, message)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn where_to_go_on() {
        for (header, query, want) in [
            (None, "", None),
            (None, "last_event_id=e-7", Some("e-7")),
            (None, "ticket=x&last%5Fevent_id=e%2D7&y", Some("e-7")),
            (Some("e-9"), "last_event_id=e-7", Some("e-9")),
            (Some(" e-9 "), "", Some("e-9")),
            // A browser that was told to forget.
            (Some(""), "last_event_id=e-7", None),
            (None, "last_event_id=", None),
        ] {
            let found = last_event_id(header.map(str::as_bytes), query);
            assert_eq!(found, Ok(want.map(str::to_owned)), "{header:?} {query}");
        }
    }

    #[test]
    fn what_is_refused() {
        let told = |header: Option<&[u8]>, query: &str| last_event_id(header, query).unwrap_err().to_string();
        assert_eq!(told(None, "last_event_id=1&last_event_id=1"), "`last_event_id` must be given once");
        for header in [&b"a b"[..], b"a\r\nb", b"\xff", b"a\0", "é".as_bytes(), &[b'x'; 257]] {
            assert_eq!(told(Some(header), ""), "`last_event_id` must be the id of an event");
        }
        assert_eq!(told(None, "last_event_id=a%0ab"), "`last_event_id` must be the id of an event");
    }

    proptest! {
        #[test]
        fn no_request_can_hurt(header in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), query in "\\PC{0,30}") {
            if let Ok(Some(id)) = last_event_id(header.as_deref(), &query) {
                prop_assert!(id.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
