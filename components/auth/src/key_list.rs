//! The keys of a file, common to its two forms: JWK and PEM.

use thiserror::Error;

use crate::key::{Key, KeyError};

/// The keys of a file.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The usable keys.
    pub keys: Vec<Key>,
    /// The unusable keys, with their reasons.
    pub skipped: Vec<SkippedKey>,
}

/// A key of a file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{location}: {reason}")]
pub struct SkippedKey {
    /// The position of the key in the file.
    pub location: KeyLocation,
    /// Why it cannot be used.
    pub reason: KeyError,
}

/// The position of a key in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLocation {
    /// The index of a JWK in its set, from 0.
    Jwk(usize),
    /// The line at which a PEM block begins, from 1.
    Line(usize),
}

impl std::fmt::Display for KeyLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Jwk(index) => write!(f, "key {index} of the JWKS"),
            Self::Line(line) => write!(f, "PEM block at line {line}"),
        }
    }
}
