//! Request bodies: bounded in bytes and in time.

use spin_sdk::wasip3::{http::types, wit_bindgen::StreamResult, wit_future};
use weir_codec::problem::Problem;
use weir_core::process::Now;

use crate::{clock::Deadline, settings::Settings};

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;

/// Reads a body whole.
pub(crate) async fn read(
    request: types::Request,
    announced: Option<u64>,
    settings: &Settings,
    began: Now,
) -> Result<Vec<u8>, Problem> {
    let bytes_max = settings.body_bytes_max;
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(Problem::body_too_large(bytes_max));
    }
    let timeout_ms = settings.body_timeout_ms.min(settings.request_timeout_ms);
    match Deadline::after(began, timeout_ms).bound(collect(request, bytes_max)).await {
        Some(body) => body,
        None => Err(Problem::body_timeout(timeout_ms)),
    }
}

async fn collect(request: types::Request, bytes_max: u64) -> Result<Vec<u8>, Problem> {
    // What we think of the body is said by the response.
    let (_verdict, told) = wit_future::new(|| Ok(()));
    let (mut stream, trailers) = types::Request::consume_body(request, told);
    let mut body = Vec::new();
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let (result, mut chunk) = stream.read(buffer).await;
        if (body.len() + chunk.len()) as u64 > bytes_max {
            return Err(Problem::body_too_large(bytes_max));
        }
        body.append(&mut chunk);
        buffer = chunk;
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    match trailers.await {
        Ok(_) => Ok(body),
        Err(_) => Err(Problem::body_incomplete()),
    }
}
