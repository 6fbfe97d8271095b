//! The plans of one graph: the symbolic one, which serves any shape without preparation, and fixed-shape ones for frequent shapes.
//! Fixed-shape plans are made by a background thread, shared by every context, and bounded in number.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use tract_onnx::prelude::*;

use super::error::chain;
use super::share::PackedWeights;
use crate::config::RegistryConfig;

/// The sizes of every axis of every input, in order.
type Shape = Vec<usize>;

/// The most shapes whose uses are counted.
const COUNTED_SHAPES_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// The runs, per plan that may be held, for which a plan must have been idle before it may be evicted. Otherwise, with more frequent
/// shapes than plans, shapes would evict each other and the machine would build plans instead of running them.
const IDLE_RUNS_PER_PLAN: u64 = 16;

/// Held while a plan is built: one thread of the process builds at a time, so that callers have the other cores.
static BUILD_LOCK: Mutex<()> = Mutex::new(());

/// A plan for one shape.
struct Plan {
    runnable: Arc<TypedRunnableModel>,
    /// Whether it was evicted: contexts then drop their states of it.
    is_evicted: AtomicBool,
}

struct ReadyPlan {
    plan: Arc<Plan>,
    /// The number of the last run that used it.
    used_at: u64,
}

struct PlanTable {
    use_counts: LruCache<Shape, u32>,
    ready: LruCache<Shape, ReadyPlan>,
    /// Shapes that could not be planned, which stay on the symbolic plan.
    refused: LruCache<Shape, ()>,
    queue: VecDeque<Shape>,
    is_building: bool,
    runs: u64,
    plans_made: u64,
}

/// The plans of one graph.
pub(super) struct Plans {
    typed: Arc<TypedModel>,
    symbolic: Arc<TypedRunnableModel>,
    plans_max: usize,
    after_uses: u32,
    table: Mutex<PlanTable>,
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
        let table = PlanTable {
            use_counts: LruCache::new(COUNTED_SHAPES_MAX),
            ready: LruCache::new(NonZeroUsize::new(plans_max).unwrap_or(NonZeroUsize::MIN)),
            refused: LruCache::new(COUNTED_SHAPES_MAX),
            queue: VecDeque::new(),
            is_building: false,
            runs: 0,
            plans_made: 0,
        };
        // A graph of fixed shapes needs one plan: its symbolic plan is the fixed one.
        let has_symbolic_axes = typed.input_outlets().is_ok_and(|outlets| {
            outlets.iter().any(|outlet| typed.outlet_fact(*outlet).is_ok_and(|fact| !fact.shape.is_concrete()))
        });
        let plans_max = if has_symbolic_axes && after_uses > 0 { plans_max } else { 0 };
        let (table, weights) = (Mutex::new(table), Mutex::new(weights));
        Arc::new(Self { typed, symbolic, plans_max, after_uses, table, idle: Condvar::new(), weights })
    }

    fn table(&self) -> MutexGuard<'_, PlanTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all queued plans are built.
    pub(super) fn settle(&self) {
        let table = self.table();
        drop(self.idle.wait_while(table, |table| table.is_building).unwrap_or_else(PoisonError::into_inner));
    }

    /// The number of plans that are held, and of those that were made.
    pub(super) fn count(&self) -> (usize, u64) {
        let table = self.table();
        (table.ready.len(), table.plans_made)
    }

    /// The fixed-shape plan of this shape, if any. Counts the use, and queues a plan for a frequent shape.
    fn fixed(self: &Arc<Self>, shape: &Shape) -> Option<Arc<Plan>> {
        if self.plans_max == 0 {
            return None;
        }
        let mut table = self.table();
        table.runs += 1;
        let runs = table.runs;
        if let Some(ready) = table.ready.get_mut(shape) {
            ready.used_at = runs;
            return Some(ready.plan.clone());
        }
        let uses = table.use_counts.get_or_insert_mut_ref(shape, || 0);
        *uses = uses.saturating_add(1);
        if *uses < self.after_uses || table.queue.contains(shape) || table.refused.contains(shape) {
            return None;
        }
        let idle_runs = IDLE_RUNS_PER_PLAN * self.plans_max as u64;
        let is_full = table.ready.len() + table.queue.len() >= self.plans_max;
        let has_idle_plan = table.ready.peek_lru().is_some_and(|(_, ready)| runs - ready.used_at > idle_runs);
        if is_full && !(has_idle_plan && table.queue.is_empty()) {
            return None;
        }
        table.queue.push_back(shape.clone());
        if !table.is_building {
            let plans = self.clone();
            let builder = std::thread::Builder::new().name("weir-nn-plan".to_owned());
            table.is_building = builder.spawn(move || plans.build_queued()).is_ok();
        }
        None
    }

    fn build_queued(&self) {
        loop {
            let mut table = self.table();
            // The shape stays in the queue while its plan is built, so that it is not queued twice.
            let Some(shape) = table.queue.front().cloned() else {
                table.is_building = false;
                self.idle.notify_all();
                return;
            };
            drop(table);
            let guard = BUILD_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
            let result = catch_unwind(AssertUnwindSafe(|| self.build(&shape)));
            drop(guard);
            let mut table = self.table();
            table.queue.pop_front();
            table.use_counts.pop(&shape);
            match result {
                Ok(Ok(runnable)) => {
                    let plan = Arc::new(Plan { runnable, is_evicted: false.into() });
                    let ready = ReadyPlan { plan, used_at: table.runs };
                    table.plans_made += 1;
                    if let Some((_, evicted)) = table.ready.push(shape, ready) {
                        evicted.plan.is_evicted.store(true, Ordering::Relaxed);
                    }
                }
                failed => {
                    let reason = match failed {
                        Ok(Err(error)) => chain(&error),
                        _ => "a panic".to_owned(),
                    };
                    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
                    tracing::warn!(shape = sizes.join("x"), reason, "no plan of its own for this shape");
                    table.refused.put(shape, ());
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

/// A caller's states: one for the symbolic plan, one for each fixed-shape plan that it has used.
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
        let is_current = self.fixed.get(&shape).is_some_and(|(other, _)| Arc::ptr_eq(other, &plan));
        if !is_current {
            self.fixed.retain(|_, (plan, _)| !plan.is_evicted.load(Ordering::Relaxed));
            let state = plan.runnable.spawn()?;
            self.fixed.insert(shape.clone(), (plan, state));
        }
        let state = self.fixed.get_mut(&shape).map(|(_, state)| state);
        state.ok_or_else(|| TractError::msg("the state of a new plan is missing"))
    }
}
