//! Timeouts of a connection's streams.

pub(crate) mod http1_head;
pub(crate) mod http2_headers;
pub(crate) mod write;
