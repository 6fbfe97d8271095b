//! The bodies of requests and responses.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use weir_runtime::gateway::{self, BodyError};
use weir_runtime::stages::{self, Transfer};
use weir_telemetry::Span;

use crate::request_metrics;
use crate::share::{ClientKey, Permit, PermitRefusal};
use crate::sse::feed::{Feed, FeedOutput};
use crate::sse::subscribers::UserPermit;
use crate::stats::StatsStream;

/// The body of a request, of either version of HTTP.
pub(crate) trait RequestBody: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static {}

impl<B> RequestBody for B where B: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static {}

/// The body of a response.
pub(crate) enum ResponseBody {
    /// The gateway's stream.
    Streamed {
        body: Box<gateway::ResponseBody>,
        /// The first frame of the body, if it was read before the head was sent.
        first: Option<Result<Frame<Bytes>, BodyError>>,
        _open: Option<OpenRequest>,
    },
    /// A body of the host itself.
    Full { body: Full<Bytes>, _permit: Option<Permit> },
    /// The events of a held stream.
    Held(Box<HeldBody>),
    /// Snapshots of the server.
    Stats(Box<StatsStream>),
}

/// A held stream on a connection that carries other requests too.
pub(crate) struct HeldBody {
    first: Option<Bytes>,
    /// `None` once it has ended.
    feed: Option<Feed>,
}

impl ResponseBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::Full { body: Full::new(bytes), _permit: None }
    }

    /// Bytes with a permit that is held until they are sent.
    pub(crate) fn full_with(bytes: Bytes, permit: Permit) -> Self {
        Self::Full { body: Full::new(bytes), _permit: Some(permit) }
    }

    pub(crate) fn streamed(body: gateway::ResponseBody, open: Option<OpenRequest>) -> Self {
        Self::Streamed { body: Box::new(body), first: None, _open: open }
    }

    /// As [`ResponseBody::streamed`], after the first frame was read: the head and the body of a short response are
    /// then sent in one write.
    pub(crate) async fn with_first_frame(body: gateway::ResponseBody, open: Option<OpenRequest>) -> Self {
        let mut body = Box::new(body);
        let first = std::future::poll_fn(|cx| Pin::new(body.as_mut()).poll_frame(cx)).await;
        Self::Streamed { body, first, _open: open }
    }

    /// The first bytes of a body of the component, if they are known and not sent.
    pub(crate) fn first_bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Streamed { first: Some(Ok(frame)), .. } => frame.data_ref(),
            _ => None,
        }
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
        let FeedOutput { bytes, last } = ready!(feed.poll_next(cx, 0));
        if last {
            self.feed = None;
        }
        Poll::Ready(Some(bytes.into()))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Streamed { body, first, .. } => {
                let frame = match first.take() {
                    Some(first) => Some(first),
                    None => ready!(Pin::new(body.as_mut()).poll_frame(cx)),
                };
                if frame.is_some() {
                    stages::count(Transfer::Body);
                }
                Poll::Ready(frame)
            }
            Self::Full { body, .. } => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Held(body) => body.poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stats(stream) => {
                Pin::new(stream.as_mut()).poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed { body, first, .. } => first.is_none() && body.is_end_stream(),
            Self::Full { body, .. } => body.is_end_stream(),
            Self::Held(body) => body.first.is_none() && body.feed.is_none(),
            Self::Stats(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // After the first frame was read, the size of the rest is not that of the body; the head has
            // `Content-Length`.
            Self::Streamed { first: Some(_), .. } => SizeHint::default(),
            Self::Streamed { body, .. } => body.size_hint(),
            Self::Full { body, .. } => body.size_hint(),
            Self::Held(_) | Self::Stats(_) => SizeHint::default(),
        }
    }
}

/// One open request: it holds its permits until the body of its response has ended.
pub(crate) struct OpenRequest {
    permit: Permit,
    /// The permit of a request that counts as a connection of its user.
    connection: Option<UserPermit>,
    /// The span of the request, which ends with it.
    _span: Option<Span>,
}

impl OpenRequest {
    pub(crate) fn new(permit: Permit, span: Option<Span>) -> Self {
        request_metrics::open_requests().increment(1);
        Self { permit, connection: None, _span: span }
    }

    /// Counts the request as a connection of its user.
    pub(crate) fn set_connection(&mut self, permit: UserPermit) {
        self.connection = Some(permit);
    }

    /// Counts the request for `client` from now on, if that client has room in its share.
    pub(crate) fn assign(&mut self, client: ClientKey) -> Result<(), PermitRefusal> {
        self.permit.assign(client)
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        request_metrics::open_requests().decrement(1);
    }
}
