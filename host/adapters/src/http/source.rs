//! A feed of server-sent events or of lines of JSON.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use weir_codec::adapter::decode::{PAYLOAD_BYTES_MAX, REFUSAL_HEADER};
use weir_codec::adapter::sse::{Event, EventReader, Received};
use weir_codec::http::lines::Lines;
use weir_config::HttpSource as Config;
use weir_core::adapter::{Header, Position, Reconnect, ReconnectConfig, SourceRecord};
use weir_core::quota::{Quota, QuotaConfig};
use weir_core::random::SplitMix64;

use super::client::{Connection, Target, refusal};
use crate::RECORD_ID_HEADER;
use crate::driver::{BoxFuture, Committer, DriverError, Read, Safe, Source};
use crate::redis::secret;

/// The bytes from which a read ends.
const READ_BYTES: usize = 1 << 20;
/// The header of a record with the type of its event.
const EVENT_HEADER: &str = "sse-event";
/// The longest id of an event that is sent to resume the feed, in bytes: servers refuse requests with long headers.
const ID_BYTES_MAX: usize = 4096;
/// The longest reconnection time that a server can set, ms.
const RETRY_MS_MAX: u64 = 3_600_000;

/// The committed position: the id of the last event whose result is written. It is kept across connections.
#[derive(Debug, Default)]
pub struct HttpProgress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    committed: Option<String>,
    /// The ids of the events that were read and are not committed, by the offset of their record.
    ids: BTreeMap<u64, String>,
}

impl HttpProgress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A feed as a source.
pub struct HttpSource {
    config: Config,
    target: Target,
    token: Option<String>,
    feed: Option<Feed>,
    /// The id of the last event that was read.
    last_id: Option<String>,
    /// The reconnection time of the server, ms.
    retry_ms: Option<u64>,
    reconnect: Reconnect,
    quota: Quota,
    began: Instant,
    random: SplitMix64,
    offset: u64,
    ready: VecDeque<SourceRecord>,
    /// The bytes that were received since a read began.
    read_bytes: usize,
    progress: Arc<HttpProgress>,
    has_ended: bool,
}

/// An open response.
struct Feed {
    body: Incoming,
    /// A part of the body that has arrived and was not handled, or its end.
    next: Option<Option<Result<Frame<Bytes>, hyper::Error>>>,
    framing: Framing,
    _connection: Connection,
}

enum Framing {
    Events(EventReader),
    Lines(Lines),
}

/// Records the ids of completed events.
pub struct HttpCommitter(Arc<HttpProgress>);

/// Connects.
///
/// # Errors
///
/// The server cannot be reached, or refuses.
pub async fn open(
    config: &Config,
    reconnect: ReconnectConfig,
    seed: u64,
    progress: &Arc<HttpProgress>,
) -> Result<(HttpSource, HttpCommitter), DriverError> {
    let token = match config.token_file.as_os_str().is_empty() {
        true => None,
        false => Some(secret(&config.token_file)?),
    };
    let last_id = {
        let mut state = progress.lock();
        state.ids.clear();
        state.committed.clone()
    };
    let rate = |value: u32| std::num::NonZeroU32::new(value).unwrap_or(std::num::NonZeroU32::MIN);
    let quota = QuotaConfig {
        per_period: rate(config.requests_per_second),
        period_ns: 1_000_000_000,
        burst: rate(config.burst_size),
        keys_max: 1,
    };
    let mut source = HttpSource {
        target: Target::http(&config.url)?,
        config: config.clone(),
        token,
        feed: None,
        last_id,
        retry_ms: None,
        reconnect: Reconnect::new(ReconnectConfig { attempts_max: config.max_retries, ..reconnect }),
        quota: Quota::new(quota),
        began: Instant::now(),
        random: SplitMix64::new(seed),
        offset: 0,
        ready: VecDeque::new(),
        read_bytes: 0,
        progress: progress.clone(),
        has_ended: false,
    };
    source.feed = source.connect().await?;
    Ok((source, HttpCommitter(progress.clone())))
}

