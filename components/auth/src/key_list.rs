//! The keys of a file, in either of its forms.

use thiserror::Error;

use crate::key::{Key, KeyError};

/// The keys of a file.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The keys that can be used, at least one.
    pub keys: Vec<Key>,
    /// The keys that cannot be used.
    pub skipped: Vec<SkippedKey>,
}

/// A key of a file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct SkippedKey {
    /// Where in the file it is.
    pub place: KeyPlace,
    /// Why it cannot be used.
    pub reason: KeyError,
}

/// Where in a file a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPlace {
    /// The index of a JWK in its set, from 0.
    Jwk(usize),
    /// The line at which a PEM block begins, from 1.
    Line(usize),
}

impl std::fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Jwk(index) => write!(f, "key {index} of the JWKS"),
            Self::Line(line) => write!(f, "PEM block at line {line}"),
        }
    }
}
