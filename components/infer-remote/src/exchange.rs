//! One HTTP request: its head, a body that is written while the response is read, and a response that is read within bounds.

use weir_codec::http::retry_after;
use weir_core::failure::Failure;
use wit_bindgen::rt::async_support::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter};

use crate::bindings::wasi::{
    clocks::system_clock,
    http::{
        client,
        types::{ErrorCode, Fields, Method, Request, Response, Scheme},
    },
};
use crate::bindings::{wit_future, wit_stream};
use crate::settings::Settings;
use crate::wording::in_words;

/// The most bytes of a read.
const READ_BYTES: usize = 16 << 10;

/// The head of a request.
pub(crate) struct Head<'a> {
    /// The path with the query, after the prefix of the settings.
    pub(crate) target: &'a str,
    /// The media type of the body of a POST; `None` for a GET.
    pub(crate) content_type: Option<&'a str>,
    /// The accepted media type.
    pub(crate) accept: &'a str,
    /// `Prefer`.
    pub(crate) prefer: Option<&'a str>,
}

/// A request before it is sent.
pub(crate) struct UnsentRequest {
    request: Request,
    sent: Sent,
}

/// Resolves when a request is sent. A host may close the connection when this is dropped, so it is kept as long as the response.
type Sent = FutureReader<Result<(), ErrorCode>>;

/// Builds a request; returns it with the writer of its body.
pub(crate) fn request(settings: &Settings, head: &Head<'_>) -> Result<(UnsentRequest, StreamWriter<u8>), Failure> {
    let mut headers = vec![("accept", head.accept), ("user-agent", "weir")];
    headers.extend(head.content_type.map(|kind| ("content-type", kind)));
    headers.extend(head.prefer.map(|preferences| ("prefer", preferences)));
    headers.extend(settings.authorization.as_deref().map(|value| ("authorization", value)));
    let headers: Vec<_> =
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).collect();
    let wrong = |what: &str| Failure::Other(format!("the request to {} is invalid: {what}", settings.name()));
    let headers = Fields::from_list(&headers).map_err(|error| wrong(&in_words(&error)))?;
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (writer, contents) = wit_stream::new();
    let (request, sent) = Request::new(headers, head.content_type.map(|_| contents), trailers, None);
    let method = if head.content_type.is_some() { Method::Post } else { Method::Get };
    let scheme = if settings.is_tls { Scheme::Https } else { Scheme::Http };
    request.set_method(&method).map_err(|()| wrong("its method"))?;
    request.set_scheme(Some(&scheme)).map_err(|()| wrong("its scheme"))?;
    request.set_authority(Some(&settings.authority)).map_err(|()| wrong("the address of the server"))?;
    let path = format!("{}{}", settings.prefix, head.target);
    request.set_path_with_query(Some(&path)).map_err(|()| wrong("its path"))?;
    Ok((UnsentRequest { request, sent }, writer))
}

/// A response whose head has arrived.
pub(crate) struct ResponseHead {
    response: Response,
    sent: Sent,
}

impl ResponseHead {
    pub(crate) fn status(&self) -> u16 {
        self.response.get_status_code()
    }

    /// `Retry-After`, in milliseconds.
    pub(crate) fn retry_after_ms(&self) -> Option<u32> {
        let value = self.response.get_headers().get("retry-after").into_iter().next()?;
        let now = system_clock::now();
        let now_ms = u64::try_from(now.seconds).unwrap_or(0) * 1000 + u64::from(now.nanoseconds) / 1_000_000;
        retry_after::retry_after_ms(&String::from_utf8(value).ok()?, now_ms)
    }
}

/// Sends a request; resolves with the head of the response.
pub(crate) async fn send(settings: &Settings, unsent: UnsentRequest) -> Result<ResponseHead, Failure> {
    let UnsentRequest { request, sent } = unsent;
    let response = client::send(request).await.map_err(|error| match error {
        ErrorCode::HttpRequestDenied => {
            Failure::Other(format!("the host does not permit requests to {}", settings.name()))
        }
        error => Failure::Unavailable(format!("{} cannot be reached: {}", settings.name(), in_words(&error))),
    })?;
    Ok(ResponseHead { response, sent })
}

/// The body of a response.
pub(crate) struct ResponseBody {
    stream: StreamReader<u8>,
    trailers: FutureReader<Result<Option<Fields>, ErrorCode>>,
    /// When dropped, reports that the response was processed, upon which the host may close the connection.
    _processed: FutureWriter<Result<(), ErrorCode>>,
    _sent: Sent,
    buffer: Vec<u8>,
    is_ended: bool,
}

impl ResponseBody {
    pub(crate) fn of(head: ResponseHead) -> Self {
        let ResponseHead { response, sent } = head;
        let (processed, is_processed) = wit_future::new(|| Ok(()));
        let (stream, trailers) = Response::consume_body(response, is_processed);
        Self {
            stream,
            trailers,
            _processed: processed,
            _sent: sent,
            buffer: Vec::with_capacity(READ_BYTES),
            is_ended: false,
        }
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn piece(&mut self) -> Option<&[u8]> {
        if self.is_ended {
            return None;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let (result, read) = self.stream.read(buffer).await;
        self.buffer = read;
        // The last bytes may come together with the end.
        self.is_ended = !matches!(result, StreamResult::Complete(_));
        (!self.is_ended || !self.buffer.is_empty()).then_some(self.buffer.as_slice())
    }

    /// Resolves when the response has ended, with the reason if it is incomplete.
    pub(crate) async fn end(self, settings: &Settings) -> Result<(), Failure> {
        let cut = |error| {
            Failure::Unavailable(format!("the response of {} is incomplete: {}", settings.name(), in_words(&error)))
        };
        self.trailers.await.map(drop).map_err(cut)
    }

    /// The whole body, if it has at most `bytes_max` bytes.
    pub(crate) async fn collect(mut self, settings: &Settings, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await {
            if body.len() + piece.len() > bytes_max {
                let name = settings.name();
                return Err(Failure::Other(format!("the response of {name} has more than {bytes_max} bytes")));
            }
            body.extend_from_slice(piece);
        }
        self.end(settings).await.map(|()| body)
    }
}
