//! What every kind of storage takes and reports: the terms of a write, its health, and its usage.

use std::sync::Arc;

use weir_core::channels::Fence;

use crate::config::StoreKind;

/// The conditions of a write.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteContext<'a> {
    /// The lease that must be held.
    pub fence: Option<&'a Fence>,
    /// The user whose share it counts towards; none for the server's own writes, and where users are not identified.
    pub user: Option<&'a str>,
}

/// How much of a store's bounds is in use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) state_bytes: usize,
    pub(crate) claims: usize,
}

/// The health of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its configured kind.
    pub store: StoreKind,
    /// True when appends are accepted, even if only in memory.
    pub ok: bool,
    /// True when memory replaces Redis: new events are visible in this process only, and are not stored.
    pub fallback: bool,
    /// The reason, for people.
    pub detail: Option<String>,
    /// The run of a server elsewhere, where a restart of it may lose acknowledged writes, claims included.
    pub life: Option<Arc<str>>,
}
