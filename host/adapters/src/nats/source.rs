//! A durable pull consumer as a source.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use weir_config::NatsSource as Config;
use weir_core::adapter::{Header, Position, SourceRecord};
use weir_core::wording::counted;

use super::KEY_HEADER;
use super::access::Access;
use super::connection::{Client, Subscription};
use super::jetstream::{self, Delivery, NO_RESPONDERS};
use super::protocol::Message;
use crate::RECORD_ID_HEADER;
use crate::driver::{BoxFuture, Committer, DriverError, Read, Safe, Source};

/// The most messages of one request.
const REQUEST_MESSAGES_MAX: usize = 256;
/// The bytes of the messages of one request, unless two of the largest messages have more.
const REQUEST_BYTES: usize = 16 << 20;
/// The most status messages of the server about requests that wait to be received.
const STATUS_MESSAGES_MAX: usize = 16;
/// The shortest time between two reports of messages in progress.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The payload of an acknowledgement.
const ACKNOWLEDGEMENT: &[u8] = b"+ACK";
/// How long a read waits for further messages that the server is about to send.
const ARRIVAL_DELAY: Duration = Duration::from_millis(5);
/// The statuses with which a request ends normally: there are no messages, or it has expired.
const REQUEST_ENDS: [u16; 2] = [404, 408];
/// The status of a request that ended for another reason, and the reasons after which another request may follow at once.
const CONFLICT: u16 = 409;
const BYTES_EXCEEDED: &str = "Message Size Exceeds MaxBytes";
const BATCH_COMPLETED: &str = "Batch Completed";

/// A message that is not acknowledged.
struct Unacknowledged {
    /// Its number in the stream.
    sequence: u64,
    /// The subject of its acknowledgement.
    reply: String,
}

/// The messages that are not acknowledged.
#[derive(Default)]
struct InFlight {
    /// By the offset of their record.
    messages: BTreeMap<u64, Unacknowledged>,
    /// The offsets, by the number in the stream.
    offsets: BTreeMap<u64, u64>,
    offset_next: u64,
}

type Shared = Arc<Mutex<InFlight>>;

fn lock(shared: &Shared) -> MutexGuard<'_, InFlight> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream of JetStream as a source.
pub struct NatsSource {
    client: Client,
    config: Config,
    /// The subject of requests for messages.
    requests: String,
    /// The messages and statuses that the server sends for them.
    replies: Subscription,
    batch_max: usize,
    /// The messages of the open request that were not delivered, and whether it has delivered any.
    requested: usize,
    has_delivered: bool,
    /// When the server ends the open request at the latest.
    request_end: Instant,
    /// A message that was received and left for the next read, since only one of the two is dead.
    next: Option<(Message, Delivery)>,
    remaining: Option<u64>,
    shared: Shared,
    _progress: AbortOnDropHandle<()>,
}

/// Acknowledges messages.
pub struct NatsCommitter {
    client: Client,
    shared: Shared,
}

/// Connects, and creates the consumer if it is missing. `sinks` are the subjects of the adapter's sinks at the same servers.
///
/// # Errors
///
/// No server can be reached, or one refuses; the stream does not exist; the consumer would lose messages, or deliver the results.
pub async fn open(config: &Config, sinks: &[&str]) -> Result<(NatsSource, NatsCommitter), DriverError> {
    let client = Client::connect(&Access::from(config)).await?;
    let stream = jetstream::stream(&client, &config.stream).await?;
    let consumer = match jetstream::consumer(&client, config).await? {
        Some(consumer) => consumer,
        None => jetstream::create_consumer(&client, config).await?,
    };
    let delivers = |subject: &&&str| stream.has_subject(subject) && consumer.has_subject(subject);
    if let Some(subject) = sinks.iter().find(delivers) {
        return Err(DriverError::Config(format!(
            "the consumer `{}` of the stream `{}` delivers the subject `{subject}` of a sink, so each result would become a record; \
             give source.subject",
            config.consumer, config.stream
        )));
    }
    let replies = client.subscribe(REQUEST_MESSAGES_MAX + STATUS_MESSAGES_MAX).await?;
    let shared = Shared::default();
    let progress = report_progress(client.clone(), shared.clone(), consumer.ack_wait() / 3);
    let source = NatsSource {
        client: client.clone(),
        config: config.clone(),
        requests: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", config.stream, config.consumer),
        replies,
        batch_max: consumer.batch_max().min(REQUEST_MESSAGES_MAX),
        requested: 0,
        has_delivered: true,
        request_end: Instant::now(),
        next: None,
        remaining: Some(consumer.num_pending),
        shared: shared.clone(),
        _progress: AbortOnDropHandle::new(tokio::spawn(progress)),
    };
    Ok((source, NatsCommitter { client, shared }))
}

