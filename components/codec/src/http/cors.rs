//! CORS (the Fetch standard, section 3.2): an allow-list of origins whose pages may send requests. It reads and produces headers only.
//!
//! A request from an origin that is not allowed is refused rather than answered without CORS headers. Without the headers, a browser
//! would hide the response, but the request would still have its effect; and WebSockets are not protected by CORS at all.

use thiserror::Error;

use crate::http::problem::Problem;

/// Maximum number of origins in the list.
pub const ORIGINS_MAX: usize = 64;
/// Maximum number of bytes in an origin.
pub const ORIGIN_BYTES_MAX: usize = 255;
/// How long a browser may cache the response to a preflight, in seconds.
const MAX_AGE_S: &str = "600";
/// The request headers that pages may send, in addition to the CORS-safelisted ones.
const REQUEST_HEADERS: &str =
    "accept, authorization, cache-control, content-type, idempotency-key, last-event-id, prefer, x-request-id";
/// The response headers that pages may read, in addition to the CORS-safelisted ones.
const RESPONSE_HEADERS: &str = "location, retry-after, x-request-id";

/// Headers of a response.
pub type Headers = Vec<(&'static str, String)>;

/// The allow-list of origins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    origins: Vec<String>,
    any: bool,
    credentials: bool,
}

/// Why an allow-list is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CorsError {
    /// `*` with credentials: every page could send requests with the user's cookies.
    #[error("`*` cannot be combined with credentials: name the origins")]
    AnyWithCredentials,
    /// `null` is the origin of every sandboxed page and of files.
    #[error("the origin `null` cannot be allowed")]
    Null,
    /// An entry is not an origin as browsers send it.
    #[error("`{0}` is no origin: it is scheme://host or scheme://host:port in lower case, without a path")]
    Origin(Box<str>),
    /// There are too many origins.
    #[error("there may be at most {ORIGINS_MAX} origins")]
    TooMany,
}

/// Why a request of a page is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OriginRefused {
    /// `Origin: null`, which any page can send.
    #[error(
        "a page without an origin of its own (`Origin: null`: a file, a sandboxed frame) may not send requests; serve it from an origin that is in auth.cors_origins"
    )]
    Null,
    /// An origin that is not in the list.
    #[error(
        "pages of `{origin}` may not send requests; add it to auth.cors_origins (WEIR_AUTH_CORS_ORIGINS) to allow them"
    )]
    NotAllowed {
        /// The origin, shortened.
        origin: Box<str>,
    },
    /// The cookie is the only credential, and the request does not show that it comes from a page that is allowed.
    #[error(
        "a request with the cookie alone must come from a page that is allowed, and say so: its origin must be in auth.cors_origins and auth.cors_credentials must be true"
    )]
    Cookie,
    /// A preflight without `Access-Control-Request-Method`.
    #[error("a preflight names the method that it asks for")]
    Preflight,
}

impl From<OriginRefused> for Problem {
    fn from(error: OriginRefused) -> Self {
        Self::refused(403, "origin_not_allowed", "Not allowed", error.to_string(), None)
    }
}

/// The headers of a request that identify the page that sent it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Page<'a> {
    /// `Origin`
    pub origin: Option<&'a str>,
    /// `Host` or `:authority`
    pub host: Option<&'a str>,
    /// `Sec-Fetch-Site`
    pub fetch_site: Option<&'a str>,
}

impl Cors {
    /// An allow-list. With an empty one, only pages of this server may send requests. `credentials` lets pages send cookies.
    ///
    /// # Errors
    ///
    /// See [`CorsError`].
    pub fn new(origins: &[&str], credentials: bool) -> Result<Self, CorsError> {
        if origins.len() > ORIGINS_MAX {
            return Err(CorsError::TooMany);
        }
        let any = origins.contains(&"*");
        if any && credentials {
            return Err(CorsError::AnyWithCredentials);
        }
        let mut list = Vec::new();
        for origin in origins.iter().filter(|origin| **origin != "*") {
            if *origin == "null" {
                return Err(CorsError::Null);
            }
            if !is_origin(origin) {
                return Err(CorsError::Origin((*origin).chars().take(ORIGIN_BYTES_MAX).collect()));
            }
            list.push((*origin).to_owned());
        }
        Ok(Self { origins: list, any, credentials })
    }

