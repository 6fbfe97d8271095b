//! How the parts of a task wait for each other.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes waiting futures of one task when a condition may have become true. Any number of them may wait: they are polled together, so they
/// share one waker.
#[derive(Default)]
pub(crate) struct LocalNotify {
    waker: Cell<Option<Waker>>,
}

impl LocalNotify {
    /// Says that it may have become true.
    pub(crate) fn notify(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when it is true.
    pub(crate) async fn until(&self, is_true: impl Fn() -> bool) {
        poll_fn(|context| {
            if is_true() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
