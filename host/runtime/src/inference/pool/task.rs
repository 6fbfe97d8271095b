//! The future of a replica, which the thread of a caller may poll in place of the replica's own thread.
//!
//! To wake the thread of an idle replica, and to be woken by it, takes about as long as to compute a short text. A gateway
//! instance with a single request therefore lends its thread ([`lend_thread`]): when it has queued an item and waits, its
//! thread polls the replica that the item would have woken. It computes one assignment of at most
//! [`CALLER_NS_MAX`], and leaves everything else to the replica's thread: further items, restarts, and waiting.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

/// The longest expected computation on the thread of a caller, in nanoseconds. Other tasks of that thread wait for it.
pub(super) const CALLER_NS_MAX: u64 = 2_000_000;
/// The time after which the replica's thread continues what the thread of a caller has begun.
const CALLER_DURATION_MAX: Duration = Duration::from_nanos(2 * CALLER_NS_MAX);
/// The most polls on the thread of a caller: an outcome takes a few.
const CALLER_POLLS_MAX: u32 = 32;

/// No caller polls the future: a wake-up wakes the replica's thread.
const ON_THREAD: u8 = 0;
/// A caller polls the future: a wake-up makes the caller poll it again.
const ON_CALLER: u8 = 1;
/// A caller polls the future, which was woken meanwhile.
const ON_CALLER_WOKEN: u8 = 2;

/// The future of a replica's thread. It is its own waker.
pub(super) struct ReplicaTask {
    slot: Mutex<Slot>,
    /// Wakes the replica's thread.
    thread: AtomicWaker,
    /// [`ON_THREAD`], [`ON_CALLER`] or [`ON_CALLER_WOKEN`].
    state: AtomicU8,
    /// Whether callers may poll it: its computations end, and take the expected time.
    may_borrow: bool,
}

enum Slot {
    Running(Pin<Box<dyn Future<Output = bool> + Send>>),
    Ended(bool),
}

impl ReplicaTask {
    pub(super) fn new(future: impl Future<Output = bool> + Send + 'static, may_borrow: bool) -> Arc<Self> {
        Arc::new(Self {
            slot: Mutex::new(Slot::Running(Box::pin(future))),
            thread: AtomicWaker::new(),
            state: AtomicU8::new(ON_THREAD),
            may_borrow,
        })
    }

    /// Runs the future on the calling thread, which is that of the replica.
    pub(super) async fn run(self: Arc<Self>) -> bool {
        let waker = Waker::from(self.clone());
        std::future::poll_fn(|cx| {
            self.thread.register(cx.waker());
            self.slot.lock().unwrap_or_else(PoisonError::into_inner).poll(&waker)
        })
        .await
    }

    /// Polls the future on the calling thread, which is that of a caller, until it waits or its turn ends.
    fn run_on_caller(self: Arc<Self>) {
        // If it cannot be locked, its own thread polls it.
        let Ok(mut slot) = self.slot.try_lock() else { return self.thread.wake() };
        let waker = Waker::from(self.clone());
        let (turn, start_time) = (CallerTurn::begin(), Instant::now());
        for _ in 0..CALLER_POLLS_MAX {
            self.state.store(ON_CALLER, Ordering::SeqCst);
            let has_ended = slot.poll(&waker).is_ready();
            if has_ended || turn.is_over() || start_time.elapsed() >= CALLER_DURATION_MAX {
                break;
            }
            if self.state.compare_exchange(ON_CALLER, ON_THREAD, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return;
            }
        }
        self.state.store(ON_THREAD, Ordering::SeqCst);
        drop((turn, slot));
        self.thread.wake();
    }
}

impl Slot {
    fn poll(&mut self, waker: &Waker) -> Poll<bool> {
        match self {
            Self::Running(future) => {
                let polled = future.as_mut().poll(&mut Context::from_waker(waker));
                if let Poll::Ready(output) = polled {
                    // Drops the future, which may have clones of its waker.
                    *self = Self::Ended(output);
                }
                polled
            }
            Self::Ended(output) => Poll::Ready(*output),
        }
    }
}

impl Wake for ReplicaTask {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken = self.state.compare_exchange(ON_CALLER, ON_CALLER_WOKEN, Ordering::SeqCst, Ordering::SeqCst);
        if woken != Err(ON_THREAD) || (self.may_borrow && Loan::offer(self)) {
            return;
        }
        self.thread.wake();
    }
}

