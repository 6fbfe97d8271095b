//! The paths of generated text.

use super::{dialect::DialectKind, responses::generation_id};
use crate::inference::query::decode_path;

/// A route of generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationRoute {
    /// `POST` of a request to an API.
    Generate(DialectKind),
    /// `POST .../models/{model}:generateContent` and `:streamGenerateContent`
    Content {
        /// The model.
        model: String,
        /// The response is a stream.
        stream: bool,
    },
    /// `POST /v1/messages/count_tokens`
    CountMessages,
    /// `POST .../models/{model}:countTokens`
    CountContent {
        /// The model.
        model: String,
    },
    /// `GET` and `DELETE /v1/generations/{generation_id}`; the response has the dialect of the original request.
    Generation(String),
    /// `GET /v1/responses/{response_id}`; the value is the id of the generation.
    Response(String),
    /// `POST /v1/responses/{response_id}/cancel`
    CancelResponse(String),
}

/// Every path, with its method, for the index.
pub const GENERATION_ROUTES: [(&str, &str); 13] = [
    ("POST", "/generate-stream"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{response_id}"),
    ("POST", "/v1/responses/{response_id}/cancel"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1beta/models/{model}:generateContent"),
    ("POST", "/v1beta/models/{model}:streamGenerateContent"),
    ("POST", "/v1/ui/chat"),
    ("GET", "/v1/generations/{generation_id}"),
    ("DELETE", "/v1/generations/{generation_id}"),
];

impl GenerationRoute {
    /// The route of a path without its query; `None` for a path that is not of generated text.
    pub fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/generate-stream" => Self::Generate(DialectKind::Weir),
            "/v1/chat/completions" => Self::Generate(DialectKind::Chat),
            "/v1/completions" => Self::Generate(DialectKind::Completions),
            "/v1/responses" => Self::Generate(DialectKind::Responses),
            "/v1/messages" => Self::Generate(DialectKind::Messages),
            "/v1/messages/count_tokens" => Self::CountMessages,
            "/v1/ui/chat" => Self::Generate(DialectKind::Ui),
            _ => return Self::find_named(path),
        })
    }

    fn find_named(path: &str) -> Option<Self> {
        if let Some(id) = path.strip_prefix("/v1/generations/") {
            return is_segment(id).then(|| Self::Generation(id.to_owned()));
        }
        if let Some(rest) = path.strip_prefix("/v1/responses/") {
            return match rest.split_once('/') {
                None if is_segment(rest) => Some(Self::Response(generation_id(rest).to_owned())),
                Some((id, "cancel")) if is_segment(id) => Some(Self::CancelResponse(generation_id(id).to_owned())),
                _ => None,
            };
        }
        // Clients of Gemini use different prefixes.
        let rest =
            ["/v1beta/models/", "/v1/models/", "/models/"].into_iter().find_map(|start| path.strip_prefix(start))?;
        let (model, method) = rest.rsplit_once(':')?;
        let model = decode_path(model).into_owned();
        match method {
            _ if model.is_empty() => None,
            "generateContent" => Some(Self::Content { model, stream: false }),
            "streamGenerateContent" => Some(Self::Content { model, stream: true }),
            "countTokens" => Some(Self::CountContent { model }),
            _ => None,
        }
    }

    /// The API whose error format the path uses.
    pub fn dialect(&self) -> DialectKind {
        match self {
            Self::Generate(kind) => *kind,
            Self::Content { .. } | Self::CountContent { .. } => DialectKind::Gemini,
            Self::CountMessages => DialectKind::Messages,
            Self::Generation(_) => DialectKind::Weir,
            Self::Response(_) | Self::CancelResponse(_) => DialectKind::Responses,
        }
    }

    /// True when the route accepts a method.
    pub fn takes(&self, method: &str) -> bool {
        match self {
            Self::Generation(_) => matches!(method, "GET" | "HEAD" | "DELETE"),
            Self::Response(_) => matches!(method, "GET" | "HEAD"),
            _ => method == "POST",
        }
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> &'static str {
        match self {
            Self::Generation(_) => "GET, HEAD, DELETE, OPTIONS",
            Self::Response(_) => "GET, HEAD, OPTIONS",
            _ => "POST, OPTIONS",
        }
    }
}

fn is_segment(text: &str) -> bool {
    !text.is_empty() && !text.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_matched_with_its_parameters() {
        let content = |model: &str, stream| Some(GenerationRoute::Content { model: model.to_owned(), stream });
        for (path, want) in [
            ("/generate-stream", Some(GenerationRoute::Generate(DialectKind::Weir))),
            ("/v1/responses/resp_ab", Some(GenerationRoute::Response("ab".to_owned()))),
            ("/v1/responses/ab/cancel", Some(GenerationRoute::CancelResponse("ab".to_owned()))),
            ("/v1beta/models/a:streamGenerateContent", content("a", true)),
            ("/v1/models/org%2Fa:generateContent", content("org/a", false)),
            ("/models/a:b:generateContent", content("a:b", false)),
            ("/models/a", None),
            ("/models/a:b", None),
            ("/v1/models/:generateContent", None),
            ("/v1/responses/", None),
            ("/v1/responses/a/b", None),
            ("/v1/generations/a/b", None),
            ("/v1/chat/completions/", None),
        ] {
            assert_eq!(GenerationRoute::find(path), want, "{path}");
        }
    }

    #[test]
    fn index_lists_paths_that_are_found() {
        for (method, path) in GENERATION_ROUTES {
            let route = GenerationRoute::find(&path.replace(['{', '}'], "")).expect(path);
            assert!(route.takes(method), "{method} {path}");
        }
    }
}
