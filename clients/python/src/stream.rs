//! A stream of texts. Its results wait in a list; a byte in a socket wakes the event loop that takes them.

use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use weir_core::inference::backpressure::BackpressurePolicy;
use weir_core::inference::retry::{CircuitBreakerPolicy, RetryConfig, RetryPolicy};
use weir_core::inference::stream::{BufferingConfig, PushError};
use weir_runtime::Runtime;
use weir_runtime::stream::{
    Aggregation, Batching, DropPolicy, ErrorCategory, FlushReason, ItemError, ItemResult, Ordering, StreamError,
    StreamingConfig, Text, TextStream,
};
use weir_runtime::types::Output;

use crate::convert;
use crate::process::{self, Owned};

/// The settings of `weir_stream.StreamingConfig`, with the names of its enums.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct StreamSettings {
    batch_size: usize,
    window_ms: u32,
    max_batch_size: usize,
    ordering: String,
    batching: String,
    min_buffered_batch_size: usize,
    max_buffered_batch_size: usize,
    max_buffer_size: usize,
    drop_policy: String,
    max_attempts: u32,
    base_backoff_ms: u32,
    retry_policy: String,
    circuit_breaker_policy: String,
    backpressure: String,
    aggregation: String,
}

/// The variant of a name.
macro_rules! named {
    ($kind:ident, $field:literal, $value:expr) => {
        $kind::from_name(&$value).ok_or_else(|| {
            let names: Vec<&str> = $kind::ALL.iter().map(|variant| variant.name()).collect();
            convert::unknown($field, &$value, &names.join(", "))
        })
    };
}

impl StreamSettings {
    fn read(self) -> PyResult<StreamingConfig> {
        Ok(StreamingConfig {
            batch_size: self.batch_size,
            window_ms: self.window_ms,
            max_batch_size: self.max_batch_size,
            ordering: named!(Ordering, "ordering", self.ordering)?,
            batching: named!(Batching, "batching", self.batching)?,
            buffering: BufferingConfig {
                min_batch_size: self.min_buffered_batch_size,
                max_batch_size: self.max_buffered_batch_size,
                max_buffer_size: self.max_buffer_size,
                drop_policy: named!(DropPolicy, "drop_policy", self.drop_policy)?,
            },
            retry: RetryConfig {
                max_attempts: self.max_attempts,
                base_backoff_ms: self.base_backoff_ms,
                policy: named!(RetryPolicy, "retry.policy", self.retry_policy)?,
                circuit_breaker_policy: named!(
                    CircuitBreakerPolicy,
                    "circuit_breaker_policy",
                    self.circuit_breaker_policy
                )?,
                ..RetryConfig::default()
            },
            backpressure: named!(BackpressurePolicy, "backpressure", self.backpressure)?,
            aggregation: named!(Aggregation, "aggregation", self.aggregation)?,
            ..StreamingConfig::default()
        })
    }
}

/// An event of a stream.
enum Event {
    Result(ItemResult<Output>),
    Error(ItemError<Text>),
    /// Every text has its result or error.
    Stopped,
}

/// While at least this many texts have no outcome yet, events are collected for the event loop: the interpreter handles several in a row in a
/// fraction of the processor time that it takes for each alone.
const COLLECTING_TEXTS_MIN: usize = 64;
/// Most events that are collected.
const COLLECTED_EVENTS_MAX: usize = 32;
/// Longest time for which an event is collected.
const COLLECTED_DELAY: Duration = Duration::from_millis(4);

/// Events for the event loop.
struct Mailbox {
    waiting: Mutex<WaitingEvents>,
    wake: UnixStream,
    /// Texts that were pushed and have no event.
    texts_open: AtomicUsize,
}

#[derive(Default)]
struct WaitingEvents {
    list: Vec<Event>,
    /// Whether the loop was woken for this list.
    is_announced: bool,
}