impl HttpSource {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Requests the feed after the last event; `None` when the server ends it with the status 204.
    async fn connect(&mut self) -> Result<Option<Feed>, DriverError> {
        while let Err(wait) = self.quota.take(self.now(), "") {
            tokio::time::sleep(Duration::from_nanos(wait.retry_after_ns)).await;
        }
        let timeout = Duration::from_millis(self.config.timeout_ms);
        let mut connection = self.target.connect(timeout).await?;
        let mut request = self.target.request(http::Method::GET);
        request = request.header(ACCEPT, "text/event-stream, application/x-ndjson").header("cache-control", "no-store");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(id) = self.last_id.as_ref().filter(|id| !id.is_empty()) {
            request = request.header("last-event-id", id);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|error| DriverError::Config(error.to_string()))?;
        let response = connection.send(request, timeout).await?;
        if let Some(failure) = refusal(&response) {
            return Err(failure);
        }
        if response.status() == http::StatusCode::NO_CONTENT {
            self.has_ended = true;
            return Ok(None);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let framing = match kind.split(';').next().unwrap_or_default().trim() {
            "text/event-stream" => Framing::Events(EventReader::new()),
            "application/x-ndjson" | "application/jsonl" | "application/ndjson" => {
                Framing::Lines(Lines::new(PAYLOAD_BYTES_MAX))
            }
            other => {
                return Err(DriverError::Config(format!(
                    "the feed has the content type `{other}`; text/event-stream or application/x-ndjson was expected"
                )));
            }
        };
        let now = self.now();
        self.reconnect.handle_connected(now);
        Ok(Some(Feed { body: response.into_body(), next: None, framing, _connection: connection }))
    }

    async fn next(&mut self, max: usize) -> Result<Read, DriverError> {
        loop {
            let is_full = self.ready.len() >= max || self.read_bytes >= READ_BYTES;
            if !self.ready.is_empty() && (is_full || !self.has_frame()) {
                self.read_bytes = 0;
                let count = self.ready.len().min(max);
                return Ok(Read::Records(self.ready.drain(..count).collect()));
            }
            if self.has_ended {
                return Ok(Read::End);
            }
            let failure = match self.read_frame().await {
                Ok(()) => continue,
                Err(failure) if !failure.is_retryable() => return Err(failure),
                Err(failure) => failure,
            };
            // Records in flight are kept; only the feed is requested again.
            self.feed = None;
            let least_ms = match &failure {
                DriverError::Transport { retry_after_ms: Some(ms), .. } => Some(*ms),
                _ => self.retry_ms,
            };
            let (now, random) = (self.now(), self.random.next_u64());
            let Some(delay_ns) = self.reconnect.handle_lost(now, least_ms, random) else { return Err(failure) };
            tracing::info!(url = self.config.url, %failure, after_ms = delay_ns / 1_000_000, "the feed is requested again");
            tokio::time::sleep(Duration::from_nanos(delay_ns)).await;
        }
    }

    /// Whether a part of the response has arrived: its records are returned with those before it.
    fn has_frame(&mut self) -> bool {
        let Some(feed) = &mut self.feed else { return false };
        if feed.next.is_none() {
            feed.next = feed.body.frame().now_or_never();
        }
        matches!(feed.next, Some(Some(Ok(_))))
    }

    /// Reads a part of the response, and queues the records that it completes.
    async fn read_frame(&mut self) -> Result<(), DriverError> {
        if self.feed.is_none() {
            self.feed = self.connect().await?;
        }
        let Some(feed) = &mut self.feed else { return Ok(()) };
        let idle = Duration::from_millis(self.config.idle_timeout_ms);
        let frame = match (feed.next.take(), self.config.idle_timeout_ms) {
            (Some(frame), _) => frame,
            (None, 0) => feed.body.frame().await,
            (None, ms) => match tokio::time::timeout(idle, feed.body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Err(DriverError::transport(format!("no data has arrived for {ms} ms"))),
            },
        };
        let bytes = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(DriverError::transport(error)),
            None => return self.handle_end(),
        };
        self.read_bytes += bytes.len();
        match &mut feed.framing {
            Framing::Events(reader) => {
                let mut received = Vec::new();
                reader.feed(&bytes, &mut received).map_err(|error| DriverError::Config(error.to_string()))?;
                for one in received {
                    match one {
                        Received::Event(event) => self.add_event(event),
                        Received::Retry(ms) => self.retry_ms = Some(ms.min(RETRY_MS_MAX)),
                        Received::Comment(_) => {}
                    }
                }
            }
            Framing::Lines(lines) => {
                let (mut rest, mut contents) = (&bytes[..], Vec::new());
                while let Some(line) = lines.next_line(&mut rest) {
                    contents.push(line.content.map(<[u8]>::to_vec));
                }
                contents.into_iter().for_each(|content| self.add_line(content));
            }
        }
        Ok(())
    }

