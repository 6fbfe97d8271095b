//! A feed whose messages are records.
//!
//! A separate task owns the connection, so that pings are sent while the adapter reads no records. Without room for messages, the task does
//! not read the connection, so that the server waits.

use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use weir_config::WebSocketSource as Config;
use weir_core::adapter::{Position, Reconnect, ReconnectConfig, SourceRecord};
use weir_core::random::SplitMix64;
use weir_websocket::{Error, Message};

use super::client::{Socket, closed, connect, failure};
use crate::driver::{BoxFuture, Committer, DriverError, Read, Safe, Source};
use crate::http::client::Target;
use crate::redis::secret;

/// The most messages that the task sends at once, and the bytes from which it sends them, and from which a read ends. The adapter is woken for
/// each list.
const MESSAGES_MAX: usize = 64;
const MESSAGES_BYTES: usize = 1 << 20;
/// The most lists between the task and the adapter.
const LISTS_MAX: usize = 1;

/// The payloads of messages.
type Payloads = Vec<Vec<u8>>;

/// A feed as a source.
pub struct WebSocketSource {
    url: String,
    messages: mpsc::Receiver<Result<Payloads, DriverError>>,
    /// The messages of the last list that were not read yet.
    rest: std::vec::IntoIter<Vec<u8>>,
    /// The failure after the last message.
    failure: Option<DriverError>,
    offset: u64,
    _task: AbortOnDropHandle<()>,
}

/// Commits nothing, since a feed has no positions.
pub struct WebSocketCommitter;

/// Connects.
///
/// # Errors
///
/// The URL or a secret is invalid, or the server cannot be reached or refuses.
pub async fn open(
    config: &Config,
    delay_ms_max: u64,
    seed: u64,
) -> Result<(WebSocketSource, WebSocketCommitter), DriverError> {
    let token = match config.token_file.as_os_str().is_empty() {
        true => None,
        false => Some(secret(&config.token_file)?),
    };
    let reconnect = ReconnectConfig {
        attempts_max: config.max_reconnect_attempts,
        delay_ms: config.reconnect_delay_ms,
        delay_ms_max,
        ..ReconnectConfig::default()
    };
    let mut feed = Feed {
        target: Target::websocket(&config.url)?,
        config: config.clone(),
        token,
        reconnect: Reconnect::new(reconnect),
        random: SplitMix64::new(seed),
        began: Instant::now(),
    };
    let socket = feed.connect().await?;
    let (sender, messages) = mpsc::channel(LISTS_MAX);
    let task = AbortOnDropHandle::new(tokio::spawn(feed.run(socket, sender)));
    let rest = Vec::new().into_iter();
    let source = WebSocketSource { url: config.url.clone(), messages, rest, failure: None, offset: 0, _task: task };
    Ok((source, WebSocketCommitter))
}

/// The task of a feed.
struct Feed {
    target: Target,
    config: Config,
    token: Option<String>,
    reconnect: Reconnect,
    random: SplitMix64,
    began: Instant,
}

/// The end of a connection.
enum FeedEnd {
    /// The server has ended the feed, or the adapter has dropped the source.
    Ended,
    /// The connection is lost.
    Lost(DriverError),
}

impl Feed {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn connect(&mut self) -> Result<Socket, DriverError> {
        let socket = connect(&self.config, &self.target, self.token.as_deref()).await?;
        let now = self.now();
        self.reconnect.handle_connected(now);
        Ok(socket)
    }

    /// Reads the feed until it ends, or until it cannot be reached, which is sent as the last message.
    async fn run(mut self, socket: Socket, sender: mpsc::Sender<Result<Payloads, DriverError>>) {
        let mut connected = Ok(socket);
        loop {
            let lost = match connected {
                Ok(socket) => match self.read(socket, &sender).await {
                    FeedEnd::Ended => return,
                    FeedEnd::Lost(lost) => lost,
                },
                Err(refused) => refused,
            };
            let least_ms = match &lost {
                DriverError::Transport { retry_after_ms, .. } => *retry_after_ms,
                _ => None,
            };
            let (now, random) = (self.now(), self.random.next_u64());
            let delay_ns = lost.is_retryable().then(|| self.reconnect.handle_lost(now, least_ms, random)).flatten();
            let Some(delay_ns) = delay_ns else {
                // An error means that the adapter has ended.
                let _ = sender.send(Err(lost.after_attempts(self.reconnect.attempts()))).await;
                return;
            };
            tracing::info!(url = self.config.url, failure = %lost, after_ms = delay_ns / 1_000_000, "the feed is connected again");
            tokio::time::sleep(Duration::from_nanos(delay_ns)).await;
            connected = self.connect().await;
        }
    }

