//! How the halves of a task wait for each other.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    task::{Poll, Waker},
};

use spin_sdk::wasip3::{wit_bindgen::StreamWriter, wit_stream};

/// Tells one half of a task that the other has changed something. One half waits.
#[derive(Default)]
pub(crate) struct Signal {
    set: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Signal {
    /// Says that something has changed.
    pub(crate) fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when something has changed since the last time.
    pub(crate) async fn wait(&self) {
        poll_fn(|context| {
            if self.set.take() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Wakes waiting futures of one task when a condition may have become true. Any number of them may wait: they are polled together, so
/// they share one waker.
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

/// Wakes waiting futures of any task when a condition may have become true.
///
/// A task of a component cannot wake another (wit-bindgen's `inter-task-wakeup` could, and traps under wasmtime 48), but the host can: a
/// waiting task reads from a stream, and `notify` drops the writer.
#[derive(Default)]
pub(crate) struct TaskNotify {
    waiting: RefCell<BTreeMap<u64, StreamWriter<u8>>>,
    next: Cell<u64>,
}

impl TaskNotify {
    /// Says that it may have become true.
    pub(crate) fn ring(&self) {
        drop(self.waiting.take());
    }

    /// Resolves when it is true.
    pub(crate) async fn until(&self, is_true: impl Fn() -> bool) {
        let waiting = Waiter { bell: self, place: self.next.replace(self.next.get() + 1) };
        while !is_true() {
            let (writer, mut reader) = wit_stream::new::<u8>();
            self.waiting.borrow_mut().insert(waiting.place, writer);
            // Nothing is ever written.
            reader.read(Vec::with_capacity(1)).await;
        }
    }
}

/// A task that waits at a bell, and may leave.
struct Waiter<'b> {
    bell: &'b TaskNotify,
    place: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.bell.waiting.borrow_mut().remove(&self.place);
    }
}
