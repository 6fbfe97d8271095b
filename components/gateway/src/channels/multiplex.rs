//! Several channels over one bidirectional stream: JSON messages in, which subscribe and unsubscribe, and JSON events out. On the wire
//! both are NDJSON lines in a request whose body stays open; the native host maps it to a WebSocket with a message for each line.
//!
//! The memory of a socket is bounded: the number of channels, the events that wait for each of them in the store, and nothing is read
//! from the store while the client does not read.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use weir_auth::identity::Identity;
use weir_codec::{
    channels::{
        event::{StreamEvent, envelope},
        filter::EventFilter,
        route::Channel,
        socket::{MESSAGE_BYTES_MAX, SocketMessage, error_json},
        subscription::SubscriptionEnd,
    },
    http::{
        lines::{Line, Lines},
        problem::Problem,
    },
};
use weir_core::{
    channels::{Cursor, Throttle},
    time::Now,
};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult};

use super::{existence, subscribe};
use crate::{
    auth::SubscriptionPermit,
    http::{
        body::{BodyPart, BodyReader},
        duplex::{Duplex, OutputSource},
        response::Client,
    },
    platform::{
        bindings::weir::stream::events::{self, Closed, Delivery, Entry},
        clock::{self, Deadline},
        settings::Settings,
        store,
    },
};

/// Most channels that one socket follows.
const CHANNELS_MAX: usize = 64;
/// The most deliveries in one read.
const DELIVERIES_MAX: usize = 64;
const NS_PER_MS: u64 = 1_000_000;

/// Who talks, and until when.
pub(crate) struct Socket {
    pub(crate) identity: Identity,
    /// As the client wrote it, for errors.
    pub(crate) path: String,
    pub(crate) settings: &'static Settings,
    pub(crate) _place: SubscriptionPermit,
}

impl Socket {
    /// The user whose share channels without events count towards.
    fn share(&self) -> Option<String> {
        self.settings.auth.required.then(|| self.identity.user().to_owned())
    }
}

/// Talks until the client ends its side, its right ends, or it is gone. `first` is followed from the start.
pub(crate) async fn converse(
    socket: Socket,
    first: Option<(Channel, Cursor, EventFilter)>,
    body: BodyReader,
    began: Now,
    client: Client,
) {
    let settings = socket.settings;
    let duplex = Duplex::new(SocketOutput::default(), settings, began);
    let work = async {
        let mut conversation = Conversation { socket, duplex: &duplex, followed: Vec::new(), due: None };
        if let Some((channel, after, filter)) = first {
            conversation.follow(channel, after, filter).await;
        }
        conversation.run(body).await;
        duplex.session.borrow_mut().done = true;
        duplex.changed();
    };
    duplex.serve(work, client).await;
}

/// What is to be sent.
#[derive(Default)]
struct SocketOutput {
    out: Vec<u8>,
    done: bool,
}

impl OutputSource for SocketOutput {
    fn poll_output(&mut self) -> Option<Vec<u8>> {
        (!self.out.is_empty()).then(|| std::mem::take(&mut self.out))
    }

    fn output_bytes(&self) -> usize {
        self.out.len()
    }

    fn has_pending(&self) -> bool {
        // Events may come at any time.
        true
    }

    fn is_done(&self) -> bool {
        self.done && self.out.is_empty()
    }
}

/// A completed read of deliveries: the reader, how the read ended, and the deliveries.
type DeliveryRead = (StreamReader<Delivery>, StreamResult, Vec<Delivery>);

/// A channel that is followed, and the read in progress.
struct FollowedChannel {
    channel: Channel,
    filter: EventFilter,
    throttle: Throttle<Entry>,
    reading: Pin<Box<dyn Future<Output = DeliveryRead>>>,
}

fn read(mut deliveries: StreamReader<Delivery>, room: Vec<Delivery>) -> Pin<Box<dyn Future<Output = DeliveryRead>>> {
    Box::pin(async move {
        let (result, batch) = deliveries.read(room).await;
        (deliveries, result, batch)
    })
}

/// What has happened next.
enum ConversationInput {
    Piece(BodyReader, BodyPart),
    Read(usize, DeliveryRead),
    /// Progress that was held back is due.
    Due,
    Ring,
}

struct Conversation<'a> {
    socket: Socket,
    duplex: &'a Duplex<'a, SocketOutput>,
    followed: Vec<FollowedChannel>,
    /// When progress that is held back is due.
    due: Option<(u64, Timer)>,
}

/// A moment that is waited for.
type Timer = Pin<Box<dyn Future<Output = ()>>>;
type NextPart = Pin<Box<dyn Future<Output = (BodyReader, BodyPart)>>>;

fn next_piece(mut body: BodyReader, room: Vec<u8>) -> NextPart {
    Box::pin(async move {
        let piece = body.piece(room).await;
        (body, piece)
    })
}

