//! Request bodies: read whole, bounded in bytes and in time, or part by part.

use spin_sdk::wasip3::{
    http::types::{self, ErrorCode, Trailers},
    wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult},
    wit_future,
};
use weir_codec::http::problem::Problem;
use weir_core::time::Now;

use crate::platform::{clock::Deadline, settings::Settings};

/// Size of one read, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// Maximum capacity that is reserved for a body of announced length, in bytes.
const ANNOUNCED_BYTES_MAX: u64 = 64 * 1024;

/// Reads a whole body; `announced` is its `Content-Length`, if the client sends one.
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
    match Deadline::after(began, timeout_ms).bound(collect(request, announced, bytes_max)).await {
        Some(body) => body,
        None => Err(Problem::body_timeout(timeout_ms)),
    }
}

async fn collect(request: types::Request, announced: Option<u64>, bytes_max: u64) -> Result<Vec<u8>, Problem> {
    let mut reader = BodyReader::open(request);
    // One byte more than announced, so that a longer body is found without growing the buffer.
    let capacity = announced.map_or(READ_BYTES, |bytes| bytes.min(ANNOUNCED_BYTES_MAX) as usize + 1);
    let mut body = Vec::with_capacity(capacity);
    loop {
        if body.len() == body.capacity() {
            body.reserve(READ_BYTES);
        }
        let (result, read) = reader.stream.read(body).await;
        body = read;
        if body.len() as u64 > bytes_max {
            return Err(Problem::body_too_large(bytes_max));
        }
        // The host gives no more than was announced, so neither the end nor the trailers need to be awaited.
        if announced == Some(body.len() as u64) {
            return Ok(body);
        }
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    match reader.check_complete().await {
        true => Ok(body),
        false => Err(Problem::body_incomplete()),
    }
}

/// Reads a request body part by part.
pub(crate) struct BodyReader {
    stream: StreamReader<u8>,
    trailers: FutureReader<Result<Option<Trailers>, ErrorCode>>,
    /// The result of reading the body, for the host. It stays `Ok`: the response reports errors.
    _verdict: FutureWriter<Result<(), ErrorCode>>,
    /// A part that was read ahead.
    first: Option<BodyPart>,
    /// True for a WebSocket of the host, which observes the client: nothing may arrive for any time.
    pub(crate) may_be_quiet: bool,
}

/// A part of a body.
pub(crate) struct BodyPart {
    pub(crate) bytes: Vec<u8>,
    /// More may come.
    pub(crate) more: bool,
}

impl BodyReader {
    /// Starts reading a body.
    pub(crate) fn open(request: types::Request) -> Self {
        let (verdict, result) = wit_future::new(|| Ok(()));
        let (stream, trailers) = types::Request::consume_body(request, result);
        Self { stream, trailers, _verdict: verdict, first: None, may_be_quiet: false }
    }

    /// Waits for the first part; the next call of `next_part` returns it.
    pub(crate) async fn wait(&mut self) {
        if self.first.is_none() {
            self.first = Some(self.next_part(Vec::new()).await);
        }
    }

    /// The next part of the body, in the allocation of `buffer`.
    pub(crate) async fn next_part(&mut self, mut buffer: Vec<u8>) -> BodyPart {
        if let Some(first) = self.first.take() {
            return first;
        }
        buffer.clear();
        buffer.reserve(READ_BYTES);
        let (result, bytes) = self.stream.read(buffer).await;
        BodyPart { bytes, more: matches!(result, StreamResult::Complete(_)) }
    }

    /// Whether the body is complete; to be called after its last part.
    pub(crate) async fn check_complete(self) -> bool {
        self.trailers.await.is_ok()
    }
}
