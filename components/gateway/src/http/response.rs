//! Responses.

use std::borrow::Cow;

use spin_sdk::wasip3::{
    http::types::{ErrorCode, Fields, Response, Trailers},
    spawn,
    wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter},
    wit_future, wit_stream,
};
use weir_codec::{
    generation::{dialect::DialectKind, error, route::GenerationRoute},
    http::{
        problem::{self, Problem},
        route::Route,
    },
    inference::{hub, tei},
};

/// The response of a route.
pub(crate) enum RouteResponse {
    /// Its body is complete.
    Whole(BufferedResponse),
    /// Its body is written while it is sent.
    Streaming(Response),
}

/// A response with a complete body, before it is converted to one of `wasi:http`.
pub(crate) struct BufferedResponse {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Cow<'static, [u8]>,
}

impl BufferedResponse {
    /// 200 with a body.
    pub(crate) fn ok(content_type: &str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { status: 200, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    /// 200 with JSON.
    pub(crate) fn json(body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self::ok("application/json", body)
    }

    /// A status with JSON.
    pub(crate) fn error(status: u16, body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { status, ..Self::json(body) }
    }

    /// 201 with JSON.
    pub(crate) fn created(body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self::error(201, body)
    }

    /// 204 without a body.
    pub(crate) fn empty() -> Self {
        Self { status: 204, headers: Vec::new(), body: Cow::Borrowed(&[]) }
    }

    /// 204 with the methods of a path.
    pub(crate) fn methods(allow: &str) -> Self {
        Self { status: 204, headers: vec![("allow", allow.to_owned())], body: Cow::Borrowed(&[]) }
    }

    /// A problem, in the error format of the route.
    pub(crate) fn problem(problem: &Problem, path: &str, request_id: &str) -> Self {
        let generation = GenerationRoute::find(path).map(|route| route.dialect());
        if let Some(dialect) = generation.filter(|dialect| *dialect != DialectKind::Weir) {
            let (status, body) = dialect.error_json(problem);
            return Self::error(status, body).with_headers(problem);
        }
        let reply = match Route::find(path) {
            Some(Route::Hub) => {
                let (status, body) = hub::error_json(problem);
                Self::error(status, body)
            }
            Some(Route::Embeddings | Route::Moderations) => {
                let (status, body) = error::openai(problem);
                Self::error(status, body)
            }
            Some(Route::Predict | Route::TeiEmbed | Route::EmbedSparse | Route::Rerank) => {
                let (status, body) = tei::error_json(problem);
                Self::error(status, body)
            }
            _ => {
                let body = problem.to_json(request_id);
                Self { status: problem.status, ..Self::ok(problem::CONTENT_TYPE, body) }
            }
        };
        reply.with_headers(problem)
    }

    /// Adds the headers that belong to a problem.
    fn with_headers(self, problem: &Problem) -> Self {
        problem.headers().into_iter().fold(self, |reply, (name, value)| reply.with(name, value))
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Converts it. The response to `HEAD` has the headers of `GET` and no body.
    pub(crate) fn into_response(mut self, head: bool) -> Result<Response, ErrorCode> {
        if head || self.body.is_empty() {
            return Ok(respond(self.status, &self.headers, None)?.0);
        }
        // A final line break, for terminals.
        let is_json = |(name, value): &(&str, String)| {
            *name == "content-type" && ["application/json", problem::CONTENT_TYPE].contains(&value.as_str())
        };
        if self.headers.iter().any(is_json) && !self.body.ends_with(b"\n") {
            self.body.to_mut().push(b'\n');
        }
        self.headers.push(("content-length", self.body.len().to_string()));
        let (mut writer, reader) = wit_stream::new();
        let (response, ..) = respond(self.status, &self.headers, Some(reader))?;
        spawn(async move {
            // The write fails when the client has disconnected, which needs no action.
            writer.write_all(self.body.into_owned()).await;
        });
        Ok(response)
    }
}

/// The writer of a response whose body is streamed.
pub(crate) struct Client {
    /// The body; dropping it ends the body.
    pub(crate) body: StreamWriter<u8>,
    /// The trailers of the body. Dropping it completes the body; an error tells the client that the body is incomplete.
    pub(crate) trailers: FutureWriter<Result<Option<Trailers>, ErrorCode>>,
    /// Resolves when the host has sent the response; an error means that the client has disconnected.
    pub(crate) sent: FutureReader<Result<(), ErrorCode>>,
}

/// A response with status 200 whose body is streamed, and its writer.
pub(crate) fn streaming(headers: &[(&'static str, String)]) -> Result<(Response, Client), ErrorCode> {
    let (body, reader) = wit_stream::new();
    let (response, trailers, sent) = respond(200, headers, Some(reader))?;
    Ok((response, Client { body, trailers, sent }))
}

/// Writes bytes to a body; false when the reader is gone.
pub(crate) async fn send(body: &mut StreamWriter<u8>, bytes: Vec<u8>) -> bool {
    body.write_all(bytes).await.is_empty()
}

/// Writes bytes to a body; false when the reader is gone. An empty write is a probe: it completes when the reader is
/// ready for more, or gone.
pub(crate) async fn write_or_probe(body: &mut StreamWriter<u8>, bytes: Vec<u8>) -> bool {
    if bytes.is_empty() {
        return body.write(bytes).await.0 != StreamResult::Dropped;
    }
    send(body, bytes).await
}

/// A response, the writer of its trailers, and the result of sending it.
type Parts = (Response, FutureWriter<Result<Option<Trailers>, ErrorCode>>, FutureReader<Result<(), ErrorCode>>);

fn respond(
    status: u16,
    headers: &[(&'static str, String)],
    body: Option<StreamReader<u8>>,
) -> Result<Parts, ErrorCode> {
    let internal = |what: &str| ErrorCode::InternalError(Some(what.to_owned()));
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes())).collect();
    let fields = Fields::from_list(&headers).map_err(|_| internal("a response header was refused"))?;
    let (trailers, reader) = wit_future::new(|| Ok(None));
    let (response, sent) = Response::new(fields, body, reader);
    response.set_status_code(status).map_err(|()| internal("a response status was refused"))?;
    Ok((response, trailers, sent))
}
