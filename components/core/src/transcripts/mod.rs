//! Transcript sessions: chunks of a transcript in, annotated segments out.
//!
//! A [`Session`] holds no socket, no clock and no model. After each input (a chunk, the end, the time) its driver takes
//! events with [`Session::poll_event`] until there are none. A chunk extends the segment in flight when the speaker is the
//! same and the pause is at most `max_gap_sec`; else that segment is final and a new one begins. Final segments are
//! annotated ([`annotate`]), get an [`Intent`], go to the queue of their [`Workflow`] and enter the [`ContextWindow`]; every few of
//! them a summary is due, which is told with its prompt as data.
//!
//! Times of chunks are seconds and compared as slower-whisper compares them, but that a microsecond is no difference; `now` is nanoseconds of any clock that does not go
//! back.
//!
//! Events that chunks make are numbered from 1 without a gap, and the same chunks make the same events with the same numbers:
//! a caller that restores a checkpoint and submits again what came after it gets those events again, and knows by their numbers which
//! were delivered. Chunks with a client's sequence number are taken once: [`Receipt::Repeated`] says that one had come. Events that
//! say something of the session only (a drop, a warning) have no number.
//!
//! ```
//! use weir_core::transcripts::{Chunk, Event, Session, SessionConfig, SessionRules};
//! let mut session = Session::new(SessionRules::new(SessionConfig::default())?, 0);
//! let chunk = |start, end, text: &str| Chunk { start, end, text: text.to_owned(), speaker_id: None };
//! session.handle_chunk(0, None, chunk(0.0, 1.0, "can you send"))?;
//! session.handle_chunk(0, None, chunk(1.5, 2.0, "the price list?"))?;
//! session.handle_end(0, None)?;
//! let finals: Vec<_> = std::iter::from_fn(|| session.poll_event(0))
//!     .filter_map(|output| match output.event {
//!         Event::Final(segment) => Some(segment),
//!         _ => None,
//!     })
//!     .collect();
//! assert_eq!(finals[0].segment.text, "can you send the price list?");
//! assert_eq!(finals[0].workflow.name(), "action_item");
//! assert_eq!(&*finals[0].annotation.keywords[0], "price");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod annotate;
mod checkpoint;
mod config;
mod context;
mod intent;
mod metrics;
mod phrases;
mod route;
mod segment;
#[cfg(test)]
mod tests;
mod words;

use std::{collections::VecDeque, sync::Arc};

pub use self::{
    annotate::{Annotation, Annotator},
    checkpoint::{Checkpoint, RestoreError},
    config::{
        ConfigError, ContextConfig, IdleConfig, SEGMENTS_MAX, SPEAKER_BYTES_MAX, SessionConfig, SessionLimits,
        SessionRules, SummaryConfig, TEXT_BYTES_MAX,
    },
    context::{ContextWindow, SummaryDue, SummaryKind, final_prompt, incremental_prompt},
    intent::Intent,
    metrics::{Counters, Latency, Metrics},
    route::{RoutingConfig, WORKFLOWS, Workflow},
    segment::{Chunk, ChunkError, Segment},
};

use self::{annotate::AnnotateBuffer, route::Router, segment::Segmenter};

const NS_PER_MS: u64 = 1_000_000;
/// Events that are not taken, from which chunks are refused.
pub const EVENTS_MAX: usize = 1024;

/// A segment that does not change any more, and its annotation.
#[derive(Debug, Clone, PartialEq)]
pub struct Final {
    /// Its number among the final segments of the session, from 0.
    pub id: u64,
    /// What was said.
    pub segment: Segment,
    /// What was found in it.
    pub annotation: Annotation,
    /// Where it goes.
    pub workflow: Workflow,
}

/// What a session says.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The segment in flight, after each chunk.
    Partial(Segment),
    /// A segment has become final.
    Final(Arc<Final>),
    /// A summary is due.
    Summary(Box<SummaryDue>),
    /// A queue was full: a segment was dropped from it.
    Dropped(Arc<Final>),
    /// The session expires in `in_ms` milliseconds without input.
    Expiring {
        /// In milliseconds.
        in_ms: u64,
    },
    /// The session has expired; it accepts no more input.
    Expired,
}

