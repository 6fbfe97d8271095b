//! The cursor from which a subscription resumes.
//!
//! A browser sends `Last-Event-ID` when it reconnects; `last_event_id` in the query is for the first connection. A browser that
//! reconnects sends both, and the query is out of date then, so the header takes precedence.

use std::borrow::Cow;

use weir_core::channels::Cursor;

use crate::{
    inference::query::decode,
    json::field::{FieldError, FieldReason, RequestError},
};

/// The query parameter.
pub const LAST_EVENT_ID: &str = "last_event_id";

/// The cursor after which a client resumes, from the header `Last-Event-ID` and the query without its question mark: the start of the
/// channel when both are absent or the id is empty. Other parameters are ignored.
///
/// An id that this server did not assign is [`Cursor::UNKNOWN`] and not an error: a browser sends the last id that it received, from
/// any server, and an `EventSource` does not reconnect after an error response.
///
/// # Errors
///
/// There is no header, and the query has the parameter twice.
pub fn cursor(header: Option<&[u8]>, query: &str) -> Result<Cursor, RequestError> {
    let id = match header {
        Some(header) => String::from_utf8_lossy(header),
        None => last_event_id(query)?.unwrap_or_default(),
    };
    Ok(match id.trim() {
        "" => Cursor::START,
        id => Cursor::from_id(id),
    })
}

fn last_event_id(query: &str) -> Result<Option<Cow<'_, str>>, RequestError> {
    let mut id = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name) == LAST_EVENT_ID && id.replace(decode(value)).is_some() {
            let message = format!("`{LAST_EVENT_ID}` must be given once");
            return Err(RequestError::Invalid(vec![FieldError::new(LAST_EVENT_ID, FieldReason::NotAllowed, message)]));
        }
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_takes_precedence_over_the_query() {
        let cursor_at = Cursor::new;
        for (header, query, want) in [
            (None, "", Cursor::START),
            (None, "last_event_id=5-7", cursor_at(5, 7)),
            (None, "ticket=x&last%5Fevent_id=5%2D7&y", cursor_at(5, 7)),
            (Some("5-9"), "last_event_id=5-7", cursor_at(5, 9)),
            (Some(" 5-9 "), "", cursor_at(5, 9)),
            // An empty id makes a browser forget the last one.
            (Some(""), "last_event_id=5-7", Cursor::START),
            (None, "last_event_id=", Cursor::START),
            // With a header the query is not read, so that an invalid one does not stop a browser that reconnects.
            (Some("5-9"), "last_event_id=1-1&last_event_id=1-1", cursor_at(5, 9)),
        ] {
            assert_eq!(cursor(header.map(str::as_bytes), query), Ok(want), "{header:?} {query}");
        }
    }

    #[test]
    fn foreign_id_is_an_unknown_cursor() {
        let ids: [&[u8]; 9] =
            [b"a b", b"a\r\nb", b"\xff", b"a\0", "é".as_bytes(), &[b'x'; 257], b"1609459200000", b"0-0-0", b"-1"];
        for id in ids {
            assert_eq!(cursor(Some(id), ""), Ok(Cursor::UNKNOWN), "{id:?}");
        }
        assert_eq!(cursor(None, "last_event_id=a%0ab"), Ok(Cursor::UNKNOWN));
    }

    #[test]
    fn parameter_given_twice_is_refused() {
        let error = cursor(None, "last_event_id=1-1&last_event_id=1-1").unwrap_err();
        assert_eq!(error.to_string(), "`last_event_id` must be given once");
    }

    proptest! {
        #[test]
        fn header_of_any_bytes_gives_a_cursor(header in prop::collection::vec(any::<u8>(), 0..20), query in "\\PC{0,30}") {
            prop_assert!(cursor(Some(&header), &query).is_ok());
            let _ = cursor(None, &query);
        }
    }
}
