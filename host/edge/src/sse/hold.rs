//! The guest decides and the host holds: an answer of the gateway that says "hold this connection and feed it from that
//! channel" (GRIP) costs no guest from then on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, response};
use http_body_util::{BodyExt, Limited};
use metrics::gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_codec::channels::grip::{GripError, Hold, HoldMode};
use weir_codec::channels::hold::{self, Terms, TermsError};
use weir_codec::channels::route::Channel;
use weir_codec::http::problem::Problem;
use weir_core::quota::{ConnectionRefused, Connections};
use weir_events::{Error, Store};
use weir_runtime::gateway::{BodyError, ResponseBody};

use crate::sse::feed::Feed;
use crate::share::{Permit, Refused, SharedPool};

/// Most bytes in what an answer that is to be held begins with.
const FIRST_BYTES_MAX: usize = 64 * 1024;
/// How long they may take to come.
const FIRST_TIMEOUT: Duration = Duration::from_secs(5);
/// After how long somebody who was refused for want of room is to come again.
const ROOM_RETRY_MS: u32 = 5000;

/// Takes out of a head what is between a gateway and its intermediary alone: no client sends it, none sees it.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let private: Vec<_> = headers.keys().filter(|name| hold::is_private(name.as_str())).cloned().collect();
    for name in private {
        headers.remove(name);
    }
}

/// The user whose connection an answer is, where the gateway names one; takes it out of the head.
pub(crate) fn user(headers: &mut HeaderMap) -> Option<String> {
    headers.remove(hold::USER_HEADER)?.to_str().ok().map(str::to_owned)
}

/// What the gateway says about a connection.
#[derive(Debug)]
pub(crate) struct Instruction {
    channel: Channel,
    terms: Terms,
}

/// Why a connection is not held as the gateway wants it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HoldError {
    /// GRIP that cannot be read.
    #[error(transparent)]
    Grip(#[from] GripError),
    /// Terms that cannot be read.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// A hold without terms, or one of several channels, for one answer, or of no channel of ours.
    #[error("this host holds streams of one channel, on terms that `weir-hold` gives")]
    Other,
    /// The instance was lost before it had said what the stream begins with.
    #[error("the instance that had the request was lost")]
    Lost,
    /// What the answer begins with did not come.
    #[error("what the stream begins with did not come: {0}")]
    First(String),
}

/// Reads what the gateway says about a connection, and takes it out of the head.
pub(crate) fn instruction(headers: &mut HeaderMap) -> Result<Option<Instruction>, HoldError> {
    if !headers.keys().any(|name| hold::is_private(name.as_str())) {
        return Ok(None);
    }
    let hold = Hold::from_headers(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
    let terms: Vec<_> =
        headers.get_all(hold::HEADER).iter().map(|value| Terms::from_header(value.as_bytes())).collect();
    strip(headers);
    let Some(hold) = hold? else { return Ok(None) };
    let [terms] = <[_; 1]>::try_from(terms).map_err(|_| HoldError::Other)?;
    match (hold.mode, hold.channels.as_slice()) {
        (HoldMode::Stream, [channel]) => {
            let channel = Channel::from_name(&channel.name).ok_or(HoldError::Other)?;
            Ok(Some(Instruction { channel, terms: terms? }))
        }
        _ => Err(HoldError::Other),
    }
}

/// What an answer that is to be held begins with.
pub(crate) async fn first(body: ResponseBody) -> Result<Bytes, HoldError> {
    let whole = Limited::new(body, FIRST_BYTES_MAX).collect();
    match tokio::time::timeout(FIRST_TIMEOUT, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) => match error.downcast_ref::<BodyError>() {
            Some(BodyError::HttpResponseIncomplete) => Err(HoldError::Lost),
            _ => Err(HoldError::First(error.to_string())),
        },
        Err(_) => Err(HoldError::First("not in time".to_owned())),
    }
}

/// An answer whose connection is held.
pub(crate) struct Held {
    pub(crate) head: response::Parts,
    /// What it begins with.
    pub(crate) first: Bytes,
    /// What follows.
    pub(crate) feed: Feed,
}

/// The connections that are held, in the whole process: how many, and how many of each user.
pub(crate) struct Holds {
    held_max: u32,
    places: Arc<Semaphore>,
    /// Of those whose client is known by its address alone.
    anonymous: Arc<SharedPool>,
    users: Arc<Mutex<Connections>>,
}

impl Holds {
    /// At most `held_max`, `user_max` of each user, and of each client without a user a share in percent.
    pub(crate) fn new(held_max: u32, client_share_percent: u32, user_max: u32) -> Self {
        Self {
            anonymous: SharedPool::new(held_max, client_share_percent),
            held_max,
            places: Arc::new(Semaphore::new(held_max as usize)),
            users: Arc::new(Mutex::new(Connections::new(user_max as usize, usize::MAX))),
        }
    }

    /// Follows what the gateway says, if there is room and the store can.
    pub(crate) async fn follow(&self, store: &Store, instruction: Instruction, client: u64) -> Result<Feed, Problem> {
        let Instruction { channel, terms } = instruction;
        let place = self.take(terms.user.as_deref(), client).map_err(|refused| no_room(&refused))?;
        let subscription = store.follow(channel.name(), terms.after).await.map_err(not_followed)?;
        Ok(Feed::new(channel, &terms, subscription, place))
    }

    /// How many are held.
    pub(crate) fn open(&self) -> usize {
        (self.held_max as usize).saturating_sub(self.places.available_permits())
    }

    /// Resolves when none is held.
    pub(crate) async fn none(&self) {
        drop(self.places.acquire_many(self.held_max).await);
    }

