//! One attempt: a request to the server, and its response.

use std::{future::Future, pin::pin};

use futures::future::{Either, select};
use weir_codec::generation::upstream::UpstreamRequest;
use weir_core::{failure::Failure, generation::upstream::AttemptOutcome};
use wit_bindgen::{FutureReader, StreamResult};

use super::{call::RunCall, server::Server};
use crate::{
    bindings::{
        wasi::{
            clocks::monotonic_clock,
            http::{
                client,
                types::{ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme},
            },
        },
        weir::stream::generate_types::EventKind,
        wit_future, wit_stream,
    },
    response::UpstreamResponse,
};

const NS_PER_MS: u64 = 1_000_000;
/// The most bytes of a read.
const READ_BYTES: usize = 16 * 1024;
/// The most bytes that are read of the body of an error.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Timeout of the number of tokens after the last finish reason, in milliseconds.
const USAGE_TIMEOUT_MS: u64 = 2000;

/// The end of a failed attempt.
pub(super) struct AttemptEnd {
    pub(super) failure: Failure,
    pub(super) outcome: AttemptOutcome,
}

impl AttemptEnd {
    /// A failure after which another attempt may succeed.
    fn early(text: String) -> Self {
        let outcome = AttemptOutcome::FailedEarly { retry_after_ms: 0 };
        Self { failure: Failure::Unavailable(text), outcome }
    }

    /// A failure that another attempt would repeat.
    fn for_good(text: &str) -> Self {
        Self { failure: Failure::Unavailable(text.to_owned()), outcome: AttemptOutcome::FailedForGood }
    }
}

/// Sends a request and writes the events of its response; returns the last events. `tokens` is updated with the tokens so far.
pub(super) async fn exchange(
    call: &RunCall,
    id: u64,
    server: &Server,
    message: &UpstreamRequest,
    (choices, seed): (u32, u64),
    tokens: &mut u64,
) -> Result<Vec<EventKind>, AttemptEnd> {
    let idle_ms = server.settings.idle_timeout_ms;
    let (request, _sent) = request(server, message)?;
    let response = match within(idle_ms, client::send(request)).await {
        Some(Ok(response)) => response,
        Some(Err(error)) => return Err(unreachable(&error)),
        None => return Err(AttemptEnd::early(format!("the upstream did not answer within {idle_ms} ms"))),
    };
    let status = response.get_status_code();
    if !(200..300).contains(&status) {
        return Err(refusal(server, status, response).await);
    }
    let kind = header(&response, "content-type").unwrap_or_default();
    if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
        return Err(AttemptEnd::for_good("the upstream did not answer with `text/event-stream`"));
    }
    let (_verdict, verdict) = wit_future::new(|| Ok(()));
    let (mut body, _trailers) = Response::consume_body(response, verdict);
    let mut response = UpstreamResponse::new(server.settings.kind, choices, seed);
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let timeout_ms = if response.is_over() { USAGE_TIMEOUT_MS.min(idle_ms) } else { idle_ms };
        let Some((status, read)) = within(timeout_ms, body.read(buffer)).await else {
            if response.is_over() {
                break;
            }
            let text = format!("the upstream sent nothing for {idle_ms} ms");
            return Err(attempt_end(&response, Failure::Unavailable(text)));
        };
        let events = match response.push(&read) {
            Ok(events) => events,
            Err(failure) => return Err(attempt_end(&response, failure)),
        };
        *tokens = response.tokens();
        call.write(id, events).await;
        if response.is_complete() || !matches!(status, StreamResult::Complete(_)) {
            break;
        }
        buffer = read;
        buffer.clear();
    }
    let has_begun = response.has_begun();
    let end = response.end().map_err(|failure| attempt_end_of(has_begun, failure))?;
    *tokens = end.tokens;
    Ok(end.events)
}

fn attempt_end(response: &UpstreamResponse, failure: Failure) -> AttemptEnd {
    attempt_end_of(response.has_begun(), failure)
}

/// A failure within the response. Another attempt would repeat text that was written.
fn attempt_end_of(has_begun: bool, failure: Failure) -> AttemptEnd {
    let outcome = match has_begun {
        true => AttemptOutcome::FailedLate,
        false => AttemptOutcome::FailedEarly { retry_after_ms: 0 },
    };
    AttemptEnd { failure, outcome }
}

