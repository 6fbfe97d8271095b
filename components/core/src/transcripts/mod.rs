//! Transcript sessions: chunks of a transcript in, annotated segments out.
//!
//! A [`Session`] has no socket, clock or model. After each input (a chunk, the end, the time) its driver polls events
//! with [`Session::poll_event`] until there are none. A chunk extends the segment in flight if the speaker is the same
//! and the pause is at most `max_gap_sec`; otherwise that segment is final and a new one begins. Final segments are
//! annotated ([`annotate`]), classified by [`Intent`], added to the queue of their [`Workflow`] and to the
//! [`ContextWindow`]; after a number of them a summary is due, an event with its prompt.
//!
//! Times of chunks are seconds, compared as in slower-whisper, with a tolerance of a microsecond; `now` is nanoseconds
//! of a monotonic clock.
//!
//! Events of chunks are numbered from 1 without a gap, and the same chunks produce the same events with the same
//! numbers: a caller that restores a checkpoint and submits the later chunks again gets the same events again, and
//! recognizes delivered ones by their numbers. Chunks with a client's sequence number are accepted once:
//! [`Receipt::Repeated`] is the result of a repeated one. Events about the session only (a drop, a warning) have no
//! number.
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
/// The number of unpolled events at which chunks are refused.
pub const EVENTS_MAX: usize = 1024;

/// A final segment with its annotation.
#[derive(Debug, Clone, PartialEq)]
pub struct Final {
    /// Its number among the final segments of the session, from 0.
    pub id: u64,
    /// The segment.
    pub segment: Segment,
    /// Its annotation.
    pub annotation: Annotation,
    /// Its workflow, which selects its queue.
    pub workflow: Workflow,
}

/// An event of a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The segment in flight, after each chunk.
    Partial(Segment),
    /// A segment has become final.
    Final(Arc<Final>),
    /// A summary is due.
    Summary(Box<SummaryDue>),
    /// A segment was dropped from a full queue.
    Dropped(Arc<Final>),
    /// The session expires in `in_ms` milliseconds without input.
    Expiring {
        /// The remaining time, in milliseconds.
        in_ms: u64,
    },
    /// The session has expired; it accepts no more input.
    Expired,
}

/// An event and its number.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The number, from 1 without a gap; `None` for events about the session only.
    pub number: Option<u64>,
    /// The event.
    pub event: Event,
}

/// A stored event, for a session that continues from an earlier checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its number.
    pub number: u64,
    /// The sequence number of the input that led to it.
    pub seq: Option<u64>,
    /// The body of the event.
    pub body: StoredBody,
}

/// The body of a stored event, as far as the state of a session depends on it.
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
    /// It was accepted before: its sequence number is not above `seq_last`.
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
    /// The events that were not polled yet, each with the time of its input.
    events: VecDeque<(u64, Output)>,
    numbered: u64,
    seq_last: Option<u64>,
    finals_since_summary: u32,
    finals_since_end: u64,
    counters: Counters,
    latency: Latency,
    began_ns: u64,
    /// The age of the session at `began_ns`.
    elapsed_before_ns: u64,
    active_ns: u64,
    /// The idle time before `active_ns`.
    idle_before_ns: u64,
    warned: bool,
    expired: bool,
}

