//! The buffer of events before they are stored in the channel: numbered, batched, bounded, and held until their
//! checkpoint is saved.

use std::{collections::VecDeque, mem};

use thiserror::Error;

use super::{
    definition::Streaming,
    event::{Data, Event, Sequenced},
};

/// Nanoseconds in a millisecond.
const NS_PER_MS: u64 = 1_000_000;

/// Events for one append to the channel: at least one, with consecutive numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The events, in order.
    pub events: Vec<Sequenced>,
}

/// The buffer has no room until more events are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the events that wait to be stored have no room for more")]
pub struct Full;

/// The events that are not known to be stored. An event passes through the stages `open` (without a number), `held` (in
/// a checkpoint that is not saved yet), `ready` (to be appended) and `appending` (in a batch).
#[derive(Debug)]
pub(super) struct Buffer {
    streaming: Streaming,
    bytes_max: usize,
    /// The number of the last numbered event.
    last_seq: u64,
    open: VecDeque<Event>,
    /// The number of open events that must be stored without delay.
    urgent: usize,
    held: VecDeque<Sequenced>,
    ready: VecDeque<Sequenced>,
    appending: Vec<Sequenced>,
    /// The bytes of the values of all events.
    bytes: usize,
    /// Whether an output was refused since events were last numbered: they are then stored without delay.
    refused: bool,
    /// When open events were last numbered to be stored.
    flushed_ns: Option<u64>,
}

impl Buffer {
    /// A buffer with the numbered events `ready`, whose next event has the number after `last_seq`.
    pub(super) fn new(streaming: Streaming, bytes_max: usize, last_seq: u64, ready: VecDeque<Sequenced>) -> Self {
        let bytes = ready.iter().map(|sequenced| sequenced.event.bytes()).sum();
        Self {
            streaming,
            bytes_max,
            last_seq,
            open: VecDeque::new(),
            urgent: 0,
            held: VecDeque::new(),
            ready,
            appending: Vec::new(),
            bytes,
            refused: false,
            flushed_ns: None,
        }
    }

    /// Adds an event of the lifecycle of the pipeline or a step, without a bound, since steps and their attempts are
    /// bounded.
    pub(super) fn push(&mut self, event: Event) {
        if self.streaming.enabled || matches!(event.data, Data::PipelineStart { .. }) || event.is_last() {
            self.append(event);
        }
    }

    /// Adds a progress event: it replaces an open one of the same run, and is dropped if there is no room.
    pub(super) fn push_progress(&mut self, event: Event) {
        if !self.streaming.enabled || !self.streaming.emit_progress {
            return;
        }
        let is_same =
            |other: &Event| matches!(other.data, Data::StepProgress { .. }) && other.metadata.run == event.metadata.run;
        if let Some(old) = self.open.iter().rposition(is_same).and_then(|at| self.open.remove(at)) {
            self.bytes -= old.bytes();
        } else if self.is_full(event.bytes()) {
            return;
        }
        self.append(event);
    }

    /// Adds a part of an output, if there is room.
    pub(super) fn push_output(&mut self, event: Event) -> Result<(), Full> {
        if !self.streaming.enabled {
            return Ok(());
        }
        if self.is_full(event.bytes()) {
            self.refused = true;
            return Err(Full);
        }
        self.append(event);
        Ok(())
    }

    fn append(&mut self, event: Event) {
        self.bytes += event.bytes();
        self.urgent += usize::from(event.is_urgent());
        self.open.push_back(event);
    }

    fn is_full(&self, bytes: usize) -> bool {
        // A single event may exceed the bound of bytes.
        let len = self.len();
        len >= self.streaming.buffer_size || len > 0 && self.bytes + bytes > self.bytes_max
    }

    fn len(&self) -> usize {
        self.open.len() + self.held.len() + self.ready.len() + self.appending.len()
    }

    /// True when every event was stored.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of the last numbered event.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Numbers all open events and holds them, with `saved`, the event of the checkpoint, at their end, but before the
    /// last event of the execution.
    pub(super) fn hold(&mut self, mut saved: Event) {
        let last = self.open.pop_back_if(|event| event.is_last());
        if let Some(last) = &last {
            saved.unix_ns = last.unix_ns;
        }
        if self.streaming.enabled {
            self.open.push_back(saved);
        }
        self.open.extend(last);
        self.urgent = 0;
        let events = mem::take(&mut self.open);
        let numbered = number(&mut self.last_seq, events);
        self.held.extend(numbered);
    }

    /// All numbered events that are not known to be stored, in order.
    pub(super) fn outbox(&self) -> Vec<Sequenced> {
        self.appending.iter().chain(&self.ready).chain(&self.held).cloned().collect()
    }

    /// Releases the held events, whose checkpoint is saved.
    pub(super) fn release(&mut self) {
        self.ready.append(&mut self.held);
    }

    /// The next batch, one at a time. `may_number` is false while open events belong to the next checkpoint.
    pub(super) fn poll(&mut self, now_ns: u64, may_number: bool) -> Option<Batch> {
        if !self.appending.is_empty() {
            return None;
        }
        if self.ready.is_empty() && may_number && self.is_due(now_ns) {
            self.flushed_ns = Some(now_ns);
            (self.urgent, self.refused) = (0, false);
            let events = mem::take(&mut self.open);
            let numbered = number(&mut self.last_seq, events);
            self.ready.extend(numbered);
        }
        let events: Vec<Sequenced> = self.ready.drain(..).collect();
        if events.is_empty() {
            return None;
        }
        self.appending = events.clone();
        Some(Batch { events })
    }

    fn is_due(&self, now_ns: u64) -> bool {
        let is_interval_over = self.due_ns().is_none_or(|due_ns| now_ns >= due_ns);
        self.held.is_empty()
            && !self.open.is_empty()
            && (self.urgent > 0 || is_interval_over || self.refused || self.is_full(0))
    }

    fn due_ns(&self) -> Option<u64> {
        let interval_ns = self.streaming.flush_interval_ms.saturating_mul(NS_PER_MS);
        self.flushed_ns.map(|flushed_ns| flushed_ns.saturating_add(interval_ns))
    }

    /// When the open events are due, without another input.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        let waits = self.appending.is_empty() && self.ready.is_empty() && self.held.is_empty() && !self.open.is_empty();
        self.due_ns().filter(|_| waits)
    }

    /// Records that the channel has `events_stored` events: events of the batch that are not among them are appended
    /// again.
    pub(super) fn handle_stored(&mut self, events_stored: u64) {
        for sequenced in mem::take(&mut self.appending).into_iter().rev() {
            if sequenced.seq > events_stored {
                self.ready.push_front(sequenced);
            } else {
                self.bytes -= sequenced.event.bytes();
            }
        }
    }
}

fn number(last_seq: &mut u64, events: VecDeque<Event>) -> impl Iterator<Item = Sequenced> {
    events.into_iter().map(move |event| {
        *last_seq += 1;
        Sequenced { seq: *last_seq, event }
    })
}
