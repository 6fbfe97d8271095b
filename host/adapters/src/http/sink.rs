//! A webhook as a sink: a POST for each result, signed by Standard Webhooks (<https://www.standardwebhooks.com>).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64ct::{Base64, Encoding as _};
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, Limited};
use sha2::{Digest as _, Sha256};
use weir_codec::adapter::error_line::error_line;
use weir_config::HttpSink as Config;
use weir_core::adapter::{Destination, ResultRecord};
use weir_core::inference::retry::{Retry, RetryConfig};
use weir_core::random::SplitMix64;
use weir_telemetry::{SpanContext, TRACEPARENT};

use super::client::{Connection, Target, refusal};
use crate::RECORD_ID_HEADER;
use crate::driver::{BoxFuture, DriverError, Rejected, Sink};
use crate::redis::secret;

/// The most bytes that are read of a response, so that its connection can be reused.
const RESPONSE_BYTES_MAX: usize = 64 << 10;
/// The longest delay between attempts, ms.
const BACKOFF_MS_MAX: u32 = 60_000;
/// The prefix of a secret of Standard Webhooks in base64.
const SECRET_PREFIX: &str = "whsec_";

/// A webhook as a sink.
pub struct HttpSink {
    config: Config,
    target: Target,
    token: Option<String>,
    key: Option<Vec<u8>>,
    connection: Option<Connection>,
    random: SplitMix64,
    /// The record of the last result, and the number of its results before that one.
    last: Option<(String, u64)>,
    /// The number of results without the id of a record.
    count: u64,
}

impl HttpSink {
    /// Reads the secrets. The connection is opened for the first result.
    ///
    /// # Errors
    ///
    /// The URL is invalid, or a secret cannot be read.
    pub fn open(config: &Config, seed: u64) -> Result<Self, DriverError> {
        let read = |path: &std::path::Path| match path.as_os_str().is_empty() {
            true => Ok(None),
            false => secret(path).map(Some),
        };
        let key = match read(&config.secret_file)? {
            None => None,
            Some(text) => match text.strip_prefix(SECRET_PREFIX) {
                Some(encoded) => Some(Base64::decode_vec(encoded).map_err(|_| {
                    DriverError::Config(format!("{} is not base64 after `whsec_`", config.secret_file.display()))
                })?),
                None => Some(text.into_bytes()),
            },
        };
        Ok(Self {
            target: Target::http(&config.url)?,
            token: read(&config.token_file)?,
            key,
            config: config.clone(),
            connection: None,
            random: SplitMix64::new(seed),
            last: None,
            count: 0,
        })
    }

    /// The id of a result. It is the same at each delivery of the same result of the same record.
    fn id(&mut self, result: &ResultRecord) -> String {
        let record = match result.header(RECORD_ID_HEADER) {
            Some(id) => id.to_owned(),
            None => {
                self.count += 1;
                format!("{}", self.count)
            }
        };
        let number = match &self.last {
            Some((last, number)) if *last == record => number + 1,
            _ => 0,
        };
        self.last = Some((record.clone(), number));
        let mut digest = Sha256::new();
        for part in [result.origin.as_bytes(), record.as_bytes(), &number.to_le_bytes(), &result.payload] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let digest = digest.finalize();
        format!("msg_{}", digest[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Delivers a result, with the configured number of attempts.
    async fn deliver(&mut self, result: &ResultRecord) -> Result<(), Undelivered> {
        let id = self.id(result);
        // A header of the source that is no trace context is not passed on.
        let trace = result.header(TRACEPARENT).filter(|trace| trace.parse::<SpanContext>().is_ok()).map(str::to_owned);
        let body = match result.destination {
            Destination::Error => error_line(result),
            _ => result.payload.clone(),
        };
        let retry = RetryConfig {
            max_attempts: self.config.max_retries.saturating_add(1),
            base_backoff_ms: self.config.retry_delay_ms,
            backoff_ms_max: BACKOFF_MS_MAX,
            ..RetryConfig::default()
        };
        let mut attempts = Retry::new();
        loop {
            let failure = match self.post(&id, trace.as_deref(), &body).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let retry_after_ms = match &failure {
                DriverError::Config(reason) => return Err(Undelivered::Refused(reason.clone())),
                DriverError::Denied(_) => return Err(Undelivered::Failed(failure)),
                DriverError::Transport { retry_after_ms, .. } => retry_after_ms.unwrap_or(0),
                DriverError::Exhausted { .. } => 0,
            };
            // A request may be incomplete on the connection.
            self.connection = None;
            let Some(delay_ns) = attempts.next_delay_ns(&retry, self.random.next_u64()) else {
                return Err(Undelivered::Failed(failure));
            };
            tracing::debug!(url = self.config.url, %failure, "a webhook is sent again");
            tokio::time::sleep(Duration::from_nanos(delay_ns).max(Duration::from_millis(retry_after_ms))).await;
        }
    }

    async fn post(&mut self, id: &str, trace: Option<&str>, body: &[u8]) -> Result<(), DriverError> {
        let timeout = Duration::from_millis(self.config.timeout_ms);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.target.connect(timeout).await?,
        };
        let mut request = self.target.request(http::Method::POST);
        request = request.header(CONTENT_TYPE, "application/json").header("idempotency-key", id);
        if let Some(trace) = trace {
            request = request.header(TRACEPARENT, trace);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = &self.key {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let signature = signature(key, id, now, body);
            request = request.header("webhook-id", id).header("webhook-timestamp", now.to_string());
            request = request.header("webhook-signature", signature);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body)));
        let request = request.map_err(|error| DriverError::Config(error.to_string()))?;
        let response = connection.send(request, timeout).await?;
        let refused = refusal(&response);
        // After the whole response is read, the connection can be reused.
        let read = Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect();
        if tokio::time::timeout(timeout, read).await.is_ok_and(|read| read.is_ok()) {
            self.connection = Some(connection);
        }
        refused.map_or(Ok(()), Err)
    }
}

/// The reason why a result was not delivered.
enum Undelivered {
    /// The receiver refuses this result.
    Refused(String),
    /// The receiver does not respond, or refuses the credentials.
    Failed(DriverError),
}

/// The signature of Standard Webhooks: `v1,` and HMAC-SHA256 of `id.timestamp.payload` in base64.
fn signature(key: &[u8], id: &str, timestamp: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", Base64::encode_string(&mac.finalize().into_bytes()))
}

impl Sink for HttpSink {
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>> {
        Box::pin(async move {
            let mut rejected = Vec::new();
            for (index, result) in results.iter().enumerate() {
                match self.deliver(result).await {
                    Ok(()) => {}
                    Err(Undelivered::Refused(reason)) => rejected.push(Rejected { index, reason }),
                    Err(Undelivered::Failed(failure)) => return Err(failure),
                }
            }
            Ok(rejected)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn signature_is_that_of_the_specification() {
        let key = Base64::decode_vec("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
