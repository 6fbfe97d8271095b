//! Errors of a guest's call ([`NnError`]) and of loading a graph ([`LoadError`]).

use std::any::Any;
use std::path::PathBuf;

use thiserror::Error;

use crate::device::Device;
use crate::wording::quoted;

/// Why a guest's call failed: the cases of `wasi:nn/errors.error-code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// An argument does not fit the graph.
    InvalidArgument,
    /// The graph is not in the given encoding.
    InvalidEncoding,
    /// The operation took too long.
    Timeout,
    /// The engine failed while computing.
    RuntimeError,
    /// The engine or this host does not support the operation.
    UnsupportedOperation,
    /// A graph, a tensor or a table is past its bound.
    TooLarge,
    /// There is no graph of that name.
    NotFound,
    /// The instance is not permitted to do that.
    Security,
    /// None of the above.
    Unknown,
}

/// An error as a guest sees it: a code and one sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct NnError {
    /// The case of the WIT.
    pub code: ErrorCode,
    /// The reason, in one sentence.
    pub text: String,
}

impl NnError {
    /// An error with this code and text.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// An error with [`ErrorCode::InvalidArgument`].
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, text)
    }

    /// An error with [`ErrorCode::RuntimeError`].
    pub fn runtime(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::RuntimeError, text)
    }

    /// An error with [`ErrorCode::UnsupportedOperation`].
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::UnsupportedOperation, text)
    }

    /// The memory of a device does not suffice for a batch; a smaller one may succeed.
    pub(crate) fn out_of_memory(device: Device) -> Self {
        let remedy = "set infer.batch_tokens_max to a smaller one, or serve fewer models on it";
        Self::too_large(format!("the memory of {device} is too small for this batch: {remedy}"))
    }

    /// An error with [`ErrorCode::TooLarge`].
    pub fn too_large(text: impl Into<String>) -> Self {
        Self::new(ErrorCode::TooLarge, text)
    }
}

/// Why the [`Registry`](crate::Registry) could not register or load a graph.
///
/// It can be cloned because all callers that wait for the same load get it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoadError {
    /// No graph of that name was registered.
    #[error("there is no graph named {}", quoted(.0))]
    UnknownName(String),
    /// The name is registered already.
    #[error("a graph named {} is registered already", quoted(.0))]
    NameTaken(String),
    /// A file that a graph needs does not exist.
    #[error("{}: {file} is missing", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// The file, relative to the directory.
        file: String,
    },
    /// A file exists but cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
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
    /// The engine is not available: its library is missing or unusable.
    #[error("{engine}: {reason}")]
    NoEngine {
        /// Its name.
        engine: &'static str,
        /// The reason and the remedy.
        reason: String,
    },
    /// The engine cannot compute on the device: the device, its driver or a library is missing or unusable, or its memory is exhausted.
    #[error("{device}: {reason}")]
    NoDevice {
        /// The device.
        device: Device,
        /// The reason and the remedy.
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

impl LoadError {
    /// The memory of a device does not suffice for a graph.
    pub(crate) fn no_memory_for(device: Device, origin: &str) -> Self {
        let reason = format!(
            "its memory is too small for {origin}: serve fewer models on it, or stop other programs that use it"
        );
        Self::NoDevice { device, reason }
    }

    /// tract has no code for a GPU, in a program without the feature `cuda`.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn without_cuda(device: Device) -> Self {
        let reason = "the engine tract computes on GPUs only in a weir that was built with its feature cuda: build it with `--features cuda`, or \
                      set models.engine to \"onnxruntime\" or \"auto\"";
        Self::NoDevice { device, reason: reason.to_owned() }
    }
}

impl From<LoadError> for NnError {
    fn from(error: LoadError) -> Self {
        let code = match &error {
            LoadError::UnknownName(_) => ErrorCode::NotFound,
            LoadError::NameTaken(_) => ErrorCode::InvalidArgument,
            LoadError::Missing { .. }
            | LoadError::Unreadable { .. }
            | LoadError::NoEngine { .. }
            | LoadError::NoDevice { .. } => ErrorCode::RuntimeError,
            LoadError::Broken { .. } => ErrorCode::InvalidEncoding,
            LoadError::Unsupported { .. } => ErrorCode::UnsupportedOperation,
            LoadError::TooLarge { .. } => ErrorCode::TooLarge,
        };
        Self::new(code, error.to_string())
    }
}

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "a panic without a text",
    }
}

/// Reduces an engine's message to one line of bounded length for error texts: some engines print whole nodes.
pub(crate) fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 600;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
