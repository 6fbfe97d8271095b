//! Which pages of other origins may ask (the Fetch standard, section 3.2): an allow-list. Headers in, headers out.
//!
//! A request from an origin that is not allowed is refused rather than answered without headers: a browser would hide the response, but
//! the effect of the request would remain, and a WebSocket has no such protection at all.

use thiserror::Error;

use crate::http::problem::Problem;

/// Maximum number of origins in the list.
pub const ORIGINS_MAX: usize = 64;
/// Maximum number of bytes in an origin.
pub const ORIGIN_BYTES_MAX: usize = 255;
/// How long a browser may keep the answer to a preflight, in seconds.
const MAX_AGE_S: &str = "600";
/// What pages may send besides what every page may.
const REQUEST_HEADERS: &str =
    "accept, authorization, cache-control, content-type, idempotency-key, last-event-id, prefer, x-request-id";
/// What pages may read besides what every page may.
const RESPONSE_HEADERS: &str = "location, retry-after, x-request-id";

/// Headers of an answer.
pub type Headers = Vec<(&'static str, String)>;

/// The allow-list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    origins: Vec<String>,
    any: bool,
    credentials: bool,
}

/// A list that would allow more than was meant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CorsError {
    /// Every page would act with the user's cookies.
    #[error("`*` cannot be combined with credentials: name the origins")]
    AnyWithCredentials,
    /// `null` is the origin of every sandboxed page and of files.
    #[error("the origin `null` cannot be allowed")]
    Null,
    /// It is no origin as browsers send them.
    #[error("`{0}` is no origin: it is scheme://host or scheme://host:port in lower case, without a path")]
    Origin(Box<str>),
    /// There are too many.
    #[error("there may be at most {ORIGINS_MAX} origins")]
    TooMany,
}

/// A page that is not allowed.
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
    /// The cookie is all that a request shows, and nothing says that one of our own pages has sent it.
    #[error(
        "a request with the cookie alone must come from a page that is allowed, and say so: its origin must be in auth.cors_origins and auth.cors_credentials must be true"
    )]
    Cookie,
    /// A preflight without a method.
    #[error("a preflight names the method that it asks for")]
    Preflight,
}

impl From<OriginRefused> for Problem {
    fn from(error: OriginRefused) -> Self {
        Self::refused(403, "origin_not_allowed", "Not allowed", error.to_string(), None)
    }
}

/// What a request says about the page that it comes from.
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
    /// An allow-list; empty, only our own origin may ask. `credentials` lets pages send cookies.
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

    /// The headers for the answer to a request from a page. Without `Origin`, or from our own, there is only `Vary`.
    ///
    /// # Errors
    ///
    /// The page may not ask: the answer is to be 403, with [`Self::vary`].
    pub fn answer(&self, page: &Page<'_>) -> Result<Headers, OriginRefused> {
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

    /// The headers for the answer to a preflight (`OPTIONS` with `Origin` and `Access-Control-Request-Method`), which is 204.
    /// `methods` are those of the path, as in `Allow`.
    ///
    /// # Errors
    ///
    /// The page may not ask, or the preflight does not say for what.
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

    /// For answers to pages that were refused: caches must not give them to others.
    pub fn vary() -> (&'static str, String) {
        ("vary", "origin".to_owned())
    }

    /// Asks where a request was sent from that shows the cookie alone (`Credentials::is_cookie_alone` of `weir-auth`):
    /// browsers send cookies with whatever any page makes them send. `changes` is true for all but `GET` and `HEAD`,
    /// and for a WebSocket.
    ///
    /// # Errors
    ///
    /// It changes something and does not come from our own page or one that is allowed with credentials.
    pub fn check_cookie(&self, page: &Page<'_>, changes: bool) -> Result<(), OriginRefused> {
        let trusted = match page.origin {
            Some(origin) => is_own(origin, page.host) || (self.credentials && self.lists(origin)),
            None => page.fetch_site == Some("same-origin"),
        };
        if trusted || !changes { Ok(()) } else { Err(OriginRefused::Cookie) }
    }

    /// The value of `Access-Control-Allow-Origin`; none where no page of another origin asks.
    fn allow(&self, page: &Page<'_>) -> Result<Option<String>, OriginRefused> {
        match page.origin {
            None => Ok(None),
            Some(origin) if origin.eq_ignore_ascii_case("null") => Err(OriginRefused::Null),
            Some(origin) if self.lists(origin) => Ok(Some(origin.to_owned())),
            Some(origin) if is_own(origin, page.host) => Ok(None),
            Some(origin) if self.any && is_origin(origin) => Ok(Some("*".to_owned())),
            Some(origin) => Err(OriginRefused::NotAllowed { origin: quote(origin) }),
        }
    }

    fn lists(&self, origin: &str) -> bool {
        self.origins.iter().any(|listed| listed == origin)
    }
}

fn quote(origin: &str) -> Box<str> {
    origin.chars().filter(|c| !c.is_control()).take(ORIGIN_BYTES_MAX).collect()
}

/// Whether an origin is that of the server itself. Which scheme a proxy has ended is not known here, so both count.
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

/// Whether a text is an origin as browsers write it (RFC 6454, section 6.2): no path, no user, lower case.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let of_scheme = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase()) && scheme.bytes().all(of_scheme);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let of_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(of_host),
    };
    let port_fits = port.is_none_or(|port| !port.starts_with('0') && port.parse::<u16>().is_ok());
    text.len() <= ORIGIN_BYTES_MAX && scheme_fits && host_fits && port_fits
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
    fn lists() {
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
    fn answers() {
        let cors = Cors::new(&["https://a.example"], true).unwrap();
        check(
            cors.answer(&page("https://a.example")),
            expect![[r#"
                vary: origin
                access-control-allow-origin: https://a.example
                access-control-allow-credentials: true
                access-control-expose-headers: location, retry-after, x-request-id
            "#]],
        );
        check(
            cors.answer(&Page::default()),
            expect![[r#"
            vary: origin
        "#]],
        );
        // Our own pages need no leave.
        check(
            cors.answer(&page("https://weir.example:8080")),
            expect![[r#"
            vary: origin
        "#]],
        );
        check(
            cors.answer(&page("null")),
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
                cors.answer(&page(origin)),
                Err(OriginRefused::NotAllowed { origin: origin.into() }),
                "{origin}"
            );
        }
        let any = Cors::new(&["*"], false).unwrap();
        check(
            any.answer(&page("https://b.example")),
            expect![[r#"
                vary: origin
                access-control-allow-origin: *
                access-control-expose-headers: location, retry-after, x-request-id
            "#]],
        );
        assert_eq!(any.answer(&page("NULL")), Err(OriginRefused::Null));
        let refused = OriginRefused::NotAllowed { origin: "https://b.example".into() };
        assert_eq!(Cors::default().answer(&page("https://b.example")), Err(refused));
    }

    #[test]
    fn preflights() {
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
                && let Ok(headers) = cors.answer(&page(&origin))
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
