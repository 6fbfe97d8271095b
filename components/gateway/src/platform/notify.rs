//! Notifications between the tasks of an instance. Those within a task are of [`weir_guest::notify`].

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use spin_sdk::wasip3::{wit_bindgen::StreamWriter, wit_stream};

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
