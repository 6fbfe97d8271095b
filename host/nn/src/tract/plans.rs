//! The plans of one graph: the symbolic one, which serves any shape at once, and fixed-shape ones for the shapes that come
//! often. They are made by one thread beside the callers, shared by every context, and bounded in number.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use tract_onnx::prelude::*;

use super::share::PackedWeights;
use crate::registry::RegistryConfig;

/// The sizes of every axis of every input, in order.
type Shape = Vec<usize>;

/// How many shapes are counted at once.
const SEEN_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// How many runs a plan must have been idle before another shape may take its place, per plan kept. Without it, more
/// shapes than plans would have each evict the other, and the machine would build plans instead of running them.
const IDLE_RUNS_PER_PLAN: u64 = 16;

/// Plans are built by one thread at a time in the whole process, so that callers keep the other cores.
static BUILDING: Mutex<()> = Mutex::new(());

/// A plan for one shape.
struct Plan {
    runnable: Arc<TypedRunnableModel>,
    /// Its place was given to another: contexts drop what they keep for it.
    retired: AtomicBool,
}

struct Ready {
    plan: Arc<Plan>,
    /// The run that used it last.
    used_at: u64,
}

struct PlanTable {
    seen: LruCache<Shape, u32>,
    ready: LruCache<Shape, Ready>,
    /// Shapes that cannot be planned stay symbolic.
    refused: LruCache<Shape, ()>,
    queue: VecDeque<Shape>,
    building: bool,
    runs: u64,
    made: u64,
}

/// The plans of one graph.
pub(super) struct Plans {
    typed: Arc<TypedModel>,
    symbolic: Arc<TypedRunnableModel>,
    plans_max: usize,
    after_uses: u32,
    book: Mutex<PlanTable>,
    idle: Condvar,
    weights: Mutex<PackedWeights>,
}

impl Plans {
    pub(super) fn new(
        typed: Arc<TypedModel>,
        symbolic: Arc<TypedRunnableModel>,
        weights: PackedWeights,
        config: &RegistryConfig,
    ) -> Arc<Self> {
        let (plans_max, after_uses) = (config.plans_max, config.plan_after_uses);
        let book = PlanTable {
            seen: LruCache::new(SEEN_MAX),
            ready: LruCache::new(NonZeroUsize::new(plans_max).unwrap_or(NonZeroUsize::MIN)),
            refused: LruCache::new(SEEN_MAX),
            queue: VecDeque::new(),
            building: false,
            runs: 0,
            made: 0,
        };
        // A graph of fixed shapes is planned once: its symbolic plan is the fixed one.
        let symbolic_axes = typed.input_outlets().is_ok_and(|outlets| {
            outlets.iter().any(|outlet| typed.outlet_fact(*outlet).is_ok_and(|fact| !fact.shape.is_concrete()))
        });
        let plans_max = if symbolic_axes && after_uses > 0 { plans_max } else { 0 };
        let (book, weights) = (Mutex::new(book), Mutex::new(weights));
        Arc::new(Self { typed, symbolic, plans_max, after_uses, book, idle: Condvar::new(), weights })
    }

    fn book(&self) -> MutexGuard<'_, PlanTable> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no plan is being built or waits to be.
    pub(super) fn settle(&self) {
        let book = self.book();
        drop(self.idle.wait_while(book, |book| book.building).unwrap_or_else(PoisonError::into_inner));
    }

    /// How many plans are kept, and how many were ever made.
    pub(super) fn count(&self) -> (usize, u64) {
        let book = self.book();
        (book.ready.len(), book.made)
    }

