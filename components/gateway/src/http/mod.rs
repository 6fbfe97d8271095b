//! HTTP: requests, responses, and streams in both directions.
//!
//! - `request`: the head of a request, and its body by type; `body`: bodies, bounded in bytes and time; `request_id`: `X-Request-Id`.
//! - `response`: responses; `duplex`: the response side of a stream in both directions.

pub(crate) mod body;
pub(crate) mod duplex;
pub(crate) mod request;
pub(crate) mod request_id;
pub(crate) mod response;
