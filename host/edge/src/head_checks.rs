//! The checks of the head of every request, before it is dispatched: transfer coding, host, path and origin. The
//! gateway component makes the same checks when it runs under another host.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, TRANSFER_ENCODING, VARY,
};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Version};
use weir_codec::http::cors::{Cors, CorsError, Headers, OriginRefused, Page};
use weir_codec::http::host::{self, HostNames, HostNamesError};
use weir_codec::http::problem::Problem;
use weir_codec::http::router::RouteMatch;
use weir_codec::http::target;
use weir_config::{AuthMode, Config};

/// The most refused origins and hosts that are logged.
const LOGGED_MAX: usize = 32;

/// A setting is invalid.
#[derive(Debug, thiserror::Error)]
pub enum HeadCheckError {
    /// `http.hosts`
    #[error("http.hosts: {0}")]
    Hosts(#[from] HostNamesError),
    /// `auth.cors_origins`
    #[error("auth.cors_origins: {0}")]
    Origins(#[from] CorsError),
}

/// The checks of a request's head.
pub(crate) struct HeadChecks {
    /// The allowed names; `None` where every name is allowed.
    host_names: Option<HostNames>,
    cors: Cors,
    /// The refused values that are in the log.
    logged: Mutex<BTreeSet<String>>,
}

impl HeadChecks {
    /// `is_loopback` is true if the listener can be reached from this machine only.
    pub(crate) fn new(config: &Config, is_loopback: bool) -> Result<Self, HeadCheckError> {
        let names: Vec<&str> = config.http.hosts.iter().map(String::as_str).collect();
        let names = HostNames::new(&names)?;
        // Against DNS rebinding: with authentication, a page that reaches this server under its own name has no token.
        // On other addresses without authentication only the operator knows the names.
        let is_checked = config.auth.mode == AuthMode::None && (is_loopback || !names.is_empty());
        let origins: Vec<&str> = config.auth.cors_origins.iter().map(String::as_str).collect();
        let cors = Cors::new(&origins, config.auth.cors_credentials)?;
        Ok(Self { host_names: is_checked.then_some(names), cors, logged: Mutex::default() })
    }

    /// Checks a request's head, and rewrites its target: the path is normalized for the matching of routes, and the
    /// host becomes the authority, from which the component reads it.
    pub(crate) fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Problem> {
        check_transfer_coding(request.headers())?;
        let hosts = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
        let authority = request.uri().authority().map(Authority::as_str);
        let host = host::of_request(authority, hosts, request.version() > Version::HTTP_10)?.map(str::to_owned);
        let path = target::normalize_path(request.uri().path())?.into_owned();
        target::check_query(request.uri().query().unwrap_or_default())?;
        if let Some(names) = &self.host_names
            && let Err(refused) = names.check(host.as_deref())
        {
            if self.is_new(&refused.host) {
                tracing::warn!("a request was refused: {refused}");
            }
            return Err(refused.into());
        }
        set_target(request, host.as_deref(), &path)
    }

    /// The CORS headers of every response to the request.
    pub(crate) fn cors_headers<B>(&self, request: &Request<B>) -> Result<Headers, OriginRefused> {
        let headers = self.cors.response_headers(&page(request));
        if let Err(refused @ OriginRefused::NotAllowed { origin }) = &headers
            && self.is_new(origin)
        {
            tracing::warn!("a request was refused: {refused}");
        }
        headers
    }

    /// The methods and headers for a CORS preflight (the Fetch standard, section 3.2.2); `None` for other requests. A
    /// preflight needs no component, so it is answered even when the server is full: otherwise a page could not read
    /// why its request is refused.
    pub(crate) fn preflight<B>(&self, request: &Request<B>) -> Option<Result<(&'static str, Headers), Problem>> {
        let headers = request.headers();
        if request.method() != Method::OPTIONS || !headers.contains_key(ORIGIN) {
            return None;
        }
        let method = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.to_str().unwrap_or_default();
        let allow = match request.uri().path() {
            METRICS_PATH | STATS_PATH => Ok(METRICS_ALLOW),
            path => RouteMatch::match_path(path).map(|found| found.allow()),
        };
        Some(allow.and_then(|allow| {
            let headers = self.cors.preflight(&page(request), Some(method), allow)?;
            Ok((allow, headers))
        }))
    }

    /// Whether to log a refused value: each is logged once, and at most [`LOGGED_MAX`] are, since clients choose the
    /// values.
    fn is_new(&self, value: &str) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.len() < LOGGED_MAX && logged.insert(value.to_owned())
    }
}

/// The path of the metrics, which the host answers.
pub(crate) const METRICS_PATH: &str = "/metrics";
/// The path of the snapshot of the server, which the host answers.
pub(crate) const STATS_PATH: &str = "/v1/stats";
/// The methods of both.
pub(crate) const METRICS_ALLOW: &str = "GET, HEAD, OPTIONS";

/// Adds CORS headers to a response, unless it has them.
pub(crate) fn add_cors_headers(headers: &mut HeaderMap, cors: &Result<Headers, OriginRefused>) {
    let vary = [Cors::vary()];
    for (name, value) in cors.as_deref().unwrap_or(&vary) {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) else {
            continue;
        };
        if name == VARY {
            let names = |list: &HeaderValue| {
                let list = list.to_str().unwrap_or_default().to_ascii_lowercase();
                list.split(',').any(|name| matches!(name.trim(), "origin" | "*"))
            };
            if !headers.get_all(VARY).iter().any(names) {
                headers.append(name, value);
            }
        } else if !headers.contains_key(&name) {
            headers.insert(name, value);
        }
    }
}

