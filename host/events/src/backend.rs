//! Types that all kinds of storage share: the conditions of a write, the health of a store, and its usage.

use std::sync::Arc;

use weir_core::channels::Fence;

use crate::config::StoreKind;

/// The conditions of a write.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteContext<'a> {
    /// The lease that must be held.
    pub fence: Option<&'a Fence>,
    /// The user whose share the write counts towards; none for the server's own writes, and where users are not
    /// identified.
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
    /// Why it is not healthy, as text; none when it is.
    pub detail: Option<String>,
    /// The run id of the Redis server, if a restart of that server may lose acknowledged writes, claims included.
    pub life: Option<Arc<str>>,
}
