//! The paths of stored sessions.

use crate::{
    channels::route::{Channel, ChannelKind, id_error, id_field},
    inference::query::decode_path,
    json::field::RequestError,
};

/// The prefix of the paths.
const PREFIX: &str = "/sessions";

/// A route of stored sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionRoute {
    /// `POST /sessions`
    All,
    /// `GET` and `DELETE /sessions/{id}`
    One(Channel),
    /// `POST /sessions/{id}/chunks`
    Chunks(Channel),
    /// `POST /sessions/{id}/end`
    End(Channel),
    /// `GET /sessions/{id}/context`
    Context(Channel),
}

/// Every path with its method, for the index.
pub const SESSION_ROUTES: [(&str, &str); 6] = [
    ("POST", "/sessions"),
    ("GET", "/sessions/{session_id}"),
    ("DELETE", "/sessions/{session_id}"),
    ("POST", "/sessions/{session_id}/chunks"),
    ("POST", "/sessions/{session_id}/end"),
    ("GET", "/sessions/{session_id}/context"),
];

impl SessionRoute {
    /// The route of a path without its query; `None` for a path that is not of sessions.
    ///
    /// # Errors
    ///
    /// The path matches and its id is invalid.
    pub fn find(path: &str) -> Result<Option<Self>, RequestError> {
        let Some(rest) = path.strip_prefix(PREFIX) else { return Ok(None) };
        if rest.is_empty() {
            return Ok(Some(Self::All));
        }
        let Some(rest) = rest.strip_prefix('/') else { return Ok(None) };
        let (id, rest) = rest.split_once('/').map_or((rest, None), |(id, rest)| (id, Some(rest)));
        let make: fn(Channel) -> Self = match rest {
            None => Self::One,
            Some("chunks") => Self::Chunks,
            Some("end") => Self::End,
            Some("context") => Self::Context,
            Some(_) => return Ok(None),
        };
        match Channel::new(ChannelKind::Session, &decode_path(id)) {
            Ok(channel) => Ok(Some(make(channel))),
            Err(error) => Err(RequestError::Invalid(vec![id_error(error, id_field(ChannelKind::Session))])),
        }
    }

    /// True when the route accepts a method.
    pub fn takes(&self, method: &str) -> bool {
        match self {
            Self::All | Self::Chunks(_) | Self::End(_) => method == "POST",
            Self::Context(_) => matches!(method, "GET" | "HEAD"),
            Self::One(_) => matches!(method, "GET" | "HEAD" | "DELETE"),
        }
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> &'static str {
        match self {
            Self::All | Self::Chunks(_) | Self::End(_) => "POST, OPTIONS",
            Self::Context(_) => "GET, HEAD, OPTIONS",
            Self::One(_) => "GET, HEAD, DELETE, OPTIONS",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_matched_exactly() {
        let channel = || Channel::new(ChannelKind::Session, "a-1").unwrap();
        for (path, route) in [
            ("/sessions", Some(SessionRoute::All)),
            ("/sessions/a-1", Some(SessionRoute::One(channel()))),
            ("/sessions/a%2d1/chunks", Some(SessionRoute::Chunks(channel()))),
            ("/sessions/a-1/end", Some(SessionRoute::End(channel()))),
            ("/sessions/a-1/context", Some(SessionRoute::Context(channel()))),
            ("/sessions/a-1/", None),
            ("/sessions/a-1/chunks/", None),
            ("/sessionsa", None),
            ("/v1/sessions", None),
        ] {
            assert_eq!(SessionRoute::find(path).unwrap(), route, "{path}");
        }
        for path in ["/sessions/", "/sessions/%00", "/sessions/..", "/sessions/a*"] {
            assert!(SessionRoute::find(path).is_err(), "{path}");
        }
        let one = SessionRoute::One(channel());
        assert!(one.takes("DELETE") && one.takes("HEAD") && !one.takes("POST") && !SessionRoute::All.takes("GET"));
    }
}
