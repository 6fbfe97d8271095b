//! The errors of this crate as problems of RFC 9457, with their headers.

use weir_codec::http::problem::Problem;
use weir_core::quota::{ConnectionRefused, RateExceeded};

use crate::{
    credential::CredentialError, guard::AuthError, identity::NotFound, jwt::TokenError, limits::LimitError,
    ticket::TicketError,
};

const UNAUTHORIZED: &str = "Authentication is needed";
const FORBIDDEN: &str = "Not allowed";
const TOO_MANY: &str = "Too many requests";
/// The retry delay of a refused connection.
const CONNECTION_RETRY_MS: u32 = 5000;

impl From<AuthError> for Problem {
    /// 401; 403, 400 or 422 if another token in the same request would not help.
    fn from(error: AuthError) -> Self {
        let (status, code, title) = match &error {
            AuthError::Missing => (401, "unauthenticated", UNAUTHORIZED),
            AuthError::Token(TokenError::Expired) => (401, "token_expired", UNAUTHORIZED),
            AuthError::Token(_) | AuthError::ApiKey(_) | AuthError::NotAccepted(_) => {
                (401, "invalid_token", UNAUTHORIZED)
            }
            AuthError::Ticket(TicketError::Path | TicketError::TooLong) => (422, "invalid_ticket", "No such ticket"),
            AuthError::Ticket(TicketError::Limited) | AuthError::HostNotLoopback => (403, "forbidden", FORBIDDEN),
            AuthError::Ticket(TicketError::Label) => return Self::internal(&error.to_string()),
            AuthError::Ticket(_) => (401, "invalid_ticket", UNAUTHORIZED),
            AuthError::TwoUsers => (400, "two_users", "The request has credentials of two users"),
        };
        Self::refused(status, code, title, error.to_string(), None)
    }
}

impl From<TicketError> for Problem {
    fn from(error: TicketError) -> Self {
        AuthError::from(error).into()
    }
}

impl From<CredentialError> for Problem {
    /// 400 for most errors, since another token in the same part of the request would be refused too.
    fn from(error: CredentialError) -> Self {
        let (status, code, title) = match error {
            CredentialError::InUrl { .. } => (400, "token_in_url", "A token is part of the URL"),
            CredentialError::CookiesTooLong => (431, "headers_too_large", "The headers are too large"),
            CredentialError::QueryTooLong => (414, "target_too_long", "The URL is too long"),
            CredentialError::Scheme | CredentialError::Token { .. } => (401, "invalid_token", UNAUTHORIZED),
            _ => (400, "invalid_credentials", "The credentials cannot be read"),
        };
        Self::refused(status, code, title, error.to_string(), None)
    }
}

impl From<LimitError> for Problem {
    fn from(error: LimitError) -> Self {
        const HEADERS: (u16, &str, &str) = (431, "headers_too_large", "The headers are too large");
        let (status, code, title) = match error {
            LimitError::Body { bytes_max } => return Self::body_too_large(bytes_max),
            LimitError::Target { .. } => (414, "target_too_long", "The URL is too long"),
            LimitError::Headers { .. } | LimitError::HeaderName { .. } => HEADERS,
            LimitError::HeaderValue { .. } | LimitError::HeadersTotal { .. } => HEADERS,
            LimitError::HeaderCharacter => (400, "invalid_header", "A header cannot be read"),
            LimitError::Name => (422, "invalid_name", "The name is not valid"),
        };
        Self::refused(status, code, title, error.to_string(), None)
    }
}

/// 404, the same as for an unknown path, so the response does not reveal whether the channel exists.
pub fn not_found(NotFound: NotFound, path: &str) -> Problem {
    Problem::not_found(path)
}

/// 429 with `Retry-After`.
pub fn limited(error: &RateExceeded) -> Problem {
    Problem::refused(429, "too_many_requests", TOO_MANY, error.to_string(), Some(error.retry_after_ms()))
}

/// 429 for the connections of one user, 503 for all connections, both with `Retry-After`.
pub fn connection_refused(error: &ConnectionRefused) -> Problem {
    let (status, code, title) = match error {
        ConnectionRefused::User { .. } => (429, "too_many_connections", "Too many connections"),
        ConnectionRefused::Total => (503, "connections_full", "There are too many connections"),
    };
    Problem::refused(status, code, title, error.to_string(), Some(CONNECTION_RETRY_MS))
}

