//! Channels of events: the exact sequence, or an explicit gap.
//!
//! A channel is a sequence of events under one name. A reader has a [`Cursor`], that of the last event it received, and
//! gets all later events, in order and once. Events that are no longer retained, were lost in a crash, or belong to an
//! earlier epoch of the channel are reported as a [`Gap`] before the rest: never a duplicate, never a silent hole.
//!
//! - [`ChannelName`]: a kind and an id, in a grammar that is safe in keys, paths and headers.
//! - [`Cursor`], [`Gap`]: positions in a channel, `epoch-seq` on the wire.
//! - [`Draft`], [`Entry`]: an event before and after a cursor is assigned.
//! - [`Log`]: the retained events of one channel, bounded by [`Retention`].
//! - [`Outbox`]: the undelivered events of one subscriber, bounded; progress events coalesce in it.
//! - [`Subscriber`]: replay from the log, then live from the outbox.
//! - [`Throttle`]: progress at a bounded rate.
//! - [`Claims`]: keys that exactly one caller obtains.
//! - [`Leases`], [`Fence`]: one owner at a time for a key, and writes of earlier owners refused.
//! - [`Shares`]: the use of a shared resource by each user, and [`eviction_order`], which evicts from the largest user
//!   first.
//! - [`Values`]: state between events, one value under one key.
//!
//! **Invariant:** two cursors that follow each other without a gap between them have the same epoch and adjacent
//! sequence numbers. Logs may have holes; a reader that crosses one gets a gap, so stores need not guarantee that there
//! are none.
//!
//! Times are milliseconds of the wall clock, since they outlive the process. They give the age of an event only; the
//! order of events is that of their cursors.

mod claims;
mod cursor;
mod event;
mod lease;
mod log;
mod name;
mod outbox;
mod shares;
mod subscriber;
#[cfg(test)]
mod tests;
mod throttle;
mod values;

pub use claims::{Claims, ClaimsFull};
pub use cursor::{Cursor, CursorError, Gap};
pub use event::{Draft, Entry, EventError, EventLimits};
pub use lease::{AcquireError, EXPIRED_MS, Fence, Leases, RELEASED_MS, StaleFence};
pub use log::{Log, Page, Retention, Seek, page, resolve};
pub use name::{ChannelName, ID_BYTES_MAX, IdError, Kind, NameError, check_id};
pub use outbox::{Item, Outbox};
pub use shares::{ShareExceeded, Shares, eviction_order};
pub use subscriber::{CloseReason, Delivery, Subscriber};
pub use throttle::Throttle;
pub use values::{Value, Values, value_bytes_of};
