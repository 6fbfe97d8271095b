//! A channel as a sink.

use weir_codec::adapter::error_line::error_line;
use weir_config::ChannelSink as Config;
use weir_core::adapter::{Destination, ResultRecord};
use weir_core::channels::{ChannelName, Draft};
use weir_events::{Error, Store};

use super::{channel_name, failure};
use crate::driver::{BoxFuture, DriverError, Rejected, Sink};

/// Most events of one append, and most bytes of their data.
const APPEND_EVENTS_MAX: usize = 256;
const APPEND_BYTES_MAX: usize = 512 << 10;

/// A channel as a sink.
pub struct ChannelSink {
    store: Store,
    channel: ChannelName,
    config: Config,
}

impl ChannelSink {
    /// # Errors
    ///
    /// The name of the channel is invalid.
    pub fn open(store: &Store, config: &Config) -> Result<Self, DriverError> {
        let channel = channel_name("sink.channel", &config.channel).map_err(DriverError::Config)?;
        Ok(Self { store: store.clone(), channel, config: config.clone() })
    }

    /// The event of a result, or the reason why it cannot be an event.
    fn draft(&self, result: &ResultRecord) -> Result<Draft, String> {
        let (name, data) = match result.destination {
            Destination::Error => (&self.config.error_event, error_line(result)),
            _ => (&self.config.event, result.payload.clone()),
        };
        let data = String::from_utf8(data).map_err(|_| "the result is not UTF-8".to_owned())?;
        serde_json::from_str::<serde::de::IgnoredAny>(&data)
            .map_err(|error| format!("the result is not JSON, as the data of an event must be: {error}"))?;
        Ok(Draft::new(name.as_str(), data))
    }

    /// Appends events. If the store refuses them as a batch, they are appended one by one.
    async fn append(&self, drafts: Vec<(usize, Draft)>, rejected: &mut Vec<Rejected>) -> Result<(), DriverError> {
        if drafts.is_empty() {
            return Ok(());
        }
        let together = drafts.iter().map(|(_, draft)| draft.clone()).collect();
        match self.store.append(&self.channel, together).await {
            Ok(_) => return Ok(()),
            Err(Error::TooLarge(_) | Error::Invalid(_)) => {}
            Err(error) => return Err(failure(error)),
        }
        for (index, draft) in drafts {
            match self.store.append(&self.channel, vec![draft]).await {
                Ok(_) => {}
                Err(Error::TooLarge(reason) | Error::Invalid(reason)) => rejected.push(Rejected { index, reason }),
                Err(error) => return Err(failure(error)),
            }
        }
        Ok(())
    }
}

impl Sink for ChannelSink {
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>> {
        Box::pin(async move {
            let (mut rejected, mut drafts, mut bytes) = (Vec::new(), Vec::new(), 0);
            for (index, result) in results.iter().enumerate() {
                match self.draft(result) {
                    Err(reason) => rejected.push(Rejected { index, reason }),
                    Ok(draft) => {
                        let draft_bytes = draft.data.len();
                        if drafts.len() == APPEND_EVENTS_MAX || bytes + draft_bytes > APPEND_BYTES_MAX {
                            self.append(std::mem::take(&mut drafts), &mut rejected).await?;
                            bytes = 0;
                        }
                        bytes += draft_bytes;
                        drafts.push((index, draft));
                    }
                }
            }
            self.append(drafts, &mut rejected).await?;
            Ok(rejected)
        })
    }
}
