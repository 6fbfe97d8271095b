//! Runs one adapter: it tracks records in flight, writes results, commits positions and reconnects.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::OptionFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use weir_core::adapter::{
    Destination, ERROR_CATEGORY_HEADER, ERROR_CODE_HEADER, ERROR_REASON_HEADER, ErrorCategory, Header, Reconnect,
    ReconnectConfig, ResultRecord, SourceRecord, Watermarks, Window,
};
use weir_core::random::SplitMix64;
use weir_core::wording::counted;

use crate::driver::{BoxFuture, Committer, Connection, Driver, DriverError, Marks, Read, Rejected, Safe, Sink};
use crate::pending::PendingResults;
use crate::reader::{Room, chunk, read, record_bytes};
use crate::status::{State, Status};
use crate::traces::{RecordSpans, trace_record, write_span};

/// How long records may wait for others before they are sent to a component that has enough of them.
const SEND_DELAY: Duration = Duration::from_millis(5);
/// The instances that may end at one record before it goes to the error destination.
const STRIKES_MAX: u32 = 2;

/// An adapter component.
pub trait Component: Send + Sync {
    /// Starts a call.
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>>;
}

/// A call of an adapter component.
pub struct ComponentCall {
    /// Lists of records for the component; dropping the sender ends them.
    pub records: mpsc::Sender<Vec<SourceRecord>>,
    /// Lists of results.
    pub results: mpsc::Receiver<Vec<ResultRecord>>,
    /// Resolves when the results have ended, with the reason if the instance failed.
    pub end: BoxFuture<'static, Option<String>>,
}

/// Why a call cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComponentError {
    /// The component refuses its configuration.
    #[error("{0}")]
    Config(String),
    /// The instance has ended.
    #[error("the adapter component has ended: {0}")]
    Ended(String),
}

/// Why a connection or the adapter ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterFailure {
    /// A driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The component cannot start.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The component ended with records that it had not completed.
    #[error("the adapter component has ended with {} in flight: {reason}", counted(*.open, "record"))]
    Lost {
        /// The number of incomplete records.
        open: usize,
        /// The cause.
        reason: String,
    },
}

impl AdapterFailure {
    fn is_retryable(&self) -> bool {
        match self {
            Self::Driver(error) => error.is_retryable(),
            Self::Component(ComponentError::Config(_)) => false,
            Self::Component(ComponentError::Ended(_)) | Self::Lost { .. } => true,
        }
    }

    /// The attempts to reconnect that the driver has made.
    fn attempts(&self) -> u32 {
        match self {
            Self::Driver(DriverError::Exhausted { attempts, .. }) => *attempts,
            _ => 0,
        }
    }

    fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Driver(DriverError::Transport { retry_after_ms, .. }) => *retry_after_ms,
            _ => None,
        }
    }
}

/// The bounds of an adapter.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most records that were read and are not written; at least 1.
    pub in_flight_max: usize,
    /// The attempts to reconnect and their delays.
    pub reconnect: ReconnectConfig,
    /// How long the component may have records without giving a result; `None` for no bound.
    pub stall_timeout: Option<Duration>,
    /// The seed of the jitter.
    pub seed: u64,
}

/// Runs one adapter.
pub struct Supervisor {
    driver: Arc<dyn Driver>,
    component: Arc<dyn Component>,
    bounds: Bounds,
    status: Status,
    poison: Poison,
}

impl Supervisor {
    /// A supervisor of an adapter that has not started.
    pub fn new(driver: Arc<dyn Driver>, component: Arc<dyn Component>, bounds: Bounds, status: Status) -> Self {
        Self { driver, component, bounds, status, poison: Poison::default() }
    }