/// The value of `WWW-Authenticate` for a problem with status 401 (RFC 6750, section 3).
pub fn challenge(problem: &Problem) -> Option<&'static str> {
    match (problem.status, problem.code) {
        (401, "unauthenticated") => Some("Bearer realm=\"weir\""),
        (401, _) => Some("Bearer realm=\"weir\", error=\"invalid_token\""),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{api_key::UnknownKey, cors::OriginRefused, jws::JwsError};

    #[test]
    fn each_error_has_its_problem() {
        let problems: Vec<Problem> = vec![
            AuthError::Missing.into(),
            AuthError::Token(TokenError::Expired).into(),
            AuthError::Token(TokenError::Jws(JwsError::Signature)).into(),
            AuthError::ApiKey(UnknownKey).into(),
            AuthError::NotAccepted("API keys").into(),
            TicketError::Used.into(),
            TicketError::Path.into(),
            AuthError::TwoUsers.into(),
            AuthError::HostNotLoopback.into(),
            CredentialError::InUrl { parameter: "token" }.into(),
            CredentialError::Scheme.into(),
            CredentialError::CookieTwice.into(),
            OriginRefused::NotAllowed { origin: "https://b.example".into() }.into(),
            LimitError::Target { bytes_max: 9 }.into(),
            LimitError::Headers { headers_max: 9 }.into(),
            LimitError::HeaderCharacter.into(),
            LimitError::Body { bytes_max: 9 }.into(),
            LimitError::Name.into(),
            not_found(NotFound, "/stream/workflow/42"),
            limited(&RateExceeded { retry_after_ns: 1_200_000_001 }),
            connection_refused(&ConnectionRefused::User { connections_max: 9 }),
            connection_refused(&ConnectionRefused::Total),
        ];
        let mut lines = String::new();
        for problem in &problems {
            let (status, code, detail) = (problem.status, problem.code, &problem.detail);
            lines += &format!("{status} {code}: {detail}");
            if let Some(seconds) = problem.retry_after_s() {
                lines += &format!(" [retry-after: {seconds}]");
            }
            if let Some(challenge) = challenge(problem) {
                lines += &format!(" [{challenge}]");
            }
            lines.push('\n');
        }
        expect![[r#"
            401 unauthenticated: this needs a token: in `Authorization: Bearer`, in the cookie, or as a ticket [Bearer realm="weir"]
            401 token_expired: the token has expired [Bearer realm="weir", error="invalid_token"]
            401 invalid_token: the token's signature is invalid [Bearer realm="weir", error="invalid_token"]
            401 invalid_token: the API key is not known [Bearer realm="weir", error="invalid_token"]
            401 invalid_token: this server does not accept API keys [Bearer realm="weir", error="invalid_token"]
            401 invalid_ticket: the ticket has been used [Bearer realm="weir", error="invalid_token"]
            422 invalid_ticket: a ticket is for one path without a query
            400 two_users: the request has credentials of two users
            403 forbidden: without authentication this server answers to a loopback name only, such as `localhost`
            400 token_in_url: a token must not be part of a URL, as `token` is: send it in `Authorization`, or ask for a ticket
            401 invalid_token: `Authorization` must be of the scheme Bearer [Bearer realm="weir", error="invalid_token"]
            400 invalid_credentials: the cookie __Host-weir appears twice, or with spaces around its name
            403 origin_not_allowed: pages of `https://b.example` may not send requests; add it to auth.cors_origins (WEIR_AUTH_CORS_ORIGINS) to allow them
            414 target_too_long: path and query may have at most 9 bytes
            431 headers_too_large: a request may have at most 9 headers
            400 invalid_header: a header has a control character or an invalid name
            413 body_too_large: a body may have at most 9 bytes
            422 invalid_name: a name has 1 to 64 lower-case letters, digits, - and _, and begins with a letter
            404 not_found: there is nothing at `/stream/workflow/42`
            429 too_many_requests: too many requests; retry in 1201 ms [retry-after: 2]
            429 too_many_connections: you have 9 open connections, the most that one user may have [retry-after: 5]
            503 connections_full: the server has reached its bound of open connections [retry-after: 5]
        "#]].assert_eq(&lines);
    }

    #[test]
    fn forbidden_and_missing_have_the_same_response() {
        let path = "/stream/workflow/42";
        let (hidden, missing) = (not_found(NotFound, path), Problem::not_found(path));
        assert_eq!(hidden.to_json("r"), missing.to_json("r"));
        assert_eq!((hidden.status, challenge(&hidden)), (404, None));
    }
}
