//! Steps that call other services: only those that the operator allows, with a bounded response.

use spin_sdk::wasip3::{
    http::{
        client,
        types::{self, Fields},
    },
    spawn,
    wit_bindgen::{FutureReader, StreamResult},
    wit_future, wit_stream,
};
use weir_codec::{http::retry_after, pipelines::text};
use weir_core::pipelines::{Json, Method, StepFailure};

use super::attempt::Attempt;
use crate::platform::{clock, turns};

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
const NS_PER_MS: u64 = 1_000_000;
/// Statuses after which the same request may succeed: RFC 9110, RFC 6585 and RFC 8470.
const RETRYABLE: [u16; 7] = [408, 425, 429, 500, 502, 503, 504];

/// Calls a service. The response body is the output: JSON as it is, an empty body as `null`, any other text as a
/// string.
pub(super) async fn call(
    attempt: &Attempt<'_>,
    url: &str,
    method: Method,
    headers: &[(String, String)],
    body: Option<Json>,
) -> Result<Json, StepFailure> {
    if !is_allowed(url, &attempt.pipelines.config.http_allow) {
        let message = format!("this server's steps may not call `{}`", authority(url).unwrap_or_default());
        return Err(StepFailure::last("http_not_allowed", message));
    }
    let (request, _sent) = request(url, method, headers, body, &attempt.key)?;
    attempt.running.wait_until_owned().await;
    let response = client::send(request).await.map_err(|error| unreachable(&error))?;
    let (status, retry_after_ms) = (response.get_status_code(), retry_after_ms(&response));
    if !(200..300).contains(&status) {
        let failure = format!("the service answered {status}");
        return Err(match RETRYABLE.contains(&status) {
            true => StepFailure { retry_after_ms, ..StepFailure::passing("http_status", failure) },
            false => StepFailure::last("http_status", failure),
        });
    }
    let is_json = is_json(&response);
    let body = collect(response, attempt.pipelines.config.output_bytes_max).await?;
    output(&attempt.running.owner, &body, is_json).await
}

/// Resolves when a request is sent. A host may close the connection when this is dropped, so it is kept as long as the response.
type Sent = FutureReader<Result<(), types::ErrorCode>>;

/// The request. `Idempotency-Key` identifies an attempt to the service, since an attempt may be repeated.
fn request(
    url: &str,
    method: Method,
    headers: &[(String, String)],
    body: Option<Json>,
    key: &str,
) -> Result<(types::Request, Sent), StepFailure> {
    let has = |name: &str| headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
    let length = body.as_ref().map(|body| body.bytes().to_string());
    let mut defaults = vec![
        ("accept", "application/json, text/plain;q=0.5, */*;q=0.1"),
        ("idempotency-key", key),
        ("user-agent", "weir"),
    ];
    if let Some(length) = &length {
        defaults.extend([("content-length", length.as_str()), ("content-type", "application/json")]);
    }
    let defaults = defaults.into_iter().filter(|(name, _)| !has(name));
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(defaults);
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).collect();
    let wrong = |what: &str| StepFailure::last("http_request", format!("the request cannot be made: {what}"));
    let headers = Fields::from_list(&headers).map_err(|error| wrong(&crate::platform::wording::in_words(&error)))?;
    let (_, trailers) = wit_future::new(|| Ok(None));
    let contents = body.map(|body| {
        let (mut writer, reader) = wit_stream::new();
        spawn(async move {
            // A service that does not read all of the body reports that by its response.
            writer.write_all(body.as_str().as_bytes().to_vec()).await;
        });
        reader
    });
    let (request, sent) = types::Request::new(headers, contents, trailers, None);
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (types::Scheme::Https, rest),
        Some((_, rest)) => (types::Scheme::Http, rest),
        None => return Err(wrong("its URL is not valid")),
    };
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    request.set_method(&wire_method(method)).map_err(|()| wrong("its method"))?;
    request.set_scheme(Some(&scheme)).map_err(|()| wrong("its scheme"))?;
    request.set_authority(Some(authority)).map_err(|()| wrong("its authority"))?;
    request.set_path_with_query(Some(&path)).map_err(|()| wrong("its path"))?;
    Ok((request, sent))
}

fn wire_method(method: Method) -> types::Method {
    match method {
        Method::Get => types::Method::Get,
        Method::Post => types::Method::Post,
        Method::Put => types::Method::Put,
        Method::Patch => types::Method::Patch,
        Method::Delete => types::Method::Delete,
    }
}

fn unreachable(error: &types::ErrorCode) -> StepFailure {
    match error {
        types::ErrorCode::HttpRequestDenied => {
            StepFailure::last("http_not_allowed", "the host does not let steps call this service")
        }
        error => {
            let text = crate::platform::wording::in_words(error);
            let text = &text[..text.floor_char_boundary(256)];
            StepFailure::passing("http_unreachable", format!("the service gave no answer: {text}"))
        }
    }
}

