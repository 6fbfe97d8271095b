//! Request bodies: read whole, bounded in bytes and in time, or piece by piece.

use spin_sdk::wasip3::{
    http::types::{self, ErrorCode, Trailers},
    wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult},
    wit_future,
};
use weir_codec::http::problem::Problem;
use weir_core::time::Now;

use crate::platform::{clock::Deadline, settings::Settings};

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
/// Capacity that is reserved for a body of announced length.
const ANNOUNCED_BYTES_MAX: u64 = 64 * 1024;

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
    match Deadline::after(began, timeout_ms).bound(collect(request, announced, bytes_max)).await {
        Some(body) => body,
        None => Err(Problem::body_timeout(timeout_ms)),
    }
}

async fn collect(request: types::Request, announced: Option<u64>, bytes_max: u64) -> Result<Vec<u8>, Problem> {
    let mut arriving = BodyReader::open(request);
    // One more than announced, so that the end is found without making room for nothing.
    let room = announced.map_or(READ_BYTES, |bytes| bytes.min(ANNOUNCED_BYTES_MAX) as usize + 1);
    let mut body = Vec::with_capacity(room);
    loop {
        if body.len() == body.capacity() {
            body.reserve(READ_BYTES);
        }
        let (result, read) = arriving.stream.read(body).await;
        body = read;
        if body.len() as u64 > bytes_max {
            return Err(Problem::body_too_large(bytes_max));
        }
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    match arriving.arrived_whole().await {
        true => Ok(body),
        false => Err(Problem::body_incomplete()),
    }
}

/// A body that arrives.
pub(crate) struct BodyReader {
    stream: StreamReader<u8>,
    trailers: FutureReader<Result<Option<Trailers>, ErrorCode>>,
    /// What we think of the body is said by the response.
    _verdict: FutureWriter<Result<(), ErrorCode>>,
    /// What was read ahead.
    first: Option<BodyPart>,
}

/// A piece of a body.
pub(crate) struct BodyPart {
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    /// More may come.
    pub(crate) more: bool,
}

impl BodyReader {
    /// Begins to take a body.
    pub(crate) fn open(request: types::Request) -> Self {
        let (verdict, told) = wit_future::new(|| Ok(()));
        let (stream, trailers) = types::Request::consume_body(request, told);
        Self { stream, trailers, _verdict: verdict, first: None }
    }

    /// Waits for the first piece and keeps it.
    pub(crate) async fn wait(&mut self) {
        if self.first.is_none() {
            self.first = Some(self.piece(Vec::new()).await);
        }
    }

    /// The next part of the body, in the allocation of `room`.
    pub(crate) async fn piece(&mut self, mut room: Vec<u8>) -> BodyPart {
        if let Some(first) = self.first.take() {
            return first;
        }
        room.clear();
        room.reserve(READ_BYTES);
        let (result, bytes) = self.stream.read(room).await;
        BodyPart { bytes, more: matches!(result, StreamResult::Complete(_)) }
    }

    /// After the last piece: whether all of it has arrived.
    pub(crate) async fn arrived_whole(self) -> bool {
        self.trailers.await.is_ok()
    }
}
