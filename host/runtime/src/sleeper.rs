//! Puts a thread to sleep while it has no work, so that it does not wake an idle process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;

/// Wakes one thread, which sleeps by [`Sleeper::sleep_unless`].
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    is_asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Sleeper {
    /// Sleeps until [`Sleeper::wake`], unless there is work. Called by one thread. May return spuriously.
    ///
    /// Work that is added before a call of `wake` is not missed: the thread is marked as asleep before `has_work` is
    /// called.
    pub(crate) fn sleep_unless(&self, has_work: impl FnOnce() -> bool) {
        self.thread.get_or_init(std::thread::current);
        self.is_asleep.store(true, Ordering::SeqCst);
        if !has_work() {
            std::thread::park();
        }
        self.is_asleep.store(false, Ordering::SeqCst);
    }

    /// Wakes the thread if it sleeps; must be called after work was added. Costs one atomic load while the thread does
    /// not sleep.
    pub(crate) fn wake(&self) {
        if self.is_asleep.load(Ordering::SeqCst)
            && self.is_asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn work_that_appears_while_the_thread_falls_asleep_is_done() {
        const ROUNDS: u64 = 20_000;
        let (sleeper, work, done) = (Arc::new(Sleeper::default()), Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
        let worker = std::thread::spawn({
            let (sleeper, work) = (sleeper.clone(), work.clone());
            move || {
                let mut count = 0;
                while count < ROUNDS {
                    sleeper.sleep_unless(|| work.load(Ordering::SeqCst) > count);
                    count = work.load(Ordering::SeqCst);
                }
                done.store(count, Ordering::SeqCst);
                done.into_inner()
            }
        });
        for _ in 0..ROUNDS {
            work.fetch_add(1, Ordering::SeqCst);
            sleeper.wake();
        }
        assert_eq!(worker.join().unwrap(), ROUNDS);
    }
}