/// The page that sent a request.
fn page<B>(request: &Request<B>) -> Page<'_> {
    // A value that is not UTF-8 is refused like an empty one.
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let host = request.uri().authority().map(Authority::as_str).or(text("host"));
    Page { origin: text("origin"), host, fetch_site: text("sec-fetch-site") }
}

/// Refuses transfer codings other than `chunked`, which are not decoded here: the component would get an encoded body.
fn check_transfer_coding(headers: &HeaderMap) -> Result<(), Problem> {
    let lists = headers.get_all(TRANSFER_ENCODING).iter();
    let lists: Vec<_> = lists.map(|list| String::from_utf8_lossy(list.as_bytes())).collect();
    let list = lists.join(", ");
    let codings: Vec<&str> = list.split(',').map(str::trim).filter(|coding| !coding.is_empty()).collect();
    match codings.as_slice() {
        [] if lists.is_empty() => Ok(()),
        [coding] if coding.eq_ignore_ascii_case("chunked") => Ok(()),
        _ => Err(Problem::unsupported_transfer_coding(&list)),
    }
}

fn set_target<B>(request: &mut Request<B>, host: Option<&str>, path: &str) -> Result<(), Problem> {
    let uri = request.uri();
    let (Some(host), false) = (host, uri.authority().is_some() && uri.path() == path) else { return Ok(()) };
    // The target of `OPTIONS *` and of CONNECT is not a path.
    if !path.starts_with('/') && path != "*" {
        return Ok(());
    }
    let unreadable = || Problem::refused(400, "invalid_url", "The URL cannot be read", "the URL cannot be read", None);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let query = parts.path_and_query.as_ref().and_then(PathAndQuery::query);
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| unreadable())?);
    parts.scheme.get_or_insert(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(host).map_err(|_| unreadable())?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| unreadable())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(change: impl FnOnce(&mut Config)) -> HeadChecks {
        let mut config = Config::default();
        change(&mut config);
        HeadChecks::new(&config, true).expect("a configuration")
    }

    fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::get(target);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request")
    }

    fn code(checks: &HeadChecks, mut request: Request<()>) -> (u16, &'static str) {
        checks.admit(&mut request).map_or_else(|problem| (problem.status, problem.code), |()| (200, ""))
    }

    #[test]
    fn unknown_host_is_refused_on_every_path() {
        let checks = checks(|config| config.http.hosts = vec!["weir.internal".to_owned()]);
        for path in ["/", "/livez", "/metrics", "/v1/models", "/v1/classify", "/stream/workflow/w", "/nowhere"] {
            for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "0.0.0.0:8080"] {
                assert_eq!(code(&checks, request(path, &[("host", host)])), (403, "host_not_allowed"), "{path} {host}");
            }
            for host in ["localhost", "127.0.0.1:8080", "[::1]:1", "a.localhost", "weir.internal:80"] {
                assert_eq!(code(&checks, request(path, &[("host", host)])), (200, ""), "{path} {host}");
            }
        }
        let absolute = request("http://evil.example/metrics", &[("host", "localhost")]);
        assert_eq!(code(&checks, absolute), (400, "invalid_host"));
        let absolute = request("http://evil.example/metrics", &[]);
        assert_eq!(code(&checks, absolute), (403, "host_not_allowed"));
    }

    #[test]
    fn missing_or_repeated_host_is_refused_with_or_without_authentication() {
        let open = checks(|_| {});
        let closed = checks(|config| config.auth.mode = AuthMode::Required);
        for checks in [&open, &closed] {
            assert_eq!(code(checks, request("/livez", &[])), (400, "invalid_host"));
            let twice = [("host", "localhost"), ("host", "localhost")];
            assert_eq!(code(checks, request("/livez", &twice)), (400, "invalid_host"));
            assert_eq!(code(checks, request("/livez", &[("host", "a b")])), (400, "invalid_host"));
            let mut old = request("/livez", &[]);
            *old.version_mut() = Version::HTTP_10;
            assert_eq!(code(checks, old), (200, ""));
        }
        assert_eq!(code(&closed, request("/livez", &[("host", "weir.example")])), (200, ""));
    }

    #[test]
    fn transfer_coding_other_than_chunked_is_refused() {
        let checks = checks(|_| {});
        let with = |lists: &[&'static str]| {
            let mut headers = vec![("host", "localhost")];
            headers.extend(lists.iter().map(|list| ("transfer-encoding", *list)));
            code(&checks, request("/", &headers))
        };
        assert_eq!(with(&["Chunked"]), (200, ""));
        for lists in [&["gzip, chunked"][..], &["chunked, chunked"], &["gzip", "chunked"], &["identity"], &[""], &["x"]]
        {
            assert_eq!(with(lists), (501, "unsupported_transfer_coding"), "{lists:?}");
        }
    }

    #[test]
    fn target_is_rewritten_with_normal_path_and_host() {
        let checks = checks(|_| {});
        let mut request = request("/%6Detrics?a=%20", &[("host", "localhost:8080")]);
        checks.admit(&mut request).expect("admitted");
        assert_eq!(request.uri().to_string(), "http://localhost:8080/metrics?a=%20");
        for target in ["/a%zz", "/%", "/%ff", "/?a=%zz", "/?a=%ff"] {
            let request = super::tests::request(target, &[("host", "localhost")]);
            assert_eq!(code(&checks, request), (400, "invalid_url"), "{target}");
        }
    }

    #[test]
    fn cors_headers_are_added_once() {
        let checks = checks(|config| config.auth.cors_origins = vec!["https://app.example".to_owned()]);
        let from = |origin| request("/", &[("host", "localhost"), ("origin", origin)]);
        let cors = checks.cors_headers(&from("https://app.example"));
        let mut headers = HeaderMap::new();
        headers.append(VARY, HeaderValue::from_static("accept, Origin"));
        add_cors_headers(&mut headers, &cors);
        add_cors_headers(&mut headers, &cors);
        assert_eq!(headers["access-control-allow-origin"], "https://app.example");
        assert_eq!(headers.get_all(VARY).iter().count(), 1);
        let mut refused = HeaderMap::new();
        add_cors_headers(&mut refused, &checks.cors_headers(&from("https://evil.example")));
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[VARY], "origin");
    }

    #[test]
    fn preflight_names_the_methods_of_its_path() {
        let checks = checks(|config| config.auth.cors_origins = vec!["https://app.example".to_owned()]);
        let preflight_allow = |path: &str| {
            let headers = [("origin", "https://app.example"), ("access-control-request-method", "POST")];
            let mut request = request(path, &headers);
            *request.method_mut() = Method::OPTIONS;
            checks.preflight(&request).expect("a preflight").map(|(allow, _)| allow).map_err(|problem| problem.status)
        };
        assert_eq!(preflight_allow("/metrics"), Ok("GET, HEAD, OPTIONS"));
        assert_eq!(preflight_allow("/livez"), Ok("GET, HEAD, OPTIONS"));
        assert_eq!(preflight_allow("/v1/classify"), Ok("POST, OPTIONS"));
        assert_eq!(preflight_allow("/sessions/a"), Ok("GET, HEAD, DELETE, OPTIONS"));
        assert_eq!(preflight_allow("/nowhere"), Err(404));
        assert!(checks.preflight(&request("/", &[("origin", "https://app.example")])).is_none());
    }

    #[test]
    fn refused_values_are_logged_once_and_up_to_the_bound() {
        let checks = checks(|_| {});
        assert!(checks.is_new("a"));
        assert!(!checks.is_new("a"));
        let logged = (0..1000).filter(|n| checks.is_new(&n.to_string())).count();
        assert_eq!(logged, LOGGED_MAX - 1);
    }
}
