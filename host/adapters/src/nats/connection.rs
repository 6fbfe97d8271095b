//! A connection to a server: requests and subscriptions over one stream of bytes.
//!
//! A task reads frames and passes each message to its request or its subscription. Another one writes frames, and ends after the last
//! clone of the client is dropped and all frames are written. When the connection is lost, all requests and subscriptions end with the
//! reason.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use weir_core::adapter::Header;

use super::access::{Access, Address, Credentials};
use super::protocol::{self, Frame, Info, Message};
use crate::driver::DriverError;
use crate::transport::{ByteStream, connect, secure};

/// Frames that wait to be written; with more, senders wait.
const OUTGOING_FRAMES_MAX: usize = 1024;
/// The bytes from which the messages of a batch are written.
const BATCH_BYTES: usize = 64 << 10;
/// The free bytes of the buffer before each read.
const READ_BYTES: usize = 16 << 10;
/// The errors by which a server refuses credentials.
const REFUSALS: [&str; 4] =
    ["Authorization Violation", "Authentication Expired", "Authentication Revoked", "Authorization Expired"];
/// The prefix of the subjects by which messages are acknowledged.
const ACKNOWLEDGEMENTS: &str = "$JS.ACK.";
/// The id of the subscription that receives the replies to requests.
const REPLIES: u64 = 1;

/// A connection. Clones share it; it is closed when the last one is dropped.
#[derive(Clone)]
pub(super) struct Client {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Bytes>,
    _reader: Arc<AbortOnDropHandle<()>>,
}

struct Shared {
    /// The prefix of the subjects of replies to this connection.
    inbox: String,
    timeout: Duration,
    /// The largest message with its headers that the server accepts, in bytes.
    message_bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Requests without a reply.
    requests: HashMap<u64, Request>,
    request_next: u64,
    subscriptions: HashMap<u64, mpsc::Sender<Message>>,
    subscription_last: u64,
    /// The last error that the server has sent.
    error: Option<String>,
    /// Why the connection was lost.
    failure: Option<DriverError>,
}

struct Request {
    subject: String,
    reply: oneshot::Sender<Result<Message, DriverError>>,
}

/// The reply to a request that was sent.
pub(super) struct PendingReply {
    number: u64,
    receiver: oneshot::Receiver<Result<Message, DriverError>>,
    shared: Arc<Shared>,
}

/// Messages that are written together: the task that writes, and the server, are woken once for all of them.
pub(super) struct Batch<'a> {
    client: &'a Client,
    frames: Vec<u8>,
}

impl Batch<'_> {
    /// Adds a message without a reply.
    pub(super) async fn publish(&mut self, subject: &str, payload: &[u8]) -> Result<(), DriverError> {
        protocol::append_publish(&mut self.frames, subject, "", &[], payload);
        self.write_if_long().await
    }

    /// Adds a request.
    pub(super) async fn request(
        &mut self,
        subject: &str,
        headers: &[Header],
        payload: &[u8],
    ) -> Result<PendingReply, DriverError> {
        let (pending, reply) = self.client.register(subject)?;
        protocol::append_publish(&mut self.frames, subject, &reply, headers, payload);
        self.write_if_long().await?;
        Ok(pending)
    }

    async fn write_if_long(&mut self) -> Result<(), DriverError> {
        match self.frames.len() < BATCH_BYTES {
            true => Ok(()),
            false => self.client.send(std::mem::take(&mut self.frames).into()).await,
        }
    }

    /// Sends the messages that were not written yet.
    pub(super) async fn send(self) -> Result<(), DriverError> {
        match self.frames.is_empty() {
            true => Ok(()),
            false => self.client.send(self.frames.into()).await,
        }
    }
}

/// A subscription. Dropping it ends it, and returns the messages of consumers that were not received to the server, which delivers them
/// again at once.
pub(super) struct Subscription {
    id: u64,
    /// The subject.
    pub(super) subject: String,
    /// The messages; they end with the connection.
    pub(super) messages: mpsc::Receiver<Message>,
    client: Client,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Client { shared, outgoing, .. } = &self.client;
        shared.lock().subscriptions.remove(&self.id);
        // Best effort: without room, the server delivers the messages again after the time for their acknowledgement.
        let _ = outgoing.try_send(protocol::unsubscribe(self.id));
        self.messages.close();
        while let Ok(message) = self.messages.try_recv() {
            return_message(&message, outgoing);
        }
    }
}

/// Returns a message of a consumer to the server.
fn return_message(message: &Message, outgoing: &mpsc::Sender<Bytes>) {
    if message.status.is_none() && message.reply.starts_with(ACKNOWLEDGEMENTS) {
        // Best effort, as above.
        let _ = outgoing.try_send(protocol::publish(&message.reply, "", &[], b"-NAK"));
    }
}