fn header(response: &types::Response, name: &str) -> Option<String> {
    let value = response.get_headers().get(name).into_iter().next()?;
    String::from_utf8(value).ok()
}

fn retry_after_ms(response: &types::Response) -> Option<u32> {
    retry_after::retry_after_ms(&header(response, "retry-after")?, clock::now().unix_ns / NS_PER_MS)
}

fn is_json(response: &types::Response) -> bool {
    let kind = header(response, "content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

async fn collect(response: types::Response, bytes_max: usize) -> Result<Vec<u8>, StepFailure> {
    let (_verdict, result) = wit_future::new(|| Ok(()));
    let (mut stream, trailers) = types::Response::consume_body(response, result);
    let mut body = Vec::with_capacity(READ_BYTES);
    loop {
        if body.len() == body.capacity() {
            body.reserve(READ_BYTES);
        }
        let (result, read) = stream.read(body).await;
        body = read;
        if body.len() > bytes_max {
            let message = format!("the service's answer has more than {bytes_max} bytes");
            return Err(StepFailure::last("output_too_large", message));
        }
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    match trailers.await {
        Ok(_) => Ok(body),
        Err(error) => Err(unreachable(&error)),
    }
}

/// Reads a response body as a JSON value, in turns of the user if it is large.
async fn output(user: &str, body: &[u8], is_json: bool) -> Result<Json, StepFailure> {
    let wrong =
        |error: String| StepFailure::last("http_answer", format!("the service's answer cannot be read: {error}"));
    if body.is_empty() {
        return Ok(Json::null());
    }
    if is_json {
        return turns::read_json(user, body).await.map_err(|error| wrong(error.to_string()));
    }
    let text = std::str::from_utf8(body).map_err(|error| wrong(error.to_string()))?;
    Ok(turns::run_over(user, text.len(), || text::string(text)).await)
}

/// Whether the operator allows a URL. `HOST` allows the default port of the scheme, `HOST:PORT` that port with either
/// scheme.
fn is_allowed(url: &str, allow: &[String]) -> bool {
    let Some(authority) = authority(url) else { return false };
    let default = if url.starts_with("https://") { ":443" } else { ":80" };
    let (bare, full) = match has_port(&authority) {
        true => (authority.strip_suffix(default).map(str::to_owned), authority.clone()),
        false => (Some(authority.clone()), format!("{authority}{default}")),
    };
    allow.iter().any(|entry| *entry == full || bare.as_ref() == Some(entry))
}

/// Whether an authority has a port: a colon, after the brackets of an IPv6 address.
fn has_port(authority: &str) -> bool {
    authority.rsplit(']').next().is_some_and(|rest| rest.contains(':'))
}

fn authority(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let authority = rest.split(['/', '?', '#']).next().filter(|authority| !authority.is_empty())?;
    (!authority.contains('@')).then(|| authority.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn only_listed_addresses_are_allowed() {
        let allow: Vec<String> =
            ["api.example.org", "127.0.0.1:8080", "[::1]:9000", "[::1]"].map(str::to_owned).to_vec();
        for url in [
            "http://api.example.org/x",
            "https://API.example.org",
            "https://api.example.org:443/?q",
            "http://api.example.org:80",
            "http://127.0.0.1:8080/a",
            "https://127.0.0.1:8080/a",
            "http://[::1]:9000/",
            "http://[::1]/",
        ] {
            assert!(is_allowed(url, &allow), "{url}");
        }
        for url in [
            "http://api.example.org:443",
            "https://api.example.org:80",
            "http://api.example.org.evil.org/",
            "http://evil.org/api.example.org",
            "http://api.example.org@evil.org/",
            "http://127.0.0.1/",
            "http://127.0.0.1:80801/",
            "http://[::1]:9001/",
            "ftp://api.example.org/",
            "http://",
        ] {
            assert!(!is_allowed(url, &allow), "{url}");
        }
        assert!(!is_allowed("http://api.example.org/", &[]));
    }

    #[test]
    fn response_body_is_read_by_its_media_type() {
        let check = |body: &str, is_json, want: Option<&str>| {
            let read = output("ann", body.as_bytes(), is_json).now_or_never().expect("a small body needs no turn");
            assert_eq!(read.ok().as_ref().map(Json::as_str), want, "{body}");
        };
        check("", true, Some("null"));
        check(" {\"a\": 1}\n", true, Some("{\"a\":1}"));
        check("a\n\"b\"", false, Some("\"a\\n\\\"b\\\"\""));
        check("{", true, None);
        assert!(output("ann", &[0xff], false).now_or_never().expect("no turn").is_err());
    }
}