    /// Counts a connection of a user's that is not held but passed on: a WebSocket. All kinds have one bound.
    pub(crate) fn connect(&self, user: &str) -> Result<UserPlace, ConnectionRefused> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).open(user)?;
        Ok(UserPlace { user: user.into(), users: self.users.clone() })
    }

    fn take(&self, user: Option<&str>, client: u64) -> Result<HoldPlace, ConnectionRefused> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| ConnectionRefused::Total)?;
        let user = match user {
            Some(user) => Holder::User(self.connect(user)?),
            None => Holder::Address(self.anonymous.try_take(client).map_err(|refused| match refused {
                Refused::Total => ConnectionRefused::Total,
                Refused::Client => ConnectionRefused::User { connections_max: self.anonymous.client_max() },
            })?),
        };
        gauge!("weir_http_connections_held").increment(1);
        Ok(HoldPlace { _place: place, _holder: user })
    }
}

/// A place among the connections that are held.
pub(crate) struct HoldPlace {
    _place: OwnedSemaphorePermit,
    _holder: Holder,
}

/// Whose share a held connection is of.
enum Holder {
    User(#[expect(dead_code, reason = "it is held until it is dropped")] UserPlace),
    Address(#[expect(dead_code, reason = "it is held until it is dropped")] Permit),
}

impl Drop for HoldPlace {
    fn drop(&mut self) {
        gauge!("weir_http_connections_held").decrement(1);
    }
}

/// A place among the connections of a user, of whichever kind.
pub(crate) struct UserPlace {
    user: Box<str>,
    users: Arc<Mutex<Connections>>,
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).close(&self.user);
    }
}

/// As the gateway says it where it follows by itself.
pub(crate) fn no_room(refused: &ConnectionRefused) -> Problem {
    let (status, code, title) = match refused {
        ConnectionRefused::User { .. } => (429, "too_many_connections", "Too many connections"),
        ConnectionRefused::Total => (503, "connections_full", "There are too many connections"),
    };
    Problem::refused(status, code, title, refused.to_string(), Some(ROOM_RETRY_MS))
}

fn not_followed(error: Error) -> Problem {
    match error {
        Error::Unavailable { reason, retry_after_ms } => {
            tracing::warn!(reason, "a channel cannot be followed now");
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

    fn read(headers: &[(&'static str, &str)]) -> (Result<Option<Instruction>, HoldError>, HeaderMap) {
        let mut map = HeaderMap::new();
        map.insert("content-type", HeaderValue::from_static("text/event-stream"));
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        (instruction(&mut map), map)
    }

    #[test]
    fn what_is_private_is_taken_out_whatever_it_says() {
        for headers in [
            &[("grip-hold", "stream"), ("grip-channel", "workflow:42"), ("weir-hold", TERMS)][..],
            &[("grip-hold", "nonsense")],
            &[("weir-hold", "nonsense"), ("grip-status", "9"), ("grip-set-meta", "a=b")],
            &[("grip-channel", "user:ann")],
        ] {
            let (_, left) = read(headers);
            assert_eq!(left.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["content-type"], "{headers:?}");
        }
    }

    #[test]
    fn what_is_held() {
        let (read_it, _) =
            read(&[("grip-hold", "stream"), ("grip-channel", "workflow:42; prev-id=5-7"), ("weir-hold", TERMS)]);
        let held = read_it.unwrap().unwrap();
        assert_eq!((held.channel.to_string().as_str(), held.terms.user.as_deref()), ("workflow:42", Some("ann")));
        assert!(read(&[]).0.unwrap().is_none());
        // Terms alone hold nothing.
        assert!(read(&[("weir-hold", TERMS)]).0.unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_held_as_it_was_meant_fails() {
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
    fn connections_of_a_user_are_counted_together_whatever_their_kind() {
        let holds = Holds::new(10, 100, 2);
        let (held, socket) = (holds.take(Some("ann"), 1).unwrap(), holds.connect("ann").unwrap());
        let full = Some(ConnectionRefused::User { connections_max: 2 });
        assert_eq!((holds.connect("ann").err(), holds.take(Some("ann"), 1).err()), (full, full));
        // A socket is no connection that the host holds.
        assert_eq!(holds.open(), 1);
        drop(socket);
        let held = (held, holds.take(Some("ann"), 1).unwrap());
        assert_eq!(holds.connect("ann").err(), full);
        drop(held);
        assert!(holds.connect("ann").is_ok() && holds.open() == 0);
    }

    #[test]
    fn user_of_a_connection_is_taken_out_of_the_head() {
        let mut headers = HeaderMap::new();
        headers.insert("weir-user", HeaderValue::from_static("ann"));
        assert_eq!((user(&mut headers).as_deref(), headers.len()), (Some("ann"), 0));
        assert_eq!(user(&mut headers), None);
    }

    #[tokio::test]
    async fn places_are_counted_and_given_back() {
        let holds = Holds::new(3, 100, 2);
        let ann = [holds.take(Some("ann"), 1).unwrap(), holds.take(Some("ann"), 1).unwrap()];
        assert_eq!(holds.take(Some("ann"), 1).err(), Some(ConnectionRefused::User { connections_max: 2 }));
        // A refusal takes no place from others.
        assert_eq!(holds.open(), 2);
        let nobody = holds.take(None, 1).unwrap();
        assert_eq!(holds.take(Some("bob"), 1).err(), Some(ConnectionRefused::Total));
        drop((ann, nobody));
        assert_eq!(holds.open(), 0);
        holds.none().await;
        assert!(holds.take(Some("ann"), 1).is_ok());
    }
}
