//! Why a store did not do what it was asked.

use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use weir_core::channels::{ClaimsFull, EventError, ValuesFull};

/// Why a store did not do what it was asked: `weir:stream/events.failure`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The request is wrong; retrying cannot help.
    #[error("{0}")]
    Invalid(String),
    /// The channel's last event is in; retrying cannot help.
    #[error("the channel is finished")]
    Finished,
    /// The lease of the write's fence is not held any more: another has acquired it, or it was released. Nothing was written, and
    /// retrying cannot help.
    #[error("the lease is not held any more; nothing was written")]
    Fenced,
    /// Less would have been taken; retrying the same cannot help.
    #[error("{0}")]
    TooLarge(String),
    /// The store cannot do it now; a retry may help. What failed so may have been done all the same.
    #[error("{reason}; retry in {retry_after_ms} ms")]
    Unavailable {
        /// What is the matter, for the log.
        reason: String,
        /// When to come back.
        retry_after_ms: u64,
    },
    /// Anything else; retrying cannot help.
    #[error("{0}")]
    Other(String),
}

impl Error {
    pub(crate) fn unavailable(reason: impl Into<String>, retry_after_ms: u64) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after_ms }
    }

    /// True when the same request may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl From<EventError> for Error {
    fn from(error: EventError) -> Self {
        if error.too_large() { Self::TooLarge(error.to_string()) } else { Self::Invalid(error.to_string()) }
    }
}

impl From<ClaimsFull> for Error {
    fn from(full: ClaimsFull) -> Self {
        Self::unavailable("too many claims are held", full.retry_after_ms)
    }
}

impl From<ValuesFull> for Error {
    fn from(full: ValuesFull) -> Self {
        Self::TooLarge(format!("events.state_bytes_max: {full}"))
    }
}

/// Why a store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The folder of the file cannot be made.
    #[error("cannot create the folder of {path}")]
    Folder {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be opened: another process has it, or it is no store.
    #[error("cannot open the channel store {path}")]
    Database {
        /// The file.
        path: String,
        /// Why.
        source: Box<redb::Error>,
    },
    /// The address of Redis is not one.
    #[error("events.redis_url is not redis://host:port/database")]
    Url(#[source] redis::RedisError),
    /// The thread that writes cannot be started.
    #[error("cannot start the thread that writes events")]
    Thread(#[source] std::io::Error),
}

/// Locks what no panic can leave half-changed: nothing that holds these locks panics between two changes.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