thread_local! {
    /// The turn of a replica on this thread, while it has one.
    static TURN: Cell<Option<Turn>> = const { Cell::new(None) };
    /// While this thread may be lent: the replica that has been woken.
    static LOAN: RefCell<Option<Option<Arc<ReplicaTask>>>> = const { RefCell::new(None) };
}

/// The state of a replica's turn on the thread of a caller.
#[derive(Clone, Copy, Default)]
struct Turn {
    has_taken: bool,
    is_over: bool,
}

/// The turn of a replica on the thread of a caller, until it is dropped.
struct CallerTurn;

impl CallerTurn {
    fn begin() -> Self {
        TURN.set(Some(Turn::default()));
        Self
    }

    fn is_over(&self) -> bool {
        TURN.get().is_some_and(|turn| turn.is_over)
    }
}

impl Drop for CallerTurn {
    fn drop(&mut self) {
        TURN.set(None);
    }
}

/// Whether the replica that this thread polls may take the waiting items, which take the expected time. If not, its own
/// thread continues.
pub(super) fn may_take(waiting_ns: impl FnOnce() -> u64) -> bool {
    let Some(turn) = TURN.get() else { return true };
    let waiting_ns = waiting_ns();
    let may_take = waiting_ns == 0 || (!turn.has_taken && waiting_ns <= CALLER_NS_MAX);
    if !may_take {
        TURN.set(Some(Turn { is_over: true, ..turn }));
    }
    may_take
}

/// Records that the replica that this thread polls has taken items.
pub(super) fn record_taken() {
    if let Some(turn) = TURN.get() {
        TURN.set(Some(Turn { has_taken: true, ..turn }));
    }
}

/// A thread that may be lent, until this is dropped.
struct Loan;

impl Loan {
    fn begin() -> Self {
        LOAN.set(Some(None));
        Self
    }

    /// Offers the current thread to a replica instead of waking the replica's own. False if the thread is not lent.
    fn offer(replica: &Arc<ReplicaTask>) -> bool {
        LOAN.with_borrow_mut(|loan| match loan {
            None => false,
            Some(Some(other)) => Arc::ptr_eq(other, replica),
            Some(vacant) => {
                *vacant = Some(replica.clone());
                true
            }
        })
    }

    fn replica(&self) -> Option<Arc<ReplicaTask>> {
        LOAN.with_borrow_mut(|loan| loan.as_mut().and_then(Option::take))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // After a panic of the caller, the replica's thread is woken.
        if let Some(replica) = LOAN.take().flatten() {
            replica.thread.wake();
        }
    }
}

