//! The state and the counters of each adapter: for `/stream/health`, `weir status` and metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use weir_codec::adapter::health::AdapterReport;

/// The state of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// It connects for the first time.
    #[default]
    Starting,
    /// It reads and writes.
    Running,
    /// The connection was lost, and is being restored.
    Reconnecting,
    /// It has stopped reading and writes the results of records in flight.
    Stopping,
    /// It has ended: the source has ended, or it was stopped.
    Stopped,
    /// It has failed and does not reconnect.
    Failed,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Starting, Self::Running, Self::Reconnecting, Self::Stopping, Self::Stopped, Self::Failed];

    /// The name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reconnecting => "reconnecting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// The counters of an adapter.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records read.
    pub records: AtomicU64,
    /// Bytes of their payloads.
    pub record_bytes: AtomicU64,
    /// Results written.
    pub results: AtomicU64,
    /// Bytes of their payloads.
    pub result_bytes: AtomicU64,
    /// Errors written.
    pub errors: AtomicU64,
    /// Records complete.
    pub completed: AtomicU64,
    /// Connections lost or failed.
    pub reconnects: AtomicU64,
    /// Records that were read and are not written.
    pub in_flight: AtomicU64,
    /// Bytes or records that remain in the source; `u64::MAX` if unknown.
    pub remaining: AtomicU64,
}

/// The live status of one adapter; cheap to clone.
#[derive(Debug, Clone)]
pub struct Status(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    source: &'static str,
    sink: &'static str,
    counters: Counters,
    state: Mutex<(State, Option<String>)>,
    was_connected: AtomicBool,
}

impl Status {
    /// The status of an adapter that has not started.
    pub fn new(name: &str, source: &'static str, sink: &'static str) -> Self {
        let counters = Counters { remaining: AtomicU64::new(u64::MAX), ..Counters::default() };
        let (state, was_connected) = (Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Inner { name: name.to_owned(), source, sink, counters, state, was_connected }))
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The state, and the last failure until the adapter runs again.
    pub fn state(&self) -> (State, Option<String>) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the source and the sinks were connected at least once.
    pub fn was_connected(&self) -> bool {
        self.0.was_connected.load(Ordering::Relaxed)
    }

    pub(crate) fn handle_connected(&self) {
        self.0.was_connected.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, state: State, failure: Option<String>) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = (state, failure);
    }

    /// A snapshot of the state and the counters.
    pub fn report(&self) -> AdapterReport {
        let (state, failure) = self.state();
        let counters = self.counters();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        AdapterReport {
            name: self.0.name.clone(),
            source: self.0.source,
            sink: self.0.sink,
            state: state.name(),
            failure,
            records: read(&counters.records),
            results: read(&counters.results),
            errors: read(&counters.errors),
            in_flight: read(&counters.in_flight),
            reconnects: read(&counters.reconnects),
        }
    }

    /// Publishes the counters as metrics.
    pub fn publish(&self) {
        let counters = self.counters();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let name = || self.0.name.clone();
        metrics::counter!("weir_adapter_records_total", "adapter" => name()).absolute(read(&counters.records));
        metrics::counter!("weir_adapter_record_bytes_total", "adapter" => name())
            .absolute(read(&counters.record_bytes));
        metrics::counter!("weir_adapter_results_total", "adapter" => name()).absolute(read(&counters.results));
        metrics::counter!("weir_adapter_result_bytes_total", "adapter" => name())
            .absolute(read(&counters.result_bytes));
        metrics::counter!("weir_adapter_errors_total", "adapter" => name()).absolute(read(&counters.errors));
        metrics::counter!("weir_adapter_reconnects_total", "adapter" => name()).absolute(read(&counters.reconnects));
        metrics::gauge!("weir_adapter_in_flight", "adapter" => name()).set(read(&counters.in_flight) as f64);
        let remaining = read(&counters.remaining);
        if remaining != u64::MAX {
            metrics::gauge!("weir_adapter_remaining", "adapter" => name()).set(remaining as f64);
        }
        let (state, _) = self.state();
        for other in State::ALL {
            let value = if other == state { 1.0 } else { 0.0 };
            metrics::gauge!("weir_adapter_state", "adapter" => name(), "state" => other.name()).set(value);
        }
    }
}
