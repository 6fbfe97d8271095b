//! One thread on which the tasks of two users take turns.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use weir_core::turns::Turns;

const HEAVY: usize = 8;
const LIGHT: usize = 5;

/// One thread, on which each slice takes one unit of time.
#[derive(Default)]
pub(crate) struct Thread {
    turns: Turns,
    running: Option<u64>,
    slices: usize,
}

/// The turns of a task, of which it has one at all times.
pub(crate) struct TaskTurns<'t> {
    thread: &'t RefCell<Thread>,
    user: &'static str,
    turn: Option<Turn<'t>>,
}

impl<'t> TaskTurns<'t> {
    pub(crate) async fn begin(thread: &'t RefCell<Thread>, user: &'static str) -> Self {
        Self { thread, user, turn: Some(take(thread, user).await) }
    }

    /// Ends a turn and waits for the next one.
    pub(crate) async fn pause(&mut self) {
        drop(self.turn.take());
        self.turn = Some(take(self.thread, self.user).await);
    }
}

struct Turn<'t>(&'t RefCell<Thread>, u64);

async fn take<'t>(thread: &'t RefCell<Thread>, user: &str) -> Turn<'t> {
    let ticket = thread.borrow_mut().turns.request(user);
    poll_fn(|_| {
        let mut thread = thread.borrow_mut();
        thread.running = thread.running.or_else(|| thread.turns.poll());
        if thread.running == Some(ticket) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    Turn(thread, ticket)
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut thread = self.0.borrow_mut();
        thread.turns.finish(self.1, 1);
        thread.running = None;
        thread.slices += 1;
    }
}

/// Starts heavy tasks of one user, then light ones of another, one after the other. Each of the latter waits for at most two slices of the
/// former, and none of the former has ended before.
pub(crate) fn check_order(what: &str, heavy: impl AsyncFn(TaskTurns<'_>), light: impl AsyncFn(TaskTurns<'_>)) {
    let thread = RefCell::new(Thread::default());
    let mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
    for _ in 0..HEAVY {
        tasks.push(Box::pin(async { heavy(TaskTurns::begin(&thread, "ann").await).await }));
    }
    let mut context = Context::from_waker(Waker::noop());
    let mut finished = 0;
    let mut poll_heavy = |context: &mut Context<'_>| {
        let before = tasks.len();
        tasks.retain_mut(|task| task.as_mut().poll(context).is_pending());
        finished += before - tasks.len();
        finished
    };
    poll_heavy(&mut context);
    let before = thread.borrow().slices;
    let mut light = Box::pin(async {
        for _ in 0..LIGHT {
            light(TaskTurns::begin(&thread, "bob").await).await;
        }
    });
    let mut finished_before_light = 0;
    while light.as_mut().poll(&mut context).is_pending() {
        finished_before_light = poll_heavy(&mut context);
    }
    let slices = thread.borrow().slices - before;
    assert_eq!(finished_before_light, 0, "{what}: heavy tasks have ended in {slices} slices");
    // For each light task: its own slice, and at most two of the other user.
    assert!(slices <= LIGHT * 3, "{what}: {slices} slices");
    assert!((0..100_000).any(|_| poll_heavy(&mut context) == HEAVY), "{what}: a heavy task does not end");
}