    /// Runs until the source has ended, or until `stop` is true and all records in flight are written.
    ///
    /// # Errors
    ///
    /// A failure that cannot be retried, or the last one when the attempts to reconnect are exhausted.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), AdapterFailure> {
        let start = Instant::now();
        let now = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut reconnect = Reconnect::new(self.bounds.reconnect);
        let mut random = SplitMix64::new(self.bounds.seed);
        let name = self.status.name().to_owned();
        loop {
            let result = self.connect(&mut stop, || reconnect.handle_connected(now())).await;
            let failure = match result {
                Ok(()) => {
                    self.status.set(State::Stopped, None);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            // Attempts of the driver are not repeated by the adapter.
            for _ in 0..failure.attempts() {
                reconnect.handle_lost(now(), None, 0);
            }
            self.status.counters().reconnects.fetch_add(1, Ordering::Relaxed);
            self.status.counters().in_flight.store(0, Ordering::Relaxed);
            let delay_ns = failure
                .is_retryable()
                .then(|| reconnect.handle_lost(now(), failure.retry_after_ms(), random.next_u64()))
                .flatten();
            let Some(delay_ns) = delay_ns else {
                self.status.set(State::Failed, Some(failure.to_string()));
                return Err(failure);
            };
            let after_ms = delay_ns / 1_000_000;
            tracing::warn!(adapter = name, %failure, after_ms, "the adapter connects again");
            self.status.set(State::Reconnecting, Some(failure.to_string()));
            tokio::select! {
                () = tokio::time::sleep(Duration::from_nanos(delay_ns)) => {}
                () = stopped(&mut stop) => {
                    self.status.set(State::Stopped, None);
                    return Ok(());
                }
            }
        }
    }

    /// Opens a connection and runs it to its end.
    async fn connect(
        &mut self,
        stop: &mut watch::Receiver<bool>,
        connected: impl FnOnce(),
    ) -> Result<(), AdapterFailure> {
        let opened = async {
            let connection = self.driver.open().await?;
            // The component may wait for its models.
            self.status.handle_connected();
            let call = self.component.open().await?;
            Ok::<_, AdapterFailure>((connection, call))
        };
        let (connection, call) = tokio::select! {
            opened = opened => opened?,
            () = stopped(stop) => return Ok(()),
        };
        connected();
        self.status.set(State::Running, None);
        let Connection { source, committer, sink, errors } = connection;
        let rated = Window::new(self.bounds.in_flight_max.max(1));
        let window = if self.poison.solo > 0 { 1 } else { rated.size() };
        let room = Arc::new(Room::new(window));
        let (reads_to, reads) = mpsc::channel(1);
        let reader = read(source, room.clone(), reads_to, self.status.clone());
        let reader = AbortOnDropHandle::new(tokio::spawn(reader));
        let flight = Flight {
            status: &self.status,
            poison: &mut self.poison,
            rated,
            window,
            room,
            start: Instant::now(),
            reads,
            reader: Some(reader),
            records: Some(call.records),
            results: Some(call.results),
            unsent: Vec::new(),
            unsent_since: Instant::now(),
            pending: PendingResults::default(),
            has_rest: false,
            safe: Safe::default(),
            marks: Watermarks::new(),
            has_ended: false,
            spans: RecordSpans::default(),
            stall_timeout: self.bounds.stall_timeout,
            progressed: Instant::now(),
        };
        flight.run(Writer { sink, errors, committer }, call.end, stop).await
    }
}

/// Resolves when `stop` is true or its sender is dropped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender was dropped.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The writing parts of a connection, owned by one future at a time.
struct Writer {
    sink: Box<dyn Sink>,
    errors: Option<Box<dyn Sink>>,
    committer: Box<dyn Committer>,
}

impl Writer {
    /// Commits the safe results, then writes the next ones.
    async fn step(
        mut self,
        mut safe: Safe,
        batch: Vec<ResultRecord>,
    ) -> (Self, Vec<ResultRecord>, Result<(), DriverError>) {
        let step = async {
            if !safe.completed.is_empty() {
                safe.marks = self.marks();
                self.committer.commit(&safe).await?;
            }
            let span = write_span(&batch);
            let written = self.write(&batch).await;
            if let (Some(span), Err(error)) = (&span, &written) {
                span.fail(error.to_string());
            }
            written
        };
        let result = step.await;
        (self, batch, result)
    }

    fn marks(&self) -> Marks {
        Marks { output: self.sink.mark(), errors: self.errors.as_ref().and_then(|errors| errors.mark()) }
    }

    /// Writes runs of results with the same destination.
    async fn write(&mut self, batch: &[ResultRecord]) -> Result<(), DriverError> {
        for run in batch.chunk_by(|one, other| one.destination == other.destination) {
            let rejected = match (run[0].destination, &mut self.errors) {
                (Destination::None, _) => continue,
                (Destination::Error, Some(errors)) => errors.write(run).await?,
                _ => self.sink.write(run).await?,
            };
            for Rejected { index, reason } in rejected {
                self.refuse(&run[index], &reason).await?;
            }
        }
        Ok(())
    }

