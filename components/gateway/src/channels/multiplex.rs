//! Several channels over one bidirectional stream: JSON messages in, which subscribe and unsubscribe, and JSON events out. On the wire
//! both are NDJSON lines in a request whose body stays open; the native host maps it to a WebSocket with a message for each line.
//!
//! The memory of a socket is bounded: by the number of channels, and by the events that wait for each of them in the
//! store. Nothing is read from the store while the client does not read.

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

/// Maximum number of channels that one socket follows.
const CHANNELS_MAX: usize = 64;
/// The most deliveries in one read.
const DELIVERIES_MAX: usize = 64;
const NS_PER_MS: u64 = 1_000_000;

/// The user and the settings of a socket.
pub(crate) struct Socket {
    pub(crate) identity: Identity,
    /// The path as the client wrote it, for errors.
    pub(crate) path: String,
    pub(crate) settings: &'static Settings,
    pub(crate) _permit: SubscriptionPermit,
}

impl Socket {
    /// The user whose share of the store followed channels without events count towards.
    fn share(&self) -> Option<String> {
        self.settings.auth.required.then(|| self.identity.user().to_owned())
    }
}

/// Serves a socket until the client ends its side, its authorization expires, or it disconnects. `first` is followed
/// from the start.
pub(crate) async fn run_socket(
    socket: Socket,
    first: Option<(Channel, Cursor, EventFilter)>,
    body: BodyReader,
    began: Now,
    client: Client,
) {
    let settings = socket.settings;
    let duplex = Duplex::new(SocketOutput::default(), settings, began);
    let run = async {
        let mut conversation =
            Conversation { socket, duplex: &duplex, followed: Vec::new(), due: None, part_was_last: false };
        if let Some((channel, after, filter)) = first {
            conversation.follow(channel, after, filter).await;
        }
        conversation.run(body).await;
        duplex.session.borrow_mut().done = true;
        duplex.changed();
    };
    duplex.serve(run, client).await;
}

/// The messages that are not sent yet.
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
        // Events may arrive at any time.
        true
    }

    fn is_done(&self) -> bool {
        self.done && self.out.is_empty()
    }
}

/// A completed read of deliveries: the reader, how the read ended, and the deliveries.
type DeliveryRead = (StreamReader<Delivery>, StreamResult, Vec<Delivery>);

/// A followed channel, and the read of its deliveries in progress.
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

/// The next event of a conversation.
enum ConversationInput {
    /// A part of the request body has arrived.
    Part(BodyReader, BodyPart),
    /// The read of the followed channel at this index has completed.
    Read(usize, DeliveryRead),
    /// Throttled progress is due.
    Due,
    /// A heartbeat is due, or the authorization expires.
    Timer,
}

struct Conversation<'a> {
    socket: Socket,
    duplex: &'a Duplex<'a, SocketOutput>,
    followed: Vec<FollowedChannel>,
    /// When throttled progress is due, in nanoseconds of the monotonic clock, and its timer.
    due: Option<(u64, Timer)>,
    /// Whether the last input was a part of the request body.
    part_was_last: bool,
}

/// Resolves at a point in time.
type Timer = Pin<Box<dyn Future<Output = ()>>>;
type NextPart = Pin<Box<dyn Future<Output = (BodyReader, BodyPart)>>>;

fn next_part(mut body: BodyReader, room: Vec<u8>) -> NextPart {
    Box::pin(async move {
        let part = body.next_part(room).await;
        (body, part)
    })
}

