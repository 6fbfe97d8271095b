//! An execution inside of a request: told to one client, kept nowhere, and over when the client is gone. `/process-stream` is one.

use std::{cell::RefCell, collections::VecDeque, future::poll_fn, pin::pin, rc::Rc, sync::Arc, task::Poll};

use weir_codec::pipelines::process_stream::{self, Line, Renderer};
use weir_core::{
    failure::Failure,
    pipelines::{Execution, Limits, StepFailure},
    process::{Now, Request},
};

use super::{Pipelines, driver::Runs, live::Live};
use crate::{clock, signal::Signal};

/// The pipeline of a request, and what it has told that is not written yet.
pub(crate) struct Inside {
    pipelines: &'static Pipelines,
    live: Rc<Live>,
    renderer: RefCell<Renderer>,
    lines: RefCell<VecDeque<Line>>,
    told: Signal,
}

impl Inside {
    /// Begins: its first line is there. No step takes longer than `timeout_ms`.
    pub(crate) fn begin(request: &Request, timeout_ms: u64, began: Now) -> Result<Self, String> {
        let pipelines = Pipelines::current()?;
        let definition = process_stream::definition(request, timeout_ms);
        let renderer = Renderer::new(request, &definition);
        let input = process_stream::input(request);
        let execution = Execution::new(Arc::new(definition), process_stream::NAME, input, Limits::default(), 0, began);
        let execution = execution.map_err(|error| error.to_string())?;
        let inside = Self {
            pipelines,
            live: Rc::new(Live::new(execution, String::new(), None)),
            renderer: RefCell::new(renderer),
            lines: RefCell::default(),
            told: Signal::default(),
        };
        inside.tell(began);
        Ok(inside)
    }

    /// The next line, if there is one.
    pub(crate) fn next_line(&self) -> Option<Line> {
        self.lines.borrow_mut().pop_front()
    }

    /// Resolves when there may be a line, or it has ended.
    pub(crate) async fn told(&self) {
        self.told.wait().await;
    }

    /// True when all is told and taken.
    pub(crate) fn is_over(&self) -> bool {
        self.live.execution.borrow().outcome().is_some() && self.lines.borrow().is_empty()
    }

    /// Ends it where it is.
    pub(crate) fn abort(&self, failure: &Failure) {
        let now = clock::now();
        self.live.execution.borrow_mut().handle_cancel(now, StepFailure::from(failure));
        self.tell(now);
    }

    /// Runs its steps until all are over. Dropping the future drops them.
    pub(crate) async fn run(&self) {
        let mut runs = Runs::default();
        loop {
            let now = clock::now();
            // What was told and kept lets the next steps begin.
            loop {
                self.tell(now);
                if !runs.stop_and_start(self.pipelines, &self.live, now) {
                    break;
                }
            }
            if self.live.execution.borrow().outcome().is_some() {
                return;
            }
            let mut changed = pin!(self.live.changed.wait());
            poll_fn(|context| {
                let ended = runs.poll_ended(context);
                if changed.as_mut().poll(context).is_ready() || ended { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    /// Draws what it has to tell. Nothing of it is kept, so a checkpoint is as good as saved.
    fn tell(&self, now: Now) {
        let mut execution = self.live.execution.borrow_mut();
        let mut renderer = self.renderer.borrow_mut();
        loop {
            if let Some(checkpoint) = execution.poll_checkpoint(now) {
                execution.handle_checkpoint_saved(checkpoint.number);
            } else if let Some(batch) = execution.poll_events(now) {
                let mut lines = self.lines.borrow_mut();
                for sequenced in &batch.events {
                    lines.extend(renderer.handle_event(&sequenced.event));
                    self.live.stored.set(sequenced.seq);
                }
                execution.handle_stored(self.live.stored.get());
            } else {
                break;
            }
        }
        drop(execution);
        self.live.moved.ring();
        self.told.notify();
    }
}
