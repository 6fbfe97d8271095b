//! SR, CR, TCL and WCT, from the events of all executions, in total and over a window.
//!
//! The specification names the four rates without definitions. They are defined here as:
//!
//! - **SR**, success rate: executions that were completed, by executions that were completed or failed. A cancelled one
//!   counts as neither.
//! - **CR**, compensation rate: compensations that ran (completed or failed permanently), by steps that were completed.
//! - **TCL**, mean tool latency: the mean duration of the completed attempts of steps that call a model, a service or a
//!   component ([`super::KindName::is_tool`]), compensations included.
//! - **WCT**, mean workflow time: the mean time from `pipeline_start` to `pipeline_complete` of completed executions.
//!
//! A rate without data is `None`, not 0.

use super::event::{Data, Event};

/// The window of the rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReliabilityConfig {
    /// The length of a slice of the window, in nanoseconds; 0 counts as 1.
    pub slice_ns: u64,
    /// Slices in the window; 0 counts as 1. Memory is proportional to it.
    pub slices: usize,
}

impl Default for ReliabilityConfig {
    /// Five minutes in slices of five seconds.
    fn default() -> Self {
        Self { slice_ns: 5_000_000_000, slices: 60 }
    }
}

/// Counts of a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Executions that were completed.
    pub executions_completed: u64,
    /// Executions that failed.
    pub executions_failed: u64,
    /// Executions that were cancelled.
    pub executions_cancelled: u64,
    /// Steps that were completed, without compensations.
    pub steps_completed: u64,
    /// Steps that failed permanently, without compensations.
    pub steps_failed: u64,
    /// Attempts that are followed by a retry.
    pub retries: u64,
    /// Compensations that have ended, completed or failed.
    pub compensations: u64,
    /// Completed attempts of steps that call a model, a service or a component.
    pub tool_calls: u64,
    /// The total duration of these attempts, in nanoseconds.
    pub tool_ns: u64,
    /// The total duration of the completed executions, in nanoseconds.
    pub workflow_ns: u64,
}

impl Rates {
    /// Success rate, 0 to 1.
    pub fn success_rate(&self) -> Option<f64> {
        ratio(self.executions_completed, self.executions_completed + self.executions_failed)
    }

    /// Compensation rate: 0 without compensations.
    pub fn compensation_rate(&self) -> Option<f64> {
        ratio(self.compensations, self.steps_completed)
    }

    /// Mean tool latency, in seconds.
    pub fn tool_latency_s(&self) -> Option<f64> {
        ratio(self.tool_ns, self.tool_calls).map(|ns| ns / 1e9)
    }

    /// Mean workflow time, in seconds.
    pub fn workflow_time_s(&self) -> Option<f64> {
        ratio(self.workflow_ns, self.executions_completed).map(|ns| ns / 1e9)
    }

    fn add(&mut self, other: &Self) {
        self.executions_completed += other.executions_completed;
        self.executions_failed += other.executions_failed;
        self.executions_cancelled += other.executions_cancelled;
        self.steps_completed += other.steps_completed;
        self.steps_failed += other.steps_failed;
        self.retries += other.retries;
        self.compensations += other.compensations;
        self.tool_calls += other.tool_calls;
        self.tool_ns = self.tool_ns.saturating_add(other.tool_ns);
        self.workflow_ns = self.workflow_ns.saturating_add(other.workflow_ns);
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The rates at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The counts since [`Reliability::new`].
    pub total: Rates,
    /// The counts of the window that ends now.
    pub window: Rates,
    /// The length of the window, in nanoseconds.
    pub window_ns: u64,
}

/// Counts events. Each event must be passed once, when it is stored; after a crash counting starts again from 0.
#[derive(Debug, Clone)]
pub struct Reliability {
    config: ReliabilityConfig,
    total: Rates,
    /// A ring buffer: slice number `n` is at `n % slices`, with its number.
    ring: Vec<(u64, Rates)>,
}

impl Reliability {
    /// Counts without events.
    pub fn new(config: ReliabilityConfig) -> Self {
        let config = ReliabilityConfig { slice_ns: config.slice_ns.max(1), slices: config.slices.max(1) };
        Self { config, total: Rates::default(), ring: vec![(0, Rates::default()); config.slices] }
    }

    /// Counts an event at a time.
    pub fn handle_event(&mut self, now_ns: u64, event: &Event) {
        let Some(counts) = counts(event) else { return };
        self.total.add(&counts);
        let slice = now_ns / self.config.slice_ns;
        let at = (slice % self.ring.len() as u64) as usize;
        let (number, rates) = &mut self.ring[at];
        if *number != slice {
            (*number, *rates) = (slice, Rates::default());
        }
        rates.add(&counts);
    }

    /// The rates at a time.
    pub fn snapshot(&self, now_ns: u64) -> Snapshot {
        let slice = now_ns / self.config.slice_ns;
        let oldest = slice.saturating_sub(self.ring.len() as u64 - 1);
        let mut window = Rates::default();
        for (_, rates) in self.ring.iter().filter(|(number, _)| (oldest..=slice).contains(number)) {
            window.add(rates);
        }
        let window_ns = self.config.slice_ns.saturating_mul(self.ring.len() as u64);
        Snapshot { total: self.total, window, window_ns }
    }
}

/// The counts of an event, if it has any.
fn counts(event: &Event) -> Option<Rates> {
    let compensation = u64::from(event.metadata.compensates.is_some());
    let mut rates = Rates::default();
    match &event.data {
        Data::StepComplete { kind, duration_ns, .. } => {
            rates.compensations = compensation;
            rates.steps_completed = 1 - compensation;
            if kind.is_tool() {
                (rates.tool_calls, rates.tool_ns) = (1, *duration_ns);
            }
        }
        Data::StepError { retry_in_ns: Some(_), .. } => rates.retries = 1,
        Data::StepError { .. } => {
            rates.compensations = compensation;
            rates.steps_failed = 1 - compensation;
        }
        Data::PipelineComplete { duration_ns, .. } => {
            (rates.executions_completed, rates.workflow_ns) = (1, *duration_ns);
        }
        Data::PipelineError { failure, .. } if failure.cancelled => rates.executions_cancelled = 1,
        Data::PipelineError { .. } => rates.executions_failed = 1,
        _ => return None,
    }
    Some(rates)
}
