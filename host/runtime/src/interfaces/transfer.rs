//! Transfers of values between the streams of a guest and the calls of the host.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, StreamProducer, StreamResult, VecBuffer};

/// Most values read from a guest, or written to it, at once.
pub(super) const TRANSFER_MAX: usize = 64;

/// The sending end of a call.
pub(super) trait ValueSender: Clone + Send + Sync + 'static {
    type Value: Send + 'static;

    /// Sends a value that does not have to wait, or returns it.
    fn try_send(&self, value: Self::Value) -> Result<(), Self::Value>;

    /// Sends a value; waits for room in the queue of its model. False if the receiving end of the call was dropped.
    fn send(&self, value: Self::Value) -> impl Future<Output = bool> + Send;
}

/// The values that were read from a guest and are not sent yet.
pub(super) struct Unsent<S: ValueSender> {
    sender: S,
    values: VecDeque<S::Value>,
    /// The value that is being sent.
    pending: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl<S: ValueSender> Unsent<S> {
    pub(super) fn new(sender: S) -> Self {
        Self { sender, values: VecDeque::new(), pending: None }
    }

    pub(super) fn sender(&self) -> &S {
        &self.sender
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none() && self.values.is_empty()
    }

    pub(super) fn extend(&mut self, values: Vec<S::Value>) {
        self.values.extend(values);
    }

    /// Sends the values in order; resolves with whether the receiving end of the call exists.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            if let Some(pending) = &mut self.pending {
                let is_open = ready!(pending.as_mut().poll(cx));
                self.pending = None;
                if !is_open {
                    self.values.clear();
                    return Poll::Ready(false);
                }
            }
            let Some(value) = self.values.pop_front() else { return Poll::Ready(true) };
            if let Err(value) = self.sender.try_send(value) {
                let sender = self.sender.clone();
                self.pending = Some(Box::pin(async move { sender.send(value).await }));
            }
        }
    }

    /// Sends the values from a separate task: the guest has ended its write or its stream.
    pub(super) fn send_detached(&mut self) {
        if self.is_empty() {
            return;
        }
        let (values, pending) = (std::mem::take(&mut self.values), self.pending.take());
        let sender = self.sender.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(pending) = pending
                    && !pending.await
                {
                    return;
                }
                for value in values {
                    if !sender.send(value).await {
                        return;
                    }
                }
            });
        }
    }
}

/// The receiving end of a call.
pub(super) trait ValueReceiver: Send + Unpin + 'static {
    type Value: wasmtime::component::Lower + Send + Sync + 'static;

    /// Waits for values, at most `max`; none after the end.
    fn poll_recv_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Self::Value>>;
}

/// Writes the values of a call to its guest.
pub(super) struct GuestWriter<R>(pub(super) R);

impl<D, R: ValueReceiver> StreamProducer<D> for GuestWriter<R> {
    type Item = R::Value;
    type Buffer = VecBuffer<R::Value>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, R::Value, VecBuffer<R::Value>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(TRANSFER_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match self.0.poll_recv_many(cx, room) {
            Poll::Ready(values) if values.is_empty() => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(values) => {
                destination.set_buffer(values.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}
