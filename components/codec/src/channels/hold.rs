//! The header with the exact terms of a hold, for Weir's own host, in addition to those of [`crate::channels::grip`].
//!
//! GRIP names the channel to follow, but has no fields for the cursor to resume after, the duration and the user. They are in one more
//! header. The host removes it from every request and every response, so clients can neither send nor see it.

use thiserror::Error;
use weir_core::channels::Cursor;

use crate::{
    channels::{filter::EventFilter, route::check_id},
    http::framing::Framing,
};

/// The header of the terms.
pub const HEADER: &str = "weir-hold";
/// The header of a response with the user that the gateway has identified. From then on, the host counts the request, and its
/// WebSockets, for the user and no longer for the address. Private too.
pub const USER_HEADER: &str = "weir-user";
/// The header of a request of lines that is a WebSocket to its client. The host closes one whose client does not answer pings, so the
/// gateway does not end it when it is quiet. Private too.
pub const SOCKET_HEADER: &str = "weir-socket";
/// The prefix of the other headers between a gateway and its intermediary.
pub const GRIP_PREFIX: &str = "grip-";
/// Longest heartbeat period, in milliseconds.
pub const HEARTBEAT_MS_MAX: u64 = 3_600_000;

/// True for a header that clients may neither send nor see. The name is in lower case.
pub fn is_private(header: &str) -> bool {
    header == HEADER || header == USER_HEADER || header == SOCKET_HEADER || header.starts_with(GRIP_PREFIX)
}

/// The terms on which a connection is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The cursor of the last event that the client has.
    pub after: Cursor,
    /// The format of the events.
    pub framing: Framing,
    /// The time without a write after which a heartbeat is written, in milliseconds: 1 to [`HEARTBEAT_MS_MAX`].
    pub heartbeat_ms: u64,
    /// When the authorization of the client expires, in seconds since 1970.
    pub expires_at_s: Option<u64>,
    /// The user of the connection; `None` where users are not identified.
    pub user: Option<String>,
    /// Which events are sent.
    pub filter: EventFilter,
}

/// The terms of a hold cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("`{HEADER}` does not say on which terms to hold the connection")]
pub struct TermsError;

impl Terms {
    /// The value of [`HEADER`].
    pub fn to_header(&self) -> String {
        let framing = match self.framing {
            Framing::Sse => "sse",
            Framing::Ndjson => "ndjson",
        };
        let mut value = format!("after={}; framing={framing}; heartbeat-ms={}", self.after, self.heartbeat_ms);
        if let Some(expires_at_s) = self.expires_at_s {
            value += &format!("; ends-s={expires_at_s}");
        }
        if let Some(user) = &self.user {
            value += &format!("; user={user}");
        }
        if !self.filter.is_default() {
            value += &format!("; filter={}", self.filter.to_query());
        }
        value
    }

    /// Reads the value of [`HEADER`].
    ///
    /// # Errors
    ///
    /// The value is not one that [`Self::to_header`] writes. The response must fail then, since holding it on other terms would be wrong.
    pub fn from_header(value: &[u8]) -> Result<Self, TermsError> {
        let value = std::str::from_utf8(value).map_err(|_| TermsError)?;
        let mut fields = value.split("; ");
        let mut field = |name: &str| -> Option<&str> {
            let mut rest = fields.clone();
            let value = rest.next()?.strip_prefix(name)?.strip_prefix('=')?;
            fields = rest;
            Some(value)
        };
        let after = field("after").and_then(|after| after.parse().ok()).ok_or(TermsError)?;
        let framing = match field("framing") {
            Some("sse") => Framing::Sse,
            Some("ndjson") => Framing::Ndjson,
            _ => return Err(TermsError),
        };
        let heartbeat_ms = field("heartbeat-ms").and_then(number).ok_or(TermsError)?;
        let expires_at_s = field("ends-s").map(|ends| number(ends).ok_or(TermsError)).transpose()?;
        let user = field("user").map(str::to_owned);
        let filter = field("filter").map(|query| EventFilter::from_query(query).map_err(|_| TermsError)).transpose()?;
        let is_valid = (1..=HEARTBEAT_MS_MAX).contains(&heartbeat_ms)
            && user.as_deref().is_none_or(|user| check_id(user).is_ok())
            && fields.next().is_none();
        let filter = filter.unwrap_or_default();
        if is_valid { Ok(Self { after, framing, heartbeat_ms, expires_at_s, user, filter }) } else { Err(TermsError) }
    }
}