    /// Reads one connection.
    async fn read(&self, mut socket: Socket, sender: &mpsc::Sender<Result<Payloads, DriverError>>) -> FeedEnd {
        let heartbeat = Duration::from_millis(self.config.heartbeat_ms.max(1));
        let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_received = Instant::now();
        let mut room = None;
        loop {
            tokio::select! {
                reserved = sender.reserve(), if room.is_none() => match reserved {
                    Ok(permit) => {
                        room = Some(permit);
                        // Nothing was read while there was no room.
                        last_received = Instant::now();
                    }
                    Err(_) => return FeedEnd::Ended,
                },
                message = socket.next(), if room.is_some() => {
                    last_received = Instant::now();
                    let (payloads, end) = receive(&mut socket, message).await;
                    if !payloads.is_empty()
                        && let Some(permit) = room.take()
                    {
                        permit.send(Ok(payloads));
                    }
                    if let Some(end) = end {
                        return end;
                    }
                }
                _ = ping.tick() => {
                    if room.is_some() && last_received.elapsed() > heartbeat * 2 {
                        let waited_ms = last_received.elapsed().as_millis();
                        return FeedEnd::Lost(DriverError::transport(format!("no data and no pong has arrived for {waited_ms} ms")));
                    }
                    let sending = socket.ping(b"");
                    match tokio::time::timeout(heartbeat, sending).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return FeedEnd::Lost(failure(&error)),
                        Err(_) => return FeedEnd::Lost(DriverError::transport("the server does not read pings")),
                    }
                }
            }
        }
    }
}

/// The payloads of a message and of those that have arrived after it, and the end of the connection, if it follows them.
async fn receive(socket: &mut Socket, first: Option<Result<Message, Error>>) -> (Payloads, Option<FeedEnd>) {
    let (mut payloads, mut bytes, mut next) = (Vec::new(), 0, Some(first));
    while let Some(message) = next {
        match handle(socket, message).await {
            Ok(Some(payload)) => {
                bytes += payload.len();
                payloads.push(payload);
            }
            Ok(None) => {}
            Err(end) => return (payloads, Some(end)),
        }
        let has_room = payloads.len() < MESSAGES_MAX && bytes < MESSAGES_BYTES;
        next = if has_room { socket.next().now_or_never() } else { None };
    }
    (payloads, None)
}

/// Handles a message; returns its payload, if it has one for the adapter.
async fn handle(socket: &mut Socket, message: Option<Result<Message, Error>>) -> Result<Option<Vec<u8>>, FeedEnd> {
    match message {
        Some(Ok(Message::Text(text))) => Ok(Some(text.into_bytes())),
        Some(Ok(Message::Binary(payload))) => Ok(Some(payload)),
        // A pong waits for the next write.
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => match socket.flush().await {
            Ok(()) => Ok(None),
            Err(error) => Err(FeedEnd::Lost(failure(&error))),
        },
        Some(Ok(Message::Close(frame))) => {
            // The close frame of the response is best effort.
            let _ = tokio::time::timeout(Duration::from_secs(1), socket.flush()).await;
            Err(closed(frame.as_ref()).map_or(FeedEnd::Ended, FeedEnd::Lost))
        }
        Some(Err(error)) => Err(FeedEnd::Lost(failure(&error))),
        None => Err(FeedEnd::Lost(DriverError::transport("the server has closed the connection"))),
    }
}

impl WebSocketSource {
    async fn next(&mut self, max: usize) -> Result<Read, DriverError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        loop {
            while records.len() < max
                && let Some(payload) = self.rest.next()
            {
                bytes += payload.len();
                records.push(self.record(payload));
            }
            if records.len() == max || bytes >= MESSAGES_BYTES {
                return Ok(Read::Records(records));
            }
            let received = match records.is_empty() {
                true => match self.failure.take() {
                    Some(failure) => return Err(failure),
                    None => self.messages.recv().await,
                },
                false => match self.messages.try_recv() {
                    Ok(received) => Some(received),
                    Err(_) => return Ok(Read::Records(records)),
                },
            };
            match received {
                Some(Ok(payloads)) => self.rest = payloads.into_iter(),
                // Records that were received before it are returned first.
                Some(Err(failure)) => {
                    self.failure = Some(failure);
                    if !records.is_empty() {
                        return Ok(Read::Records(records));
                    }
                }
                None => return Ok(Read::End),
            }
        }
    }

    fn record(&mut self, payload: Vec<u8>) -> SourceRecord {
        let position = Position { partition: 0, offset: self.offset };
        self.offset += 1;
        SourceRecord { payload, key: None, headers: Vec::new(), origin: self.url.clone(), position }
    }
}

impl Source for WebSocketSource {
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
        Box::pin(self.next(max))
    }
}

impl Committer for WebSocketCommitter {
    fn commit<'a>(&'a mut self, _safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn read_ends_with_the_bytes_of_a_list_and_records_precede_a_failure() {
        let (sender, messages) = mpsc::channel(4);
        let task = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
        let rest = Vec::new().into_iter();
        let mut source =
            WebSocketSource { url: "ws://one".into(), messages, rest, failure: None, offset: 0, _task: task };
        for size in [MESSAGES_BYTES / 2, MESSAGES_BYTES / 2, 1] {
            sender.send(Ok(vec![vec![0; size]; 2])).await.unwrap();
        }
        sender.send(Err(DriverError::transport("lost"))).await.unwrap();
        for offset in [0, 2, 4] {
            let Read::Records(records) = source.next(256).await.unwrap() else { panic!() };
            let offsets: Vec<u64> = records.iter().map(|record| record.position.offset).collect();
            assert_eq!(offsets, [offset, offset + 1]);
        }
        assert_eq!(source.next(256).await.unwrap_err(), DriverError::transport("lost"));
    }
}
