//! The cursor from which a subscription resumes.
//!
//! `Last-Event-ID` is sent by a browser when it reconnects; `last_event_id` in the query is for the first connection. A browser that
//! reconnects sends both, and the query is out of date by then: the header has precedence.

use std::borrow::Cow;

use weir_core::channels::Cursor;

use crate::{
    inference::query::decode,
    json::field::{FieldError, FieldReason, RequestError},
};

/// The query parameter.
pub const LAST_EVENT_ID: &str = "last_event_id";

/// Where a client resumes, by the header `Last-Event-ID` and the query without its question mark; at the beginning where neither
/// says, or with an empty id. Other parameters are passed over: they are others' concern.
///
/// An id that this server did not assign is [`Cursor::UNKNOWN`] and not an error: a browser sends the last id that it got, from any
/// server, and an `EventSource` that is answered with an error does not reconnect.
///
/// # Errors
///
/// There is no header, and the parameter is there twice.
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
    fn header_counts_before_the_query() {
        let place = Cursor::new;
        for (header, query, want) in [
            (None, "", Cursor::START),
            (None, "last_event_id=5-7", place(5, 7)),
            (None, "ticket=x&last%5Fevent_id=5%2D7&y", place(5, 7)),
            (Some("5-9"), "last_event_id=5-7", place(5, 9)),
            (Some(" 5-9 "), "", place(5, 9)),
            // An empty id makes a browser forget the last one.
            (Some(""), "last_event_id=5-7", Cursor::START),
            (None, "last_event_id=", Cursor::START),
            // A query that could not be read before is no reason to end a browser that connects again.
            (Some("5-9"), "last_event_id=1-1&last_event_id=1-1", place(5, 9)),
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
        fn header_of_any_bytes_is_answered(header in prop::collection::vec(any::<u8>(), 0..20), query in "\\PC{0,30}") {
            prop_assert!(cursor(Some(&header), &query).is_ok());
            let _ = cursor(None, &query);
        }
    }
}
