//! The hold instruction of the gateway (GRIP): the response instructs the host to hold the connection and to feed it
//! from a channel, without a guest.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, response};
use http_body_util::{BodyExt, Limited};
use weir_codec::channels::grip::{GripError, Hold, HoldMode};
use weir_codec::channels::hold::{self, Terms, TermsError};
use weir_codec::channels::route::Channel;
use weir_codec::http::problem::Problem;
use weir_core::quota::ConnectionRefused;
use weir_events::{Error, Store};
use weir_runtime::gateway::{BodyError, ResponseBody};

use crate::sse::feed::Feed;
use crate::sse::subscribers::Subscribers;

/// Most bytes of the body with which a held stream begins.
const FIRST_BYTES_MAX: usize = 64 * 1024;
/// How long this body may take to arrive.
const FIRST_TIMEOUT: Duration = Duration::from_secs(5);
/// The retry delay of a subscriber that is refused because there are too many.
const FULL_RETRY_MS: u32 = 5000;

/// Removes the headers that are private to the gateway and its intermediary: clients can neither send nor see them.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let private: Vec<_> = headers.keys().filter(|name| hold::is_private(name.as_str())).cloned().collect();
    for name in private {
        headers.remove(name);
    }
}

/// Removes the header by which the gateway names the user of a response; returns the user.
pub(crate) fn take_user(headers: &mut HeaderMap) -> Option<String> {
    headers.remove(hold::USER_HEADER)?.to_str().ok().map(str::to_owned)
}

/// The instruction of the gateway to hold a connection.
#[derive(Debug)]
pub(crate) struct HoldInstruction {
    channel: Channel,
    terms: Terms,
}

/// Why an instruction is invalid or cannot be executed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HoldError {
    /// The GRIP headers are invalid.
    #[error(transparent)]
    Grip(#[from] GripError),
    /// The terms are invalid.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// A hold without terms, of several channels, for one response, or of a channel with an invalid name.
    #[error("this host holds streams of one channel, on terms that `weir-hold` gives")]
    Unsupported,
    /// The instance was lost before the body was complete.
    #[error("the instance that had the request was lost")]
    InstanceLost,
    /// The body did not arrive.
    #[error("the body with which the stream begins did not arrive: {0}")]
    First(String),
}

/// Removes the instruction from the head of a response; `None` when there is none.
pub(crate) fn take_instruction(headers: &mut HeaderMap) -> Result<Option<HoldInstruction>, HoldError> {
    if !headers.keys().any(|name| hold::is_private(name.as_str())) {
        return Ok(None);
    }
    let hold = Hold::from_headers(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
    let terms: Vec<_> =
        headers.get_all(hold::HEADER).iter().map(|value| Terms::from_header(value.as_bytes())).collect();
    strip(headers);
    let Some(hold) = hold? else { return Ok(None) };
    let [terms] = <[_; 1]>::try_from(terms).map_err(|_| HoldError::Unsupported)?;
    match (hold.mode, hold.channels.as_slice()) {
        (HoldMode::Stream, [channel]) => {
            let channel = Channel::from_name(&channel.name).ok_or(HoldError::Unsupported)?;
            Ok(Some(HoldInstruction { channel, terms: terms? }))
        }
        _ => Err(HoldError::Unsupported),
    }
}

/// The body with which a held stream begins.
pub(crate) async fn first(body: ResponseBody) -> Result<Bytes, HoldError> {
    let whole = Limited::new(body, FIRST_BYTES_MAX).collect();
    match tokio::time::timeout(FIRST_TIMEOUT, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) => match error.downcast_ref::<BodyError>() {
            Some(BodyError::HttpResponseIncomplete) => Err(HoldError::InstanceLost),
            _ => Err(HoldError::First(error.to_string())),
        },
        Err(_) => Err(HoldError::First("not in time".to_owned())),
    }
}

impl HoldInstruction {
    /// Subscribes to the channel.
    ///
    /// # Errors
    ///
    /// There are too many subscribers, or the store cannot answer.
    pub(crate) async fn subscribe(
        self,
        subscribers: &Subscribers,
        store: &Store,
        client: u64,
    ) -> Result<Feed, Problem> {
        let Self { channel, terms } = self;
        let permit = subscribers.hold(terms.user.as_deref(), client).map_err(|refused| too_many(&refused))?;
        let subscription =
            store.follow_as(channel.name(), terms.after, terms.user.as_deref()).await.map_err(store_problem)?;
        Ok(Feed::new(channel, &terms, subscription, permit))
    }
}

