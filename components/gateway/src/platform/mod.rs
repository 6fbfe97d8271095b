//! What the rest stands on: bindings, clocks, settings, leases, failures of the store, what it is still read for, and how tasks of one instance wait for each other.

pub(crate) mod bindings;
pub(crate) mod clock;
pub(crate) mod lease;
pub(crate) mod notify;
pub(crate) mod restoration;
pub(crate) mod settings;
pub(crate) mod store;
pub(crate) mod turns;
pub(crate) mod wording;
