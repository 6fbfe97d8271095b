//! A future that is polled only when it was woken.

use futures::stream::{FuturesUnordered, StreamExt};

/// Polls a future only when its waker was used. The event loop of a store (`run_concurrent`) polls its future before each step, a
/// few dozen times for each request, although that future is rarely ready.
pub(crate) async fn poll_when_woken<F: Future>(future: F) -> F::Output {
    let mut one: FuturesUnordered<F> = std::iter::once(future).collect();
    match one.next().await {
        Some(output) => output,
        // It has one future, which has not ended before.
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn future_is_polled_again_only_after_a_wake_up() {
        let (polls, waker) = (Cell::new(0), Cell::new(None::<Waker>));
        let future = std::future::poll_fn(|cx| {
            polls.set(polls.get() + 1);
            waker.set(Some(cx.waker().clone()));
            if polls.get() == 3 { Poll::Ready(7) } else { Poll::Pending }
        });
        let mut future = pin!(poll_when_woken(future));
        let mut cx = Context::from_waker(Waker::noop());
        for expected in [1, 1, 2] {
            if expected > polls.get()
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
            assert_eq!(future.as_mut().poll(&mut cx), Poll::Pending);
            assert_eq!(polls.get(), expected);
        }
        waker.take().into_iter().for_each(Waker::wake);
        assert_eq!(future.as_mut().poll(&mut cx), Poll::Ready(7));
    }
}
