//! The credentials of a request: a bearer token in `Authorization`, one in the cookie `__Host-weir`, or a ticket in the
//! query. Clients of other APIs send a key as `x-api-key` or `x-goog-api-key`; `Authorization` takes precedence over
//! these.
//!
//! A bearer token in a URL is always refused: servers and proxies log URLs, browsers keep them in histories and send
//! them as `Referer` (RFC 6750, section 5.3). A ticket may be in a URL, because it is valid only once and for a few
//! seconds.

use thiserror::Error;
use weir_codec::inference::query::decode;

use crate::{jws::TOKEN_BYTES_MAX, ticket::TICKET_BYTES_MAX};

/// The cookie. Because of its name, browsers accept it only from this host, over TLS, for all paths (RFC 6265bis,
/// section 4.1.3.2).
pub const COOKIE: &str = "__Host-weir";
/// The headers in which clients of other APIs send a key.
const API_KEY_HEADERS: [&str; 2] = ["x-api-key", "x-goog-api-key"];
/// The query parameter of a ticket.
pub const TICKET: &str = "ticket";
/// Most bytes in all `Cookie` headers together.
pub const COOKIES_BYTES_MAX: usize = 16 * 1024;
/// Most bytes in a query.
pub const QUERY_BYTES_MAX: usize = 8192;

/// Query parameters that are used for secrets, in lower case; compared without regard to case.
const SECRETS: [&str; 10] = [
    "access_token",
    "token",
    "bearer",
    "bearer_token",
    "auth_token",
    "id_token",
    "jwt",
    "authorization",
    "api_key",
    "apikey",
];

/// The credentials of a request, not yet verified.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub(crate) bearer: Option<String>,
    /// The API key in a header of its own, beside a token in `Authorization`. Alone it is the bearer token.
    pub(crate) api_key: Option<String>,
    pub(crate) cookie: Option<String>,
    pub(crate) ticket: Option<String>,
}

/// Shows which credentials are present, without secrets.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bearer, cookie, ticket) = (self.bearer.is_some(), self.cookie.is_some(), self.ticket.is_some());
        write!(f, "Credentials {{ bearer: {bearer}, cookie: {cookie}, ticket: {ticket} }}")
    }
}

/// Why the credentials of a request are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CredentialError {
    /// `Authorization` appears twice.
    #[error("`Authorization` appears twice")]
    AuthorizationTwice,
    /// An API key appears twice.
    #[error("the header of an API key appears twice")]
    ApiKeyTwice,
    /// `Authorization` has another scheme.
    #[error("`Authorization` must be of the scheme Bearer")]
    Scheme,
    /// A token has invalid characters, or is empty or too long.
    #[error("the token in {location} has characters that no token has, or is empty or too long")]
    Token {
        /// `Authorization`, the cookie or the query.
        location: &'static str,
    },
    /// The cookie appears twice: another site may have added one.
    #[error("the cookie {COOKIE} appears twice, or with spaces around its name")]
    CookieTwice,
    /// The cookies are too long.
    #[error("cookies may have at most {COOKIES_BYTES_MAX} bytes")]
    CookiesTooLong,
    /// The ticket appears twice.
    #[error("`{TICKET}` appears twice")]
    TicketTwice,
    /// The query has a parameter for secrets.
    #[error("a token must not be part of a URL, as `{parameter}` is: send it in `Authorization`, or ask for a ticket")]
    InUrl {
        /// The parameter.
        parameter: &'static str,
    },
    /// The query is too long.
    #[error("a query may have at most {QUERY_BYTES_MAX} bytes")]
    QueryTooLong,
}

impl Credentials {
    /// Finds the credentials in the headers and the query (without the question mark).
    ///
    /// # Errors
    ///
    /// A credential is malformed, or in a part of the request where it must not be: see [`CredentialError`].
    pub fn find<'h>(
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
        query: &str,
    ) -> Result<Self, CredentialError> {
        let mut credentials = Self { ticket: ticket(query)?, ..Self::default() };
        let mut cookies_bytes = 0;
        let mut api_key = None;
        for (name, value) in headers {
            if name.eq_ignore_ascii_case("authorization") {
                if credentials.bearer.replace(bearer(value)?).is_some() {
                    return Err(CredentialError::AuthorizationTwice);
                }
            } else if API_KEY_HEADERS.iter().any(|header| name.eq_ignore_ascii_case(header)) {
                if api_key.replace(token68(value, "the header of an API key", TOKEN_BYTES_MAX)?).is_some() {
                    return Err(CredentialError::ApiKeyTwice);
                }
            } else if name.eq_ignore_ascii_case("cookie") {
                cookies_bytes += value.len();
                if cookies_bytes > COOKIES_BYTES_MAX {
                    return Err(CredentialError::CookiesTooLong);
                }
                // HTTP/2 may send cookies one by one (RFC 9113, section 8.2.3).
                cookie(value, &mut credentials.cookie)?;
            }
        }
        match &credentials.bearer {
            None => credentials.bearer = api_key,
            Some(_) => credentials.api_key = api_key,
        }
        Ok(credentials)
    }

    /// True when there is no credential.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True when the cookie is the only credential. A browser sends cookies on its own, so the origin must be checked:
    /// see [`crate::cors::Cors::check_cookie`].
    pub fn is_cookie_alone(&self) -> bool {
        self.cookie.is_some() && self.bearer.is_none() && self.ticket.is_none()
    }
}