/// A number in decimal, without a sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms() -> Terms {
        let (expires_at_s, user) = (Some(1_700_000_000), Some("ann".to_owned()));
        let filter = EventFilter::from_query("events=a,b&steps=x%20y&throttle_ms=5").expect("a filter");
        Terms { after: Cursor::new(5, 7), framing: Framing::Sse, heartbeat_ms: 15_000, expires_at_s, user, filter }
    }

    #[test]
    fn terms_written_as_a_header_read_back() {
        let value = terms().to_header();
        assert_eq!(
            value,
            "after=5-7; framing=sse; heartbeat-ms=15000; ends-s=1700000000; user=ann; filter=events=a,b&steps=x%20y&throttle_ms=5"
        );
        assert_eq!(Terms::from_header(value.as_bytes()), Ok(terms()));
        let bare = Terms {
            after: Cursor::START,
            framing: Framing::Ndjson,
            heartbeat_ms: 1,
            expires_at_s: None,
            user: None,
            filter: EventFilter::default(),
        };
        assert_eq!(bare.to_header(), "after=0; framing=ndjson; heartbeat-ms=1");
        assert_eq!(Terms::from_header(bare.to_header().as_bytes()), Ok(bare));
    }

    #[test]
    fn inexact_terms_are_refused() {
        for value in [
            "",
            "after=5-7",
            "after=5-7; framing=xml; heartbeat-ms=1",
            "after=5-7; framing=sse; heartbeat-ms=0",
            "after=5-7; framing=sse; heartbeat-ms=3600001",
            "after=5-7; framing=sse; heartbeat-ms=+1",
            "after=x; framing=sse; heartbeat-ms=1",
            "framing=sse; after=5-7; heartbeat-ms=1",
            "after=5-7; framing=sse; heartbeat-ms=1; ends-s=",
            "after=5-7; framing=sse; heartbeat-ms=1; user=",
            "after=5-7; framing=sse; heartbeat-ms=1; user=a b",
            "after=5-7; framing=sse; heartbeat-ms=1; user=ann; user=bob",
            "after=5-7; framing=sse; heartbeat-ms=1; user=ann; ends-s=1",
        ] {
            assert_eq!(Terms::from_header(value.as_bytes()), Err(TermsError), "{value}");
        }
    }

    #[test]
    fn headers_between_gateway_and_host_are_private() {
        for header in ["weir-hold", "weir-user", "grip-hold", "grip-channel", "grip-sig"] {
            assert!(is_private(header), "{header}");
        }
        for header in ["weir-holder", "grip", "x-grip-hold", "content-type"] {
            assert!(!is_private(header), "{header}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_terms_do_not_panic(value in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Terms::from_header(&value);
        }

        #[test]
        fn arbitrary_value_reads_back(
            after in (0u64..9, 0u64..9),
            heartbeat_ms in 1..=HEARTBEAT_MS_MAX,
            expires_at_s in prop::option::of(any::<u64>()),
            user in prop::option::of("[a-z0-9:@=|+~-]{1,9}"),
            sse in any::<bool>(),
        ) {
            let after = Cursor::new(after.0, after.1);
            prop_assume!(after.to_string().parse() == Ok(after));
            let framing = if sse { Framing::Sse } else { Framing::Ndjson };
            let filter = EventFilter::default();
            let terms = Terms { after, framing, heartbeat_ms, expires_at_s, user, filter };
            prop_assert_eq!(Terms::from_header(terms.to_header().as_bytes()), Ok(terms));
        }
    }
}
