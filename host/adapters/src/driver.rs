//! The traits of a driver.
//!
//! A driver is made of three parts, opened together by [`Driver::open`] each time the adapter connects:
//!
//! 1. The [`Source`] reads records, on a task of its own. It gives each a [`Position`]: a partition number that it chooses, and an
//!    offset that ascends within the partition.
//! 2. The [`Sink`] writes results in batches. A result is safe when [`Sink::write`] has resolved.
//! 3. The [`Committer`] moves the position in the source, after results are safe.
//!
//! When any of them fails, the supervisor drops all three, waits, and opens them anew: the source then begins after the last committed
//! position, so a driver needs no way to go back. A driver that loses a part of its source to another consumer (a rebalance) returns
//! [`Read::Revoked`], and uses a new partition number when it gets the part again.

use std::pin::Pin;

use weir_core::adapter::{Commit, Position, ResultRecord, SourceRecord};

/// A future of a driver.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a driver failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The configuration, or something that it names, is wrong. The adapter stops.
    #[error("{0}")]
    Config(String),
    /// The other side refuses the credentials. The adapter stops.
    #[error("{0}")]
    Denied(String),
    /// The connection is lost or the other side does not answer. The adapter reconnects.
    #[error("{reason}")]
    Transport {
        /// What happened.
        reason: String,
        /// When the other side asks to come back, ms.
        retry_after_ms: Option<u64>,
    },
}

impl DriverError {
    /// A lost connection.
    pub fn transport(reason: impl ToString) -> Self {
        Self::Transport { reason: reason.to_string(), retry_after_ms: None }
    }

    /// True when another attempt may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Transport { .. })
    }
}

/// What a source has read.
#[derive(Debug)]
pub enum Read {
    /// Records, at least one.
    Records(Vec<SourceRecord>),
    /// These partitions belong to another consumer now: their records will not be committed here.
    Revoked(Vec<u32>),
    /// Records that are not to be processed again, and why: they go to the error destination (after too many deliveries).
    Dead(Vec<SourceRecord>, String),
    /// There are no more records.
    End,
}

/// The reading side of a driver.
pub trait Source: Send {
    /// Waits for records and returns at most `max` of them. The future is dropped only together with the source.
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>>;

    /// Bytes or records that are left, if that is known: of a file the bytes, of a topic the lag.
    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// The results that are safe.
#[derive(Debug, Default)]
pub struct Safe {
    /// The partitions whose watermark has advanced: everything up to the offset is written.
    pub commits: Vec<Commit>,
    /// The positions that are complete, for sources that acknowledge one by one.
    pub completed: Vec<Position>,
    /// Where the sinks are: what they contain then is exactly what the watermarks say, if `is_exact`.
    pub marks: Marks,
    /// No result behind a watermark is written.
    pub is_exact: bool,
}

/// The positions of the sinks of an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Of the sink.
    pub output: Option<SinkMark>,
    /// Of the error destination, if it is another one.
    pub errors: Option<SinkMark>,
}

/// The position of a sink that can return to it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SinkMark {
    /// The file.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Results in it.
    pub results: u64,
}

/// The committing side of a source.
pub trait Committer: Send {
    /// Records that results are safe. It may be lazy as long as [`Committer::finish`] catches up.
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Commits everything before the end.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The writing side of a driver.
pub trait Sink: Send {
    /// Writes results in their order. They are safe when it resolves.
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Where it is, if it can return there.
    fn mark(&self) -> Option<SinkMark> {
        None
    }

    /// Writes what belongs to the end.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The parts of an open driver.
pub struct Connection {
    /// Reads.
    pub source: Box<dyn Source>,
    /// Commits.
    pub committer: Box<dyn Committer>,
    /// Writes results.
    pub sink: Box<dyn Sink>,
    /// Writes errors; `None`: the sink does.
    pub errors: Option<Box<dyn Sink>>,
}

/// Opens a source and its sinks.
pub trait Driver: Send + Sync {
    /// Connects.
    fn open(&self) -> BoxFuture<'_, Result<Connection, DriverError>>;
}
