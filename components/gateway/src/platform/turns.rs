//! Turns on the one thread of this instance: long computations are done in bounded slices, and users take turns by the
//! time that their slices took.
//!
//! A slice is the time between two awaits. Before it the task yields to the host, so that other tasks and new requests
//! run, and then waits for its turn. A computation that is short for every input needs no turn.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    task::Poll,
};

use futures::future::{Either, select};
use spin_sdk::wasip3::{wit_bindgen::StreamWriter, wit_stream};
use weir_codec::{json::JsonError, pipelines::text};
use weir_core::{pipelines::Json, turns::Turns};
use weir_guest::notify::LocalNotify;
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
    turn.began_ns = clock::monotonic_ns();
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
    let turn = take(user).await;
    begin(Some(turn), work).await
}

/// Runs the part of `work` before its first wait in a turn, then the rest without one.
async fn begin<T>(turn: Option<Turn>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
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

/// Reads a JSON value of any type, in turns of the user if it is large.
pub(crate) async fn read_json(user: &str, body: &[u8]) -> Result<Json, JsonError> {
    let mut slices = Slices::begin_over(user, body.len()).await;
    text::read_in_slices(body, async || slices.pause().await).await
}

/// The turns of a long computation, of which it has one at all times.
pub(crate) struct Slices<'u> {
    user: &'u str,
    turn: Option<Turn>,
}

impl<'u> Slices<'u> {
    /// Waits for the first turn.
    pub(crate) async fn begin(user: &'u str) -> Self {
        Self { user, turn: Some(take(user).await) }
    }

    /// Like [`Slices::begin`], without a first turn if the computation is over few bytes.
    pub(crate) async fn begin_over(user: &'u str, bytes: usize) -> Self {
        Self { user, turn: take_over(user, bytes).await }
    }

    /// Ends the turn and waits for the next one.
    pub(crate) async fn pause(&mut self) {
        drop(self.turn.take());
        self.turn = Some(take(self.user).await);
    }
}

/// Runs a computation in a turn of the user.
pub(crate) async fn run<T>(user: &str, slice: impl FnOnce() -> T) -> T {
    let _turn = take(user).await;
    slice()
}

/// The turn of a task with several futures, one of which takes it. While that one has it, the work of the others is part of it: they
/// must not wait for a turn of their own, because the one with the turn may wait for them.
#[derive(Default)]
pub(crate) struct SharedTurn {
    is_taken: Cell<bool>,
    taken: LocalNotify,
}

/// The turn of [`SharedTurn::take`], until it is dropped.
pub(crate) struct SharedTurnGuard<'a> {
    shared: &'a SharedTurn,
    _turn: Turn,
}

impl SharedTurn {
    /// Waits for a turn of this user, for this future and for those that join.
    pub(crate) async fn take(&self, user: &str) -> SharedTurnGuard<'_> {
        let turn = take(user).await;
        self.is_taken.set(true);
        self.taken.notify();
        SharedTurnGuard { shared: self, _turn: turn }
    }

    /// Waits for a turn of this user; none if the other future has the turn or gets it first.
    pub(crate) async fn join(&self, user: &str) -> Option<Turn> {
        if self.is_taken.get() {
            return None;
        }
        let taken = pin!(self.taken.until(|| self.is_taken.get()));
        match select(pin!(take(user)), taken).await {
            Either::Left((turn, _)) => Some(turn),
            Either::Right(_) => None,
        }
    }

    /// Like [`hand_over`], in the turn of the other future if that has it.
    pub(crate) async fn hand_over<T>(&self, user: &str, bytes: usize, work: impl Future<Output = T>) -> T {
        if bytes < LARGE_BYTES {
            return work.await;
        }
        let turn = self.join(user).await;
        begin(turn, work).await
    }
}

impl Drop for SharedTurnGuard<'_> {
    fn drop(&mut self) {
        self.shared.is_taken.set(false);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let took_ns = match self.began_ns {
            0 => 0,
            began_ns => clock::monotonic_ns().saturating_sub(began_ns),
        };
        let next = QUEUE.with_borrow_mut(|queue| {
            queue.waiting.remove(&self.ticket);
            queue.turns.finish(self.ticket, took_ns);
            queue.turns.poll().and_then(|ticket| queue.waiting.remove(&ticket))
        });
        drop(next);
    }
}
