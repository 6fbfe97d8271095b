//! The errors of loading a model.

use std::io;

use crate::gguf::GgufError;
use weir_core::wording::{listed, quoted};

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("the file could not be read: {0}")]
    Io(#[from] io::Error),
    /// The file breaks the format or a bound.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key of the metadata is missing or has an invalid value.
    #[error("the metadata {} {problem}", quoted(.key))]
    Metadata {
        /// The key.
        key: String,
        /// Why it is invalid.
        problem: String,
    },
    /// An architecture that is not supported.
    #[error("the architecture {} is not supported; supported are {supported}", quoted(.name))]
    Architecture {
        /// As in the file.
        name: String,
        /// The supported ones, separated by commas.
        supported: String,
    },
    /// A tensor is missing.
    #[error("the tensor {} is missing", quoted(.name))]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor that the implemented architecture does not use.
    #[error("the tensor {} is not part of the architecture as it is computed here", quoted(.name))]
    UnknownTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape.
    #[error("the tensor {} has the dimensions {}, and {} was expected", quoted(.name), listed(.found), listed(.expected))]
    Shape {
        /// Its name.
        name: String,
        /// As in the file, the innermost first.
        found: Vec<u64>,
        /// According to the metadata.
        expected: Vec<u64>,
    },
    /// A tensor of an unsupported type.
    #[error("the tensor {} has the type {found}, which is not supported; supported are {supported}", quoted(.name))]
    Type {
        /// Its name.
        name: String,
        /// The name of its type.
        found: &'static str,
        /// The supported ones, separated by commas.
        supported: String,
    },
    /// A tensor with a number that is infinite or not a number.
    #[error("the tensor {} has a weight that is not finite", quoted(.name))]
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
