//! The formats of adapters: payloads of records are decoded into items, and outputs encoded as payloads.
//!
//! - [`config`]: the settings of an adapter component.
//! - [`decode`]: JSON, NDJSON, JSON arrays, text and CSV as items; Avro and Protobuf are refused.
//! - [`csv`]: rows and fields (RFC 4180).
//! - [`encode`]: outputs as JSON, text or CSV.
//! - [`sse`]: a reader of server-sent events.
//! - [`health`]: the adapters of a server in the body of `GET /stream/health`.
//! - [`error_line`]: an error record as a line of JSON, for sinks without headers.

pub mod config;
pub mod csv;
pub mod decode;
pub mod encode;
pub mod error_line;
pub mod health;
pub mod sse;