/// Frames of a stream of bytes.
struct FrameReader<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + Unpin> FrameReader<S> {
    async fn next(&mut self) -> Result<Frame, DriverError> {
        loop {
            let decoded = protocol::decode(&mut self.buffer);
            if let Some(frame) = decoded.map_err(|error| DriverError::transport(format!("NATS: {error}")))? {
                return Ok(frame);
            }
            self.buffer.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(DriverError::transport("NATS has closed the connection")),
                Ok(_) => {}
                Err(error) => return Err(DriverError::transport(format!("NATS: {error}"))),
            }
        }
    }
}

/// A connection to a server that has sent its INFO, over TLS where the URL or the server requires it.
pub(super) struct Opened {
    frames: FrameReader<Box<dyn ByteStream>>,
    info: Info,
    pub(super) is_tls: bool,
}

/// Opens a connection.
pub(super) async fn open(address: &Address, access: &Access<'_>) -> Result<Opened, DriverError> {
    let stream: Box<dyn ByteStream> = Box::new(connect(&address.host, address.port).await?);
    let mut frames = FrameReader { stream, buffer: BytesMut::new() };
    let Frame::Info(info) = frames.next().await? else {
        return Err(DriverError::transport(format!("{address} is not a NATS server")));
    };
    let is_tls = address.is_tls || info.tls_required;
    if is_tls {
        frames = begin_tls(frames, &info, address, access).await?;
    }
    Ok(Opened { frames, info, is_tls })
}

/// Bounds the time of a connection attempt.
pub(super) async fn within<T>(
    address: &Address,
    access: &Access<'_>,
    connecting: impl Future<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    tokio::time::timeout(access.timeout, connecting).await.unwrap_or_else(|_| {
        let timeout_ms = access.timeout.as_millis();
        Err(DriverError::transport(format!("NATS at {address} has not answered within {timeout_ms} ms")))
    })
}

impl Client {
    /// Connects to the first server that can be reached.
    ///
    /// # Errors
    ///
    /// An address or a file is invalid, a server refuses the credentials, or none can be reached.
    pub(super) async fn connect(access: &Access<'_>) -> Result<Self, DriverError> {
        let credentials = access.credentials()?;
        let mut failure = DriverError::Config("the URL of NATS is empty".to_owned());
        for address in access.addresses()? {
            let connecting =
                async { Self::authenticate(open(&address, access).await?, &credentials, access.timeout).await };
            match within(&address, access, connecting).await {
                Err(error) if error.is_retryable() => failure = error,
                result => return result,
            }
        }
        Err(failure)
    }

    /// Authenticates a connection, and starts its tasks.
    pub(super) async fn authenticate(
        mut opened: Opened,
        credentials: &Credentials,
        timeout: Duration,
    ) -> Result<Self, DriverError> {
        authenticate(&mut opened.frames, &opened.info, credentials).await?;
        Self::start(opened.frames, &opened.info, timeout).await
    }

    /// Starts the tasks of a connection, and subscribes to replies.
    async fn start(
        frames: FrameReader<Box<dyn ByteStream>>,
        info: &Info,
        timeout: Duration,
    ) -> Result<Self, DriverError> {
        let FrameReader { stream, buffer } = frames;
        let (reading, writing) = tokio::io::split(stream);
        let (outgoing, frames) = mpsc::channel(OUTGOING_FRAMES_MAX);
        let shared =
            Arc::new(Shared { inbox: inbox()?, timeout, message_bytes_max: info.max_payload, state: Mutex::default() });
        // It ends after the client is dropped, since each write has a deadline.
        tokio::spawn(write(writing, frames, shared.clone()));
        let reader = read(FrameReader { stream: reading, buffer }, shared.clone(), outgoing.downgrade());
        let reader = Arc::new(AbortOnDropHandle::new(tokio::spawn(reader)));
        let client = Self { shared, outgoing, _reader: reader };
        client.send(protocol::subscribe(&format!("{}.*", client.shared.inbox), REPLIES)).await?;
        Ok(client)
    }