impl Conversation<'_> {
    async fn run(&mut self, body: BodyReader) {
        let expiry = self.expiry();
        let mut lines = Lines::new(MESSAGE_BYTES_MAX);
        let mut part = next_part(body, Vec::new());
        let mut timer = self.timer(expiry);
        loop {
            self.duplex.wait_for_capacity().await;
            self.set_due();
            match poll_fn(|context| self.poll(context, &mut part, &mut timer)).await {
                ConversationInput::Part(body, BodyPart { bytes, more }) => {
                    let mut rest = bytes.as_slice();
                    while let Some(line) = lines.next_line(&mut rest) {
                        self.handle_message(&line).await;
                    }
                    if !more {
                        return;
                    }
                    part = next_part(body, bytes);
                }
                ConversationInput::Read(index, read) => self.handle_deliveries(index, read),
                ConversationInput::Due => self.send_due(),
                ConversationInput::Timer => {
                    if expiry.is_none_or(|expiry| !expiry.is_past(clock::now())) {
                        self.send(b"{\"type\":\"heartbeat\"}".to_vec());
                        timer = self.timer(expiry);
                    }
                }
            }
            // Checked on every delivery too, since a timer may be late.
            if expiry.is_some_and(|expiry| expiry.is_past(clock::now())) {
                for followed in std::mem::take(&mut self.followed) {
                    self.send_event(&followed.channel, &SubscriptionEnd::Expired.event(), None);
                }
                let message = "the token of this connection has expired";
                return self.send(error_json("token_expired", message, None, true));
            }
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        part: &mut NextPart,
        timer: &mut Pin<Box<dyn Future<Output = ()>>>,
    ) -> Poll<ConversationInput> {
        // Timers are seldom due, so they delay nothing.
        if timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(ConversationInput::Timer);
        }
        if let Some((_, due)) = &mut self.due
            && due.as_mut().poll(context).is_ready()
        {
            self.due = None;
            return Poll::Ready(ConversationInput::Due);
        }
        // The client and the channels take turns, so that a client that sends without pause gets its deliveries.
        let deliveries_are_first = std::mem::take(&mut self.part_was_last);
        if deliveries_are_first && let Poll::Ready(input) = self.poll_deliveries(context) {
            return Poll::Ready(input);
        }
        if let Poll::Ready((body, part)) = part.as_mut().poll(context) {
            self.part_was_last = true;
            return Poll::Ready(ConversationInput::Part(body, part));
        }
        if deliveries_are_first { Poll::Pending } else { self.poll_deliveries(context) }
    }

    fn poll_deliveries(&mut self, context: &mut Context<'_>) -> Poll<ConversationInput> {
        for (index, followed) in self.followed.iter_mut().enumerate() {
            if let Poll::Ready(read) = followed.reading.as_mut().poll(context) {
                // `handle_deliveries` moves the channel to the end of the list, so that all take turns.
                return Poll::Ready(ConversationInput::Read(index, read));
            }
        }
        Poll::Pending
    }

    /// Sets the timer of throttled progress.
    fn set_due(&mut self) {
        let due_ns = self.followed.iter().filter_map(|followed| followed.throttle.poll_timeout()).min();
        if self.due.as_ref().map(|(at_ns, _)| *at_ns) != due_ns {
            self.due = due_ns.map(|at_ns| (at_ns, Box::pin(Deadline::at(at_ns).passed()) as Timer));
        }
    }

    /// Sends the throttled progress that is due.
    fn send_due(&mut self) {
        let now_ns = clock::monotonic_ns();
        let mut due = Vec::new();
        for followed in &mut self.followed {
            let mut entries = Vec::new();
            followed.throttle.handle_timer(now_ns, &mut entries);
            due.extend(entries.into_iter().map(|entry| (followed.channel.clone(), entry)));
        }
        due.iter().for_each(|(channel, entry)| self.send_entry(channel, entry));
    }

    /// When the authorization of the user expires.
    fn expiry(&self) -> Option<Deadline> {
        let now = clock::now();
        let expires_at_ms = self.socket.identity.expires_at_s()?.saturating_mul(1000);
        Some(Deadline::after(now, expires_at_ms.saturating_sub(now.unix_ns / NS_PER_MS)))
    }

    fn timer(&self, expiry: Option<Deadline>) -> Pin<Box<dyn Future<Output = ()>>> {
        let beat = Deadline::after(clock::now(), self.socket.settings.heartbeat_ms);
        Box::pin(expiry.map_or(beat, |expiry| beat.earlier(expiry)).passed())
    }

    /// Handles a message of the client.
    async fn handle_message(&mut self, line: &Line<'_>) {
        let Some(message) = line.content else {
            let message = format!("a message has at most {MESSAGE_BYTES_MAX} bytes");
            return self.send(error_json("message_too_long", &message, None, false));
        };
        match SocketMessage::from_json(message) {
            Err(error) => self.send(error_json("invalid_message", &error.to_string(), None, false)),
            Ok(SocketMessage::Unsubscribe { channel }) => {
                let Some(index) = self.index(&channel) else {
                    let message = "this channel is not followed";
                    return self.send(error_json("not_followed", message, Some(&channel), false));
                };
                let mut followed = self.followed.remove(index);
                let mut due = Vec::new();
                followed.throttle.drain(&mut due);
                due.iter().for_each(|entry| self.send_entry(&channel, entry));
                let event = StreamEvent::Disconnected {
                    reason: "unsubscribed",
                    message: "the client has unsubscribed",
                    resumable: true,
                };
                self.send_event(&channel, &event, None);
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

    /// Follows a channel; one that is followed already is followed again from `after`.
    async fn follow(&mut self, channel: Channel, after: Cursor, filter: EventFilter) {
        if let Some(index) = self.index(&channel) {
            self.followed.remove(index);
        }
        if self.followed.len() >= CHANNELS_MAX {
            let message = format!("a socket follows at most {CHANNELS_MAX} channels");
            return self.send(error_json("too_many_channels", &message, Some(&channel), false));
        }
        match subscribe::has_more(&channel, after).await {
            Ok(true) => {}
            Ok(false) => {
                self.send_event(&channel, &StreamEvent::Connected, None);
                return self.send_event(&channel, &SubscriptionEnd::Finished.event(), None);
            }
            Err(problem) => return self.refuse(&channel, &problem),
        }
        match events::follow(channel.to_string(), after, self.socket.share()).await {
            Ok(deliveries) => {
                self.send_event(&channel, &StreamEvent::Connected, None);
                let reading = read(deliveries, Vec::with_capacity(DELIVERIES_MAX));
                let throttle = Throttle::new(u64::from(filter.throttle_ms) * NS_PER_MS);
                self.followed.push(FollowedChannel { channel, filter, throttle, reading });
            }
            Err(failure) => self.refuse(&channel, &store::problem(failure)),
        }
    }

    fn index(&self, channel: &Channel) -> Option<usize> {
        self.followed.iter().position(|followed| followed.channel == *channel)
    }

    /// Sends the deliveries of a followed channel, and starts its next read.
    fn handle_deliveries(&mut self, index: usize, (deliveries, result, mut batch): DeliveryRead) {
        let FollowedChannel { channel, filter, mut throttle, .. } = self.followed.remove(index);
        let now_ns = clock::monotonic_ns();
        let (mut end, mut due) = (None, Vec::new());
        for delivery in batch.drain(..) {
            match delivery {
                Delivery::Entry(entry) => {
                    end = entry.event.finishes.then_some(SubscriptionEnd::Finished);
                    if filter.admits(&entry.event.name, &entry.event.data) {
                        let key = entry.event.coalesce.clone();
                        throttle.handle_event(now_ns, key.as_deref(), entry, &mut due);
                    }
                    due.drain(..).for_each(|entry| self.send_entry(&channel, &entry));
                }
                Delivery::Gap(gap) => {
                    throttle.drain(&mut due);
                    due.drain(..).for_each(|entry| self.send_entry(&channel, &entry));
                    let (from, to) = (gap.missing_from.to_string(), gap.missing_to.to_string());
                    self.send_event(&channel, &StreamEvent::Gap { missing_from: &from, missing_to: &to }, Some(&to));
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
            due.drain(..).for_each(|entry| self.send_entry(&channel, &entry));
        }
        match end {
            Some(end) => self.send_event(&channel, &end.event(), None),
            // Moved to the end of the list, so that all channels take turns.
            None => self.followed.push(FollowedChannel { channel, filter, throttle, reading: read(deliveries, batch) }),
        }
    }

    fn refuse(&self, channel: &Channel, problem: &Problem) {
        let retryable = problem.retry_after_ms.is_some();
        self.send(error_json(problem.code, &problem.detail, Some(channel), retryable));
    }

    fn send_entry(&self, channel: &Channel, entry: &Entry) {
        let id = entry.at.to_string();
        self.send(envelope(channel, Some(&id), &entry.event.name, &flat(&entry.event.data)));
    }

    fn send_event(&self, channel: &Channel, event: &StreamEvent<'_>, id: Option<&str>) {
        let data = event.data(channel, clock::now().unix_ns / NS_PER_MS);
        self.send(envelope(channel, id, event.name(), &data));
    }

    fn send(&self, message: Vec<u8>) {
        let mut output = self.duplex.session.borrow_mut();
        output.out.extend(message);
        output.out.push(b'\n');
        drop(output);
        self.duplex.changed();
    }
}

/// JSON on one line. A line break in valid JSON is always white space between tokens, so it can be replaced by a space.
fn flat(data: &str) -> Vec<u8> {
    data.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }).collect()
}