/// The token of `Bearer TOKEN` (RFC 6750, section 2.1).
fn bearer(value: &[u8]) -> Result<String, CredentialError> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, token) = value.split_at_checked(SCHEME.len()).ok_or(CredentialError::Scheme)?;
    if !scheme.eq_ignore_ascii_case(SCHEME) || token.first().is_some_and(|byte| *byte != b' ') {
        return Err(CredentialError::Scheme);
    }
    let spaces = token.iter().take_while(|byte| **byte == b' ').count();
    token68(&token[spaces..], "`Authorization`", TOKEN_BYTES_MAX)
}

/// Finds the cookie among `name=value; name=value` (RFC 6265, section 4.2.1).
fn cookie(value: &[u8], token: &mut Option<String>) -> Result<(), CredentialError> {
    for pair in value.split(|byte| *byte == b';') {
        let pair = pair.strip_prefix(b" ").unwrap_or(pair);
        let (name, value) = match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        if name != COOKIE.as_bytes() {
            // A name that another server might trim to this one is refused, not ignored.
            if name.trim_ascii() == COOKIE.as_bytes() {
                return Err(CredentialError::CookieTwice);
            }
            continue;
        }
        if token.replace(token68(value, "the cookie", TOKEN_BYTES_MAX)?).is_some() {
            return Err(CredentialError::CookieTwice);
        }
    }
    Ok(())
}

fn ticket(query: &str) -> Result<Option<String>, CredentialError> {
    if query.len() > QUERY_BYTES_MAX {
        return Err(CredentialError::QueryTooLong);
    }
    let mut ticket = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name);
        if let Some(parameter) = SECRETS.into_iter().find(|secret| name.eq_ignore_ascii_case(secret)) {
            return Err(CredentialError::InUrl { parameter });
        }
        if name == TICKET {
            // Issued tickets need no escaping, so the value is not decoded.
            let value = token68(value.as_bytes(), "the query", TICKET_BYTES_MAX)?;
            // A bearer token or an API key under this name is a token in a URL.
            if value.starts_with("eyJ") || crate::api_key::is_key(&value) {
                return Err(CredentialError::InUrl { parameter: TICKET });
            }
            if ticket.replace(value).is_some() {
                return Err(CredentialError::TicketTwice);
            }
        }
    }
    Ok(ticket)
}

