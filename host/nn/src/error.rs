//! What can go wrong: with one call of a guest ([`NnError`]) and with loading a graph ([`LoadError`]).

use std::path::PathBuf;

use thiserror::Error;

use crate::wording::quoted;

/// Why a guest's call failed: the cases of `wasi:nn/errors.error-code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The caller passed something that the graph cannot take.
    InvalidArgument,
    /// The graph is not in the encoding that was named.
    InvalidEncoding,
    /// The operation took too long.
    Timeout,
    /// The engine failed while computing.
    RuntimeError,
    /// The engine, or this host, cannot do that.
    UnsupportedOperation,
    /// A graph, a tensor or a table is past its bound.
    TooLarge,
    /// No graph of that name.
    NotFound,
    /// The instance was not given the right to do that.
    Security,
    /// None of the above.
    Unknown,
}

/// An error as a guest sees it: a code and one sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct NnError {
    /// Who has to act on it.
    pub code: ErrorCode,
    /// What happened, in one sentence.
    pub text: String,
}

impl NnError {
    /// An error with this code and text.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// The caller passed something that the graph cannot take.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, text)
    }

    /// The engine failed.
    pub fn runtime(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::RuntimeError, text)
    }

    /// The engine, or this host, cannot do that.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::UnsupportedOperation, text)
    }

    /// Something is past its bound.
    pub fn too_large(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::TooLarge, text)
    }
}

/// Why a graph could not be had from the [`Registry`](crate::Registry).
///
/// It can be cloned because callers that waited for the same load all get it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoadError {
    /// No graph of that name was registered.
    #[error("there is no graph named {}", quoted(.0))]
    UnknownName(String),
    /// The name is registered already.
    #[error("a graph named {} is registered already", quoted(.0))]
    NameTaken(String),
    /// A file that a graph needs is not there.
    #[error("{}: {file} is missing", dir.display())]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
        /// What was looked for.
        file: String,
    },
    /// A file is there but cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The graph is malformed, truncated, or contradicts itself.
    #[error("{origin}: {reason}")]
    Broken {
        /// The file, or "graph" when it came as bytes.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The graph is well-formed but the engine cannot run it.
    #[error("{origin}: {reason}")]
    Unsupported {
        /// The file, or "graph" when it came as bytes.
        origin: String,
        /// What the engine lacks.
        reason: String,
    },
    /// The engine itself cannot be had: its library is missing or unfit.
    #[error("{engine}: {reason}")]
    NoEngine {
        /// Its name.
        engine: &'static str,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// The graph is past a bound of the configuration.
    #[error("{origin}: {reason}")]
    TooLarge {
        /// The file, or "graph" when it came as bytes.
        origin: String,
        /// The size and the bound.
        reason: String,
    },
}

impl From<LoadError> for NnError {
    fn from(error: LoadError) -> Self {
        let code = match &error {
            LoadError::UnknownName(_) => ErrorCode::NotFound,
            LoadError::NameTaken(_) => ErrorCode::InvalidArgument,
            LoadError::Missing { .. } | LoadError::Unreadable { .. } | LoadError::NoEngine { .. } => {
                ErrorCode::RuntimeError
            }
            LoadError::Broken { .. } => ErrorCode::InvalidEncoding,
            LoadError::Unsupported { .. } => ErrorCode::UnsupportedOperation,
            LoadError::TooLarge { .. } => ErrorCode::TooLarge,
        };
        Self::new(code, error.to_string())
    }
}

/// What an engine said, on one line and bounded: it goes into error texts, and engines like to print whole nodes.
pub(crate) fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 600;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