    /// The headers of the response to a request of a page. Without `Origin`, or from a page of this server, only `Vary`.
    ///
    /// # Errors
    ///
    /// The page is not allowed: the response must be 403, with [`Self::vary`].
    pub fn response_headers(&self, page: &Page<'_>) -> Result<Headers, OriginRefused> {
        let mut headers = vec![("vary", "origin".to_owned())];
        if let Some(allow) = self.allow(page)? {
            headers.push(("access-control-allow-origin", allow));
            if self.credentials {
                headers.push(("access-control-allow-credentials", "true".to_owned()));
            }
            headers.push(("access-control-expose-headers", RESPONSE_HEADERS.to_owned()));
        }
        Ok(headers)
    }

    /// The headers of the response to a preflight (`OPTIONS` with `Origin` and `Access-Control-Request-Method`), which is 204.
    /// `methods` are the methods of the path, as in `Allow`.
    ///
    /// # Errors
    ///
    /// The page is not allowed, or the preflight names no method.
    pub fn preflight(&self, page: &Page<'_>, method: Option<&str>, methods: &str) -> Result<Headers, OriginRefused> {
        if method.is_none_or(str::is_empty) {
            return Err(OriginRefused::Preflight);
        }
        let vary = "origin, access-control-request-method, access-control-request-headers".to_owned();
        let mut headers = vec![("vary", vary)];
        if let Some(allow) = self.allow(page)? {
            headers.push(("access-control-allow-origin", allow));
            if self.credentials {
                headers.push(("access-control-allow-credentials", "true".to_owned()));
            }
            headers.push(("access-control-allow-methods", methods.to_owned()));
            headers.push(("access-control-allow-headers", REQUEST_HEADERS.to_owned()));
            headers.push(("access-control-max-age", MAX_AGE_S.to_owned()));
        }
        Ok(headers)
    }

    /// The header of a refusal, so that caches do not reuse it for other origins.
    pub fn vary() -> (&'static str, String) {
        ("vary", "origin".to_owned())
    }

    /// Checks the origin of a request whose only credential is the cookie (`Credentials::is_cookie_alone` of `weir-auth`), since
    /// browsers add cookies to requests of every page. `changes` is true for all methods but `GET` and `HEAD`, and for a WebSocket.
    ///
    /// # Errors
    ///
    /// The request may change state, and it comes neither from a page of this server nor from a page that is allowed with credentials.
    pub fn check_cookie(&self, page: &Page<'_>, changes: bool) -> Result<(), OriginRefused> {
        let is_trusted = match page.origin {
            Some(origin) => is_own(origin, page.host) || (self.credentials && self.is_listed(origin)),
            None => page.fetch_site == Some("same-origin"),
        };
        if is_trusted || !changes { Ok(()) } else { Err(OriginRefused::Cookie) }
    }

    /// The value of `Access-Control-Allow-Origin`; `None` for a request without another origin.
    fn allow(&self, page: &Page<'_>) -> Result<Option<String>, OriginRefused> {
        match page.origin {
            None => Ok(None),
            Some(origin) if origin.eq_ignore_ascii_case("null") => Err(OriginRefused::Null),
            Some(origin) if self.is_listed(origin) => Ok(Some(origin.to_owned())),
            Some(origin) if is_own(origin, page.host) => Ok(None),
            Some(origin) if self.any && is_origin(origin) => Ok(Some("*".to_owned())),
            Some(origin) => Err(OriginRefused::NotAllowed { origin: quote(origin) }),
        }
    }

