//! The HTTP requests of the upstream component: only to its server, and with the key, which the component never has.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};
use weir_codec::generation::upstream::UpstreamKind as Api;
use weir_config::{Upstream, UpstreamKind};

use super::upstream_connections::Connections;

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 8192;

/// Sends requests to one server. Redirects are not followed, so that no other server gets the key.
#[derive(Clone)]
pub(crate) struct UpstreamRequests {
    name: Arc<str>,
    scheme: http::uri::Scheme,
    /// In lower case.
    authority: Arc<str>,
    /// The prefix of every path, without a slash at the end.
    path: Arc<str>,
    header: HeaderName,
    /// The text before the key in the header.
    prefix: &'static str,
    key: Key,
    connections: Arc<Connections>,
    /// The number of frames of responses, from which hangs are detected.
    progress: Arc<AtomicU64>,
}

/// The source of the key. It does not implement `Debug`, so that no log contains the key.
#[derive(Clone)]
enum Key {
    /// The server needs no key.
    None,
    /// The key that was in the environment at the start.
    Value(Arc<str>),
    /// A file that is read for each request, so that the key can be replaced.
    File(PathBuf),
}

impl UpstreamRequests {
    /// The requests of an upstream of the configuration. `variable` reads the environment.
    ///
    /// # Errors
    ///
    /// The URL is invalid, or the key cannot be read; the text names the key of the configuration. It is called outside of a runtime,
    /// which its connections need.
    pub(crate) fn new(
        upstream: &Upstream,
        progress: Arc<AtomicU64>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let name = &upstream.name;
        let uri: http::Uri = upstream.url.parse().map_err(|error| format!("upstream `{name}`: url: {error}"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(format!("upstream `{name}`: url has no scheme or no host"));
        };
        let key = if !upstream.key_env.is_empty() {
            let key = variable(&upstream.key_env).map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
            let missing =
                || format!("upstream `{name}`: the environment variable {} of key_env is not set", upstream.key_env);
            Key::Value(key.ok_or_else(missing)?.into())
        } else if upstream.key_file.as_os_str().is_empty() {
            Key::None
        } else {
            Key::File(upstream.key_file.clone())
        };
        let api = match upstream.kind {
            UpstreamKind::OpenAi => Api::OpenAi,
            UpstreamKind::Anthropic => Api::Anthropic,
            UpstreamKind::Gemini => Api::Gemini,
        };
        let (header, prefix) = api.key_header();
        let requests = Self {
            name: name.as_str().into(),
            scheme: scheme.clone(),
            authority: authority.as_str().to_ascii_lowercase().into(),
            path: uri.path().trim_end_matches('/').into(),
            header: HeaderName::from_static(header),
            prefix,
            key,
            connections: Connections::new(&uri).map_err(|what| format!("upstream `{name}`: {what}"))?,
            progress,
        };
        requests.value().map_err(|what| format!("upstream `{name}`: {what}"))?;
        let is_local = authority.host().parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if scheme == &http::uri::Scheme::HTTP && !is_local && !matches!(requests.key, Key::None) {
            tracing::warn!(
                upstream = name,
                "the key of this upstream is sent without encryption: its url is not https"
            );
        }
        Ok(requests)
    }

    /// Whether a request goes to the server, below the path of its URL.
    fn allows(&self, uri: &http::Uri) -> bool {
        let is_server = uri.scheme() == Some(&self.scheme)
            && uri.authority().is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(&self.authority));
        let below = uri.path().strip_prefix(&*self.path);
        // The server may resolve `..` to a path outside.
        is_server && below.is_some_and(|rest| rest.starts_with('/') && !rest.contains(".."))
    }

