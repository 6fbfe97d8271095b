//! Paths and the methods that they take.

/// What answers a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
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
    /// `POST /generate-stream`
    GenerateStream,
}

/// Every route, for [`Route::find`] and the index.
pub(crate) const ROUTES: [(&str, Route); 8] = [
    ("/", Route::Index),
    ("/livez", Route::Livez),
    ("/readyz", Route::Readyz),
    ("/v1/models", Route::Models),
    ("/openapi.json", Route::OpenApi),
    ("/process-stream", Route::ProcessStream),
    ("/process-batch", Route::ProcessBatch),
    ("/generate-stream", Route::GenerateStream),
];

impl Route {
    /// The route of a path without its query.
    pub(crate) fn find(path: &str) -> Option<Self> {
        ROUTES.iter().find(|(at, _)| *at == path).map(|(_, route)| *route)
    }

    /// True when it takes `POST`, false when it takes `GET` and `HEAD`.
    pub(crate) fn posts(self) -> bool {
        matches!(self, Self::ProcessStream | Self::ProcessBatch | Self::GenerateStream)
    }

    /// The value of `Allow`.
    pub(crate) fn allow(self) -> &'static str {
        if self.posts() { "POST, OPTIONS" } else { "GET, HEAD, OPTIONS" }
    }
}
