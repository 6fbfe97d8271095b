//! Matches a path with the routes of all features.

use crate::{
    channels::route::{ChannelKind, ChannelRoute},
    generation::route::GenerationRoute,
    http::{problem::Problem, route::Route},
    pipelines::route::PipelineRoute,
    transcripts::route::SessionRoute,
};

/// The route of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteMatch {
    /// Texts, models, probes and documents.
    Own(Route),
    /// Generated text.
    Generation(GenerationRoute),
    /// Channels and tickets.
    Channels(ChannelRoute),
    /// Stored sessions.
    Sessions(SessionRoute),
    /// Pipelines and executions.
    Pipelines(PipelineRoute),
}

impl RouteMatch {
    /// The route of a normalized path ([`crate::http::target::normalize_path`]).
    ///
    /// # Errors
    ///
    /// No route matches, or the id in the path is invalid.
    pub fn match_path(path: &str) -> Result<Self, Problem> {
        // Checked before `/models/{name}`, whose names may contain colons.
        if let Some(route) = GenerationRoute::find(path) {
            return Ok(Self::Generation(route));
        }
        if let Some(route) = Route::find(path) {
            return Ok(Self::Own(route));
        }
        if let Some(route) = SessionRoute::find(path)? {
            return Ok(Self::Sessions(route));
        }
        if let Some(route) = PipelineRoute::find(path) {
            return Ok(Self::Pipelines(route));
        }
        match ChannelRoute::find(path)? {
            // A WebSocket of a session sends chunks: it is a feeder.
            Some(ChannelRoute::Socket(channel)) if channel.kind() == ChannelKind::Session => {
                Ok(Self::Sessions(SessionRoute::Chunks(channel)))
            }
            Some(route) => Ok(Self::Channels(route)),
            None => Err(Problem::not_found(path)),
        }
    }

    /// True when the route accepts a method.
    pub fn takes(&self, method: &str) -> bool {
        let posts = match self {
            Self::Own(route) => route.posts(),
            Self::Generation(route) => return route.takes(method),
            Self::Channels(route) => route.posts(),
            Self::Sessions(route) => return route.takes(method),
            Self::Pipelines(route) => return route.takes(method),
        };
        if posts { method == "POST" } else { matches!(method, "GET" | "HEAD") }
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> &'static str {
        match self {
            Self::Own(route) => route.allow(),
            Self::Generation(route) => route.allow(),
            Self::Channels(route) => route.allow(),
            Self::Sessions(route) => route.allow(),
            Self::Pipelines(route) => route.allow(),
        }
    }

    /// True for a path of the stateful gateway instance, which holds executions, stored sessions and generations. A host with several
    /// gateway instances routes by it; a host with one instance can ignore it.
    pub fn is_stateful(path: &str) -> bool {
        match Self::match_path(path) {
            Ok(route) => matches!(route, Self::Sessions(_) | Self::Pipelines(_) | Self::Generation(_)),
            // The path of a session with an invalid id is refused by the instance that holds sessions.
            Err(_) => SessionRoute::find(path).is_err(),
        }
    }

    /// True for the path of a WebSocket, which the gateway receives as a `POST`.
    pub fn is_socket(path: &str) -> bool {
        path.strip_prefix("/ws").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether a path takes lines of NDJSON and answers each as soon as it can. A host may serve it as a WebSocket too: a message is a line.
    pub fn is_line_stream(path: &str) -> bool {
        matches!(Route::find(path), Some(Route::Task(_) | Route::Transcript))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_lines_in_both_directions_are_line_streams() {
        for path in ["/v1/classify", "/v1/tokens", "/v1/embed", "/v1/transcript"] {
            assert!(RouteMatch::is_line_stream(path), "{path}");
        }
        for path in ["/", "/ws", "/v1/models", "/v1/annotate", "/process-stream", "/v1/classify/", "/sessions/1/chunks"]
        {
            assert!(!RouteMatch::is_line_stream(path), "{path}");
        }
    }

    #[test]
    fn routes_of_executions_and_stored_sessions_are_stateful() {
        for path in [
            "/sessions",
            "/sessions/",
            "/sessions/1",
            "/sessions/1/chunks",
            "/pipelines",
            "/pipelines/a",
            "/reliability",
            "/executions",
            "/ws/session/1",
            "/generate-stream",
            "/v1/responses/1",
            "/models/a:generateContent",
        ] {
            assert!(RouteMatch::is_stateful(path), "{path}");
        }
        for path in [
            "/",
            "/session",
            "/sessionsx",
            "/stream/session/1",
            "//sessions",
            "/v1/transcript",
            "/v1/models",
            "/models/a",
            "/stream/generation/1",
            "/ws",
            "/ws/workflow/1",
            "/metrics",
        ] {
            assert!(!RouteMatch::is_stateful(path), "{path}");
        }
    }
}