/// Reports regularly that messages in flight are in progress, so that the server does not deliver them again while the model is slow.
async fn report_progress(client: Client, shared: Shared, interval: Duration) {
    let mut ticks = tokio::time::interval(interval.max(PROGRESS_INTERVAL_MIN));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let subjects: Vec<String> = lock(&shared).messages.values().map(|message| message.reply.clone()).collect();
        for subject in subjects {
            if client.publish(&subject, b"+WPI").await.is_err() {
                // The source reports the lost connection.
                return;
            }
        }
    }
}

impl NatsSource {
    /// Reads messages that are not in flight already: those that have arrived and that the server is sending, or else the next one.
    async fn next(&mut self, max: usize) -> Result<Read, DriverError> {
        let (mut records, mut is_dead, mut end) = (Vec::new(), false, None);
        while records.len() < max {
            let received = match self.next.take() {
                Some(received) => Some(received),
                None if records.is_empty() => Some(self.receive(max).await?),
                None => {
                    let end = *end.get_or_insert_with(|| Instant::now() + ARRIVAL_DELAY);
                    self.receive_further(end).await?
                }
            };
            let Some((message, delivery)) = received else { break };
            let exceeds = delivery.delivered > self.config.deliveries_max;
            if !records.is_empty() && exceeds != is_dead {
                self.next = Some((message, delivery));
                break;
            }
            is_dead = exceeds;
            self.remaining = Some(delivery.pending);
            records.extend(self.record(message, delivery));
        }
        match is_dead {
            false => Ok(Read::Records(records)),
            true => {
                let deliveries = counted(self.config.deliveries_max, "time");
                Ok(Read::Dead(records, format!("it was delivered more than {deliveries} without an acknowledgement")))
            }
        }
    }

    /// Waits for a message, with an open request for at most `max` messages.
    async fn receive(&mut self, max: usize) -> Result<(Message, Delivery), DriverError> {
        loop {
            if let Some(received) = self.try_receive()? {
                return Ok(received);
            }
            if self.requested == 0 {
                self.request(max).await?;
            }
            // If the request expired while nothing was read, its status may still be in transit.
            let end = self.request_end.max(Instant::now()) + self.client.timeout();
            match tokio::time::timeout_at(end, self.replies.messages.recv()).await {
                Ok(Some(message)) => {
                    if let Some(received) = self.handle(message)? {
                        return Ok(received);
                    }
                }
                Ok(None) => return Err(self.client.failure()),
                Err(_) => return Err(DriverError::transport("NATS does not answer requests for messages")),
            }
        }
    }

    /// A message that has arrived, or that arrives until `end` if the stream has more of the open request.
    async fn receive_further(&mut self, end: Instant) -> Result<Option<(Message, Delivery)>, DriverError> {
        loop {
            let received = self.try_receive()?;
            if received.is_some() || self.requested == 0 || self.remaining == Some(0) {
                return Ok(received);
            }
            // `receive` reports the end of the connection.
            let Ok(Some(message)) = tokio::time::timeout_at(end, self.replies.messages.recv()).await else {
                return Ok(None);
            };
            if let Some(received) = self.handle(message)? {
                return Ok(Some(received));
            }
        }
    }