/// An event and its number.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// From 1, without a gap; none for what only says something of the session.
    pub number: Option<u64>,
    /// What happened.
    pub event: Event,
}

/// An event as it was stored, for a session that continues from a checkpoint made before it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its number.
    pub number: u64,
    /// The sequence number of the input that led to it.
    pub seq: Option<u64>,
    /// What happened.
    pub body: StoredBody,
}

/// What happened, as far as the state of a session follows from it.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredBody {
    /// [`Event::Partial`]
    Partial(Segment),
    /// [`Event::Final`]: its number among the final segments, and the segment. It is annotated again.
    Final(u64, Segment),
    /// [`Event::Summary`]
    Summary(SummaryKind),
    /// [`Event::Expired`]
    Expired,
}

/// The result of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It was accepted.
    New,
    /// It had come before: its sequence number is not above this one.
    Repeated {
        /// The highest accepted number.
        seq_last: u64,
    },
}

/// A transcript session.
#[derive(Debug)]
pub struct Session {
    rules: Arc<SessionRules>,
    segmenter: Segmenter,
    window: ContextWindow,
    router: Router<Arc<Final>>,
    /// With when the input came that made each.
    events: VecDeque<(u64, Output)>,
    numbered: u64,
    seq_last: Option<u64>,
    finals_since_summary: u32,
    finals_since_end: u64,
    counters: Counters,
    latency: Latency,
    began_ns: u64,
    /// Lived before `began_ns`.
    lived_ns: u64,
    active_ns: u64,
    /// Had been idle before `active_ns`.
    idled_ns: u64,
    warned: bool,
    expired: bool,
}

impl Session {
    /// A session that begins now.
    pub fn new(rules: Arc<SessionRules>, now_ns: u64) -> Self {
        Self {
            rules,
            segmenter: Segmenter::default(),
            window: ContextWindow::default(),
            router: Router::default(),
            events: VecDeque::new(),
            numbered: 0,
            seq_last: None,
            finals_since_summary: 0,
            finals_since_end: 0,
            counters: Counters::default(),
            latency: Latency::default(),
            began_ns: now_ns,
            lived_ns: 0,
            active_ns: now_ns,
            idled_ns: 0,
            warned: false,
            expired: false,
        }
    }

    /// A session that continues from a checkpoint, made under the same configuration or one with wider bounds.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]: the checkpoint is not one of a session with this configuration.
    pub fn restore(rules: Arc<SessionRules>, checkpoint: Checkpoint, now_ns: u64) -> Result<Self, RestoreError> {
        checkpoint.check(&rules.config)?;
        let share = |mut kept: Final| {
            let annotation = &mut kept.annotation;
            let found = annotation.matches.iter_mut().flat_map(|found| [&mut found.risk, &mut found.keyword]);
            for name in annotation
                .keywords
                .iter_mut()
                .chain(&mut annotation.risk_tags)
                .chain(found)
                .chain(&mut annotation.action)
            {
                *name = rules.annotator.shared(name);
            }
            Arc::new(kept)
        };
        let own = |kept: Arc<Final>| share(Arc::unwrap_or_clone(kept));
        let window: VecDeque<Arc<Final>> = checkpoint.window.into_iter().map(own).collect();
        // A segment in the window and in a queue is stored once.
        let queues = checkpoint.queues.map(|queue| {
            let same = |kept: Arc<Final>| match window.iter().find(|other| **other == kept) {
                Some(other) => other.clone(),
                None => own(kept),
            };
            queue.into_iter().map(same).collect()
        });
        Ok(Self {
            segmenter: Segmenter { current: checkpoint.current },
            window: ContextWindow { segments: window },
            router: Router { queues },
            numbered: checkpoint.events,
            seq_last: checkpoint.seq_last,
            finals_since_summary: checkpoint.finals_since_summary,
            finals_since_end: checkpoint.finals_since_end,
            counters: checkpoint.counters,
            lived_ns: checkpoint.elapsed_ns,
            idled_ns: checkpoint.idle_ns,
            warned: checkpoint.warned,
            expired: checkpoint.expired,
            ..Self::new(rules, now_ns)
        })
    }