impl Mailbox {
    fn new(wake: UnixStream) -> Self {
        Self { waiting: Mutex::default(), wake, texts_open: AtomicUsize::new(0) }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingEvents> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the event of a text.
    fn put(self: &Arc<Self>, event: Event) {
        let texts_open = self.texts_open.fetch_sub(1, Relaxed).saturating_sub(1);
        let mut waiting = self.waiting();
        waiting.list.push(event);
        let count = waiting.list.len();
        drop(waiting);
        if texts_open < COLLECTING_TEXTS_MIN || count >= COLLECTED_EVENTS_MAX {
            self.announce();
        } else if count == 1 {
            let mailbox = Arc::downgrade(self);
            tokio::spawn(async move {
                tokio::time::sleep(COLLECTED_DELAY).await;
                if let Some(mailbox) = mailbox.upgrade() {
                    mailbox.announce();
                }
            });
        }
    }

    /// Puts the last event.
    fn stop(&self) {
        self.waiting().list.push(Event::Stopped);
        self.announce();
    }

    /// Wakes the loop, unless it was woken for the waiting events.
    fn announce(&self) {
        let mut waiting = self.waiting();
        if !waiting.is_announced && !waiting.list.is_empty() {
            waiting.is_announced = true;
            drop(waiting);
            // One byte for each list that is taken. A full socket has bytes that wake the loop as well; a closed one has no loop.
            let _ = (&self.wake).write(&[1]);
        }
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.waiting()).list
    }
}

/// A stream of texts through one model.
#[pyclass(frozen, module = "weir_stream._engine")]
pub(crate) struct Stream {
    stream: Owned<Arc<TextStream>>,
    mailbox: Arc<Mailbox>,
    /// The end of the socket that the event loop watches, until it is taken.
    watched: Mutex<Option<UnixStream>>,
}

/// `(0, seq, output, latency_ms, attempts)`, `(1, seq, failure, 0, attempts)` or `(2, 0, None, 0, 0)` when the stream has stopped.
type EventTuple = (u8, u64, Py<PyAny>, f64, u32);

impl Stream {
    pub(crate) fn open(py: Python<'_>, runtime: Arc<Runtime>, model: &str, settings: StreamSettings) -> PyResult<Self> {
        let config = settings.read()?;
        let socket = |error: std::io::Error| PyOSError::new_err(format!("no socket for the event loop: {error}"));
        let (wake, watched) = UnixStream::pair().map_err(socket)?;
        wake.set_nonblocking(true).map_err(socket)?;
        watched.set_nonblocking(true).map_err(socket)?;
        let opened = process::wait(py, async move { TextStream::initialize(&runtime, model, config).await })?;
        let stream = opened.map_err(|error| match error {
            StreamError::Config(error) => PyValueError::new_err(error.to_string()),
            other => PyRuntimeError::new_err(convert::chain(&other)),
        })?;
        let mailbox = Arc::new(Mailbox::new(wake));
        // The subscriptions last as long as the stream.
        let results = mailbox.clone();
        let _ = stream.subscribe_result_callback(move |result| results.put(Event::Result(result.clone())));
        let errors = mailbox.clone();
        let _ = stream.subscribe_error_callback(move |error| errors.put(Event::Error(error.clone())));
        Ok(Self { stream: Owned::new(Arc::new(stream)), mailbox, watched: Mutex::new(Some(watched)) })
    }
}

fn refused(error: &StreamError) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

