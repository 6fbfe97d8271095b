//! Bodies on their way out.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use metrics::gauge;
use weir_runtime::gateway::{BodyError, ResponseBody};

use crate::sse::feed::{Feed, Piece};
use crate::sse::hold::UserPlace;
use crate::share::{ClientKey, Permit, Refused};

/// An answer's body: the gateway's stream, bytes of the host's own, or what a held connection is fed with.
pub(crate) enum ReplyBody {
    Streamed { body: Box<ResponseBody>, _open: Option<Open> },
    Full { body: Full<Bytes>, _permit: Option<Permit> },
    Held(Box<HeldBody>),
}

/// Where requests share a connection, one that is held is a body like any other.
pub(crate) struct HeldBody {
    first: Option<Bytes>,
    /// None once it has ended.
    feed: Option<Feed>,
}

impl ReplyBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::Full { body: Full::new(bytes), _permit: None }
    }

    /// Bytes that hold a permit until they are sent.
    pub(crate) fn full_with(bytes: Bytes, permit: Permit) -> Self {
        Self::Full { body: Full::new(bytes), _permit: Some(permit) }
    }

    pub(crate) fn held(first: Bytes, feed: Feed) -> Self {
        Self::Held(Box::new(HeldBody { first: Some(first).filter(|first| !first.is_empty()), feed: Some(feed) }))
    }
}

impl HeldBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some(feed) = &mut self.feed else { return Poll::Ready(None) };
        let Piece { bytes, last } = ready!(feed.poll_next(cx, 0));
        if last {
            self.feed = None;
        }
        Poll::Ready(Some(bytes.into()))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Streamed { body, .. } => Pin::new(body.as_mut()).poll_frame(cx),
            Self::Full { body, .. } => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Held(body) => body.poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed { body, .. } => body.is_end_stream(),
            Self::Full { body, .. } => body.is_end_stream(),
            Self::Held(body) => body.first.is_none() && body.feed.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streamed { body, .. } => body.size_hint(),
            Self::Full { body, .. } => body.size_hint(),
            Self::Held(_) => SizeHint::default(),
        }
    }
}

/// One open request: it holds its place until its answer's body has ended.
pub(crate) struct Open {
    permit: Permit,
    /// Where it is a connection that counts as one of a user's.
    user: Option<UserPlace>,
}

impl Open {
    pub(crate) fn new(permit: Permit) -> Self {
        gauge!("weir_http_requests_open").increment(1);
        Self { permit, user: None }
    }

    /// It is a connection of a user's.
    pub(crate) fn connected(&mut self, place: UserPlace) {
        self.user = Some(place);
    }

    /// Counts it for a user from now on, when the user has room in its share.
    pub(crate) fn assign(&mut self, client: ClientKey) -> Result<(), Refused> {
        self.permit.assign(client)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!("weir_http_requests_open").decrement(1);
    }
}