/// Runs a future that queues items. While `may_lend` is true, a replica that it wakes is polled on the thread of the
/// future after the future has returned, and else on the replica's own thread.
pub(crate) async fn lend_thread<F: Future>(may_lend: impl Fn() -> bool, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if !may_lend() {
            return future.as_mut().poll(cx);
        }
        let loan = Loan::begin();
        let polled = future.as_mut().poll(cx);
        let replica = loan.replica();
        drop(loan);
        match replica {
            Some(replica) if polled.is_pending() && may_lend() => replica.run_on_caller(),
            Some(replica) => replica.thread.wake(),
            None => {}
        }
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32};
    use std::thread::ThreadId;

    use super::*;

    /// A replica whose queue is a counter. It records the threads of its computations and their number in each turn.
    struct TestReplica {
        waiting: AtomicU32,
        /// The expected time of an item.
        item_ns: u64,
        waker: AtomicWaker,
        polls: AtomicU32,
        threads: Mutex<Vec<ThreadId>>,
        is_stopped: AtomicBool,
    }

    impl TestReplica {
        fn start(item_ns: u64, may_borrow: bool) -> (Arc<Self>, std::thread::JoinHandle<bool>) {
            let replica = Arc::new(Self {
                waiting: AtomicU32::new(0),
                item_ns,
                waker: AtomicWaker::new(),
                polls: AtomicU32::new(0),
                threads: Mutex::default(),
                is_stopped: AtomicBool::new(false),
            });
            let run = {
                let replica = replica.clone();
                std::future::poll_fn(move |cx| replica.poll(cx))
            };
            let task = ReplicaTask::new(run, may_borrow);
            let thread = std::thread::spawn(move || futures::executor::block_on(task.run()));
            replica.wait_for("the first poll", || replica.polls.load(Ordering::SeqCst) > 0);
            (replica, thread)
        }

        fn poll(&self, cx: &mut Context<'_>) -> Poll<bool> {
            self.waker.register(cx.waker());
            self.polls.fetch_add(1, Ordering::SeqCst);
            loop {
                if self.is_stopped.load(Ordering::SeqCst) {
                    return Poll::Ready(true);
                }
                let waiting_ns = || u64::from(self.waiting.load(Ordering::SeqCst)) * self.item_ns;
                if !may_take(waiting_ns) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let took =
                    self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |waiting| waiting.checked_sub(1));
                if took.is_err() {
                    return Poll::Pending;
                }
                record_taken();
                self.threads.lock().unwrap().push(std::thread::current().id());
            }
        }

        fn push(&self, items: u32) {
            self.waiting.fetch_add(items, Ordering::SeqCst);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }

        fn wait_for(&self, name: &str, condition: impl Fn() -> bool) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !condition() {
                assert!(Instant::now() < deadline, "{name}");
                std::thread::yield_now();
            }
        }

        fn computed(&self) -> usize {
            self.threads.lock().unwrap().len()
        }

        /// Pushes items in a future that lends its thread, waits until they are computed, and returns how many were
        /// computed on this thread.
        fn computed_here(&self, items: u32, may_lend: bool) -> usize {
            let before = self.computed();
            let mut is_first = true;
            let caller = pin!(lend_thread(
                || may_lend,
                std::future::poll_fn(|_| {
                    if std::mem::take(&mut is_first) {
                        self.push(items);
                    }
                    Poll::<()>::Pending
                })
            ));
            assert!(caller.poll(&mut Context::from_waker(Waker::noop())).is_pending());
            self.wait_for("the items", || self.computed() == before + items as usize);
            let threads = self.threads.lock().unwrap();
            threads[before..].iter().filter(|thread| **thread == std::thread::current().id()).count()
        }

        fn stop(&self, thread: std::thread::JoinHandle<bool>) {
            self.is_stopped.store(true, Ordering::SeqCst);
            self.push(0);
            assert!(thread.join().unwrap());
        }
    }

    #[test]
    fn short_item_for_an_idle_replica_is_computed_on_the_thread_of_its_caller() {
        let (replica, thread) = TestReplica::start(CALLER_NS_MAX, true);
        for _ in 0..100 {
            // The replica's thread may still hold its future after the previous item.
            let here = replica.computed_here(1, true);
            assert!(here <= 1);
        }
        replica.wait_for("an item on this thread", || replica.computed_here(1, true) == 1);
        replica.stop(thread);
    }

    #[test]
    fn long_items_further_items_and_other_engines_stay_on_the_thread_of_the_replica() {
        let (replica, thread) = TestReplica::start(CALLER_NS_MAX + 1, true);
        assert_eq!(replica.computed_here(1, true), 0);
        replica.stop(thread);
        let (replica, thread) = TestReplica::start(1, true);
        assert!(replica.computed_here(5, true) <= 1);
        assert_eq!(replica.computed_here(1, false), 0);
        replica.stop(thread);
        let (replica, thread) = TestReplica::start(1, false);
        assert_eq!(replica.computed_here(1, true), 0);
        replica.stop(thread);
    }

    #[test]
    fn replica_that_ends_on_the_thread_of_a_caller_ends_its_own_thread() {
        let (replica, thread) = TestReplica::start(1, true);
        let mut caller = pin!(lend_thread(
            || true,
            std::future::poll_fn(|_| {
                replica.is_stopped.store(true, Ordering::SeqCst);
                replica.push(1);
                Poll::<()>::Pending
            })
        ));
        assert!(caller.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(thread.join().unwrap());
    }

    #[test]
    fn no_wake_up_is_lost_between_the_threads() {
        let (replica, thread) = TestReplica::start(1, true);
        let other = {
            let replica = replica.clone();
            std::thread::spawn(move || (0..2_000).for_each(|_| replica.push(1)))
        };
        for _ in 0..2_000 {
            let mut is_first = true;
            let caller = pin!(lend_thread(
                || true,
                std::future::poll_fn(|_| {
                    if std::mem::take(&mut is_first) {
                        replica.push(1);
                    }
                    Poll::<()>::Pending
                })
            ));
            assert!(caller.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        other.join().unwrap();
        replica.wait_for("all items", || replica.computed() == 4_000);
        replica.stop(thread);
    }
}