    /// The state as data; none while events wait to be taken, which it does not hold.
    pub fn checkpoint(&self, now_ns: u64) -> Option<Checkpoint> {
        self.events.is_empty().then(|| Checkpoint {
            elapsed_ns: self.elapsed_ns(now_ns),
            idle_ns: self.idle_ns(now_ns),
            warned: self.warned,
            expired: self.expired,
            seq_last: self.seq_last,
            events: self.numbered,
            finals_since_summary: self.finals_since_summary,
            finals_since_end: self.finals_since_end,
            counters: self.counters,
            current: self.segmenter.current.clone(),
            window: self.window.segments.iter().cloned().collect(),
            queues: self.router.queues.each_ref().map(|queue| queue.iter().cloned().collect()),
        })
    }

    /// Takes a chunk, with the client's sequence number if it gives them: each above the one before.
    ///
    /// # Errors
    ///
    /// [`ChunkError`]: nothing has changed but the count of refused chunks, and the session continues.
    pub fn handle_chunk(&mut self, now_ns: u64, seq: Option<u64>, chunk: Chunk) -> Result<Receipt, ChunkError> {
        if let Some(seq_last) = self.repeated(seq) {
            self.counters.chunks_repeated += 1;
            return Ok(Receipt::Repeated { seq_last });
        }
        if let Err(error) = self.check(&chunk) {
            self.counters.chunks_refused += 1;
            return Err(error);
        }
        self.active(now_ns, seq);
        self.counters.chunks_ingested += 1;
        let config = &self.rules.config;
        if let Some(closed) = self.segmenter.take(chunk, config.max_gap_sec, config.limits.segment_bytes_max) {
            self.finalize(now_ns, closed);
        }
        if let Some(current) = self.segmenter.current.clone() {
            self.counters.segments_partial += 1;
            self.tell(now_ns, Event::Partial(current));
        }
        Ok(Receipt::New)
    }

    /// The stream has ended, or pauses: the segment in flight is final. The session continues with the next input.
    ///
    /// # Errors
    ///
    /// [`ChunkError::Expired`], [`ChunkError::Undrained`]
    pub fn handle_end(&mut self, now_ns: u64, seq: Option<u64>) -> Result<Receipt, ChunkError> {
        if let Some(seq_last) = self.repeated(seq) {
            return Ok(Receipt::Repeated { seq_last });
        }
        self.open()?;
        self.active(now_ns, seq);
        self.flush(now_ns);
        Ok(Receipt::New)
    }

    /// Applies an event that was stored after the checkpoint that this session continues from, in the order of their numbers: the state
    /// is that after the event, and the event is not repeated. An event that the checkpoint covers changes nothing; where some are
    /// missing, the session continues without them.
    ///
    /// Chunks that were refused or repeated meanwhile are not counted, for nothing was stored of them.
    pub fn handle_stored(&mut self, now_ns: u64, stored: StoredEvent) {
        let StoredEvent { number, seq, body } = stored;
        if number <= self.numbered {
            return;
        }
        self.numbered = number - 1;
        match body {
            StoredBody::Partial(segment) => {
                self.active(now_ns, seq);
                self.counters.chunks_ingested += 1;
                self.counters.segments_partial += 1;
                self.segmenter.current = Some(segment);
                self.numbered = number;
            }
            StoredBody::Final(id, segment) => {
                self.active(now_ns, seq);
                self.segmenter.current = None;
                self.counters.segments_finalized = id;
                // It counts the summary that follows from it too.
                self.finalize(now_ns, segment);
                self.events.clear();
            }
            StoredBody::Summary(kind) => {
                match kind {
                    SummaryKind::Incremental => self.finals_since_summary = 0,
                    SummaryKind::Final => self.finals_since_end = 0,
                }
                self.numbered = number;
            }
            StoredBody::Expired => {
                self.expired = true;
                self.numbered = number;
            }
        }
    }

    /// The session lay in a checkpoint for so long, and nothing came: it lived, and was idle.
    pub fn handle_rest(&mut self, rested_ns: u64) {
        self.lived_ns = self.lived_ns.saturating_add(rested_ns);
        self.idled_ns = self.idled_ns.saturating_add(rested_ns);
    }

