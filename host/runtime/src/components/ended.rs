//! Detects the end of a stream of a guest, whose consumer is dropped then.

use std::sync::Arc;

use tokio::sync::Notify;

/// Notifies when it is dropped; a part of the consumer of the stream.
pub(crate) struct NotifyOnDrop(pub(crate) Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
