//! Responses.

use std::borrow::Cow;

use spin_sdk::wasip3::{
    http::types::{ErrorCode, Fields, Response},
    spawn,
    wit_bindgen::{FutureReader, StreamReader, StreamWriter},
    wit_future, wit_stream,
};
use weir_codec::problem::{self, Problem};

/// What the host will say of the sending of a response.
pub(crate) type Sent = FutureReader<Result<(), ErrorCode>>;

/// A response before it is one of `wasi:http`.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Cow<'static, [u8]>,
}

impl Reply {
    /// 200 with a body.
    pub(crate) fn ok(content_type: &str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { status: 200, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    /// 200 with JSON.
    pub(crate) fn json(body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self::ok("application/json", body)
    }

    /// 204 with the methods of a path.
    pub(crate) fn methods(allow: &str) -> Self {
        Self { status: 204, headers: vec![("allow", allow.to_owned())], body: Cow::Borrowed(&[]) }
    }

    /// A problem.
    pub(crate) fn problem(problem: &Problem, request_id: &str) -> Self {
        let mut headers = vec![("content-type", problem::CONTENT_TYPE.to_owned())];
        if let Some(allow) = problem.allow() {
            headers.push(("allow", allow.to_owned()));
        }
        if let Some(seconds) = problem.retry_after_s() {
            headers.push(("retry-after", seconds.to_string()));
        }
        Self { status: problem.status, headers, body: problem.to_json(request_id).into() }
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The response. `HEAD` has the headers of `GET` and no body.
    pub(crate) fn into_response(mut self, head: bool) -> Result<Response, ErrorCode> {
        if head || self.body.is_empty() {
            return Ok(respond(self.status, &self.headers, None)?.0);
        }
        self.headers.push(("content-length", self.body.len().to_string()));
        let (mut writer, reader) = wit_stream::new();
        let (response, _sent) = respond(self.status, &self.headers, Some(reader))?;
        spawn(async move {
            // A client that has left is told nothing.
            writer.write_all(self.body.into_owned()).await;
        });
        Ok(response)
    }
}

/// A response whose body is written while it is sent, with the end to write to and what will be known of its sending.
pub(crate) fn streaming(headers: &[(&'static str, String)]) -> Result<(Response, StreamWriter<u8>, Sent), ErrorCode> {
    let (writer, reader) = wit_stream::new();
    let (response, sent) = respond(200, headers, Some(reader))?;
    Ok((response, writer, sent))
}

fn respond(
    status: u16,
    headers: &[(&'static str, String)],
    body: Option<StreamReader<u8>>,
) -> Result<(Response, Sent), ErrorCode> {
    let internal = |what: &str| ErrorCode::InternalError(Some(what.to_owned()));
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes())).collect();
    let fields = Fields::from_list(&headers).map_err(|_| internal("a response header was refused"))?;
    // Without trailers: the writer's end is dropped, and that says so.
    let (_trailers, none) = wit_future::new(|| Ok(None));
    let (response, sent) = Response::new(fields, body, none);
    response.set_status_code(status).map_err(|()| internal("a response status was refused"))?;
    Ok((response, sent))
}