/// Resolves when a request is sent. A host may close the connection when this is dropped, so it is kept as long as the response.
type Sent = FutureReader<Result<(), ErrorCode>>;

fn request(server: &Server, message: &UpstreamRequest) -> Result<(Request, Sent), AttemptEnd> {
    let invalid = || AttemptEnd::for_good("the request to the upstream is invalid; check the URL of the upstream");
    let length = message.body.len().to_string();
    let common = [
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
        ("accept", "text/event-stream"),
        ("user-agent", concat!("weir/", env!("CARGO_PKG_VERSION"))),
    ];
    let headers = common.iter().chain(&message.headers);
    let headers: Vec<_> = headers.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    let headers = Fields::from_list(&headers).map_err(|_| invalid())?;
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (mut writer, reader) = wit_stream::new::<u8>();
    let body = message.body.clone();
    wit_bindgen::spawn(async move {
        // A server that does not read the whole body reports the reason in its response.
        writer.write_all(body).await;
    });
    let options = RequestOptions::new();
    // Best effort: a host without connection timeouts is covered by the timeouts of this component.
    let _ = options.set_connect_timeout(Some(server.settings.connect_timeout_ms * NS_PER_MS));
    let (request, sent) = Request::new(headers, Some(reader), trailers, Some(options));
    let address = &server.settings.address;
    let scheme = if address.is_tls { Scheme::Https } else { Scheme::Http };
    let path = format!("{}{}", address.path, message.path);
    request.set_method(&Method::Post).map_err(|()| invalid())?;
    request.set_scheme(Some(&scheme)).map_err(|()| invalid())?;
    request.set_authority(Some(&address.authority)).map_err(|()| invalid())?;
    request.set_path_with_query(Some(&path)).map_err(|()| invalid())?;
    Ok((request, sent))
}

/// The failure of a request without a response. The cause is logged and not sent to clients.
fn unreachable(error: &ErrorCode) -> AttemptEnd {
    match error {
        ErrorCode::HttpRequestDenied | ErrorCode::ConfigurationError => {
            AttemptEnd::for_good("the host does not send requests to the upstream; its log says why")
        }
        error => {
            eprintln!("warn: the upstream gave no answer: {error}");
            AttemptEnd::early("the upstream cannot be reached".to_owned())
        }
    }
}

async fn refusal(server: &Server, status: u16, response: Response) -> AttemptEnd {
    let retry_after_s: Option<u32> = header(&response, "retry-after").and_then(|seconds| seconds.trim().parse().ok());
    let body = within(server.settings.idle_timeout_ms, collect(response)).await.unwrap_or_default();
    let failure = server.settings.kind.refusal(status, retry_after_s, &body);
    let outcome = match (status, &failure) {
        (408 | 425 | 429 | 500.., _) => {
            AttemptOutcome::FailedEarly { retry_after_ms: retry_after_s.map_or(0, |s| s.saturating_mul(1000)) }
        }
        (_, Failure::InvalidInput(_)) => AttemptOutcome::Ok,
        _ => AttemptOutcome::FailedForGood,
    };
    if outcome != AttemptOutcome::Ok {
        eprintln!("warn: the upstream answered with the status {status}");
    }
    AttemptEnd { failure, outcome }
}

fn header(response: &Response, name: &str) -> Option<String> {
    let value = response.get_headers().get(name).into_iter().next()?;
    String::from_utf8(value).ok()
}

/// The first bytes of a body, about [`ERROR_BYTES_MAX`] at most.
async fn collect(response: Response) -> Vec<u8> {
    let (_verdict, verdict) = wit_future::new(|| Ok(()));
    let (mut stream, _trailers) = Response::consume_body(response, verdict);
    let mut body = Vec::with_capacity(READ_BYTES);
    loop {
        if body.len() == body.capacity() {
            body.reserve(READ_BYTES);
        }
        let (status, read) = stream.read(body).await;
        body = read;
        if body.len() >= ERROR_BYTES_MAX || !matches!(status, StreamResult::Complete(_)) {
            return body;
        }
    }
}

/// Bounds the time of a future: `None` if it is not resolved after `ms` milliseconds, when it is dropped.
async fn within<T>(ms: u64, future: impl Future<Output = T>) -> Option<T> {
    let late = pin!(monotonic_clock::wait_for(ms.saturating_mul(NS_PER_MS)));
    match select(pin!(future), late).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}
