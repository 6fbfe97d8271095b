//! The errors of a store.

use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use weir_core::channels::{ClaimsFull, EventError, ShareExceeded};

/// The error of a store operation: `weir:stream/events.failure`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The request is wrong; retrying cannot help.
    #[error("{0}")]
    Invalid(String),
    /// The channel is finished; retrying cannot help.
    #[error("the channel is finished")]
    Finished,
    /// The lease of the write's fence is not held any more: another owner has acquired it, or it was released. Nothing
    /// was written, and retrying cannot help.
    #[error("the lease is not held any more; nothing was written")]
    Fenced,
    /// The request exceeds a bound; retrying it unchanged cannot help.
    #[error("{0}")]
    TooLarge(String),
    /// The store is unavailable; a retry may help. The operation may have been performed nevertheless.
    #[error("{reason}; retry in {retry_after_ms} ms")]
    Unavailable {
        /// The reason, for the log.
        reason: String,
        /// When to retry.
        retry_after_ms: u64,
    },
    /// The user's share is exhausted. Nothing was written; a retry may help once data of the user has expired or was
    /// deleted.
    #[error("{reason}; retry in {retry_after_ms} ms")]
    ShareExceeded {
        /// The share and its use, for the log.
        reason: String,
        /// When to retry.
        retry_after_ms: u64,
    },
    /// A bound for all users together is reached. Nothing was written; a retry may help.
    #[error("{reason}; retry in {retry_after_ms} ms")]
    Full {
        /// The bound and its use, for the log.
        reason: String,
        /// When to retry.
        retry_after_ms: u64,
    },
    /// Anything else; retrying cannot help.
    #[error("{0}")]
    Other(String),
}

/// When to retry, in milliseconds, if the bound on values is reached: room is made when values expire or are deleted.
pub(crate) const STATE_RETRY_MS: u64 = 10_000;
/// When to retry, in milliseconds, if every channel is in use.
pub(crate) const CHANNELS_RETRY_MS: u64 = 1_000;

impl Error {
    pub(crate) fn unavailable(reason: impl Into<String>, retry_after_ms: u64) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after_ms }
    }

    /// True when the same request may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::ShareExceeded { .. } | Self::Full { .. })
    }
}

impl From<EventError> for Error {
    fn from(error: EventError) -> Self {
        if error.too_large() { Self::TooLarge(error.to_string()) } else { Self::Invalid(error.to_string()) }
    }
}

impl From<ClaimsFull> for Error {
    fn from(full: ClaimsFull) -> Self {
        match full {
            ClaimsFull::Total { retry_after_ms } => Self::unavailable("too many claims are held", retry_after_ms),
            ClaimsFull::User { .. } => Self::ShareExceeded {
                reason: format!("events.user_percent_max of events.claims_max: {full}"),
                retry_after_ms: STATE_RETRY_MS,
            },
        }
    }
}

impl Error {
    /// A value does not fit into `events.state_bytes_max` or into the user's share of it.
    pub(crate) fn state(exceeded: ShareExceeded) -> Self {
        let retry_after_ms = STATE_RETRY_MS;
        match exceeded {
            ShareExceeded::User { .. } => Self::ShareExceeded {
                reason: format!("events.user_percent_max of events.state_bytes_max: {exceeded}"),
                retry_after_ms,
            },
            ShareExceeded::Total { .. } => {
                Self::Full { reason: format!("events.state_bytes_max: {exceeded}"), retry_after_ms }
            }
        }
    }

    /// The user's share of channels is exhausted, and all of them are followed.
    pub(crate) fn channel_share(channels_max: usize) -> Self {
        Self::ShareExceeded {
            reason: format!(
                "events.user_percent_max of events.channels_max: the user has {channels_max} channels, and all of them are followed"
            ),
            retry_after_ms: CHANNELS_RETRY_MS,
        }
    }

    /// The number of channels is at its maximum, and all of them are followed.
    pub(crate) fn channels_full() -> Self {
        let reason = "events.channels_max: every channel that fits is followed".to_owned();
        Self::Full { reason, retry_after_ms: CHANNELS_RETRY_MS }
    }
}

/// The reason why a store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The folder of the file cannot be created.
    #[error("cannot create the folder of {path}")]
    Folder {
        /// The file.
        path: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file cannot be opened: another process has opened it, or it is not a store.
    #[error("cannot open the channel store {path}")]
    Database {
        /// The file.
        path: String,
        /// The error of the database.
        source: Box<redb::Error>,
    },
    /// The address of Redis is invalid.
    #[error("events.redis_url is not redis://host:port/database")]
    Url(#[source] redis::RedisError),
    /// The writer thread cannot be started.
    #[error("cannot start the thread that writes events")]
    Thread(#[source] std::io::Error),
}

/// Locks a mutex even if it is poisoned: no holder of these locks panics between two changes, so the value is
/// consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
