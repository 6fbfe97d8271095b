//! Bodies on their way out.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use metrics::gauge;
use tokio::sync::OwnedSemaphorePermit;
use weir_runtime::gateway::{BodyError, CountedBody};

/// An answer's body: the gateway's stream, or bytes of the host's own.
pub(crate) enum ReplyBody {
    Streamed { body: Box<CountedBody>, _open: Option<Open> },
    Full(Full<Bytes>),
}

impl ReplyBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::Full(Full::new(bytes))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Streamed { body, .. } => Pin::new(body.as_mut()).poll_frame(cx),
            Self::Full(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed { body, .. } => body.is_end_stream(),
            Self::Full(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streamed { body, .. } => body.size_hint(),
            Self::Full(body) => body.size_hint(),
        }
    }
}

/// One open request: it holds its place until its answer's body has ended.
pub(crate) struct Open {
    _place: OwnedSemaphorePermit,
}

impl Open {
    pub(crate) fn new(place: OwnedSemaphorePermit) -> Self {
        gauge!("weir_http_requests_open").increment(1);
        Self { _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!("weir_http_requests_open").decrement(1);
    }
}