/// A response whose connection is held.
pub(crate) struct HeldResponse {
    pub(crate) head: response::Parts,
    /// The body with which it begins.
    pub(crate) first: Bytes,
    pub(crate) feed: Feed,
}

/// The problem of a client with too many connections. It equals that of the gateway under hosts that do not hold
/// connections.
pub(crate) fn too_many(refused: &ConnectionRefused) -> Problem {
    let (status, code, title) = match refused {
        ConnectionRefused::User { .. } => (429, "too_many_connections", "Too many connections"),
        ConnectionRefused::Total => (503, "connections_full", "There are too many connections"),
    };
    Problem::refused(status, code, title, refused.to_string(), Some(FULL_RETRY_MS))
}

fn store_problem(error: Error) -> Problem {
    match error {
        Error::Unavailable { reason, retry_after_ms } => {
            tracing::warn!(reason, "the channel store does not answer");
            let detail = "the channel store cannot answer now";
            let retry_after_ms = u32::try_from(retry_after_ms.max(1)).unwrap_or(u32::MAX);
            Problem::refused(
                503,
                "events_unavailable",
                "The channel store cannot answer now",
                detail,
                Some(retry_after_ms),
            )
        }
        Error::ShareExceeded { retry_after_ms, .. } => {
            Problem::share_exceeded(u32::try_from(retry_after_ms).unwrap_or(u32::MAX))
        }
        Error::Full { reason, retry_after_ms } => {
            tracing::warn!(reason, "the channel store is full");
            Problem::store_full(u32::try_from(retry_after_ms).unwrap_or(u32::MAX))
        }
        error => {
            tracing::error!(%error, "a channel cannot be followed");
            Problem::internal("the channel store failed")
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const TERMS: &str = "after=5-7; framing=sse; heartbeat-ms=15000; user=ann";

    fn read(headers: &[(&'static str, &str)]) -> (Result<Option<HoldInstruction>, HoldError>, HeaderMap) {
        let mut map = HeaderMap::new();
        map.insert("content-type", HeaderValue::from_static("text/event-stream"));
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        (take_instruction(&mut map), map)
    }

    #[test]
    fn private_headers_are_removed_even_if_invalid() {
        for headers in [
            &[("grip-hold", "stream"), ("grip-channel", "workflow:42"), ("weir-hold", TERMS)][..],
            &[("grip-hold", "nonsense")],
            &[("weir-hold", "nonsense"), ("grip-status", "9"), ("grip-set-meta", "a=b")],
            &[("grip-channel", "user:ann")],
        ] {
            let (_, remaining) = read(headers);
            assert_eq!(remaining.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["content-type"], "{headers:?}");
        }
    }

    #[test]
    fn hold_with_terms_is_an_instruction() {
        let (instruction, _) =
            read(&[("grip-hold", "stream"), ("grip-channel", "workflow:42; prev-id=5-7"), ("weir-hold", TERMS)]);
        let held = instruction.unwrap().unwrap();
        assert_eq!((held.channel.to_string().as_str(), held.terms.user.as_deref()), ("workflow:42", Some("ann")));
        assert!(read(&[]).0.unwrap().is_none());
        // Terms alone hold nothing.
        assert!(read(&[("weir-hold", TERMS)]).0.unwrap().is_none());
    }

    #[test]
    fn unsupported_hold_is_an_error() {
        for headers in [
            &[("grip-hold", "stream"), ("grip-channel", "workflow:42")][..],
            &[("grip-hold", "stream"), ("grip-channel", "workflow:42"), ("weir-hold", "after=1-1")],
            &[("grip-hold", "stream"), ("grip-channel", "workflow:42"), ("weir-hold", TERMS), ("weir-hold", TERMS)],
            &[("grip-hold", "response"), ("grip-channel", "workflow:42"), ("weir-hold", TERMS)],
            &[("grip-hold", "stream"), ("grip-channel", "workflow:42, user:ann"), ("weir-hold", TERMS)],
            &[("grip-hold", "stream"), ("grip-channel", "owner-workflow:42"), ("weir-hold", TERMS)],
            &[("grip-hold", "stream"), ("weir-hold", TERMS)],
        ] {
            assert!(read(headers).0.is_err(), "{headers:?}");
        }
    }

    #[test]
    fn user_header_is_removed() {
        let mut headers = HeaderMap::new();
        headers.insert("weir-user", HeaderValue::from_static("ann"));
        assert_eq!((take_user(&mut headers).as_deref(), headers.len()), (Some("ann"), 0));
        assert_eq!(take_user(&mut headers), None);
    }
}