    /// Writes a result that the sink refuses to the error destination; without one it can only be logged.
    async fn refuse(&mut self, result: &ResultRecord, reason: &str) -> Result<(), DriverError> {
        let Some(errors) = self.errors.as_mut().filter(|_| result.destination == Destination::Output) else {
            let payload = String::from_utf8_lossy(&result.payload);
            tracing::error!(origin = result.origin, reason, %payload, "the sink refuses a result, and there is no error destination");
            return Ok(());
        };
        let mut refused = ResultRecord { destination: Destination::Error, completes: Vec::new(), ..result.clone() };
        refused.headers.push(Header::new(ERROR_CATEGORY_HEADER, ErrorCategory::Client.name()));
        refused.headers.push(Header::new(ERROR_CODE_HEADER, "sink_refused"));
        refused.headers.push(Header::new(ERROR_REASON_HEADER, reason));
        let again = errors.write(std::slice::from_ref(&refused)).await?;
        for Rejected { reason, .. } in again {
            tracing::error!(origin = refused.origin, reason, "the error destination refuses an error");
        }
        Ok(())
    }

    /// Ends the sinks. With `has_rest`, results were written since the last commit.
    async fn finish(mut self, has_rest: bool) -> Result<(), DriverError> {
        if has_rest {
            let safe = Safe { marks: self.marks(), is_exact: true, ..Safe::default() };
            self.committer.commit(&safe).await?;
        }
        self.sink.finish().await?;
        if let Some(errors) = &mut self.errors {
            errors.finish().await?;
        }
        self.committer.finish().await
    }
}

/// Tracks the records at which instances of the component end.
#[derive(Debug, Default)]
struct Poison {
    /// The number of records that are processed one at a time from now on.
    solo: usize,
    /// The record that was alone in flight when an instance ended, and the number of times.
    suspect: Option<(SourceRecord, u32)>,
}

impl Poison {
    /// Whether too many instances have ended at the record.
    fn is_condemned(&self, record: &SourceRecord) -> bool {
        self.suspect.as_ref().is_some_and(|(suspect, strikes)| *strikes >= STRIKES_MAX && same(suspect, record))
    }

    /// Records that an instance has ended with these records in flight.
    fn handle_lost(&mut self, open: usize, alone: Option<SourceRecord>) {
        self.solo = self.solo.max(open);
        if let Some(record) = alone.filter(|_| open == 1) {
            let strikes = match &self.suspect {
                Some((suspect, strikes)) if same(suspect, &record) => strikes + 1,
                _ => 1,
            };
            self.suspect = Some((record, strikes));
        }
    }
}

/// Whether two records are the same. Positions are not compared: after a reconnection the partition number may differ.
fn same(one: &SourceRecord, other: &SourceRecord) -> bool {
    one.payload == other.payload && one.key == other.key && one.origin == other.origin
}

/// The records of one connection.
struct Flight<'a> {
    status: &'a Status,
    poison: &'a mut Poison,
    /// The window by the rate of records, and the one in use: 1 while records are processed one at a time.
    rated: Window,
    window: usize,
    room: Arc<Room>,
    start: Instant,
    reads: mpsc::Receiver<Result<Read, DriverError>>,
    reader: Option<AbortOnDropHandle<()>>,
    records: Option<mpsc::Sender<Vec<SourceRecord>>>,
    results: Option<mpsc::Receiver<Vec<ResultRecord>>>,
    /// Records that the component has not received, and when the first of them was read.
    unsent: Vec<SourceRecord>,
    unsent_since: Instant,
    pending: PendingResults,
    /// Whether results that complete no record were written after the last commit.
    has_rest: bool,
    safe: Safe,
    marks: Watermarks,
    /// Whether reading has ended.
    has_ended: bool,
    /// The spans of traced records in flight.
    spans: RecordSpans,
    stall_timeout: Option<Duration>,
    /// When the component last gave a result, or was given records while it had none.
    progressed: Instant,
}

