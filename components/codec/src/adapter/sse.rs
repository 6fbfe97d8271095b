//! The reader of server-sent events, for HTTP sources.

pub use crate::http::sse_reader::{EVENT_BYTES_MAX, Event, EventReader, EventTooLong, Received};
