//! SR, CR, TCL and WCT, from the events of all executions, over all time and over a window.
//!
//! The source names the four rates and does not define them; these are our definitions:
//!
//! - **SR**, success rate: executions that were completed, by executions that were completed or failed. A cancelled one
//!   counts as neither.
//! - **CR**, compensation rate: compensations that ran (done or failed for good), by steps that were completed.
//! - **TCL**, mean tool latency: the mean duration of the completed attempts of steps that call something else (models,
//!   services, components: [`super::KindName::is_tool`]), compensations included.
//! - **WCT**, mean workflow time: the mean time from `pipeline_start` to `pipeline_complete` of completed executions.
//!
//! A rate of nothing is none, not zero.

use super::event::{Data, Event};

/// How the window is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReliabilityConfig {
    /// The length of a slice of the window, in nanoseconds; at least 1 is assumed.
    pub slice_ns: u64,
    /// Slices in the window; at least 1 is assumed. Nothing else grows.
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
    /// Steps that were completed, compensations apart.
    pub steps_completed: u64,
    /// Steps that failed for good, compensations apart.
    pub steps_failed: u64,
    /// Attempts that are followed by another.
    pub retries: u64,
    /// Compensations that are over, done or failed.
    pub compensations: u64,
    /// Completed attempts of steps that call something else.
    pub tool_calls: u64,
    /// What these took together.
    pub tool_ns: u64,
    /// What the completed executions took together.
    pub workflow_ns: u64,
}

impl Rates {
    /// Success rate, 0 to 1.
    pub fn success_rate(&self) -> Option<f64> {
        ratio(self.executions_completed, self.executions_completed + self.executions_failed)
    }

    /// Compensation rate: 0 when nothing was undone.
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

/// What is known at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Since this began to count.
    pub total: Rates,
    /// Of the window that ends now.
    pub window: Rates,
    /// How long the window is, in nanoseconds.
    pub window_ns: u64,
}

/// Counts events. Give it each event once, when it is stored: after a crash, events that were stored before are not given
/// again, and counting begins anew.
#[derive(Debug, Clone)]
pub struct Reliability {
    config: ReliabilityConfig,
    total: Rates,
    /// A ring: slice `n` of time is at `n % slices`, with its `n`.
    ring: Vec<(u64, Rates)>,
}

impl Reliability {
    /// Nothing counted yet.
    pub fn new(config: ReliabilityConfig) -> Self {
        let config = ReliabilityConfig { slice_ns: config.slice_ns.max(1), slices: config.slices.max(1) };
        Self { config, total: Rates::default(), ring: vec![(0, Rates::default()); config.slices] }
    }

    /// Takes an event at a time.
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

    /// What is known now.
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

/// What an event adds; none when nothing.
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
