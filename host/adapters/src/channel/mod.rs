//! Channels of this server as sources and sinks.
//!
//! - `source`: events as records. They are read in pages, so that a slow adapter is not closed as a slow subscriber. The position is a
//!   value of the store.
//! - `sink`: results as events.

mod sink;
mod source;

use weir_core::channels::ChannelName;
use weir_events::Error;

pub use sink::ChannelSink;
pub use source::{ChannelCommitter, ChannelSource, open};

use crate::driver::DriverError;

/// The kind of the values with positions of adapters.
const POSITION_KIND: &str = "adapter";

/// The name of a channel in a configuration.
pub(crate) fn channel_name(key: &str, name: &str) -> Result<ChannelName, String> {
    name.parse().map_err(|error| format!("{key} `{name}`: {error}"))
}

fn failure(error: Error) -> DriverError {
    match error {
        Error::Unavailable { reason, retry_after_ms }
        | Error::ShareExceeded { reason, retry_after_ms }
        | Error::Full { reason, retry_after_ms } => {
            DriverError::Transport { reason, retry_after_ms: Some(retry_after_ms) }
        }
        other => DriverError::Config(other.to_string()),
    }
}
