//! An execution inside of one request: its events are for one client, nothing of it is stored, and it ends with the
//! request. `/process-stream` and `/process-batch` are such executions.

use std::{
    cell::{RefCell, RefMut},
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use weir_codec::pipelines::{
    process_batch::BatchCollector,
    process_request::ProcessRequest,
    process_stream::{self, Line, Renderer},
};
use weir_core::{
    failure::Failure,
    pipelines::{Definition, Event, Execution, Limits, StepFailure},
    time::Now,
};
use weir_guest::notify::Signal;

use super::{Pipelines, driver::Runs, running::RunningExecution};
use crate::platform::clock;

/// A consumer of the events of an execution, in the order of their sequence.
pub(crate) trait EventSink {
    /// Consumes the next event.
    fn handle_event(&mut self, event: &Event);
}

/// The rendered events of `/process-stream` that are not written yet.
pub(crate) struct Lines {
    renderer: Renderer,
    waiting: VecDeque<Line>,
}

impl Lines {
    /// The next line, if there is one.
    pub(crate) fn next_line(&mut self) -> Option<Line> {
        self.waiting.pop_front()
    }

    /// True when no line is waiting.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl EventSink for Lines {
    fn handle_event(&mut self, event: &Event) {
        self.waiting.extend(self.renderer.handle_event(event));
    }
}

impl EventSink for BatchCollector {
    fn handle_event(&mut self, event: &Event) {
        BatchCollector::handle_event(self, event);
    }
}

/// An execution whose events go to one request.
pub(crate) struct EphemeralExecution<S> {
    pipelines: &'static Pipelines,
    running: Rc<RunningExecution>,
    sink: RefCell<S>,
    changed: Signal,
}

impl EphemeralExecution<Lines> {
    /// Starts `/process-stream`; its first line is available at once. No step takes longer than `timeout_ms`.
    pub(crate) fn stream(request: &ProcessRequest, timeout_ms: u64, began: Now) -> Result<Self, String> {
        let definition = process_stream::definition(request, Some(request.chunk_size), timeout_ms);
        let sink = Lines { renderer: Renderer::new(request, &definition), waiting: VecDeque::new() };
        Self::begin(request, definition, sink, began)
    }
}

impl EphemeralExecution<BatchCollector> {
    /// Starts `/process-batch`, with the text as one chunk. No step takes longer than `timeout_ms`.
    pub(crate) fn batch(request: &ProcessRequest, timeout_ms: u64, began: Now) -> Result<Self, String> {
        let definition = process_stream::definition(request, None, timeout_ms);
        let sink = BatchCollector::new(&definition);
        Self::begin(request, definition, sink, began)
    }
}

impl<S: EventSink> EphemeralExecution<S> {
    fn begin(request: &ProcessRequest, definition: Definition, sink: S, began: Now) -> Result<Self, String> {
        let pipelines = Pipelines::current()?;
        let input = process_stream::input(request);
        let execution = Execution::new(Arc::new(definition), process_stream::NAME, input, Limits::default(), 0, began);
        let execution = execution.map_err(|error| error.to_string())?;
        let ephemeral = Self {
            pipelines,
            running: Rc::new(RunningExecution::new(execution, String::new(), None)),
            sink: RefCell::new(sink),
            changed: Signal::default(),
        };
        ephemeral.drain_events(began);
        Ok(ephemeral)
    }

    /// The sink with the events so far. The borrow must not be held across an await.
    pub(crate) fn sink(&self) -> RefMut<'_, S> {
        self.sink.borrow_mut()
    }

    /// Resolves when the sink may have another event, or the execution has ended.
    pub(crate) async fn changed(&self) {
        self.changed.wait().await;
    }

    /// True when no event follows.
    pub(crate) fn is_over(&self) -> bool {
        self.running.execution.borrow().outcome().is_some()
    }

    /// Ends the execution with a failure.
    pub(crate) fn abort(&self, failure: &Failure) {
        let now = clock::now();
        self.running.execution.borrow_mut().handle_cancel(now, StepFailure::from(failure));
        self.drain_events(now);
    }

    /// Runs the steps until all have ended. Dropping the future drops the steps.
    pub(crate) async fn run(&self) {
        let mut runs = Runs::default();
        loop {
            let now = clock::now();
            // Polled events may allow the next steps to start.
            loop {
                self.drain_events(now);
                if !runs.stop_and_start(self.pipelines, &self.running, now) {
                    break;
                }
            }
            if self.running.execution.borrow().outcome().is_some() {
                return;
            }
            let mut changed = pin!(self.running.changed.wait());
            poll_fn(|context| {
                let ended = runs.poll_ended(context);
                if changed.as_mut().poll(context).is_ready() || ended { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    /// Passes its events to the sink. Nothing is stored, so every checkpoint counts as saved.
    fn drain_events(&self, now: Now) {
        let mut execution = self.running.execution.borrow_mut();
        let mut sink = self.sink.borrow_mut();
        loop {
            if let Some(checkpoint) = execution.poll_checkpoint(now) {
                execution.handle_checkpoint_saved(checkpoint.number);
            } else if let Some(batch) = execution.poll_events(now) {
                for sequenced in &batch.events {
                    sink.handle_event(&sequenced.event);
                    self.running.stored.set(sequenced.seq);
                }
                execution.handle_stored(self.running.stored.get());
            } else {
                break;
            }
        }
        drop((execution, sink));
        self.running.progress_notify.notify();
        self.changed.notify();
    }
}
