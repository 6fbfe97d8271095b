//! A request body whose first frame can be read before the request is dispatched.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use weir_runtime::gateway::BodyError;

use crate::body::RequestBody;

/// The number of polls of a body without available bytes; hyper reads from the socket between two polls.
const EMPTY_POLLS_MAX: u32 = 2;

/// A request body, and its first frame if that was read.
pub(crate) struct PeekedBody<B: RequestBody> {
    first: Option<Bytes>,
    /// The error with which the body ended instead.
    error: Option<BodyError>,
    body: B,
}

impl<B: RequestBody> PeekedBody<B> {
    pub(crate) fn new(body: B) -> Self {
        Self { first: None, error: None, body }
    }

    /// The first frame, if it was read.
    pub(crate) fn first(&self) -> Option<&Bytes> {
        self.first.as_ref()
    }

    /// Reads the first frame if it has arrived, so that the component does not wait for a short body.
    pub(crate) async fn read_arrived(&mut self) {
        let mut empty_polls = 0;
        let frame = std::future::poll_fn(|cx| match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending if empty_polls == EMPTY_POLLS_MAX => Poll::Ready(None),
            Poll::Pending => {
                empty_polls += 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        });
        match frame.await {
            Some(Ok(frame)) => self.first = frame.into_data().ok(),
            Some(Err(error)) => self.error = Some(error.into()),
            None => {}
        }
    }
}

// Nothing of it is pinned: `B` is `Unpin`.
impl<B: RequestBody> Unpin for PeekedBody<B> {}

impl<B: RequestBody> Body for PeekedBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match self.error.take() {
            Some(error) => Poll::Ready(Some(Err(error))),
            None => Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.error.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(hint.lower() + first);
        hint
    }
}
