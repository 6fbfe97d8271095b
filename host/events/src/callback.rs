//! A subscriber that is a function, for programs that embed the store.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::task::JoinHandle;
use weir_core::channels::{ChannelName, Cursor, Delivery};

use crate::error::Error;
use crate::store::Store;

/// A function that is called with the deliveries of a channel, until this is dropped.
#[derive(Debug)]
pub struct Callback {
    task: JoinHandle<()>,
}

impl Callback {
    /// Ends the subscription. A call in progress is completed.
    pub fn unsubscribe(self) {}

    /// True when the function is not called any more: the channel is finished, the subscriber was too slow, or the
    /// function panicked.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    /// Calls a function with every event of a channel after a cursor, in order, until the channel's last event or
    /// [`Delivery::Closed`]. The function runs in a task of its own, so that a slow or panicking function affects no
    /// other subscriber. It should not block. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`Store::follow`].
    pub async fn subscribe_callback(
        &self,
        channel: &ChannelName,
        after: Cursor,
        mut callback: impl FnMut(Delivery) + Send + 'static,
    ) -> Result<Callback, Error> {
        let mut subscription = self.follow(channel, after).await?;
        let task = tokio::spawn(async move {
            while let Some(delivery) = subscription.next().await {
                if catch_unwind(AssertUnwindSafe(|| callback(delivery))).is_err() {
                    tracing::error!(channel = %subscription.channel(), "a callback panicked and is not called any more");
                    return;
                }
            }
        });
        Ok(Callback { task })
    }
}