impl Session {
    /// A new session.
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
            elapsed_before_ns: 0,
            active_ns: now_ns,
            idle_before_ns: 0,
            warned: false,
            expired: false,
        }
    }

    /// A session that continues from a checkpoint of a session with the same configuration, or one with narrower
    /// bounds.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`].
    pub fn restore(rules: Arc<SessionRules>, checkpoint: Checkpoint, now_ns: u64) -> Result<Self, RestoreError> {
        checkpoint.check(&rules.config)?;
        let share = |mut segment: Final| {
            let annotation = &mut segment.annotation;
            let matches = annotation.matches.iter_mut().flat_map(|entry| [&mut entry.risk, &mut entry.keyword]);
            for name in annotation
                .keywords
                .iter_mut()
                .chain(&mut annotation.risk_tags)
                .chain(matches)
                .chain(&mut annotation.action)
            {
                *name = rules.annotator.shared(name);
            }
            Arc::new(segment)
        };
        let own = |segment: Arc<Final>| share(Arc::unwrap_or_clone(segment));
        let window: VecDeque<Arc<Final>> = checkpoint.window.into_iter().map(own).collect();
        // A segment in the window and in a queue is stored once.
        let queues = checkpoint.queues.map(|queue| {
            let same = |segment: Arc<Final>| match window.iter().find(|other| **other == segment) {
                Some(other) => other.clone(),
                None => own(segment),
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
            elapsed_before_ns: checkpoint.elapsed_ns,
            idle_before_ns: checkpoint.idle_ns,
            warned: checkpoint.warned,
            expired: checkpoint.expired,
            ..Self::new(rules, now_ns)
        })
    }

    /// The state as plain data; `None` while there are unpolled events, which it does not contain.
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

    /// Handles a chunk, with the client's sequence number if it uses them, in ascending order.
    ///
    /// # Errors
    ///
    /// See [`ChunkError`]. Only the count of refused chunks has changed, and the session continues.
    pub fn handle_chunk(&mut self, now_ns: u64, seq: Option<u64>, chunk: Chunk) -> Result<Receipt, ChunkError> {
        if let Some(seq_last) = self.repeated(seq) {
            self.counters.chunks_repeated += 1;
            return Ok(Receipt::Repeated { seq_last });
        }
        if let Err(error) = self.check(&chunk) {
            self.counters.chunks_refused += 1;
            return Err(error);
        }
        self.record_activity(now_ns, seq);
        self.counters.chunks_ingested += 1;
        let config = &self.rules.config;
        if let Some(closed) = self.segmenter.take(chunk, config.max_gap_sec, config.limits.segment_bytes_max) {
            self.finalize(now_ns, closed);
        }
        if let Some(current) = self.segmenter.current.clone() {
            self.counters.segments_partial += 1;
            self.publish(now_ns, Event::Partial(current));
        }
        Ok(Receipt::New)
    }

    /// Handles the end or a pause of the transcript: the segment in flight is final. The session continues with the
    /// next input.
    ///
    /// # Errors
    ///
    /// [`ChunkError::Expired`] or [`ChunkError::Undrained`].
    pub fn handle_end(&mut self, now_ns: u64, seq: Option<u64>) -> Result<Receipt, ChunkError> {
        if let Some(seq_last) = self.repeated(seq) {
            return Ok(Receipt::Repeated { seq_last });
        }
        self.check_open()?;
        self.record_activity(now_ns, seq);
        self.flush(now_ns);
        Ok(Receipt::New)
    }

    /// Applies an event that was stored after the checkpoint from which this session continues, in the order of their
    /// numbers: the state is then that after the event, and the event is not published again. An event that the
    /// checkpoint includes is ignored; if some are missing, the session continues without them.
    ///
    /// Chunks that were refused or repeated after the checkpoint are not counted, since they have no stored events.
    pub fn handle_stored(&mut self, now_ns: u64, stored: StoredEvent) {
        let StoredEvent { number, seq, body } = stored;
        if number <= self.numbered {
            return;
        }
        self.numbered = number - 1;
        match body {
            StoredBody::Partial(segment) => {
                self.record_activity(now_ns, seq);
                self.counters.chunks_ingested += 1;
                self.counters.segments_partial += 1;
                self.segmenter.current = Some(segment);
                self.numbered = number;
            }
            StoredBody::Final(id, segment) => {
                self.record_activity(now_ns, seq);
                self.segmenter.current = None;
                self.counters.segments_finalized = id;
                // `finalize` also advances the number past the summary that may follow.
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

    /// Adds the time for which the session was stored, which counts towards its age and its idle time.
    pub fn handle_rest(&mut self, rested_ns: u64) {
        self.elapsed_before_ns = self.elapsed_before_ns.saturating_add(rested_ns);
        self.idle_before_ns = self.idle_before_ns.saturating_add(rested_ns);
    }

    /// Handles the passing of time: the expiry of an idle session is announced, then the session is flushed as at an
    /// end, and expires.
    pub fn handle_time(&mut self, now_ns: u64) {
        let Some((warn_ns, expire_ns)) = self.idle_bounds() else { return };
        let idle_ns = self.idle_ns(now_ns);
        if idle_ns >= expire_ns {
            self.flush(now_ns);
            self.expired = true;
            self.publish(now_ns, Event::Expired);
        } else if idle_ns >= warn_ns && !self.warned {
            self.warned = true;
            self.publish_unnumbered(now_ns, Event::Expiring { in_ms: (expire_ns - idle_ns).div_ceil(NS_PER_MS) });
        }
    }

    /// When to call [`Self::handle_time`] next; `None` if the session does not expire.
    pub fn poll_timeout(&self) -> Option<u64> {
        let (warn_ns, expire_ns) = self.idle_bounds()?;
        let idle_ns = if self.warned { expire_ns } else { warn_ns };
        Some(self.active_ns.saturating_add(idle_ns.saturating_sub(self.idle_before_ns)))
    }

    /// The next event.
    pub fn poll_event(&mut self, now_ns: u64) -> Option<Output> {
        let (input_ns, output) = self.events.pop_front()?;
        self.latency.record(now_ns.saturating_sub(input_ns));
        if self.events.is_empty() && self.events.capacity() > IDLE_EVENTS_CAPACITY {
            self.events.shrink_to(IDLE_EVENTS_CAPACITY);
        }
        Some(output)
    }

    /// Counts a call of a language model for this session.
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

    /// The number of the last numbered event.
    pub fn events(&self) -> u64 {
        self.numbered
    }

    /// True when the session has expired: it accepts no more input.
    pub fn is_expired(&self) -> bool {
        self.expired
    }

    /// The metrics at a time.
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

    /// The bytes of the transcript in memory: the segment in flight, the window and the queues.
    pub fn transcript_bytes(&self) -> usize {
        let mut counted: Vec<*const Final> = Vec::new();
        let mut bytes = self.segmenter.current.as_ref().map_or(0, Segment::heap_bytes);
        for segment in self.window.segments.iter().chain(self.router.queues.iter().flatten()) {
            if !counted.contains(&Arc::as_ptr(segment)) {
                counted.push(Arc::as_ptr(segment));
                let Annotation { keywords, risk_tags, matches, .. } = &segment.annotation;
                let names =
                    (keywords.capacity() + risk_tags.capacity() + 2 * matches.capacity()) * size_of::<Arc<str>>();
                // An `Arc` has two reference counts beside its contents.
                bytes += size_of::<Final>() + 2 * size_of::<usize>() + segment.segment.heap_bytes() + names;
            }
        }
        bytes
    }

    fn repeated(&self, seq: Option<u64>) -> Option<u64> {
        self.seq_last.filter(|last| seq.is_some_and(|seq| seq <= *last))
    }

    fn check_open(&self) -> Result<(), ChunkError> {
        match () {
            () if self.expired => Err(ChunkError::Expired),
            () if self.events.len() >= EVENTS_MAX => Err(ChunkError::Undrained),
            () => Ok(()),
        }
    }

    fn check(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        self.check_open()?;
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

    fn record_activity(&mut self, now_ns: u64, seq: Option<u64>) {
        (self.active_ns, self.idle_before_ns, self.warned) = (now_ns, 0, false);
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
        // The text grew by doubling, and may be retained for long.
        segment.text.shrink_to_fit();
        let annotation = rules.annotator.annotate(&segment.text, &mut AnnotateBuffer::default());
        let workflow = annotation.intent.map_or(Workflow::General, Workflow::from);
        let segment = Arc::new(Final { id, segment, annotation, workflow });
        self.window.add(&config.context, segment.clone());
        self.publish(now_ns, Event::Final(segment.clone()));
        if let Some((from, dropped)) = self.router.push(&config.routing, workflow, segment) {
            self.counters.segments_dropped[from as usize] += 1;
            self.publish_unnumbered(now_ns, Event::Dropped(dropped));
        }
        self.finals_since_end += 1;
        self.finals_since_summary += 1;
        // Final segments are counted, since the length of a full window is constant.
        if config.summary.every_finals > 0 && self.finals_since_summary >= config.summary.every_finals {
            self.finals_since_summary = 0;
            self.summarize(now_ns, SummaryKind::Incremental);
        }
    }

    fn summarize(&mut self, now_ns: u64, kind: SummaryKind) {
        let summary = self.window.summary(kind, self.counters.segments_finalized);
        self.publish(now_ns, Event::Summary(Box::new(summary)));
    }

    /// Adds a numbered event.
    fn publish(&mut self, now_ns: u64, event: Event) {
        self.numbered += 1;
        self.events.push_back((now_ns, Output { number: Some(self.numbered), event }));
    }

    /// Adds an event without a number.
    fn publish_unnumbered(&mut self, now_ns: u64, event: Event) {
        self.events.push_back((now_ns, Output { number: None, event }));
    }

    fn idle_bounds(&self) -> Option<(u64, u64)> {
        let IdleConfig { expire_ms, warn_ms } = self.rules.config.idle;
        let ns = |ms: u64| ms.saturating_mul(NS_PER_MS);
        (expire_ms > 0 && !self.expired).then(|| (ns(expire_ms - warn_ms.min(expire_ms)), ns(expire_ms)))
    }

    fn elapsed_ns(&self, now_ns: u64) -> u64 {
        self.elapsed_before_ns.saturating_add(now_ns.saturating_sub(self.began_ns))
    }

    fn idle_ns(&self, now_ns: u64) -> u64 {
        self.idle_before_ns.saturating_add(now_ns.saturating_sub(self.active_ns))
    }
}

/// The capacity of an empty event queue.
const IDLE_EVENTS_CAPACITY: usize = 8;
