//! Traces and metrics over OTLP, the protocol of OpenTelemetry, as JSON over HTTP.
//!
//! - `context`: trace contexts, and the header `traceparent` (W3C Trace Context).
//! - `span`: spans, which are recorded when they end; `span_data`: their content; `recorder`: the queue before their export.
//! - `exporter`: the task that sends them, with the metrics of the process; start here.
//! - `otlp`: the JSON of the protocol. `samples`: the metrics, which are in the exposition format of Prometheus; [`exposition`] reads it.
//!
//! The crates of OpenTelemetry are not used: their exporters need gRPC or a client that this process does not have, and their metrics would
//! be recorded a second time. Without [`start`], [`Span::start`] returns none and costs one load.

mod context;
mod exporter;
pub mod exposition;
mod otlp;
mod recorder;
mod samples;
mod span;
mod span_data;

pub use context::SpanContext;
pub use exporter::{Endpoint, EndpointError, Exporter, Settings, start};
pub use span::Span;
pub use span_data::SpanKind;

/// The header that carries a trace context.
pub const TRACEPARENT: &str = "traceparent";
