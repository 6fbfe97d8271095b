//! The traits of a driver.
//!
//! A driver is made of three parts, opened together by [`Driver::open`] each time the adapter connects:
//!
//! 1. The [`Source`] reads records, on its own task. It gives each a [`Position`]: a partition number that it chooses, and an offset
//!    that ascends within the partition.
//! 2. The [`Sink`] writes results in batches. A result is safe when [`Sink::write`] has resolved.
//! 3. The [`Committer`] advances the position in the source, after results are safe.
//!
//! When one of them fails, the supervisor drops all three, waits, and opens them again. The source then begins after the last committed
//! position, so a driver never seeks back. A driver that loses a part of its source to another consumer (a rebalance) returns
//! [`Read::Revoked`], and uses a new partition number when it gets the part again.

use std::pin::Pin;

use weir_codec::adapter::decode::{CSV_COLUMNS_HEADER, REFUSAL_HEADER};
use weir_core::adapter::{Commit, Position, ResultRecord, SourceRecord};

/// A future of a driver.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a driver failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The configuration, or a resource that it names, is invalid. The adapter stops.
    #[error("{0}")]
    Config(String),
    /// The server refuses the credentials. The adapter stops.
    #[error("{0}")]
    Denied(String),
    /// The connection is lost or the server does not respond. The adapter reconnects.
    #[error("{reason}")]
    Transport {
        /// The cause.
        reason: String,
        /// The delay that the server asks for before another attempt, in milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// The connection is lost, and attempts of the driver to restore it have failed. The adapter reconnects if its bound is larger.
    #[error("{reason}")]
    Exhausted {
        /// The cause.
        reason: String,
        /// The attempts, which count as attempts of the adapter.
        attempts: u32,
    },
}

impl DriverError {
    /// A lost connection.
    pub fn transport(reason: impl ToString) -> Self {
        Self::Transport { reason: reason.to_string(), retry_after_ms: None }
    }

    /// True when another attempt may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Exhausted { .. })
    }

    /// The failure after the driver's own attempts to restore the connection.
    pub(crate) fn after_attempts(self, attempts: u32) -> Self {
        match self {
            Self::Transport { reason, .. } => Self::Exhausted { reason, attempts },
            other => other,
        }
    }
}

/// The result of a read.
#[derive(Debug)]
pub enum Read {
    /// Records, at least one.
    Records(Vec<SourceRecord>),
    /// These partitions belong to another consumer now: their records will not be committed here.
    Revoked(Vec<u32>),
    /// Records that were delivered too often, and the reason that is written with them to the error destination.
    Dead(Vec<SourceRecord>, String),
    /// There are no more records.
    End,
}

/// The headers with which a driver describes a record to the component.
pub const CONTROL_HEADERS: [&str; 2] = [CSV_COLUMNS_HEADER, REFUSAL_HEADER];

/// The reading side of a driver.
pub trait Source: Send {
    /// Waits for records and returns at most `max` of them. The future is dropped only together with the source.
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>>;

    /// Whether it sets the headers [`CONTROL_HEADERS`] itself. Otherwise they are removed from its records, since they
    /// come from the writers of the source.
    fn sets_control_headers(&self) -> bool {
        false
    }

    /// What remains to be read, if known: the bytes of a file, or the lag of a topic in records.
    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// The results that are safe.
#[derive(Debug, Default)]
pub struct Safe {
    /// The partitions whose watermark has advanced: all results up to the offset are written.
    pub commits: Vec<Commit>,
    /// The positions that are complete, for sources that acknowledge one by one.
    pub completed: Vec<Position>,
    /// The positions of the sinks. If `is_exact`, the sinks contain exactly the results up to the watermarks.
    pub marks: Marks,
    /// Whether no result past a watermark is written.
    pub is_exact: bool,
}

/// The positions of the sinks of an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// The position of the sink.
    pub output: Option<SinkMark>,
    /// The position of the error destination, if it is another one.
    pub errors: Option<SinkMark>,
}

/// The position of a sink that can return to it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SinkMark {
    /// The file.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The number of results in it.
    pub results: u64,
}

/// The committing side of a source.
pub trait Committer: Send {
    /// Records that results are safe. It may defer the work to [`Committer::finish`].
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Commits what [`commit`](Committer::commit) has deferred, before the adapter ends.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A result that a sink refuses for good: it goes to the error destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its index among the results that were to be written.
    pub index: usize,
    /// Why.
    pub reason: String,
}

/// The writing side of a driver.
pub trait Sink: Send {
    /// Writes results in order. They are safe when the future resolves, except for those that it returns.
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>>;

    /// The current position, if the sink can be truncated to it.
    fn mark(&self) -> Option<SinkMark> {
        None
    }

    /// Writes the end of the output, such as a closing bracket.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The parts of an open driver.
pub struct Connection {
    /// Reads records.
    pub source: Box<dyn Source>,
    /// Commits positions.
    pub committer: Box<dyn Committer>,
    /// Writes results.
    pub sink: Box<dyn Sink>,
    /// Writes errors; without it the sink writes them.
    pub errors: Option<Box<dyn Sink>>,
}

/// Opens a source and its sinks.
pub trait Driver: Send + Sync {
    /// Opens the source, the committer and the sinks.
    fn open(&self) -> BoxFuture<'_, Result<Connection, DriverError>>;
}
