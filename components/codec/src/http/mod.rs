//! HTTP as the gateway and the edge read and write it: negotiation, targets, framings, problems.

pub mod accept;
pub mod content_type;
pub mod cors;
pub mod framing;
pub mod host;
pub mod lines;
pub mod page;
pub mod parameters;
pub mod prefer;
pub mod problem;
pub mod request_id;
pub mod retry_after;
pub mod route;
pub mod router;
pub mod sse;
pub mod sse_reader;
pub mod target;
pub mod timestamp;
