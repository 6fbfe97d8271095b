//! A host whose bucket is a map. Its calls take virtual time, can be interrupted by other instances, and can fail before or after their
//! effect.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::keyvalue::{Host, HostError, Keyvalue};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// More turns than any test needs, unless instances wait for each other for ever.
const TURNS_MAX: usize = 200_000;

/// The bucket, the clock and the tasks of all instances.
#[derive(Default)]
pub(super) struct World {
    pub(super) bucket: RefCell<BTreeMap<String, Vec<u8>>>,
    pub(super) clock_ms: Cell<u64>,
    tasks: RefCell<Vec<Option<Task>>>,
    random: Cell<u64>,
    /// How often in 100 calls another task runs in the middle.
    pub(super) interrupt_percent: Cell<u64>,
}

/// One instance.
#[derive(Clone)]
pub(super) struct FakeHost {
    pub(super) world: Rc<World>,
    pub(super) plan: Rc<Plan>,
}

/// What goes wrong in an instance.
#[derive(Default)]
pub(super) struct Plan {
    /// How often in 100 calls one fails.
    pub(super) fail_percent: Cell<u64>,
    /// After how many calls the instance ends: all later ones fail.
    pub(super) calls_left: Cell<Option<u64>>,
    /// A failure of every call.
    pub(super) failure: RefCell<Option<HostError>>,
    /// How long a call that reads a key which begins with this text takes.
    pub(super) slow: RefCell<Option<(String, u64)>>,
    pub(super) reports: RefCell<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Rc<Self> {
        let world = Self { clock_ms: Cell::new(1_000_000), random: Cell::new(seed | 1), ..Self::default() };
        Rc::new(world)
    }

    /// Another instance with this bucket.
    pub(super) fn instance(self: &Rc<Self>) -> (Rc<Keyvalue<FakeHost>>, Rc<Plan>) {
        let plan = Rc::new(Plan::default());
        (Rc::new(Keyvalue::new(FakeHost { world: self.clone(), plan: plan.clone() })), plan)
    }

    pub(super) fn pass(&self, ms: u64) {
        self.clock_ms.set(self.clock_ms.get() + ms);
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(Some(Box::pin(task)));
    }

    /// Runs all tasks to their end, in a random order.
    pub(super) fn run(&self) {
        for _ in 0..TURNS_MAX {
            if self.tasks.borrow().iter().all(Option::is_none) {
                self.tasks.borrow_mut().clear();
                return;
            }
            self.turn();
            self.pass(1);
        }
        panic!("the tasks do not end");
    }

    /// The result of a task that runs alone.
    pub(super) fn alone<T>(&self, task: impl Future<Output = T>) -> T {
        let mut task = std::pin::pin!(task);
        for _ in 0..TURNS_MAX {
            if let Poll::Ready(result) = task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return result;
            }
            self.pass(1);
        }
        panic!("the task does not end");
    }

    /// Lets a random task run that is not running already.
    fn turn(&self) {
        let waiting: Vec<usize> = {
            let tasks = self.tasks.borrow();
            (0..tasks.len()).filter(|at| tasks[*at].is_some()).collect()
        };
        if waiting.is_empty() {
            return;
        }
        let at = waiting[self.random(waiting.len() as u64) as usize];
        let Some(mut task) = self.tasks.borrow_mut()[at].take() else { return };
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.tasks.borrow_mut()[at] = Some(task);
        }
    }

    /// Xorshift, below a bound.
    fn random(&self, bound: u64) -> u64 {
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.set(random);
        (random >> 11) % bound
    }
}

impl FakeHost {
    /// A call of the host.
    fn call<T>(&self, effect: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> Result<T, HostError> {
        let (world, plan) = (&self.world, &self.plan);
        if let Some(failure) = plan.failure.borrow().clone() {
            return Err(failure);
        }
        match plan.calls_left.get() {
            Some(0) => return Err(HostError::Other("the instance has ended".to_owned())),
            left => plan.calls_left.set(left.map(|left| left - 1)),
        }
        if world.random(100) < world.interrupt_percent.get() {
            world.turn();
        }
        let fails = world.random(100) < plan.fail_percent.get();
        if fails && world.random(2) == 0 {
            return Err(HostError::Other("no connection".to_owned()));
        }
        let result = effect(&mut world.bucket.borrow_mut());
        if world.random(100) < world.interrupt_percent.get() {
            world.turn();
        }
        if fails { Err(HostError::Other("no answer".to_owned())) } else { Ok(result) }
    }
}

impl Host for FakeHost {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, HostError> {
        if let Some((prefix, ms)) = &*self.plan.slow.borrow()
            && key.starts_with(prefix)
        {
            self.world.pass(*ms);
        }
        self.call(|bucket| bucket.get(key).cloned())
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), HostError> {
        self.call(|bucket| drop(bucket.insert(key.to_owned(), value.to_owned())))
    }

    fn delete(&self, key: &str) -> Result<(), HostError> {
        self.call(|bucket| drop(bucket.remove(key)))
    }

    fn keys(&self) -> Result<Vec<String>, HostError> {
        self.call(|bucket| bucket.keys().cloned().collect())
    }

    fn increment(&self, key: &str, delta: u64) -> Result<u64, HostError> {
        self.call(|bucket| {
            let number = bucket.get(key).map_or(0, |bytes| str::from_utf8(bytes).unwrap().parse().unwrap());
            let sum: u64 = number + delta;
            bucket.insert(key.to_owned(), sum.to_string().into_bytes());
            sum
        })
    }

    fn now_ms(&self) -> u64 {
        self.world.clock_ms.get()
    }

    fn clock_ms(&self) -> u64 {
        self.world.clock_ms.get()
    }

    async fn wait_ms(&self, ms: u64) {
        let until = self.world.clock_ms.get() + ms;
        std::future::poll_fn(|_| match self.world.clock_ms.get() >= until {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    fn report(&self, message: &str) {
        self.plan.reports.borrow_mut().push(message.to_owned());
    }
}
