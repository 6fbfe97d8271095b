//! Inference: items of texts, and their outcomes.
//!
//! - `client`: the one client of `weir:stream/infer`; `requests`: the items; `convert`: its types as core's and codec's.
//! - `routes`: `/v1/classify`, `/v1/tokens` and `/v1/embed`.
//! - `batch`, `stream`: the texts of a request, with one response or as a stream; `dialects`: the formats of other
//!   servers.

pub(crate) mod batch;
pub(crate) mod client;
pub(crate) mod convert;
pub(crate) mod dialects;
pub(crate) mod requests;
mod routes;
pub(crate) mod stream;
