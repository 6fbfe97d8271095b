//! Evaluations of two users on one thread: those of one user take turns with those of another, slice by slice.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use weir_core::pipelines::Json;
use weir_core::turns::Turns;
use weir_expression::{Bounds, Expression};

/// One thread, on which each slice takes one unit of time.
#[derive(Default)]
struct Thread {
    turns: Turns,
    running: Option<u64>,
    slices: usize,
}

/// The turn of a task.
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

/// Evaluates an expression, each slice in a turn of the user.
async fn evaluate(thread: &RefCell<Thread>, user: &str, expression: &str, input: &Json) {
    let expression = Expression::parse(expression).unwrap();
    let mut turn = Some(take(thread, user).await);
    let pause = async || {
        drop(turn.take());
        turn = Some(take(thread, user).await);
    };
    expression.evaluate_in_slices(input, Bounds::default(), pause).await.unwrap();
}

#[test]
fn light_evaluation_of_one_user_precedes_the_second_slice_of_each_heavy_one() {
    const HEAVY: usize = 8;
    const LIGHT: usize = 5;
    let numbers = format!("[{}1]", "1,".repeat(20_000));
    let (large, small) = (Json::from_checked(numbers), Json::from_checked("1"));
    // Reading, writing, comparing, sorting and copying.
    for expression in ["@", "@ == @", "sort(@)", "[@, @] | [0]", "to_string(@)", "length(map(&(@ + `1`), @))"] {
        let thread = RefCell::new(Thread::default());
        let mut heavy: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        for _ in 0..HEAVY {
            heavy.push(Box::pin(evaluate(&thread, "ann", expression, &large)));
        }
        let mut context = Context::from_waker(Waker::noop());
        let mut finished = 0;
        let mut poll_heavy = |context: &mut Context<'_>| {
            let before = heavy.len();
            heavy.retain_mut(|task| task.as_mut().poll(context).is_pending());
            finished += before - heavy.len();
            finished
        };
        poll_heavy(&mut context);
        let before = thread.borrow().slices;
        let mut light = Box::pin(async {
            for _ in 0..LIGHT {
                evaluate(&thread, "bob", "@", &small).await;
            }
        });
        let mut finished_before_light = 0;
        while light.as_mut().poll(&mut context).is_pending() {
            finished_before_light = poll_heavy(&mut context);
        }
        let slices = thread.borrow().slices - before;
        assert_eq!(finished_before_light, 0, "{expression}: heavy evaluations have ended in {slices} slices");
        // For each light evaluation: its own slice, and at most two of the other user.
        assert!(slices <= LIGHT * 3, "{expression}: {slices} slices");
        assert!(
            (0..100_000).any(|_| poll_heavy(&mut context) == HEAVY),
            "{expression}: a heavy evaluation does not end"
        );
    }
}