    /// A message that has arrived.
    fn try_receive(&mut self) -> Result<Option<(Message, Delivery)>, DriverError> {
        // `receive` reports the end of the connection.
        while let Ok(message) = self.replies.messages.try_recv() {
            if let Some(received) = self.handle(message)? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    /// Requests messages. The request expires after the timeout.
    async fn request(&mut self, max: usize) -> Result<(), DriverError> {
        let batch = max.min(self.batch_max);
        let expires = self.client.timeout();
        let request = json!({
            "batch": batch,
            "max_bytes": self.request_bytes(),
            "expires": u64::try_from(expires.as_nanos()).unwrap_or(u64::MAX),
        });
        self.client.publish_for(&self.requests, &self.replies.subject, request.to_string().as_bytes()).await?;
        self.requested = batch;
        self.has_delivered = false;
        self.request_end = Instant::now() + expires;
        Ok(())
    }

    /// The most bytes of a request: the largest message fits, with its subjects.
    fn request_bytes(&self) -> usize {
        self.client.message_bytes_max().saturating_mul(2).max(REQUEST_BYTES)
    }

    /// Handles a message of the server; returns it if it is one of the stream.
    fn handle(&mut self, message: Message) -> Result<Option<(Message, Delivery)>, DriverError> {
        let Some(status) = &message.status else {
            let invalid = || DriverError::transport(format!("`{}` is not an acknowledgement of NATS", message.reply));
            let delivery = Delivery::parse(&message.reply).ok_or_else(invalid)?;
            self.requested = self.requested.saturating_sub(1);
            self.has_delivered = true;
            return Ok(Some((message, delivery)));
        };
        let (consumer, description) = (&self.config.consumer, &status.description);
        let reason = match status.code {
            code if REQUEST_ENDS.contains(&code) => {
                self.requested = 0;
                return Ok(None);
            }
            CONFLICT if description == BATCH_COMPLETED || (description == BYTES_EXCEEDED && self.has_delivered) => {
                self.requested = 0;
                return Ok(None);
            }
            CONFLICT if description == BYTES_EXCEEDED => {
                format!("a message of `{}` has more than {} bytes", self.config.stream, self.request_bytes())
            }
            NO_RESPONDERS => format!("NATS has no consumer `{consumer}` any more"),
            code => format!("NATS has ended a request of the consumer `{consumer}`: {code} {description}"),
        };
        Err(DriverError::transport(reason))
    }

    /// The record of a message; none if it is in flight already.
    fn record(&mut self, message: Message, delivery: Delivery) -> Option<SourceRecord> {
        let mut shared = lock(&self.shared);
        let InFlight { messages, offsets, offset_next } = &mut *shared;
        if let Some(open) = offsets.get(&delivery.sequence).and_then(|offset| messages.get_mut(offset)) {
            open.reply = message.reply;
            return None;
        }
        let offset = *offset_next;
        *offset_next += 1;
        messages.insert(offset, Unacknowledged { sequence: delivery.sequence, reply: message.reply });
        offsets.insert(delivery.sequence, offset);
        drop(shared);
        let (mut headers, mut key) = (Vec::with_capacity(message.headers.len() + 1), None);
        for header in message.headers {
            if header.name.eq_ignore_ascii_case(KEY_HEADER) {
                key = Some(header.value);
            } else if !header.name.eq_ignore_ascii_case(RECORD_ID_HEADER) {
                headers.push(header);
            }
        }
        headers.push(Header::new(RECORD_ID_HEADER, format!("{}-{}", self.config.stream, delivery.sequence)));
        Some(SourceRecord {
            payload: message.payload.to_vec(),
            key,
            headers,
            origin: message.subject,
            position: Position { partition: 0, offset },
        })
    }
}

impl Source for NatsSource {
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
        Box::pin(self.next(max))
    }

    fn remaining(&self) -> Option<u64> {
        self.remaining
    }
}

impl NatsCommitter {
    /// Acknowledges messages, and waits until the server has recorded it, so that no message with a result is delivered again after a crash.
    async fn acknowledge(&self, safe: &Safe) -> Result<(), DriverError> {
        let subjects: Vec<String> = {
            let shared = lock(&self.shared);
            let reply = |offset: u64| shared.messages.get(&offset).map(|message| message.reply.clone());
            safe.completed.iter().filter_map(|position| reply(position.offset)).collect()
        };
        if let Some((last, others)) = subjects.split_last() {
            let mut batch = self.client.batch();
            for subject in others {
                batch.publish(subject, ACKNOWLEDGEMENT).await?;
            }
            // The server records the acknowledgements of a connection in their order, so its reply to the last one is for all.
            let reply = batch.request(last, &[], ACKNOWLEDGEMENT).await?;
            batch.send().await?;
            let reply = reply.receive().await?;
            if reply.status.is_some_and(|status| status.code == NO_RESPONDERS) {
                return Err(DriverError::transport("NATS has no consumer for an acknowledgement any more"));
            }
        }
        let mut shared = lock(&self.shared);
        for position in &safe.completed {
            if let Some(message) = shared.messages.remove(&position.offset) {
                shared.offsets.remove(&message.sequence);
            }
        }
        Ok(())
    }
}

impl Committer for NatsCommitter {
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(self.acknowledge(safe))
    }
}