    /// Handles the end of the response: it ends a feed of lines, while a feed of events is requested again.
    fn handle_end(&mut self) -> Result<(), DriverError> {
        match self.feed.take().map(|feed| feed.framing) {
            Some(Framing::Lines(mut lines)) => {
                if let Some(line) = lines.last_line() {
                    let content = line.content.map(<[u8]>::to_vec);
                    self.add_line(content);
                }
                self.has_ended = true;
                Ok(())
            }
            _ => Err(DriverError::transport("the server has ended the feed")),
        }
    }

    fn add_event(&mut self, event: Event) {
        let mut headers: Vec<Header> = event.name.iter().map(|name| Header::new(EVENT_HEADER, name.as_str())).collect();
        if event.id.as_ref().is_some_and(|id| is_sendable(id)) {
            self.last_id.clone_from(&event.id);
        }
        let name = event.name.as_deref().unwrap_or("message");
        if !self.config.events.is_empty() && !self.config.events.iter().any(|selected| selected == name) {
            return;
        }
        let last_id = self.last_id.as_ref().filter(|id| !id.is_empty());
        if let Some(id) = event.id.as_ref().filter(|id| !id.is_empty()).or(last_id) {
            headers.push(Header::new(RECORD_ID_HEADER, id.as_str()));
        }
        if let Some(id) = last_id {
            self.progress.lock().ids.insert(self.offset, id.clone());
        }
        self.add(event.data.into_bytes(), headers);
    }

    /// Adds a line. One that is too long has no content, and is refused with the reason.
    fn add_line(&mut self, content: Option<Vec<u8>>) {
        match content {
            Some(payload) => self.add(payload, Vec::new()),
            None => {
                let reason = format!("the line has more than {PAYLOAD_BYTES_MAX} bytes");
                self.add(Vec::new(), vec![Header::new(REFUSAL_HEADER, reason)]);
            }
        }
    }

    fn add(&mut self, payload: Vec<u8>, headers: Vec<Header>) {
        let position = Position { partition: 0, offset: self.offset };
        self.offset += 1;
        let origin = self.config.url.clone();
        self.ready.push_back(SourceRecord { payload, key: None, headers, origin, position });
    }
}

/// Whether an id can be sent in the header `last-event-id`. Another one leaves the feed at the event before.
fn is_sendable(id: &str) -> bool {
    id.len() <= ID_BYTES_MAX && HeaderValue::from_bytes(id.as_bytes()).is_ok()
}

impl Source for HttpSource {
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
        Box::pin(self.next(max))
    }

    fn sets_control_headers(&self) -> bool {
        true
    }
}

impl Committer for HttpCommitter {
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>> {
        let mut state = self.0.lock();
        for commit in &safe.commits {
            let open = state.ids.split_off(&(commit.offset + 1));
            let done = std::mem::replace(&mut state.ids, open);
            if let Some((_, id)) = done.into_iter().next_back() {
                state.committed = Some(id);
            }
        }
        drop(state);
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A source of a feed with this text.
    async fn opened(text: &str) -> HttpSource {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config { url: format!("http://{}/", listener.local_addr().unwrap()), ..Config::default() };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            let response = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{text}");
            stream.write_all(response.as_bytes()).await.unwrap();
        };
        let progress = Arc::default();
        let (opened, ()) = tokio::join!(open(&config, ReconnectConfig::default(), 1, &progress), serve);
        opened.unwrap().0
    }

    #[tokio::test]
    async fn reconnection_time_of_a_server_is_at_most_an_hour() {
        for (retry, expected) in [
            ("3", Some(3)),
            ("3600000", Some(3_600_000)),
            ("3600001", Some(3_600_000)),
            ("18446744073709551615", Some(3_600_000)),
            ("soon", None),
        ] {
            let mut source = opened(&format!("retry: {retry}\ndata: x\n\n")).await;
            let Read::Records(records) = source.next(1).await.unwrap() else { panic!() };
            assert_eq!((records.len(), source.retry_ms), (1, expected), "{retry}");
            // The connection is lost after the record.
            let now = source.now();
            let delay_ns = source.reconnect.handle_lost(now, source.retry_ms, 0).unwrap();
            let delay_ms = delay_ns / 1_000_000;
            assert_eq!(delay_ms, expected.unwrap_or(0).max(500), "{retry}");
        }
    }
}