    /// The largest message with its headers that the server accepts, in bytes.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.shared.message_bytes_max
    }

    /// The longest time until a reply.
    pub(super) fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// Why the connection was lost.
    pub(super) fn failure(&self) -> DriverError {
        let failure = self.shared.lock().failure.clone();
        failure.unwrap_or_else(|| DriverError::transport("the connection to NATS has ended"))
    }

    /// Publishes a message without a reply.
    pub(super) async fn publish(&self, subject: &str, payload: &[u8]) -> Result<(), DriverError> {
        self.send(protocol::publish(subject, "", &[], payload)).await
    }

    /// Publishes a message whose replies go to a subject of this connection.
    pub(super) async fn publish_for(&self, subject: &str, replies: &str, payload: &[u8]) -> Result<(), DriverError> {
        self.send(protocol::publish(subject, replies, &[], payload)).await
    }

    /// Messages that are written together, in the order in which they are added.
    pub(super) fn batch(&self) -> Batch<'_> {
        Batch { client: self, frames: Vec::new() }
    }

    /// Registers a request; returns its reply, and the subject to which it is sent.
    fn register(&self, subject: &str) -> Result<(PendingReply, String), DriverError> {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.shared.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.request_next += 1;
        let number = state.request_next;
        state.requests.insert(number, Request { subject: subject.to_owned(), reply });
        drop(state);
        let pending = PendingReply { number, receiver, shared: self.shared.clone() };
        Ok((pending, format!("{}.{number}", self.shared.inbox)))
    }

    /// Publishes a request and waits for its reply.
    pub(super) async fn request(&self, subject: &str, payload: &[u8]) -> Result<Message, DriverError> {
        let mut batch = self.batch();
        let reply = batch.request(subject, &[], payload).await?;
        batch.send().await?;
        reply.receive().await
    }

    /// Subscribes to a new subject of this connection. The connection ends if more than `messages_max` messages wait to be received.
    pub(super) async fn subscribe(&self, messages_max: usize) -> Result<Subscription, DriverError> {
        let (sender, messages) = mpsc::channel(messages_max);
        let id = {
            let mut state = self.shared.lock();
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            state.subscription_last += 1;
            let id = REPLIES + state.subscription_last;
            state.subscriptions.insert(id, sender);
            id
        };
        // It has one token more than the subjects of replies to requests.
        let subject = format!("{}.subscription.{id}", self.shared.inbox);
        let subscription = Subscription { id, subject, messages, client: self.clone() };
        self.send(protocol::subscribe(&subscription.subject, id)).await?;
        Ok(subscription)
    }

    async fn send(&self, frame: Bytes) -> Result<(), DriverError> {
        self.outgoing.send(frame).await.map_err(|_| self.failure())
    }
}