    fn is_listed(&self, origin: &str) -> bool {
        self.origins.iter().any(|entry| entry == origin)
    }
}

fn quote(origin: &str) -> Box<str> {
    origin.chars().filter(|c| !c.is_control()).take(ORIGIN_BYTES_MAX).collect()
}

/// True when an origin is that of the server itself. A proxy may have terminated TLS, so both schemes are accepted.
fn is_own(origin: &str, host: Option<&str>) -> bool {
    let Some(host) = host else { return false };
    let of = |scheme: &str, port: &str| {
        let authority = origin.strip_prefix(scheme);
        authority.is_some_and(|authority| {
            !host.is_empty() && authority.trim_end_matches(port).eq_ignore_ascii_case(host.trim_end_matches(port))
        })
    };
    of("http://", ":80") || of("https://", ":443")
}

/// True for an origin as browsers write it (RFC 6454, section 6.2): no path, no user, lower case.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let of_scheme = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase()) && scheme.bytes().all(of_scheme);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let of_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(of_host),
    };
    let is_port = port.is_none_or(|port| !port.starts_with('0') && port.parse::<u16>().is_ok());
    text.len() <= ORIGIN_BYTES_MAX && is_scheme && is_host && is_port
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn page(origin: &str) -> Page<'_> {
        Page { origin: Some(origin), host: Some("weir.example:8080"), fetch_site: None }
    }

    fn check(answer: Result<Headers, OriginRefused>, want: Expect) {
        want.assert_eq(&match answer {
            Ok(headers) => headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect(),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn allow_list_is_checked() {
        let refused = |origins: &[&str], credentials| Cors::new(origins, credentials).unwrap_err().to_string();
        expect!["`*` cannot be combined with credentials: name the origins"]
            .assert_eq(&refused(&["https://a.example", "*"], true));
        expect!["the origin `null` cannot be allowed"].assert_eq(&refused(&["null"], false));
        expect!["there may be at most 64 origins"].assert_eq(&refused(&["https://a.example"; 65], false));
        for origin in [
            "",
            "a.example",
            "https://",
            "https://a.example/",
            "https://A.example",
            "https://a.example:",
            "https://a.example:0",
            "https://a.example:99999",
            "https://user@a.example",
            "https://*.example",
            "https://a.example ",
            "HTTPS://a.example",
            "https://a b",
            "https://[::1",
            "https://a.example\r\nx",
        ] {
            assert_eq!(Cors::new(&[origin], false), Err(CorsError::Origin(origin.into())), "{origin}");
        }
        for origin in ["https://a.example", "http://localhost:3000", "app://x", "https://[::1]:8080", "https://1.2.3.4"]
        {
            assert!(Cors::new(&[origin], true).is_ok(), "{origin}");
        }
    }

    #[test]
    fn response_headers_depend_on_the_origin() {
        let cors = Cors::new(&["https://a.example"], true).unwrap();
        check(
            cors.response_headers(&page("https://a.example")),
            expect![[r#"
                vary: origin
                access-control-allow-origin: https://a.example
                access-control-allow-credentials: true
                access-control-expose-headers: location, retry-after, x-request-id
            "#]],
        );
        check(
            cors.response_headers(&Page::default()),
            expect![[r#"
            vary: origin
        "#]],
        );
        // Pages of this server need no CORS headers.
        check(
            cors.response_headers(&page("https://weir.example:8080")),
            expect![[r#"
            vary: origin
        "#]],
        );
        check(
            cors.response_headers(&page("null")),
            expect![
                "a page without an origin of its own (`Origin: null`: a file, a sandboxed frame) may not send requests; serve it from an origin that is in auth.cors_origins"
            ],
        );
        for origin in [
            "https://b.example",
            "http://a.example",
            "https://a.example:444",
            "https://a.example.b.example",
            "https://xa.example",
            "https://A.example",
            "",
            "https://a.example, https://b.example",
            "http://weir.example:8081",
        ] {
            assert_eq!(
                cors.response_headers(&page(origin)),
                Err(OriginRefused::NotAllowed { origin: origin.into() }),
                "{origin}"
            );
        }
        let any = Cors::new(&["*"], false).unwrap();
        check(
            any.response_headers(&page("https://b.example")),
            expect![[r#"
                vary: origin
                access-control-allow-origin: *
                access-control-expose-headers: location, retry-after, x-request-id
            "#]],
        );
        assert_eq!(any.response_headers(&page("NULL")), Err(OriginRefused::Null));
        let refused = OriginRefused::NotAllowed { origin: "https://b.example".into() };
        assert_eq!(Cors::default().response_headers(&page("https://b.example")), Err(refused));
    }

    #[test]
    fn preflight_of_an_allowed_origin_has_the_headers() {
        let cors = Cors::new(&["https://a.example"], false).unwrap();
        check(
            cors.preflight(&page("https://a.example"), Some("POST"), "POST, OPTIONS"),
            expect![[r#"
                vary: origin, access-control-request-method, access-control-request-headers
                access-control-allow-origin: https://a.example
                access-control-allow-methods: POST, OPTIONS
                access-control-allow-headers: accept, authorization, cache-control, content-type, idempotency-key, last-event-id, prefer, x-request-id
                access-control-max-age: 600
            "#]],
        );
        check(
            cors.preflight(&page("https://a.example"), None, "POST"),
            expect!["a preflight names the method that it asks for"],
        );
        check(
            cors.preflight(&page("https://b.example"), Some("POST"), "POST"),
            expect![
                "pages of `https://b.example` may not send requests; add it to auth.cors_origins (WEIR_AUTH_CORS_ORIGINS) to allow them"
            ],
        );
    }

    #[test]
    fn cookie_alone_does_not_authorize_a_change() {
        let cors = Cors::new(&["https://a.example"], true).unwrap();
        let without = Cors::new(&["https://a.example"], false).unwrap();
        let site = |fetch_site| Page { origin: None, fetch_site, ..page("") };
        for trusted in [page("https://a.example"), page("http://weir.example:8080"), site(Some("same-origin"))] {
            assert_eq!(cors.check_cookie(&trusted, true), Ok(()));
        }
        for other in [page("https://b.example"), page("null"), site(None), site(Some("cross-site")), site(Some("none"))]
        {
            assert_eq!(cors.check_cookie(&other, true), Err(OriginRefused::Cookie), "{other:?}");
            assert_eq!(cors.check_cookie(&other, false), Ok(()));
        }
        assert_eq!(without.check_cookie(&page("https://a.example"), true), Err(OriginRefused::Cookie));
        let no_host = Page { origin: Some("https://"), host: None, fetch_site: None };
        assert_eq!(cors.check_cookie(&no_host, true), Err(OriginRefused::Cookie));
        let empty_host = Page { host: Some(""), ..no_host };
        assert_eq!(cors.check_cookie(&empty_host, true), Err(OriginRefused::Cookie));
    }

    proptest! {
        #[test]
        fn wildcard_is_never_sent_with_credentials(
            origins in prop::collection::vec("\\*|null|https://[a-c]\\.example", 0..4),
            credentials: bool,
            origin in "\\*|null|https://[a-d]\\.example|\\PC{0,8}",
        ) {
            let origins: Vec<&str> = origins.iter().map(String::as_str).collect();
            if let Ok(cors) = Cors::new(&origins, credentials)
                && let Ok(headers) = cors.response_headers(&page(&origin))
            {
                let value = |name| headers.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str());
                let allow = value("access-control-allow-origin");
                prop_assert!(allow != Some("*") || value("access-control-allow-credentials").is_none());
                prop_assert!(allow.is_none_or(|allow| allow == "*" || origins.contains(&allow)));
                prop_assert!(allow != Some("null"));
                prop_assert_eq!(value("vary"), Some("origin"));
            }
        }
    }
}