impl Flight<'_> {
    async fn run(
        mut self,
        writer: Writer,
        end: BoxFuture<'static, Option<String>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), AdapterFailure> {
        let mut idle = Some(writer);
        let mut busy = OptionFuture::default();
        // The record in flight, while records are processed one at a time.
        let mut alone: Option<SourceRecord> = None;
        loop {
            if let Some(writer) = idle.take() {
                let batch = self.pending.take(self.has_ended.then(|| self.marks.open()));
                if batch.is_empty() && self.safe.completed.is_empty() {
                    if self.results.is_none() {
                        return self.end(writer, end, alone).await;
                    }
                    idle = Some(writer);
                } else {
                    let safe = std::mem::take(&mut self.safe);
                    busy = OptionFuture::from(Some(Box::pin(writer.step(safe, batch))));
                }
            }
            if self.has_ended && self.unsent.is_empty() {
                self.records = None;
            }
            self.status.counters().in_flight.store(self.marks.open() as u64, Ordering::Relaxed);
            let is_busy = idle.is_none();
            // While results are written, the component may wait for that.
            let stall = self.stall_timeout.filter(|_| !is_busy && self.marks.open() > 0);
            let send_at = self.send_at();
            tokio::select! {
                Some((writer, batch, written)) = &mut busy, if is_busy => {
                    busy = OptionFuture::default();
                    written?;
                    self.handle_written(&batch);
                    self.progressed = Instant::now();
                    idle = Some(writer);
                }
                read = self.reads.recv(), if !self.has_ended && self.unsent.len() < chunk(self.window) => match read {
                    Some(read) => self.handle_read(read?)?,
                    None => self.has_ended = true,
                },
                sent = send(self.records.clone(), send_at), if !self.unsent.is_empty() => {
                    if let Some(permit) = sent {
                        let count = if self.window == 1 { 1 } else { self.unsent.len() };
                        let records: Vec<_> = self.unsent.drain(..count).collect();
                        if self.window == 1 {
                            alone = records.last().cloned();
                        }
                        permit.send(records);
                    } else {
                        // The component has ended; the end of its results has the reason.
                        self.unsent.clear();
                        self.has_ended = true;
                    }
                }
                results = receive(&mut self.results), if self.results.is_some() && self.pending.has_room() => {
                    self.progressed = Instant::now();
                    match results {
                        Some(results) => self.pending.extend(results),
                        None => self.results = None,
                    }
                }
                () = stalled(self.progressed, stall), if stall.is_some() => {
                    let (open, waited_ms) = (self.marks.open(), self.progressed.elapsed().as_millis());
                    self.poison.handle_lost(open, alone);
                    return Err(AdapterFailure::Lost { open, reason: format!("it has given no result for {waited_ms} ms") });
                }
                () = stopped(stop), if !self.has_ended => {
                    self.status.set(State::Stopping, None);
                    self.reader = None;
                    self.has_ended = true;
                }
            }
            // Results that are available already.
            while let Some(results) = &mut self.results
                && self.pending.has_room()
                && let Ok(results) = results.try_recv()
            {
                self.pending.extend(results);
            }
            if let Some(reason) = self.pending.excess() {
                let open = self.marks.open();
                self.poison.handle_lost(open, alone);
                return Err(AdapterFailure::Lost { open, reason });
            }
        }
    }

    /// The time at which the unsent records are sent, if not now. Each list wakes all later stages, so while the component has enough
    /// records, a few wait for others.
    fn send_at(&self) -> Option<Instant> {
        let sent = self.marks.open().saturating_sub(self.unsent.len());
        let is_due = self.has_ended || self.unsent.len() >= chunk(self.window) || sent < self.window.div_ceil(2);
        (!is_due).then(|| self.unsent_since + SEND_DELAY)
    }

    /// Ends the connection: finishes the sinks, or reports the records that the component has lost.
    async fn end(
        self,
        writer: Writer,
        end: BoxFuture<'static, Option<String>>,
        alone: Option<SourceRecord>,
    ) -> Result<(), AdapterFailure> {
        let open = self.marks.open();
        if open > 0 || !self.has_ended {
            let reason = end.await.unwrap_or_else(|| "it has ended the results".to_owned());
            self.poison.handle_lost(open, alone);
            return Err(AdapterFailure::Lost { open, reason });
        }
        writer.finish(self.has_rest).await?;
        Ok(())
    }

    fn handle_read(&mut self, read: Read) -> Result<(), AdapterFailure> {
        let counters = self.status.counters();
        let (records, dead) = match read {
            Read::Records(records) => (records, None),
            Read::Dead(records, reason) => (records, Some(reason)),
            Read::Revoked(partitions) => {
                let before = (self.marks.open(), self.marks.open_bytes());
                for partition in &partitions {
                    self.marks.handle_revoked(*partition);
                    self.spans.revoke(*partition);
                }
                self.unsent.retain(|record| !partitions.contains(&record.position.partition));
                self.release_since(before);
                return Ok(());
            }
            Read::End => {
                self.has_ended = true;
                return Ok(());
            }
        };
        if self.marks.open() == 0 {
            self.progressed = Instant::now();
        }
        if self.unsent.is_empty() {
            self.unsent_since = Instant::now();
        }
        for mut record in records {
            let bytes = record_bytes(&record);
            if let Some(span) = trace_record(&mut record, self.status.name()) {
                self.spans.insert(record.position, span);
            }
            counters.records.fetch_add(1, Ordering::Relaxed);
            counters.record_bytes.fetch_add(record.payload.len() as u64, Ordering::Relaxed);
            self.marks
                .handle_read(record.position, bytes)
                .map_err(|error| DriverError::Config(format!("the driver is wrong: {error}")))?;
            if let Some(reason) = &dead {
                self.pending.push(ResultRecord::error(record, ErrorCategory::System, "deliveries_exhausted", reason));
            } else if self.poison.is_condemned(&record) {
                let reason = "the adapter component ended each time it had this record";
                self.pending.push(ResultRecord::error(record, ErrorCategory::System, "component_trapped", reason));
            } else {
                self.unsent.push(record);
            }
        }
        Ok(())
    }

    fn handle_written(&mut self, batch: &[ResultRecord]) {
        let counters = self.status.counters();
        self.has_rest = batch.last().is_some_and(|last| last.completes.is_empty());
        let before = (self.marks.open(), self.marks.open_bytes());
        for result in batch {
            match result.destination {
                Destination::Output => counters.results.fetch_add(1, Ordering::Relaxed),
                Destination::Error => counters.errors.fetch_add(1, Ordering::Relaxed),
                Destination::None => 0,
            };
            counters.result_bytes.fetch_add(result.payload.len() as u64, Ordering::Relaxed);
            for position in &result.completes {
                // False for a revoked partition, or a component that completes a position twice.
                if !self.marks.handle_complete(*position) {
                    continue;
                }
                counters.completed.fetch_add(1, Ordering::Relaxed);
                self.spans.end(*position, result);
                self.safe.completed.push(*position);
                self.poison.solo = self.poison.solo.saturating_sub(1);
            }
        }
        let now_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.rated.handle_complete(now_ns, before.0 - self.marks.open());
        self.release_since(before);
        if self.poison.solo == 0 && self.window != self.rated.size() {
            self.window = self.rated.size();
            self.room.resize(self.window);
        }
        while let Some(commit) = self.marks.poll_commit() {
            self.safe.commits.push(commit);
        }
        self.safe.is_exact = !self.marks.has_gaps();
    }

    /// Returns the room of the records that were open before and are not now.
    fn release_since(&self, (open, open_bytes): (usize, usize)) {
        self.room.release(open - self.marks.open(), open_bytes - self.marks.open_bytes());
    }
}

/// Resolves when the component has given no result for `stall_timeout`.
async fn stalled(progressed: Instant, stall_timeout: Option<Duration>) {
    match stall_timeout {
        Some(timeout) => tokio::time::sleep_until((progressed + timeout).into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for a time, then for room in the component's channel; `None` when the component has ended.
async fn send(
    records: Option<mpsc::Sender<Vec<SourceRecord>>>,
    at: Option<Instant>,
) -> Option<mpsc::OwnedPermit<Vec<SourceRecord>>> {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
    records?.reserve_owned().await.ok()
}

async fn receive(results: &mut Option<mpsc::Receiver<Vec<ResultRecord>>>) -> Option<Vec<ResultRecord>> {
    results.as_mut()?.recv().await
}
