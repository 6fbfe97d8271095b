//! A subject as a sink.

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
        for (index, result) in results.iter().enumerate() {
            if sent.len() == UNACKNOWLEDGED_MAX {
                self.receive_acknowledgements(&mut sent, &mut rejected).await?;
            }
            let headers = headers(result);
            let (bytes, bytes_max) = (headers_bytes(&headers) + result.payload.len(), self.client.message_bytes_max());
            if bytes > bytes_max {
                let reason = format!("it has {bytes} bytes with its headers, and NATS accepts at most {bytes_max}");
                rejected.push(Rejected { index, reason });
                continue;
            }
            sent.push((index, self.client.send_request(&self.subject, &headers, &result.payload).await?));
        }
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
        for (index, reply) in sent.drain(..) {
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
fn headers(result: &ResultRecord) -> Vec<Header> {
    let key = result.key.as_ref().map(|key| Header::new(KEY_HEADER, key.as_slice()));
    result.headers.iter().cloned().chain(key).collect()
}

impl Sink for NatsSink {
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>> {
        Box::pin(self.write_all(results))
    }
}