    /// Says what time it is: a session that was left alone is warned, and expires. An expired one has flushed, as at an end.
    pub fn handle_time(&mut self, now_ns: u64) {
        let Some((warn_ns, expire_ns)) = self.idle_bounds() else { return };
        let idle_ns = self.idle_ns(now_ns);
        if idle_ns >= expire_ns {
            self.flush(now_ns);
            self.expired = true;
            self.tell(now_ns, Event::Expired);
        } else if idle_ns >= warn_ns && !self.warned {
            self.warned = true;
            self.note(now_ns, Event::Expiring { in_ms: (expire_ns - idle_ns).div_ceil(NS_PER_MS) });
        }
    }

    /// When [`Self::handle_time`] should be called next; none when it need not be.
    pub fn poll_timeout(&self) -> Option<u64> {
        let (warn_ns, expire_ns) = self.idle_bounds()?;
        let idle_ns = if self.warned { expire_ns } else { warn_ns };
        Some(self.active_ns.saturating_add(idle_ns.saturating_sub(self.idled_ns)))
    }

    /// The next event.
    pub fn poll_event(&mut self, now_ns: u64) -> Option<Output> {
        let (came_ns, output) = self.events.pop_front()?;
        self.latency.record(now_ns.saturating_sub(came_ns));
        if self.events.is_empty() && self.events.capacity() > EVENTS_KEPT {
            self.events.shrink_to(EVENTS_KEPT);
        }
        Some(output)
    }

    /// Takes the oldest segment from the queue of a workflow.
    pub fn take_routed(&mut self, workflow: Workflow) -> Option<Arc<Final>> {
        self.router.pop(workflow)
    }

    /// Takes the oldest segment from the most urgent queue that has any.
    pub fn take_urgent(&mut self) -> Option<(Workflow, Arc<Final>)> {
        self.router.pop_urgent()
    }

    /// A language model was called for this session.
    pub fn record_llm_call(&mut self) {
        self.counters.llm_calls += 1;
    }

    /// The segment in flight.
    pub fn current(&self) -> Option<&Segment> {
        self.segmenter.current.as_ref()
    }

    /// The context window.
    pub fn context(&self) -> &ContextWindow {
        &self.window
    }

    /// The highest accepted sequence number.
    pub fn seq_last(&self) -> Option<u64> {
        self.seq_last
    }

    /// How many numbered events there were: the number of the latest.
    pub fn events(&self) -> u64 {
        self.numbered
    }

    /// It accepts no more input.
    pub fn is_expired(&self) -> bool {
        self.expired
    }

    /// A report.
    pub fn metrics(&self, now_ns: u64) -> Metrics {
        let elapsed_sec = self.elapsed_ns(now_ns) as f64 / 1e9;
        let span = match (self.window.segments.front(), self.window.segments.back()) {
            (Some(first), Some(last)) => last.segment.end - first.segment.start,
            _ => 0.0,
        };
        Metrics {
            counters: self.counters,
            elapsed_sec,
            chunks_per_sec: Metrics::rate(self.counters.chunks_ingested, elapsed_sec),
            llm_calls_per_min: Metrics::rate(self.counters.llm_calls, elapsed_sec) * 60.0,
            queue_depths: self.router.depths(),
            context_segments: self.window.segments.len(),
            context_span_sec: span,
            latency: self.latency,
        }
    }

    /// Bytes of the transcript in memory: the open segment, the window and the queues.
    pub fn kept_bytes(&self) -> usize {
        let mut seen: Vec<*const Final> = Vec::new();
        let mut bytes = self.segmenter.current.as_ref().map_or(0, Segment::heap_bytes);
        for kept in self.window.segments.iter().chain(self.router.queues.iter().flatten()) {
            if !seen.contains(&Arc::as_ptr(kept)) {
                seen.push(Arc::as_ptr(kept));
                let Annotation { keywords, risk_tags, matches, .. } = &kept.annotation;
                let names =
                    (keywords.capacity() + risk_tags.capacity() + 2 * matches.capacity()) * size_of::<Arc<str>>();
                // An `Arc` counts twice beside its contents.
                bytes += size_of::<Final>() + 2 * size_of::<usize>() + kept.segment.heap_bytes() + names;
            }
        }
        bytes
    }