    /// The plan of its own that this shape has, if any. Counts the use, and orders a plan when it is time.
    fn fixed(self: &Arc<Self>, shape: &Shape) -> Option<Arc<Plan>> {
        if self.plans_max == 0 {
            return None;
        }
        let mut book = self.book();
        book.runs += 1;
        let runs = book.runs;
        if let Some(ready) = book.ready.get_mut(shape) {
            ready.used_at = runs;
            return Some(ready.plan.clone());
        }
        let uses = book.seen.get_or_insert_mut_ref(shape, || 0);
        *uses = uses.saturating_add(1);
        if *uses < self.after_uses || book.queue.contains(shape) || book.refused.contains(shape) {
            return None;
        }
        let idle_runs = IDLE_RUNS_PER_PLAN * self.plans_max as u64;
        let full = book.ready.len() + book.queue.len() >= self.plans_max;
        let stale = book.ready.peek_lru().is_some_and(|(_, ready)| runs - ready.used_at > idle_runs);
        if full && !(stale && book.queue.is_empty()) {
            return None;
        }
        book.queue.push_back(shape.clone());
        if !book.building {
            let plans = self.clone();
            let builder = std::thread::Builder::new().name("weir-nn-plan".to_owned());
            book.building = builder.spawn(move || plans.build_queued()).is_ok();
        }
        None
    }

    fn build_queued(&self) {
        loop {
            let mut book = self.book();
            // It stays in the queue while it is built, so that it is not ordered twice.
            let Some(shape) = book.queue.front().cloned() else {
                book.building = false;
                self.idle.notify_all();
                return;
            };
            drop(book);
            let one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
            let built = catch_unwind(AssertUnwindSafe(|| self.build(&shape)));
            drop(one_at_a_time);
            let mut book = self.book();
            book.queue.pop_front();
            book.seen.pop(&shape);
            match built {
                Ok(Ok(runnable)) => {
                    let ready = Ready { plan: Arc::new(Plan { runnable, retired: false.into() }), used_at: book.runs };
                    book.made += 1;
                    if let Some((_, evicted)) = book.ready.push(shape, ready) {
                        evicted.plan.retired.store(true, Ordering::Relaxed);
                    }
                }
                failed => {
                    let reason = match failed {
                        Ok(Err(error)) => super::chain(&error),
                        _ => "a panic".to_owned(),
                    };
                    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
                    tracing::warn!(shape = sizes.join("x"), reason, "no plan of its own for this shape");
                    book.refused.put(shape, ());
                }
            }
        }
    }

    fn build(&self, shape: &[usize]) -> TractResult<Arc<TypedRunnableModel>> {
        let mut sizes = shape.iter();
        let mut symbols: HashMap<Symbol, TDim> = HashMap::new();
        for outlet in self.typed.input_outlets()? {
            for dim in self.typed.outlet_fact(*outlet)?.shape.iter() {
                let size = sizes.next().copied().unwrap_or(0);
                if let TDim::Sym(symbol) = dim {
                    symbols.insert(symbol.clone(), size.into());
                }
            }
        }
        let mut model = self.typed.set_symbols(&symbols)?;
        model.declutter()?;
        model.optimize()?;
        self.weights.lock().unwrap_or_else(PoisonError::into_inner).share(&mut model);
        TypedSimplePlan::new(model)
    }
}

/// A caller's running states: one for the symbolic plan, one per fixed plan that it has used.
#[derive(Default)]
pub(super) struct States {
    symbolic: Option<TypedSimpleState>,
    fixed: HashMap<Shape, (Arc<Plan>, TypedSimpleState)>,
}

impl States {
    /// The state to run these inputs with.
    pub(super) fn for_inputs(&mut self, plans: &Arc<Plans>, values: &[TValue]) -> TractResult<&mut TypedSimpleState> {
        let shape: Shape = values.iter().flat_map(|value| value.shape().iter().copied()).collect();
        let Some(plan) = plans.fixed(&shape) else {
            return match &mut self.symbolic {
                Some(state) => Ok(state),
                none => Ok(none.insert(plans.symbolic.spawn()?)),
            };
        };
        let current = self.fixed.get(&shape).is_some_and(|(kept, _)| Arc::ptr_eq(kept, &plan));
        if !current {
            self.fixed.retain(|_, (plan, _)| !plan.retired.load(Ordering::Relaxed));
            let state = plan.runnable.spawn()?;
            self.fixed.insert(shape.clone(), (plan, state));
        }
        let state = self.fixed.get_mut(&shape).map(|(_, state)| state);
        state.ok_or_else(|| TractError::msg("the state that was just kept is gone"))
    }
}
