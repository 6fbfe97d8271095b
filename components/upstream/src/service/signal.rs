//! Wakes a task that waits for a change.

use std::{
    cell::Cell,
    future::poll_fn,
    task::{Poll, Waker},
};

/// One task waits at a time.
#[derive(Default)]
pub(super) struct Signal {
    is_set: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Signal {
    pub(super) fn notify(&self) {
        self.is_set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when there was a change since the last time.
    pub(super) async fn wait(&self) {
        poll_fn(|context| {
            if self.is_set.take() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
