//! Records of an external system, from their source to the place where their results are safe.
//!
//! - [`Watermarks`]: which positions are complete, and up to which one each partition may be committed.
//! - [`Flow`]: the items of each record, their attempts, and the records whose results are known, in the configured order.
//! - [`Reconnect`]: when a lost connection is tried again.
//!
//! The guarantee is "at least once": a position is committed only after every result up to it is written, so a crash repeats records
//! and loses none.

mod flow;
mod reconnect;
mod watermark;

pub use self::{
    flow::{Done, Flow, FlowConfig, Part},
    reconnect::{Reconnect, ReconnectConfig},
    watermark::{Commit, PositionError, Watermarks},
};
pub use crate::inference::stream::{ErrorCategory, Ordering};

use crate::named::named;

/// The position of a record in its source.
///
/// Its layout is that of the canonical ABI: bindings take lists of it as they are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Position {
    /// A number of the driver for an ordered part of the source.
    pub partition: u32,
    /// Strictly ascending within the partition, not necessarily without holes.
    pub offset: u64,
}

/// A header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Vec<u8>,
}

impl Header {
    /// A header with a text as its value.
    pub fn new(name: &str, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.to_owned(), value: value.into() }
    }
}

/// A record of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRecord {
    /// Its content.
    pub payload: Vec<u8>,
    /// Its key, if the source has keys.
    pub key: Option<Vec<u8>>,
    /// Its headers, in their order.
    pub headers: Vec<Header>,
    /// Where it comes from: the name of a topic, a stream or a file.
    pub origin: String,
    /// Its position.
    pub position: Position,
}

named! {
    /// Where a result goes.
    pub enum Destination {
        /// To the sink.
        Output = "output",
        /// To the error destination.
        Error = "error",
        /// Nowhere: the record has no result.
        None = "none",
    }
}

/// A result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRecord {
    /// What is written.
    pub payload: Vec<u8>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<Header>,
    /// Where it is written.
    pub destination: Destination,
    /// The origin of its source record.
    pub origin: String,
    /// The positions that are complete once this result and all results before it are written.
    pub completes: Vec<Position>,
}

/// The header of an error: its [`ErrorCategory`].
pub const ERROR_CATEGORY_HEADER: &str = "weir-error-category";
/// The header of an error: a constant name for programs.
pub const ERROR_CODE_HEADER: &str = "weir-error-code";
/// The header of an error: a sentence.
pub const ERROR_REASON_HEADER: &str = "weir-error-reason";

impl ResultRecord {
    /// A record that has no result because of an error, with its original bytes.
    pub fn error(record: SourceRecord, category: ErrorCategory, code: &str, reason: &str) -> Self {
        let SourceRecord { payload, key, mut headers, origin, position } = record;
        headers.push(Header::new(ERROR_CATEGORY_HEADER, category.name()));
        headers.push(Header::new(ERROR_CODE_HEADER, code));
        headers.push(Header::new(ERROR_REASON_HEADER, reason));
        Self { payload, key, headers, destination: Destination::Error, origin, completes: vec![position] }
    }

    /// The value of a header as text, if it is there and UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().rev().find(|header| header.name == name)?;
        std::str::from_utf8(&header.value).ok()
    }
}
