//! The paths of pipelines and executions.

use weir_core::pipelines::NAME_BYTES_MAX;

use super::execution_id;

/// A route of pipelines and executions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PipelineRoute {
    /// `GET /pipelines`
    Pipelines,
    /// `GET /pipelines/{name}`: the definition; `POST`: an execution of it.
    Pipeline(String),
    /// `GET /executions`
    Executions,
    /// `GET /executions/{execution_id}`: its status; `DELETE`: cancels it.
    Execution(String),
    /// `GET /reliability`
    Reliability,
    /// `POST /upload`: an execution whose input is a file.
    Upload,
}

/// Every path of [`PipelineRoute::find`] with its methods, for the index and the API description.
pub const PIPELINE_ROUTES: [(&str, &str); 8] = [
    ("GET", "/pipelines"),
    ("GET", "/pipelines/{name}"),
    ("POST", "/pipelines/{name}"),
    ("GET", "/executions"),
    ("GET", "/executions/{execution_id}"),
    ("DELETE", "/executions/{execution_id}"),
    ("GET", "/reliability"),
    ("POST", "/upload"),
];

impl PipelineRoute {
    /// The route of a path without its query; `None` also when the name or the id in it is invalid.
    pub fn find(path: &str) -> Option<Self> {
        if let Some(name) = path.strip_prefix("/pipelines/") {
            return is_name(name).then(|| Self::Pipeline(name.to_owned()));
        }
        if let Some(id) = path.strip_prefix("/executions/") {
            return execution_id::is_valid(id).then(|| Self::Execution(id.to_owned()));
        }
        match path {
            "/pipelines" => Some(Self::Pipelines),
            "/executions" => Some(Self::Executions),
            "/reliability" => Some(Self::Reliability),
            "/upload" => Some(Self::Upload),
            _ => None,
        }
    }

    /// True when the route accepts a method other than `OPTIONS`.
    pub fn takes(&self, method: &str) -> bool {
        match self {
            Self::Pipeline(_) if method == "POST" => true,
            Self::Execution(_) if method == "DELETE" => true,
            Self::Upload => method == "POST",
            _ => matches!(method, "GET" | "HEAD"),
        }
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> &'static str {
        match self {
            Self::Pipeline(_) => "GET, HEAD, POST, OPTIONS",
            Self::Execution(_) => "GET, HEAD, DELETE, OPTIONS",
            Self::Upload => "POST, OPTIONS",
            Self::Pipelines | Self::Executions | Self::Reliability => "GET, HEAD, OPTIONS",
        }
    }
}

/// True for a valid name of a pipeline; it is safe as the name of a file.
pub fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_a_pipeline_is_matched() {
        let id = execution_id::from_random([7; 16]);
        for (path, want, allow) in [
            ("/pipelines".to_owned(), PipelineRoute::Pipelines, "GET, HEAD, OPTIONS"),
            (
                "/pipelines/a.b-c_1".to_owned(),
                PipelineRoute::Pipeline("a.b-c_1".to_owned()),
                "GET, HEAD, POST, OPTIONS",
            ),
            ("/executions".to_owned(), PipelineRoute::Executions, "GET, HEAD, OPTIONS"),
            (format!("/executions/{id}"), PipelineRoute::Execution(id.clone()), "GET, HEAD, DELETE, OPTIONS"),
            ("/upload".to_owned(), PipelineRoute::Upload, "POST, OPTIONS"),
            ("/reliability".to_owned(), PipelineRoute::Reliability, "GET, HEAD, OPTIONS"),
        ] {
            let route = PipelineRoute::find(&path);
            assert_eq!(route.as_ref(), Some(&want), "{path}");
            assert_eq!(want.allow(), allow);
            for method in ["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH"] {
                assert_eq!(want.takes(method), allow.split(", ").any(|known| known == method), "{method} {path}");
            }
        }
    }

    #[test]
    fn other_path_is_not_matched() {
        let long = format!("/pipelines/{}", "x".repeat(NAME_BYTES_MAX + 1));
        for path in [
            "",
            "/",
            "/pipelines/",
            "/pipelines/a/b",
            "/pipelines/..",
            "/pipelines/.hidden",
            "/pipelines/a%2fb",
            "/pipelines/é",
            "/executions/",
            "/executions/1",
            "/executions/exec_",
            "/reliability/",
            &long,
        ] {
            assert_eq!(PipelineRoute::find(path), None, "{path}");
        }
    }
}
