//! A feed whose messages are records.
//!
//! A separate task owns the connection, so that pings are sent while the adapter reads no records. Without room for messages, the task does
//! not read the connection, so that the server waits.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use weir_config::WebSocketSource as Config;
use weir_core::adapter::{Position, Reconnect, ReconnectConfig, SourceRecord};
use weir_core::random::SplitMix64;
use weir_websocket::Message;

use super::client::{Socket, closed, connect, failure};
use crate::driver::{BoxFuture, Committer, DriverError, Read, Safe, Source};
use crate::http::client::Target;
use crate::redis::secret;

/// The most messages between the task and the adapter.
const MESSAGES_MAX: usize = 64;

/// A feed as a source.
pub struct WebSocketSource {
    url: String,
    messages: mpsc::Receiver<Result<Vec<u8>, DriverError>>,
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
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let task = AbortOnDropHandle::new(tokio::spawn(feed.run(socket, sender)));
    Ok((WebSocketSource { url: config.url.clone(), messages, offset: 0, _task: task }, WebSocketCommitter))
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
    async fn run(mut self, socket: Socket, sender: mpsc::Sender<Result<Vec<u8>, DriverError>>) {
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
    async fn read(&self, mut socket: Socket, sender: &mpsc::Sender<Result<Vec<u8>, DriverError>>) -> FeedEnd {
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
                    let payload = match message {
                        Some(Ok(Message::Text(text))) => text.into_bytes(),
                        Some(Ok(Message::Binary(payload))) => payload,
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                            // A pong waits for the next write.
                            match socket.flush().await {
                                Ok(()) => continue,
                                Err(error) => return FeedEnd::Lost(failure(&error)),
                            }
                        }
                        Some(Ok(Message::Close(frame))) => {
                            // The close frame of the response is best effort.
                            let _ = tokio::time::timeout(Duration::from_secs(1), socket.flush()).await;
                            return closed(frame.as_ref()).map_or(FeedEnd::Ended, FeedEnd::Lost);
                        }
                        Some(Err(error)) => return FeedEnd::Lost(failure(&error)),
                        None => return FeedEnd::Lost(DriverError::transport("the server has closed the connection")),
                    };
                    if let Some(permit) = room.take() {
                        permit.send(Ok(payload));
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

impl WebSocketSource {
    async fn next(&mut self, max: usize) -> Result<Read, DriverError> {
        let mut records = Vec::new();
        match self.messages.recv().await {
            Some(Ok(payload)) => records.push(self.record(payload)),
            Some(Err(failure)) => return Err(failure),
            None => return Ok(Read::End),
        }
        while records.len() < max
            && let Ok(message) = self.messages.try_recv()
        {
            match message {
                Ok(payload) => records.push(self.record(payload)),
                // It is the last message of the task: records that were received before it are returned first.
                Err(failure) => {
                    let (sender, messages) = mpsc::channel(1);
                    // The channel is new and has room.
                    let _ = sender.try_send(Err(failure));
                    self.messages = messages;
                }
            }
        }
        Ok(Read::Records(records))
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
