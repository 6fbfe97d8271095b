//! Turns on the one thread of this instance: long computations are done in bounded slices, and users take turns by the
//! time that their slices took.
//!
//! A slice is the time between two awaits. Before it the task yields to the host, so that other tasks and new requests
//! run, and then waits for its turn. A computation that is short for every input needs no turn.

use std::{cell::RefCell, collections::HashMap, future::poll_fn, pin::pin, task::Poll};

use spin_sdk::wasip3::{wit_bindgen::StreamWriter, wit_stream};
use weir_core::turns::Turns;
use wit_bindgen::rt::async_support::yield_async;

use crate::platform::clock;

#[derive(Default)]
struct Queue {
    turns: Turns,
    /// The tasks that wait, by ticket. Dropping a writer wakes the task that reads from its other end; a task of a
    /// component cannot wake another one otherwise.
    waiting: HashMap<u64, StreamWriter<u8>>,
}

thread_local! {
    static QUEUE: RefCell<Queue> = RefCell::default();
}

/// The turn of a task, until it is dropped. It is not held across an await that depends on a client or a service.
pub(crate) struct Turn {
    ticket: u64,
    began_ns: u64,
}

/// Waits for a turn of this user.
pub(crate) async fn take(user: &str) -> Turn {
    yield_async().await;
    let mut waiting = None;
    let ticket = QUEUE.with_borrow_mut(|queue| {
        let ticket = queue.turns.request(user);
        if queue.turns.poll() != Some(ticket) {
            let (writer, reader) = wit_stream::new::<u8>();
            queue.waiting.insert(ticket, writer);
            waiting = Some(reader);
        }
        ticket
    });
    // From here on, dropping the task abandons the ticket.
    let mut turn = Turn { ticket, began_ns: 0 };
    if let Some(mut reader) = waiting {
        // Nothing is ever written.
        reader.read(Vec::with_capacity(1)).await;
    }
    turn.began_ns = clock::now().monotonic_ns;
    turn
}

/// Values of at least this size are copied to the host in a turn, in bytes.
const LARGE_BYTES: usize = 16 << 10;

/// Passes bytes to the host and waits for the result. The part before the first wait, such as copying a large value, is done in a turn of
/// the user.
pub(crate) async fn hand_over<T>(user: &str, bytes: usize, work: impl Future<Output = T>) -> T {
    if bytes < LARGE_BYTES {
        return work.await;
    }
    let mut work = pin!(work);
    let turn = take(user).await;
    let first = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
    drop(turn);
    match first {
        Poll::Ready(done) => done,
        Poll::Pending => work.await,
    }
}

/// Waits for a turn of this user for a computation over the given number of bytes; none if they are few.
pub(crate) async fn take_over(user: &str, bytes: usize) -> Option<Turn> {
    match bytes < LARGE_BYTES {
        true => None,
        false => Some(take(user).await),
    }
}

/// Runs a computation over the given number of bytes, in a turn of the user if they are many.
pub(crate) async fn run_over<T>(user: &str, bytes: usize, slice: impl FnOnce() -> T) -> T {
    let _turn = take_over(user, bytes).await;
    slice()
}

/// Runs a computation in a turn of the user.
pub(crate) async fn run<T>(user: &str, slice: impl FnOnce() -> T) -> T {
    let _turn = take(user).await;
    slice()
}

impl Drop for Turn {
    fn drop(&mut self) {
        let took_ns = match self.began_ns {
            0 => 0,
            began_ns => clock::now().monotonic_ns.saturating_sub(began_ns),
        };
        let next = QUEUE.with_borrow_mut(|queue| {
            queue.waiting.remove(&self.ticket);
            queue.turns.finish(self.ticket, took_ns);
            queue.turns.poll().and_then(|ticket| queue.waiting.remove(&ticket))
        });
        drop(next);
    }
}
