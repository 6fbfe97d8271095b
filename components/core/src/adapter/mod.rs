//! Records of an external system, from their source to the commit of their positions.
//!
//! - [`Watermarks`]: which positions are complete, and up to which one each partition may be committed.
//! - [`Window`]: how many records may be in flight.
//! - [`Flow`]: the items of each record, their attempts, and the complete records in the configured order.
//! - [`Reconnect`]: the delays before attempts to reconnect.
//!
//! Delivery is at least once: a position is committed only after every result up to it is written, so a crash can
//! repeat records but loses none.

mod flow;
mod reconnect;
mod watermark;
mod window;

pub use self::{
    flow::{Done, Flow, FlowConfig, Part},
    reconnect::{Reconnect, ReconnectConfig},
    watermark::{Commit, PositionError, Watermarks},
    window::Window,
};
pub use crate::inference::stream::{ErrorCategory, Ordering};

use crate::named::named;

/// The position of a record in its source.
///
/// Its memory layout is that of the canonical ABI, so bindings pass lists of positions without a conversion.
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

/// The result of a record.
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

/// The header of an error record with its [`ErrorCategory`].
pub const ERROR_CATEGORY_HEADER: &str = "weir-error-category";
/// The header of an error record with a constant name for programs.
pub const ERROR_CODE_HEADER: &str = "weir-error-code";
/// The header of an error record with a message for people.
pub const ERROR_REASON_HEADER: &str = "weir-error-reason";

impl ResultRecord {
    /// An error record with the unchanged payload of the source record.
    pub fn error(record: SourceRecord, category: ErrorCategory, code: &str, reason: &str) -> Self {
        let SourceRecord { payload, key, mut headers, origin, position } = record;
        headers.push(Header::new(ERROR_CATEGORY_HEADER, category.name()));
        headers.push(Header::new(ERROR_CODE_HEADER, code));
        headers.push(Header::new(ERROR_REASON_HEADER, reason));
        Self { payload, key, headers, destination: Destination::Error, origin, completes: vec![position] }
    }

    /// The value of the last header with a name, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().rev().find(|header| header.name == name)?;
        std::str::from_utf8(&header.value).ok()
    }
}
