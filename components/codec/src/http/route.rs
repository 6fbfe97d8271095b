//! The paths of texts, models and probes, with their methods.

use serde::Serialize;

use crate::{
    channels::route::{CHANNEL_ROUTES, SOCKET_ROUTES},
    generation::route::GENERATION_ROUTES,
    inference::task::Task,
    json::to_vec,
    pipelines::route::PIPELINE_ROUTES,
    transcripts::route::SESSION_ROUTES,
};

/// A route with a fixed path, except for [`Self::Hub`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `GET /`
    Index,
    /// `GET /livez`
    Livez,
    /// `GET /readyz`
    Readyz,
    /// `GET /v1/models`
    Models,
    /// `GET /openapi.json`
    OpenApi,
    /// `POST /process-stream`
    ProcessStream,
    /// `POST /process-batch`
    ProcessBatch,
    /// `POST /v1/classify`, `/v1/tokens`, `/v1/embed`
    Task(Task),
    /// `POST /v1/transcript`: a session in one request.
    Transcript,
    /// `POST /v1/annotate`
    Annotate,
    /// `POST /models/{name}`: the dialect of the Hugging Face inference API.
    Hub,
    /// `POST /predict`: the dialect of text-embeddings-inference.
    Predict,
    /// `POST /embed`: the dialect of text-embeddings-inference.
    TeiEmbed,
    /// `POST /embed_sparse`: always refused, as text-embeddings-inference does without a sparse model.
    EmbedSparse,
    /// `POST /rerank`: the dialect of text-embeddings-inference, for a cross-encoder.
    Rerank,
    /// `POST /v1/embeddings`: the dialect of OpenAI.
    Embeddings,
    /// `POST /v1/moderations`: the dialect of OpenAI, with a classifier.
    Moderations,
}

/// The prefix of the paths of [`Route::Hub`].
pub const HUB_PREFIX: &str = "/models/";

/// Every route, for [`Route::find`] and the index.
pub const ROUTES: [(&str, Route); 19] = [
    ("/", Route::Index),
    ("/livez", Route::Livez),
    ("/readyz", Route::Readyz),
    ("/v1/models", Route::Models),
    ("/openapi.json", Route::OpenApi),
    ("/process-stream", Route::ProcessStream),
    ("/process-batch", Route::ProcessBatch),
    ("/v1/classify", Route::Task(Task::Classify)),
    ("/v1/tokens", Route::Task(Task::Tokens)),
    ("/v1/embed", Route::Task(Task::Embed)),
    ("/v1/transcript", Route::Transcript),
    ("/v1/annotate", Route::Annotate),
    ("/models/{name}", Route::Hub),
    ("/predict", Route::Predict),
    ("/embed", Route::TeiEmbed),
    ("/embed_sparse", Route::EmbedSparse),
    ("/rerank", Route::Rerank),
    ("/v1/embeddings", Route::Embeddings),
    ("/v1/moderations", Route::Moderations),
];

impl Route {
    /// The route of a path without its query.
    pub fn find(path: &str) -> Option<Self> {
        if path.strip_prefix(HUB_PREFIX).is_some_and(|name| !name.is_empty()) {
            return Some(Self::Hub);
        }
        ROUTES.iter().find(|(at, _)| *at == path).map(|(_, route)| *route)
    }

    /// True for a `POST` route, false for a `GET` and `HEAD` route.
    pub fn posts(self) -> bool {
        match self {
            Self::Index | Self::Livez | Self::Readyz | Self::Models | Self::OpenApi => false,
            Self::ProcessStream | Self::ProcessBatch => true,
            Self::TeiEmbed | Self::EmbedSparse | Self::Rerank | Self::Embeddings | Self::Moderations => true,
            Self::Task(_) | Self::Transcript | Self::Annotate | Self::Hub | Self::Predict => true,
        }
    }

    /// The value of `Allow`.
    pub fn allow(self) -> &'static str {
        if self.posts() { "POST, OPTIONS" } else { "GET, HEAD, OPTIONS" }
    }
}

/// The body of `GET /`.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Index<'a> {
    /// `weir`
    pub name: &'static str,
    /// The version of the gateway.
    pub version: &'a str,
    /// Method and path of every route.
    pub routes: Vec<String>,
}

/// The response body of `GET /`.
pub fn index_json(version: &str) -> Vec<u8> {
    let line = |(path, route): &(&str, Route)| format!("{} {path}", if route.posts() { "POST" } else { "GET" });
    let others = GENERATION_ROUTES
        .iter()
        .chain(&CHANNEL_ROUTES)
        .chain(&SESSION_ROUTES)
        .chain(&PIPELINE_ROUTES)
        .chain(&SOCKET_ROUTES);
    let others = others.map(|(method, path)| format!("{method} {path}"));
    to_vec(&Index { name: "weir", version, routes: ROUTES.iter().map(line).chain(others).collect() })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn path_matches_exactly() {
        assert_eq!(Route::find("/"), Some(Route::Index));
        assert_eq!(Route::find("/process-stream"), Some(Route::ProcessStream));
        assert_eq!(Route::find("/v1/tokens"), Some(Route::Task(Task::Tokens)));
        assert_eq!(Route::find("/models/org/name"), Some(Route::Hub));
        for path in [
            "",
            "/process-stream/",
            "/PROCESS-STREAM",
            "process-stream",
            "/process-stream?x",
            "//",
            "/v1",
            "/models",
            "/models/",
        ] {
            assert_eq!(Route::find(path), None, "{path}");
        }
    }

    #[test]
    fn index_names_each_route() {
        let index = String::from_utf8(index_json("1.2.3")).expect("UTF-8");
        expect![[r#"{"name":"weir","version":"1.2.3","routes":["GET /","GET /livez","GET /readyz","GET /v1/models","GET /openapi.json","POST /process-stream","POST /process-batch","POST /v1/classify","POST /v1/tokens","POST /v1/embed","POST /v1/transcript","POST /v1/annotate","POST /models/{name}","POST /predict","POST /embed","POST /embed_sparse","POST /rerank","POST /v1/embeddings","POST /v1/moderations","POST /generate-stream","POST /v1/chat/completions","POST /v1/completions","POST /v1/responses","GET /v1/responses/{response_id}","POST /v1/responses/{response_id}/cancel","POST /v1/messages","POST /v1/messages/count_tokens","POST /v1beta/models/{model}:generateContent","POST /v1beta/models/{model}:streamGenerateContent","POST /v1/ui/chat","GET /v1/generations/{generation_id}","DELETE /v1/generations/{generation_id}","GET /stream/workflow/{id}","GET /stream/file/{id}","GET /stream/user/{id}","GET /stream/pipeline/{execution_id}","GET /stream/session/{id}","GET /stream/generation/{id}","POST /stream/publish/workflow/{id}","POST /stream/publish/analysis/{file_id}","POST /stream/publish/user/{id}","GET /stream/health","POST /tickets","POST /sessions","GET /sessions/{session_id}","DELETE /sessions/{session_id}","POST /sessions/{session_id}/chunks","POST /sessions/{session_id}/end","GET /sessions/{session_id}/context","GET /pipelines","GET /pipelines/{name}","POST /pipelines/{name}","GET /executions","GET /executions/{execution_id}","DELETE /executions/{execution_id}","GET /reliability","POST /upload","GET /ws","GET /ws/{kind}/{id}"]}"#]].assert_eq(&index);
    }
}
