//! A stream as a sink.

use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use weir_config::RedisSink as Config;
use weir_core::adapter::ResultRecord;

use super::{KEY_FIELD, connect, failure};
use crate::driver::{BoxFuture, DriverError, Rejected, Sink};

/// The most entries of one pipeline.
const PIPELINE_ENTRIES_MAX: usize = 256;

/// A stream as a sink.
pub struct RedisSink {
    config: Config,
    connection: MultiplexedConnection,
}

impl RedisSink {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or refuses the connection.
    pub async fn open(config: &Config) -> Result<Self, DriverError> {
        let timeout = Duration::from_millis(config.timeout_ms);
        let connection = connect(&config.url, &config.password_file, timeout, timeout).await?;
        Ok(Self { config: config.clone(), connection })
    }

    fn add(&self, result: &ResultRecord, pipeline: &mut redis::Pipeline) {
        let add = pipeline.cmd("XADD").arg(&self.config.stream);
        if self.config.entries_max > 0 {
            add.arg("MAXLEN").arg("~").arg(self.config.entries_max);
        }
        add.arg("*").arg(&self.config.field).arg(&result.payload);
        if let Some(key) = &result.key {
            add.arg(KEY_FIELD).arg(key);
        }
        for header in &result.headers {
            // A reader would take a header with one of these two names for the payload or the key.
            if header.name != self.config.field && header.name != KEY_FIELD {
                add.arg(&header.name).arg(&header.value);
            }
        }
    }
}

impl Sink for RedisSink {
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>> {
        Box::pin(async move {
            for part in results.chunks(PIPELINE_ENTRIES_MAX) {
                let mut pipeline = redis::pipe();
                part.iter().for_each(|result| self.add(result, &mut pipeline));
                pipeline.query_async::<Vec<Value>>(&mut self.connection).await.map_err(|error| failure(&error))?;
            }
            Ok(Vec::new())
        })
    }
}
