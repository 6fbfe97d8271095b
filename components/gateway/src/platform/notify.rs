//! Notifications within a task and between the tasks of an instance.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    task::{Poll, Waker},
};

use spin_sdk::wasip3::{wit_bindgen::StreamWriter, wit_stream};

/// A flag that one future of a task sets and another one of the same task waits for. At most one future waits.
#[derive(Default)]
pub(crate) struct Signal {
    set: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Signal {
    /// Sets the flag.
    pub(crate) fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when the flag is set, and clears it.
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
    /// Signals that the condition may have become true.
    pub(crate) fn notify(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when the condition is true.
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
    /// Signals that the condition may have become true.
    pub(crate) fn notify(&self) {
        drop(self.waiting.take());
    }

    /// Resolves when the condition is true.
    pub(crate) async fn until(&self, is_true: impl Fn() -> bool) {
        let waiting = Waiter { owner: self, id: self.next.replace(self.next.get() + 1) };
        while !is_true() {
            let (writer, mut reader) = wit_stream::new::<u8>();
            self.waiting.borrow_mut().insert(waiting.id, writer);
            // Nothing is ever written.
            reader.read(Vec::with_capacity(1)).await;
        }
    }
}

/// A waiting task; dropping it unregisters the task.
struct Waiter<'b> {
    owner: &'b TaskNotify,
    id: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.owner.waiting.borrow_mut().remove(&self.id);
    }
}