    /// The value of the header with the key; `None` if the server needs no key. The text of an error contains no part of the key.
    fn value(&self) -> Result<Option<HeaderValue>, String> {
        let key: Arc<str> = match &self.key {
            Key::None => return Ok(None),
            Key::Value(key) => key.clone(),
            Key::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("key_file {} cannot be read: {error}", path.display()))?;
                text.trim().into()
            }
        };
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(format!("the key has {} bytes, and must have 1 to {KEY_BYTES_MAX}", key.len()));
        }
        let value = HeaderValue::try_from(format!("{}{key}", self.prefix));
        let mut value = value.map_err(|_| "the key has characters that a header cannot have".to_owned())?;
        // Headers that are sensitive are not logged.
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn count(&self, outcome: &'static str) {
        let upstream = self.name.to_string();
        metrics::counter!("weir_upstream_requests_total", "upstream" => upstream, "outcome" => outcome).increment(1);
    }
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl WasiHttpHooks for UpstreamRequests {
    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _done: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        if !self.allows(request.uri()) {
            return Box::new(std::future::ready(Err(Error::HttpRequestDenied)));
        }
        let requests = self.clone();
        let options = options.unwrap_or_default();
        Box::new(async move {
            match requests.value() {
                Ok(Some(value)) => drop(request.headers_mut().insert(requests.header.clone(), value)),
                Ok(None) => {}
                Err(reason) => {
                    tracing::error!(
                        upstream = &*requests.name,
                        reason,
                        "a request is not sent, since its key cannot be read"
                    );
                    requests.count("key");
                    return Err(Error::ConfigurationError);
                }
            }
            let sent = requests.connections.send(request, options).await;
            requests.count(match &sent {
                Ok(response) => match response.status().as_u16() {
                    200..300 => "ok",
                    429 => "throttled",
                    500.. => "failed",
                    _ => "refused",
                },
                Err(_) => "unreachable",
            });
            let progress = requests.progress;
            let response = sent?.map(|body| {
                let count = move |frame| {
                    progress.fetch_add(1, Ordering::Relaxed);
                    frame
                };
                body.map_frame(count).boxed_unsync()
            });
            // The connection is driven by a task of its own.
            Ok((response, Box::new(std::future::ready(Ok(()))) as Box<dyn Future<Output = _> + Send>))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(change: impl FnOnce(&mut Upstream)) -> Upstream {
        let url = "https://api.example.org/v1/".to_owned();
        let mut upstream = Upstream { name: "a".to_owned(), url, key_env: "KEY".to_owned(), ..Upstream::default() };
        change(&mut upstream);
        upstream
    }

    fn requests(upstream: &Upstream, key: Option<&str>) -> Result<UpstreamRequests, String> {
        UpstreamRequests::new(upstream, Arc::default(), |name| key.filter(|_| name == "KEY").map(str::to_owned))
    }

    #[tokio::test]
    async fn only_the_server_below_its_base_gets_requests() {
        let requests = requests(&upstream(|_| {}), Some("k")).unwrap();
        let allows = |uri: &str| uri.parse().is_ok_and(|uri| requests.allows(&uri));
        for uri in ["https://api.example.org/v1/chat/completions", "https://API.example.org/v1/x?y"] {
            assert!(allows(uri), "{uri}");
        }
        for uri in [
            "http://api.example.org/v1/chat/completions",
            "https://api.example.org/v2/x",
            "https://api.example.org/v1x/y",
            "https://api.example.org/v1/../admin",
            "https://api.example.org:8443/v1/x",
            "https://api.example.org.evil.org/v1/x",
            "https://user@api.example.org/v1/x",
            "/v1/x",
        ] {
            assert!(!allows(uri), "{uri}");
        }
    }

    #[tokio::test]
    async fn key_is_read_for_each_request_and_is_in_no_message() {
        let value = requests(&upstream(|_| {}), Some(" secret\n")).unwrap().value().unwrap().unwrap();
        assert_eq!(value.as_bytes(), b"Bearer secret");
        assert!(value.is_sensitive() && !format!("{value:?}").contains("secret"));
        let missing = requests(&upstream(|_| {}), None).err().unwrap();
        assert!(missing.contains("KEY"), "{missing}");
        let broken = requests(&upstream(|_| {}), Some("sec\u{0}ret")).err().unwrap();
        assert!(!broken.contains("sec"), "{broken}");
        let dir = std::env::temp_dir().join(format!("weir-key-{}", std::process::id()));
        let of_file = upstream(|upstream| {
            (upstream.key_env, upstream.key_file) = (String::new(), dir.clone());
            upstream.kind = UpstreamKind::Anthropic;
        });
        assert!(requests(&of_file, None).err().unwrap().contains("key_file"));
        std::fs::write(&dir, "first\n").unwrap();
        let requests = requests(&of_file, None).unwrap();
        assert_eq!(requests.value().unwrap().unwrap().as_bytes(), b"first");
        std::fs::write(&dir, "second\n").unwrap();
        assert_eq!(requests.value().unwrap().unwrap().as_bytes(), b"second", "a replaced key is read");
        std::fs::remove_file(&dir).unwrap();
        assert!(requests.value().is_err());
    }
}
