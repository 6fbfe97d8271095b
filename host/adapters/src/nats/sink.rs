//! A subject as a sink.

use std::borrow::Cow;

use weir_config::NatsSink as Config;
use weir_core::adapter::{Header, ResultRecord};

use super::KEY_HEADER;
use super::access::Access;
use super::connection::{Client, PendingReply};
use super::jetstream::{PublishError, check_stored};
use super::protocol::headers_bytes;
use crate::driver::{BoxFuture, DriverError, Rejected, Sink};

/// Results that are sent before the first is acknowledged.
const UNACKNOWLEDGED_MAX: usize = 256;

/// A subject as a sink.
pub struct NatsSink {
    subject: String,
    client: Client,
}

impl NatsSink {
    /// Connects.
    ///
    /// # Errors
    ///
    /// No server can be reached, or one refuses the connection.
    pub async fn open(config: &Config) -> Result<Self, DriverError> {
        Ok(Self { subject: config.subject.clone(), client: Client::connect(&Access::from(config)).await? })
    }

    /// Publishes results in their order, and waits until the stream has stored all of them.
    async fn write_all(&self, results: &[ResultRecord]) -> Result<Vec<Rejected>, DriverError> {
        let (mut rejected, mut sent) = (Vec::new(), Vec::new());
        let mut batch = self.client.batch();
        for (index, result) in results.iter().enumerate() {
            if sent.len() == UNACKNOWLEDGED_MAX {
                std::mem::replace(&mut batch, self.client.batch()).send().await?;
                self.receive_acknowledgements(&mut sent, &mut rejected).await?;
            }
            let headers = headers(result);
            let (bytes, bytes_max) = (headers_bytes(&headers) + result.payload.len(), self.client.message_bytes_max());
            if bytes > bytes_max {
                let reason = format!("it has {bytes} bytes with its headers, and NATS accepts at most {bytes_max}");
                rejected.push(Rejected { index, reason });
                continue;
            }
            sent.push((index, batch.request(&self.subject, &headers, &result.payload).await?));
        }
        batch.send().await?;
        self.receive_acknowledgements(&mut sent, &mut rejected).await?;
        rejected.sort_by_key(|rejected| rejected.index);
        Ok(rejected)
    }

    /// Waits until the sent results are stored.
    async fn receive_acknowledgements(
        &self,
        sent: &mut Vec<(usize, PendingReply)>,
        rejected: &mut Vec<Rejected>,
    ) -> Result<(), DriverError> {
        // The server answers in the order of the requests: once the last reply has arrived, no other one has to be waited for.
        for (index, reply) in sent.drain(..).rev() {
            match check_stored(&self.subject, &reply.receive().await?) {
                Ok(()) => {}
                Err(PublishError::TooLarge(reason)) => rejected.push(Rejected { index, reason }),
                Err(PublishError::Failed(failure)) => return Err(failure),
            }
        }
        Ok(())
    }
}

/// The headers of a result, with its key.
fn headers(result: &ResultRecord) -> Cow<'_, [Header]> {
    match &result.key {
        None => Cow::Borrowed(&result.headers),
        Some(key) => result.headers.iter().cloned().chain([Header::new(KEY_HEADER, key.as_slice())]).collect(),
    }
}

impl Sink for NatsSink {
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>> {
        Box::pin(self.write_all(results))
    }
}