impl PendingReply {
    /// Waits for the reply.
    ///
    /// # Errors
    ///
    /// No reply arrives within the timeout, the connection is lost, or the user may not publish the request.
    pub(super) async fn receive(mut self) -> Result<Message, DriverError> {
        let timeout = self.shared.timeout;
        match tokio::time::timeout(timeout, &mut self.receiver).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => Err(DriverError::transport("the connection to NATS has ended")),
            Err(_) => {
                let timeout_ms = timeout.as_millis();
                Err(DriverError::transport(format!("NATS has not answered a request within {timeout_ms} ms")))
            }
        }
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        self.shared.lock().requests.remove(&self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a message to its request or subscription.
    fn handle_message(&self, message: Message, outgoing: &mpsc::WeakSender<Bytes>) -> Result<(), DriverError> {
        let mut state = self.lock();
        if message.subscription == REPLIES {
            let number = message.subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
            if let Some(request) = number.and_then(|number| state.requests.remove(&number)) {
                // An error means that the reply was dropped.
                let _ = request.reply.send(Ok(message));
            }
            return Ok(());
        }
        let message = match state.subscriptions.get(&message.subscription).map(|sender| sender.try_reserve()) {
            Some(Ok(permit)) => {
                permit.send(message);
                return Ok(());
            }
            Some(Err(mpsc::error::TrySendError::Full(()))) => {
                return Err(DriverError::transport("NATS has sent more messages than were requested"));
            }
            // The subscription has ended.
            Some(Err(mpsc::error::TrySendError::Closed(()))) | None => message,
        };
        if let Some(outgoing) = outgoing.upgrade() {
            return_message(&message, &outgoing);
        }
        Ok(())
    }

    /// Handles an error of the server, which closes the connection itself if it has to end. A denied message without a reply ends it here,
    /// since nothing else would report the denial.
    fn handle_error(&self, error: &str) -> Result<(), DriverError> {
        let denied = || DriverError::Denied(format!("NATS refuses: {error}"));
        if error.starts_with("Permissions Violation for Subscription") {
            return Err(denied());
        }
        let mut state = self.lock();
        let subject =
            error.strip_prefix("Permissions Violation for Publish to ").map(|subject| subject.trim_matches('"'));
        let Some(subject) = subject else {
            state.error = Some(error.to_owned());
            return Ok(());
        };
        let mut is_request = false;
        for (_, request) in state.requests.extract_if(|_, request| request.subject == subject) {
            is_request = true;
            // An error means that the reply was dropped.
            let _ = request.reply.send(Err(denied()));
        }
        if is_request { Ok(()) } else { Err(denied()) }
    }

    /// Ends the connection for all requests and subscriptions.
    fn close(&self, failure: DriverError) {
        let mut state = self.lock();
        let failure = match (failure, state.error.take()) {
            (DriverError::Transport { reason, .. }, Some(error)) => {
                DriverError::transport(format!("{reason}: {error}"))
            }
            (failure, _) => failure,
        };
        let failure = state.failure.get_or_insert(failure).clone();
        for (_, request) in state.requests.drain() {
            // An error means that the reply was dropped.
            let _ = request.reply.send(Err(failure.clone()));
        }
        state.subscriptions.clear();
    }
}

/// Begins TLS, after the INFO of the server and before any other frame.
async fn begin_tls(
    frames: FrameReader<Box<dyn ByteStream>>,
    info: &Info,
    address: &Address,
    access: &Access<'_>,
) -> Result<FrameReader<Box<dyn ByteStream>>, DriverError> {
    if !info.tls_required && !info.tls_available {
        let reason = format!("NATS at {address} has no TLS, which the URL requires; enable it, or use nats://");
        return Err(DriverError::Config(reason));
    }
    if !frames.buffer.is_empty() {
        // It would be read as content of the encrypted connection.
        return Err(DriverError::transport(format!("NATS at {address} has sent more than INFO before TLS")));
    }
    let stream = secure(&address.host, frames.stream, access.ca_file).await?;
    Ok(FrameReader { stream, buffer: frames.buffer })
}

/// Sends CONNECT, and waits until the server has accepted it.
async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut FrameReader<S>,
    info: &Info,
    credentials: &Credentials,
) -> Result<(), DriverError> {
    let mut options = json!({
        "verbose": false,
        "pedantic": false,
        "name": "weir",
        "lang": "rust",
        "version": env!("CARGO_PKG_VERSION"),
        "protocol": 1,
        "headers": true,
        "no_responders": true,
    });
    credentials.add_to(&mut options, &info.nonce);
    let command = [format!("CONNECT {options}\r\n").as_bytes(), protocol::PING].concat();
    let lost = |error: std::io::Error| DriverError::transport(format!("NATS: {error}"));
    frames.stream.write_all(&command).await.map_err(lost)?;
    frames.stream.flush().await.map_err(lost)?;
    loop {
        match frames.next().await? {
            Frame::Pong => return Ok(()),
            // Not `Authentication Timeout`: another attempt may be in time.
            Frame::Error(error) if REFUSALS.iter().any(|refusal| error.contains(refusal)) => {
                return Err(DriverError::Denied(format!("NATS refuses the credentials: {error}")));
            }
            Frame::Error(error) => return Err(DriverError::transport(format!("NATS refuses: {error}"))),
            _ => {}
        }
    }
}

/// A prefix of subjects that no other client has.
fn inbox() -> Result<String, DriverError> {
    let mut id = [0; 12];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut id)
        .map_err(|_| DriverError::transport("the system gives no random numbers"))?;
    Ok(id.iter().fold("_INBOX.".to_owned(), |inbox, byte| inbox + &format!("{byte:02x}")))
}

/// Reads frames until the connection is lost.
async fn read(mut frames: FrameReader<impl AsyncRead + Unpin>, shared: Arc<Shared>, outgoing: mpsc::WeakSender<Bytes>) {
    let failure = loop {
        let handled = match frames.next().await {
            Ok(Frame::Message(message)) => shared.handle_message(message, &outgoing),
            Ok(Frame::Error(error)) => shared.handle_error(&error),
            Ok(Frame::Ping) => {
                if let Some(outgoing) = outgoing.upgrade() {
                    // Best effort: reading must not wait for room.
                    let _ = outgoing.try_send(Bytes::from_static(protocol::PONG));
                }
                Ok(())
            }
            Ok(Frame::Info(_) | Frame::Pong | Frame::Ok) => Ok(()),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = handled {
            break failure;
        }
    };
    shared.close(failure);
}

/// Writes frames until all senders are dropped.
async fn write(stream: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Bytes>, shared: Arc<Shared>) {
    let mut stream = BufWriter::new(stream);
    while let Some(frame) = outgoing.recv().await {
        let is_last = outgoing.is_empty();
        let writing = async {
            stream.write_all(&frame).await?;
            match is_last {
                true => stream.flush().await,
                false => Ok(()),
            }
        };
        let failure = match tokio::time::timeout(shared.timeout, writing).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("NATS: {error}"),
            Err(_) => format!("NATS has accepted no data for {} ms", shared.timeout.as_millis()),
        };
        return shared.close(DriverError::transport(failure));
    }
    // Best effort: the server notices the end of the connection.
    let _ = tokio::time::timeout(shared.timeout, stream.shutdown()).await;
}

#[cfg(test)]
mod tests;