    fn repeated(&self, seq: Option<u64>) -> Option<u64> {
        self.seq_last.filter(|last| seq.is_some_and(|seq| seq <= *last))
    }

    fn open(&self) -> Result<(), ChunkError> {
        match () {
            () if self.expired => Err(ChunkError::Expired),
            () if self.events.len() >= EVENTS_MAX => Err(ChunkError::Undrained),
            () => Ok(()),
        }
    }

    fn check(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        self.open()?;
        let SessionLimits { text_bytes_max, speaker_bytes_max, .. } = self.rules.config.limits;
        let bytes = chunk.text.len();
        if bytes > text_bytes_max {
            return Err(ChunkError::TextTooLong { bytes, bytes_max: text_bytes_max });
        }
        let bytes = chunk.speaker_id.as_ref().map_or(0, String::len);
        if bytes > speaker_bytes_max {
            return Err(ChunkError::SpeakerTooLong { bytes, bytes_max: speaker_bytes_max });
        }
        self.segmenter.check(chunk, self.rules.config.overlap)
    }

    fn active(&mut self, now_ns: u64, seq: Option<u64>) {
        (self.active_ns, self.idled_ns, self.warned) = (now_ns, 0, false);
        self.seq_last = seq.or(self.seq_last);
    }

    fn flush(&mut self, now_ns: u64) {
        if let Some(closed) = self.segmenter.current.take() {
            self.finalize(now_ns, closed);
        }
        if std::mem::take(&mut self.finals_since_end) > 0 && self.rules.config.summary.at_end {
            self.summarize(now_ns, SummaryKind::Final);
        }
    }

    fn finalize(&mut self, now_ns: u64, mut segment: Segment) {
        let rules = self.rules.clone();
        let config = &rules.config;
        let id = self.counters.segments_finalized;
        self.counters.segments_finalized += 1;
        // It grew by doubling, and may stay for long.
        segment.text.shrink_to_fit();
        let annotation = rules.annotator.annotate(&segment.text, &mut AnnotateBuffer::default());
        let workflow = annotation.intent.map_or(Workflow::General, Workflow::from);
        let segment = Arc::new(Final { id, segment, annotation, workflow });
        self.window.add(&config.context, segment.clone());
        self.tell(now_ns, Event::Final(segment.clone()));
        if let Some((from, dropped)) = self.router.push(&config.routing, workflow, segment) {
            self.counters.segments_dropped[from as usize] += 1;
            self.note(now_ns, Event::Dropped(dropped));
        }
        self.finals_since_end += 1;
        self.finals_since_summary += 1;
        // A count of finals: that of the window stands still when it is full.
        if config.summary.every_finals > 0 && self.finals_since_summary >= config.summary.every_finals {
            self.finals_since_summary = 0;
            self.summarize(now_ns, SummaryKind::Incremental);
        }
    }

    fn summarize(&mut self, now_ns: u64, kind: SummaryKind) {
        let summary = self.window.summary(kind, self.counters.segments_finalized);
        self.tell(now_ns, Event::Summary(Box::new(summary)));
    }

    /// Adds a numbered event.
    fn tell(&mut self, now_ns: u64, event: Event) {
        self.numbered += 1;
        self.events.push_back((now_ns, Output { number: Some(self.numbered), event }));
    }

    /// Adds an event without a number.
    fn note(&mut self, now_ns: u64, event: Event) {
        self.events.push_back((now_ns, Output { number: None, event }));
    }

    fn idle_bounds(&self) -> Option<(u64, u64)> {
        let IdleConfig { expire_ms, warn_ms } = self.rules.config.idle;
        let ns = |ms: u64| ms.saturating_mul(NS_PER_MS);
        (expire_ms > 0 && !self.expired).then(|| (ns(expire_ms - warn_ms.min(expire_ms)), ns(expire_ms)))
    }

    fn elapsed_ns(&self, now_ns: u64) -> u64 {
        self.lived_ns.saturating_add(now_ns.saturating_sub(self.began_ns))
    }

    fn idle_ns(&self, now_ns: u64) -> u64 {
        self.idled_ns.saturating_add(now_ns.saturating_sub(self.active_ns))
    }
}

/// Capacity for events that an empty queue keeps.
const EVENTS_KEPT: usize = 8;