impl Conversation<'_> {
    async fn run(&mut self, body: BodyReader) {
        let ends = self.ends();
        let mut lines = Lines::new(MESSAGE_BYTES_MAX);
        let mut piece = next_piece(body, Vec::new());
        let mut ring = self.ring(ends);
        loop {
            self.duplex.unsent_few().await;
            self.set_due();
            match poll_fn(|context| self.poll(context, &mut piece, &mut ring)).await {
                ConversationInput::Piece(body, BodyPart { bytes, more }) => {
                    let mut rest = bytes.as_slice();
                    while let Some(line) = lines.next_line(&mut rest) {
                        self.hear(&line).await;
                    }
                    if !more {
                        return;
                    }
                    piece = next_piece(body, bytes);
                }
                ConversationInput::Read(at, read) => self.heard(at, read),
                ConversationInput::Due => self.send_due(),
                ConversationInput::Ring => {
                    if ends.is_none_or(|ends| !ends.is_past(clock::now())) {
                        self.say(b"{\"type\":\"heartbeat\"}".to_vec());
                        ring = self.ring(ends);
                    }
                }
            }
            // Asked on each delivery too, for a timer may be late.
            if ends.is_some_and(|ends| ends.is_past(clock::now())) {
                for followed in std::mem::take(&mut self.followed) {
                    self.tell(&followed.channel, &SubscriptionEnd::Expired.event(), None);
                }
                let message = "the token of this connection has expired";
                return self.say(error_json("token_expired", message, None, true));
            }
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        piece: &mut NextPart,
        ring: &mut Pin<Box<dyn Future<Output = ()>>>,
    ) -> Poll<ConversationInput> {
        if let Poll::Ready((body, piece)) = piece.as_mut().poll(context) {
            return Poll::Ready(ConversationInput::Piece(body, piece));
        }
        for (at, followed) in self.followed.iter_mut().enumerate() {
            if let Poll::Ready(read) = followed.reading.as_mut().poll(context) {
                // Its turn comes after the others' now.
                return Poll::Ready(ConversationInput::Read(at, read));
            }
        }
        if let Some((_, due)) = &mut self.due
            && due.as_mut().poll(context).is_ready()
        {
            self.due = None;
            return Poll::Ready(ConversationInput::Due);
        }
        ring.as_mut().poll(context).map(|()| ConversationInput::Ring)
    }

    /// Sets the timer of the progress that is held back.
    fn set_due(&mut self) {
        let due_ns = self.followed.iter().filter_map(|followed| followed.throttle.poll_timeout()).min();
        if self.due.as_ref().map(|(at_ns, _)| *at_ns) != due_ns {
            self.due = due_ns.map(|at_ns| (at_ns, Box::pin(Deadline::at(at_ns).passed()) as Timer));
        }
    }

    /// Sends the progress that is due.
    fn send_due(&mut self) {
        let now_ns = clock::now().monotonic_ns;
        let mut due = Vec::new();
        for followed in &mut self.followed {
            let mut entries = Vec::new();
            followed.throttle.handle_timer(now_ns, &mut entries);
            due.extend(entries.into_iter().map(|entry| (followed.channel.clone(), entry)));
        }
        due.iter().for_each(|(channel, entry)| self.say_entry(channel, entry));
    }

    /// When the right to all of it ends.
    fn ends(&self) -> Option<Deadline> {
        let now = clock::now();
        let ends_ms = self.socket.identity.expires_at_s()?.saturating_mul(1000);
        Some(Deadline::after(now, ends_ms.saturating_sub(now.unix_ns / NS_PER_MS)))
    }

    fn ring(&self, ends: Option<Deadline>) -> Pin<Box<dyn Future<Output = ()>>> {
        let beat = Deadline::after(clock::now(), self.socket.settings.heartbeat_ms);
        Box::pin(ends.map_or(beat, |ends| beat.earlier(ends)).passed())
    }

    /// Handles a message of the client.
    async fn hear(&mut self, line: &Line<'_>) {
        let Some(message) = line.content else {
            let message = format!("a message has at most {MESSAGE_BYTES_MAX} bytes");
            return self.say(error_json("message_too_long", &message, None, false));
        };
        match SocketMessage::from_json(message) {
            Err(error) => self.say(error_json("invalid_message", &error.to_string(), None, false)),
            Ok(SocketMessage::Unsubscribe { channel }) => {
                let Some(at) = self.at(&channel) else {
                    let message = "this channel is not followed";
                    return self.say(error_json("not_followed", message, Some(&channel), false));
                };
                self.followed.remove(at);
                let event =
                    StreamEvent::Disconnected { reason: "unsubscribed", message: "as you wished", resumable: true };
                self.tell(&channel, &event, None);
            }
            Ok(SocketMessage::Subscribe { channel, last_event_id, filter }) => {
                match subscribe::cursor(Some(last_event_id.unwrap_or_default().as_bytes()), "") {
                    Ok(after) => self.subscribe(channel, after, filter).await,
                    Err(problem) => self.refuse(&channel, &problem),
                }
            }
        }
    }

    async fn subscribe(&mut self, channel: Channel, after: Cursor, filter: EventFilter) {
        match existence::authorize_follow(&self.socket.identity, &channel, &self.socket.path).await {
            Ok(()) => self.follow(channel, after, filter).await,
            Err(problem) => self.refuse(&channel, &problem),
        }
    }

    /// Follows a channel, anew if it is followed already.
    async fn follow(&mut self, channel: Channel, after: Cursor, filter: EventFilter) {
        if let Some(at) = self.at(&channel) {
            self.followed.remove(at);
        }
        if self.followed.len() >= CHANNELS_MAX {
            let message = format!("a socket follows at most {CHANNELS_MAX} channels");
            return self.say(error_json("too_many_channels", &message, Some(&channel), false));
        }
        match subscribe::goes_on(&channel, after).await {
            Ok(true) => {}
            Ok(false) => {
                self.tell(&channel, &StreamEvent::Connected, None);
                return self.tell(&channel, &SubscriptionEnd::Finished.event(), None);
            }
            Err(problem) => return self.refuse(&channel, &problem),
        }
        match events::follow(channel.to_string(), after, self.socket.share()).await {
            Ok(deliveries) => {
                self.tell(&channel, &StreamEvent::Connected, None);
                let reading = read(deliveries, Vec::with_capacity(DELIVERIES_MAX));
                let throttle = Throttle::new(u64::from(filter.throttle_ms) * NS_PER_MS);
                self.followed.push(FollowedChannel { channel, filter, throttle, reading });
            }
            Err(failure) => self.refuse(&channel, &store::problem(failure)),
        }
    }

    fn at(&self, channel: &Channel) -> Option<usize> {
        self.followed.iter().position(|followed| followed.channel == *channel)
    }

    /// Writes deliveries, and starts the next read.
    fn heard(&mut self, at: usize, (deliveries, result, mut batch): DeliveryRead) {
        let FollowedChannel { channel, filter, mut throttle, .. } = self.followed.remove(at);
        let now_ns = clock::now().monotonic_ns;
        let (mut end, mut due) = (None, Vec::new());
        for delivery in batch.drain(..) {
            match delivery {
                Delivery::Entry(entry) => {
                    end = entry.event.finishes.then_some(SubscriptionEnd::Finished);
                    if filter.admits(&entry.event.name, &entry.event.data) {
                        let key = entry.event.coalesce.clone();
                        throttle.handle_event(now_ns, key.as_deref(), entry, &mut due);
                    }
                    due.drain(..).for_each(|entry| self.say_entry(&channel, &entry));
                }
                Delivery::Gap(gap) => {
                    throttle.drain(&mut due);
                    due.drain(..).for_each(|entry| self.say_entry(&channel, &entry));
                    let (from, to) = (gap.missing_from.to_string(), gap.missing_to.to_string());
                    self.tell(&channel, &StreamEvent::Gap { missing_from: &from, missing_to: &to }, Some(&to));
                }
                Delivery::Closed(Closed::Slow) => end = Some(SubscriptionEnd::Slow),
                Delivery::Closed(Closed::Lost) => end = Some(SubscriptionEnd::Lost),
            }
        }
        if end.is_none() && !matches!(result, StreamResult::Complete(_)) {
            end = Some(SubscriptionEnd::Lost);
        }
        if end.is_some() {
            throttle.drain(&mut due);
            due.drain(..).for_each(|entry| self.say_entry(&channel, &entry));
        }
        match end {
            Some(end) => self.tell(&channel, &end.event(), None),
            // At the end of the line: every channel has its turn.
            None => self.followed.push(FollowedChannel { channel, filter, throttle, reading: read(deliveries, batch) }),
        }
    }

    fn refuse(&self, channel: &Channel, problem: &Problem) {
        let retryable = problem.retry_after_ms.is_some();
        self.say(error_json(problem.code, &problem.detail, Some(channel), retryable));
    }

    fn say_entry(&self, channel: &Channel, entry: &Entry) {
        let id = entry.at.to_string();
        self.say(envelope(channel, Some(&id), &entry.event.name, &flat(&entry.event.data)));
    }

    fn tell(&self, channel: &Channel, event: &StreamEvent<'_>, id: Option<&str>) {
        let data = event.data(channel, clock::now().unix_ns / NS_PER_MS);
        self.say(envelope(channel, id, event.name(), &data));
    }

    fn say(&self, message: Vec<u8>) {
        let mut said = self.duplex.session.borrow_mut();
        said.out.extend(message);
        said.out.push(b'\n');
        drop(said);
        self.duplex.changed();
    }
}

/// Ends of line are white space between JSON's tokens, and nowhere else.
fn flat(data: &str) -> Vec<u8> {
    data.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }).collect()
}