/// A value in the grammar `token68` (RFC 7235, section 2.1), which all tokens have.
fn token68(value: &[u8], location: &'static str, bytes_max: usize) -> Result<String, CredentialError> {
    let end = value.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let body = &value[..end];
    let is_token_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    if body.is_empty() || value.len() > bytes_max || !body.iter().all(is_token_byte) {
        return Err(CredentialError::Token { location });
    }
    String::from_utf8(value.to_vec()).map_err(|_| CredentialError::Token { location })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(headers: &[(&str, &str)], query: &str, want: Expect) {
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        want.assert_eq(&match Credentials::find(headers, query) {
            Ok(Credentials { bearer, cookie, ticket, .. }) => format!("{bearer:?} {cookie:?} {ticket:?}"),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn credentials_are_found_in_headers_and_query() {
        check(&[], "", expect!["None None None"]);
        check(&[("Authorization", "Bearer a.b-c_d~e+f/g==")], "", expect![[r#"Some("a.b-c_d~e+f/g==") None None"#]]);
        check(&[("AUTHORIZATION", "bEARER  x")], "", expect![[r#"Some("x") None None"#]]);
        check(
            &[("cookie", "a=b; __Host-weir=x; c"), ("cookie", "theme=\"dark; light\"")],
            "last_event_id=1&ticket=wt1.a.b",
            expect![[r#"None Some("x") Some("wt1.a.b")"#]],
        );
        // Other names.
        check(
            &[("cookie", "__host-weir=x; __Host-weir2=y; weir=z; x__Host-weir=1")],
            "tickets=1&Ticket=2",
            expect!["None None None"],
        );
    }

    #[test]
    fn key_of_another_api_is_a_bearer_token_unless_authorization_has_one() {
        check(&[("x-api-key", "a.b")], "", expect![[r#"Some("a.b") None None"#]]);
        check(&[("X-Goog-Api-Key", "a")], "", expect![[r#"Some("a") None None"#]]);
        check(&[("x-api-key", "a"), ("authorization", "Bearer b")], "", expect![[r#"Some("b") None None"#]]);
        check(
            &[("x-api-key", "a b")],
            "",
            expect!["the token in the header of an API key has characters that no token has, or is empty or too long"],
        );
    }

    #[test]
    fn second_api_key_is_refused() {
        for headers in [[("x-api-key", "a"), ("x-api-key", "a")], [("x-api-key", "a"), ("x-goog-api-key", "b")]] {
            check(&headers, "", expect!["the header of an API key appears twice"]);
        }
    }

    #[test]
    fn malformed_authorization_is_refused() {
        check(&[("authorization", "Basic eDp5")], "", expect!["`Authorization` must be of the scheme Bearer"]);
        check(&[("authorization", "Bearerx")], "", expect!["`Authorization` must be of the scheme Bearer"]);
        check(
            &[("authorization", "Bearer")],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", "Bearer a b")],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", "Bearer a, Bearer b")],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", "Bearer \ta")],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", "Bearer é")],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", "Bearer ==")],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", "Bearer a=b")],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", &format!("Bearer {}", "a".repeat(8193)))],
            "",
            expect!["the token in `Authorization` has characters that no token has, or is empty or too long"],
        );
        check(
            &[("authorization", "Bearer a"), ("authorization", "Bearer a")],
            "",
            expect!["`Authorization` appears twice"],
        );
    }

    #[test]
    fn ambiguous_or_malformed_cookie_is_refused() {
        const TWICE: &str = "the cookie __Host-weir appears twice, or with spaces around its name";
        for cookie in [
            "__Host-weir=a; __Host-weir=b",
            "__Host-weir=a;__Host-weir=a",
            "__Host-weir =a",
            "a=b;  __Host-weir=a",
            "\t__Host-weir=a",
        ] {
            let found = Credentials::find([("cookie", cookie.as_bytes())], "");
            assert_eq!(found.unwrap_err().to_string(), TWICE, "{cookie}");
        }
        let twice = [("cookie", &b"__Host-weir=a"[..]), ("cookie", b"__Host-weir=b")];
        assert_eq!(Credentials::find(twice, "").unwrap_err(), CredentialError::CookieTwice);
        for cookie in [
            "__Host-weir",
            "__Host-weir=",
            "__Host-weir=\"a\"",
            "__Host-weir=a b",
            "__Host-weir=a,b",
            "__Host-weir=a\r\nx",
        ] {
            let found = Credentials::find([("cookie", cookie.as_bytes())], "");
            assert_eq!(found.unwrap_err(), CredentialError::Token { location: "the cookie" }, "{cookie}");
        }
        let long = format!("a={}", "b".repeat(COOKIES_BYTES_MAX));
        check(&[("cookie", &long)], "", expect!["cookies may have at most 16384 bytes"]);
    }

    #[test]
    fn secret_or_malformed_ticket_in_the_query_is_refused() {
        for (query, parameter) in [
            ("access_token=a", "access_token"),
            ("x=1&Token=", "token"),
            ("%74oken=a", "token"),
            ("JWT", "jwt"),
            ("api_key=weir_x", "api_key"),
            ("ticket=eyJhbGciOiJIUzI1NiJ9.e30.x", "ticket"),
            ("ticket=weir_abc", "ticket"),
        ] {
            assert_eq!(Credentials::find([], query), Err(CredentialError::InUrl { parameter }), "{query}");
        }
        check(
            &[],
            "token=a",
            expect![
                "a token must not be part of a URL, as `token` is: send it in `Authorization`, or ask for a ticket"
            ],
        );
        check(&[], "ticket=a&ticket=a", expect!["`ticket` appears twice"]);
        check(&[], "ticket=a&%74icket=b", expect!["`ticket` appears twice"]);
        check(
            &[],
            "ticket=",
            expect!["the token in the query has characters that no token has, or is empty or too long"],
        );
        check(
            &[],
            "ticket=%61",
            expect!["the token in the query has characters that no token has, or is empty or too long"],
        );
        check(
            &[],
            &format!("ticket={}", "a".repeat(2049)),
            expect!["the token in the query has characters that no token has, or is empty or too long"],
        );
        check(&[], &"a".repeat(8193), expect!["a query may have at most 8192 bytes"]);
    }

    #[test]
    fn debug_form_has_no_secret() {
        let found = Credentials::find([("authorization", &b"Bearer secret"[..])], "").unwrap();
        assert_eq!(format!("{found:?}"), "Credentials { bearer: true, cookie: false, ticket: false }");
    }

    proptest! {
        #[test]
        fn arbitrary_request_is_parsed_or_refused(
            name in prop::sample::select(vec!["authorization", "cookie", "Cookie"]),
            value in "(Bearer |__Host-weir=|;|=| |\\PC){0,12}",
            query in "(ticket=|token|&|=|%7|%74|\\PC){0,12}",
        ) {
            if let Ok(found) = Credentials::find([(name, value.as_bytes())], &query) {
                for token in [found.bearer, found.cookie, found.ticket].into_iter().flatten() {
                    prop_assert!(token.bytes().all(|byte| byte.is_ascii_graphic()));
                }
            }
        }
    }
}
