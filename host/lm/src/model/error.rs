//! Why a model is not loaded.

use std::io;

use crate::gguf::GgufError;

/// What prevents a model from being loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("the file could not be read: {0}")]
    Io(#[from] io::Error),
    /// The file breaks the format or a bound.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key of the metadata is missing or has a value that it cannot have.
    #[error("the metadata {key:?} {problem}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Another architecture than those that are computed.
    #[error("the architecture {name:?} is not supported; supported are {supported}")]
    Architecture {
        /// As in the file.
        name: String,
        /// Those that are, separated by commas.
        supported: String,
    },
    /// A tensor is missing.
    #[error("the tensor {name:?} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor that the architecture has no place for.
    #[error("the tensor {name:?} is not part of the architecture as it is computed here")]
    UnknownTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape.
    #[error("the tensor {name:?} has the dimensions {found:?}, and {expected:?} was expected")]
    Shape {
        /// Its name.
        name: String,
        /// As in the file, the innermost first.
        found: Vec<u64>,
        /// As the metadata has it.
        expected: Vec<u64>,
    },
    /// A tensor of a type that is not computed with.
    #[error("the tensor {name:?} has the type {found}, which is not supported; supported are {supported}")]
    Type {
        /// Its name.
        name: String,
        /// The name of its type.
        found: &'static str,
        /// Those that are, separated by commas.
        supported: String,
    },
    /// A tensor with a number that is infinite or not a number.
    #[error("the tensor {name:?} has a weight that is not finite")]
    NotFinite {
        /// Its name.
        name: String,
    },
}

impl LoadError {
    pub(super) fn metadata(key: &str, problem: impl Into<String>) -> Self {
        Self::Metadata { key: key.to_owned(), problem: problem.into() }
    }
}