#[pymethods]
impl Stream {
    /// The file descriptor that is readable when there are events. The caller closes it.
    fn take_fd(&self) -> PyResult<i32> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).take();
        watched.map(IntoRawFd::into_raw_fd).ok_or_else(|| PyRuntimeError::new_err("the descriptor was taken"))
    }

    /// Takes texts from now on. Also ends a pause.
    fn start(&self) -> PyResult<()> {
        self.stream.get()?.start().map_err(|error| refused(&error))
    }

    /// Holds back waiting texts.
    fn pause(&self) -> PyResult<()> {
        self.stream.get()?.pause().map_err(|error| refused(&error))
    }

    /// Takes no more texts. The event `2` follows when every text has its result or error.
    fn stop(&self) -> PyResult<()> {
        let (stream, mailbox) = (self.stream.get()?.clone(), self.mailbox.clone());
        process::threads()?.spawn(async move {
            // An error means that it has stopped already, and the event follows in that case too.
            let _ = stream.stop().await;
            mailbox.stop();
        });
        Ok(())
    }

    /// Pushes a text. Returns its number, or `None` when there is no room.
    fn try_push(&self, text: String, text_pair: Option<String>) -> PyResult<Option<u64>> {
        let text = Text { text: text.into(), text_pair: text_pair.map(Into::into) };
        let stream = self.stream.get()?;
        // Before the push, whose event may come at once.
        self.mailbox.texts_open.fetch_add(1, Relaxed);
        let pushed = stream.try_push(text);
        if pushed.is_err() {
            self.mailbox.texts_open.fetch_sub(1, Relaxed);
        }
        match pushed {
            Ok(seq) => Ok(Some(seq)),
            Err(PushError::Full(_)) => Ok(None),
            Err(PushError::NotRunning(_)) => Err(PyRuntimeError::new_err("the stream is not running")),
        }
    }

    /// Sends the waiting texts to the model now. Returns how many there are.
    fn flush(&self, reason: &str) -> PyResult<usize> {
        Ok(self.stream.get()?.flush(named!(FlushReason, "reason", reason)?))
    }

    /// Acknowledges results and errors.
    fn acknowledge(&self, count: usize) -> PyResult<()> {
        self.stream.get()?.acknowledge(count);
        Ok(())
    }

    /// The events since the last call.
    fn take_events(&self, py: Python<'_>) -> PyResult<Vec<EventTuple>> {
        let events = self.mailbox.take();
        let convert = |event| match event {
            Event::Result(ItemResult { seq, latency_ns, attempts, result }) => {
                let output = convert::output(py, &result)?.unbind();
                Ok((0, seq, output, latency_ns as f64 / 1e6, attempts))
            }
            Event::Error(ItemError { seq, attempts, cause, .. }) => {
                let failure = convert::cause(&cause).into_pyobject(py)?.into_any().unbind();
                Ok((1, seq, failure, 0.0, attempts))
            }
            Event::Stopped => Ok((2, 0, py.None(), 0.0, 0)),
        };
        events.into_iter().map(convert).collect()
    }

    /// The counters, by the names of `weir_stream.PipelineStats`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.stream.get()?.get_stats();
        let dict = PyDict::new(py);
        dict.set_item("state", stats.state.name())?;
        dict.set_item("pushed", stats.pushed)?;
        dict.set_item("pushed_back", stats.pushed_back)?;
        dict.set_item("delivered", stats.delivered)?;
        dict.set_item("failed", stats.failed_total())?;
        let failed = PyDict::new(py);
        for category in ErrorCategory::ALL {
            failed.set_item(category.name(), stats.failed(*category))?;
        }
        dict.set_item("failed_by_category", failed)?;
        dict.set_item("dropped", stats.dropped)?;
        dict.set_item("retried", stats.retried)?;
        dict.set_item("in_flight", stats.in_flight)?;
        dict.set_item("buffered", stats.buffered)?;
        dict.set_item("unacknowledged", stats.unacknowledged)?;
        dict.set_item("batches", stats.batches_total())?;
        let batches = PyDict::new(py);
        for reason in FlushReason::ALL {
            batches.set_item(reason.name(), stats.batches(*reason))?;
        }
        dict.set_item("batches_by_reason", batches)?;
        dict.set_item("mean_batch_size", stats.mean_batch_size())?;
        dict.set_item("circuit_breaker", stats.breaker.map(|state| state.name()))?;
        let quantile = |percent| stats.latency.quantile_ns(percent).map(|ns| ns as f64 / 1e6);
        dict.set_item("latency_p50_ms", quantile(50))?;
        dict.set_item("latency_p99_ms", quantile(99))?;
        dict.set_item("latency_max_ms", stats.latency.max_ns() as f64 / 1e6)?;
        Ok(dict)
    }
}
