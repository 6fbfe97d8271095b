//! Events on their way to the channel: numbered, batched, bounded, and held back until their checkpoint is saved.

use std::{collections::VecDeque, mem};

use thiserror::Error;

use super::{
    definition::Streaming,
    event::{Data, Event, Sequenced},
};

/// Nanoseconds in a millisecond.
const NS_PER_MS: u64 = 1_000_000;

/// Events to append to the channel in one go: at least one, their numbers without holes.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// In their order.
    pub events: Vec<Sequenced>,
}

/// There is no room until more events are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the events that wait to be stored have no room for more")]
pub struct Full;

/// The way of an event: `open` (no number yet), `held` (numbered, in a checkpoint that is not saved yet), `ready`, `leaving`.
#[derive(Debug)]
pub(super) struct Buffer {
    streaming: Streaming,
    bytes_max: usize,
    /// The number of the last event that has one.
    last_seq: u64,
    open: VecDeque<Event>,
    /// How many of the open ones must not wait.
    urgent: usize,
    held: VecDeque<Sequenced>,
    ready: VecDeque<Sequenced>,
    leaving: Vec<Sequenced>,
    /// Of the values of all of them.
    bytes: usize,
    /// Something was refused since events were last numbered: they leave without waiting.
    refused: bool,
    /// When open events were last numbered to leave; before any: none.
    flushed_ns: Option<u64>,
}

impl Buffer {
    /// A buffer whose next event has the number after `last_seq`, with events that have their numbers already.
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
            leaving: Vec::new(),
            bytes,
            refused: false,
            flushed_ns: None,
        }
    }

    /// Takes an event of the life of the pipeline or a step: always room, since steps and their attempts are bounded.
    pub(super) fn push(&mut self, event: Event) {
        if self.streaming.enabled || matches!(event.data, Data::PipelineStart { .. }) || event.is_last() {
            self.append(event);
        }
    }

    /// Takes progress: it replaces the one of the same run that waits, and is dropped when there is no room.
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

    /// Takes a part of an output, if there is room.
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
        // What is larger than the bound by itself has room when it is alone.
        let len = self.len();
        len >= self.streaming.buffer_size || len > 0 && self.bytes + bytes > self.bytes_max
    }

    fn len(&self) -> usize {
        self.open.len() + self.held.len() + self.ready.len() + self.leaving.len()
    }

    /// True when every event was stored.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of the last event that has one.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Numbers all open events and holds them, `mark` before the last event of the execution or else at the end.
    pub(super) fn hold(&mut self, mut mark: Event) {
        let last = self.open.pop_back_if(|event| event.is_last());
        if let Some(last) = &last {
            mark.unix_ns = last.unix_ns;
        }
        if self.streaming.enabled {
            self.open.push_back(mark);
        }
        self.open.extend(last);
        self.urgent = 0;
        let events = mem::take(&mut self.open);
        let numbered = number(&mut self.last_seq, events);
        self.held.extend(numbered);
    }

    /// Everything that is numbered and not known to be stored, in order.
    pub(super) fn outbox(&self) -> Vec<Sequenced> {
        self.leaving.iter().chain(&self.ready).chain(&self.held).cloned().collect()
    }

    /// The checkpoint of the held events is saved.
    pub(super) fn release(&mut self) {
        self.ready.append(&mut self.held);
    }

    /// The next batch, one at a time. `may_number` is false while open events belong to a checkpoint to come.
    pub(super) fn poll(&mut self, now_ns: u64, may_number: bool) -> Option<Batch> {
        if !self.leaving.is_empty() {
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
        self.leaving = events.clone();
        Some(Batch { events })
    }

    fn is_due(&self, now_ns: u64) -> bool {
        let waited = self.due_ns().is_none_or(|due_ns| now_ns >= due_ns);
        self.held.is_empty() && !self.open.is_empty() && (self.urgent > 0 || waited || self.refused || self.is_full(0))
    }

    fn due_ns(&self) -> Option<u64> {
        let interval_ns = self.streaming.flush_interval_ms.saturating_mul(NS_PER_MS);
        self.flushed_ns.map(|flushed_ns| flushed_ns.saturating_add(interval_ns))
    }

    /// When a batch will be due that is not yet, if nothing else happens.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        let waits = self.leaving.is_empty() && self.ready.is_empty() && self.held.is_empty() && !self.open.is_empty();
        self.due_ns().filter(|_| waits)
    }

    /// The channel has `stored` events: sent events that are not among them are sent again.
    pub(super) fn handle_stored(&mut self, events_stored: u64) {
        for sequenced in mem::take(&mut self.leaving).into_iter().rev() {
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
