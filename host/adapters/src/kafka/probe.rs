//! Requests of connection checks.

use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use weir_config::KafkaSource as Config;

use super::client::{Access, REPORTS_TIMEOUT, ReportContext, blocking, failure};
use crate::driver::DriverError;

/// Runs an operation with a consumer that is not a member of a group.
async fn with_consumer<T: Send + 'static>(
    config: &Config,
    operation: impl FnOnce(&BaseConsumer<ReportContext>, Duration) -> KafkaResult<T> + Send + 'static,
) -> Result<T, DriverError> {
    let native = Access::from(config).config(&[])?;
    let timeout = Duration::from_millis(config.timeout_ms);
    let result = blocking(move || {
        let context = ReportContext::default();
        let consumer =
            BaseConsumer::from_config_and_context(&native, context.clone()).map_err(|error| failure(&error))?;
        operation(&consumer, timeout).map_err(|error| {
            // Handles the reports that have arrived.
            drop(consumer.poll(REPORTS_TIMEOUT));
            context.0.failure(&error)
        })
    });
    result.await?
}

/// The visible topics, or one of them: names and numbers of partitions.
pub(crate) async fn topics(config: &Config, topic: Option<&str>) -> Result<Vec<(String, usize)>, DriverError> {
    let topic = topic.map(str::to_owned);
    let topics = with_consumer(config, move |consumer, timeout| {
        let metadata = consumer.fetch_metadata(topic.as_deref(), timeout)?;
        let topics = metadata.topics().iter().map(|topic| match topic.error() {
            Some(error) => Err(KafkaError::MetadataFetch(error.into())),
            None => Ok((topic.name().to_owned(), topic.partitions().len())),
        });
        topics.collect()
    });
    topics.await
}

/// The number of records of the first partition of a topic. Its leader refuses a user who may not read it.
pub(crate) async fn check_read(config: &Config, topic: &str) -> Result<u64, DriverError> {
    let topic = topic.to_owned();
    let watermarks = with_consumer(config, move |consumer, timeout| consumer.fetch_watermarks(&topic, 0, timeout));
    let (low, high) = watermarks.await?;
    Ok(u64::try_from(high.saturating_sub(low)).unwrap_or(0))
}
