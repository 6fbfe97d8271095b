//! Notifications between the futures of a task. A task of a component cannot wake another one.

use std::{
    cell::Cell,
    future::poll_fn,
    task::{Poll, Waker},
};

/// A flag that one future of a task sets and another one of the same task waits for. At most one future waits.
#[derive(Default)]
pub struct Signal {
    is_set: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Signal {
    /// Sets the flag.
    pub fn notify(&self) {
        self.is_set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when the flag is set, and clears it.
    pub async fn wait(&self) {
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

/// Wakes waiting futures of one task when a condition may have become true. Any number of them may wait: they are polled together, so
/// they share one waker.
#[derive(Default)]
pub struct LocalNotify {
    waker: Cell<Option<Waker>>,
}

impl LocalNotify {
    /// Signals that the condition may have become true.
    pub fn notify(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Resolves when the condition is true.
    pub async fn until(&self, is_true: impl Fn() -> bool) {
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

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Wake},
    };

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn signal_that_was_set_before_the_wait_ends_it_and_is_cleared() {
        let (signal, wakes) = (Signal::default(), Arc::new(Wakes::default()));
        let waker = wakes.clone().into();
        let mut context = Context::from_waker(&waker);
        signal.notify();
        signal.notify();
        assert!(pin!(signal.wait()).poll(&mut context).is_ready());
        let mut second = pin!(signal.wait());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        signal.notify();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(second.poll(&mut context).is_ready());
    }

    #[test]
    fn notification_wakes_the_task_and_only_a_true_condition_ends_the_wait() {
        let (notify, wakes, value) = (LocalNotify::default(), Arc::new(Wakes::default()), Cell::new(0));
        let waker = wakes.clone().into();
        let mut context = Context::from_waker(&waker);
        let mut first = pin!(notify.until(|| value.get() > 0));
        let mut second = pin!(notify.until(|| value.get() > 1));
        assert!(first.as_mut().poll(&mut context).is_pending() && second.as_mut().poll(&mut context).is_pending());
        value.set(1);
        notify.notify();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(first.poll(&mut context).is_ready() && second.as_mut().poll(&mut context).is_pending());
        value.set(2);
        notify.notify();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert!(second.poll(&mut context).is_ready());
    }
}
