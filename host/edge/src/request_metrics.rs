//! The metrics that every request updates. Their handles are stored, since to find one by its name and labels costs more than to
//! update it.

use std::sync::OnceLock;
use std::time::Duration;

use http::{Method, StatusCode};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// The labels of methods. Unknown methods have the last one, since clients choose them.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "other"];

/// Counts a response, and records the time until its head.
pub(crate) fn record_response(method: &Method, status: StatusCode, elapsed: Duration) {
    static OK: [OnceLock<Counter>; METHODS.len()] = [const { OnceLock::new() }; METHODS.len()];
    static FIRST_BYTE: OnceLock<Histogram> = OnceLock::new();
    let label = METHODS.iter().position(|label| method.as_str() == *label).unwrap_or(METHODS.len() - 1);
    let responses = || {
        let status = status.as_u16().to_string();
        counter!("weir_http_requests_total", "method" => METHODS[label], "status" => status)
    };
    match status {
        StatusCode::OK => OK[label].get_or_init(responses).increment(1),
        _ => responses().increment(1),
    }
    FIRST_BYTE.get_or_init(|| histogram!("weir_http_first_byte_seconds")).record(elapsed.as_secs_f64());
}

/// The number of open requests.
pub(crate) fn open_requests() -> &'static Gauge {
    static OPEN: OnceLock<Gauge> = OnceLock::new();
    OPEN.get_or_init(|| gauge!("weir_http_requests_open"))
}
