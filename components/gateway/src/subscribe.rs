//! A subscription: what a channel has after a cursor, then what comes, as server-sent events or NDJSON, until the channel's
//! last event, the end of the subscriber's right, or its leaving.
//!
//! Nothing grows: while the client does not take what is written, nothing is read from the store, which bounds what waits.

use std::{future::pending, pin::pin};

use futures::future::{Either, select};
use spin_sdk::wasip3::{http::types::ErrorCode, wit_bindgen::StreamWriter as BodyWriter};
use weir_codec::{
    channel::Channel,
    frame::Framing,
    problem::Problem,
    request::{FieldError, FieldReason, RequestError},
    sse::{self, SseEvent},
    stream_event::{StreamEvent, envelope},
    subscribe::{LAST_EVENT_ID, last_event_id},
};
use weir_core::channel;
use wit_bindgen::rt::async_support::{StreamReader, StreamResult};

use crate::{
    access::Connection,
    bindings::weir::stream::events::{self, Closed, Cursor, Delivery, Entry},
    clock::{self, Deadline},
    publish,
    reply::Client,
    settings::Settings,
};

/// Most deliveries taken at once: they are one write.
const DELIVERIES_MAX: usize = 64;
/// How long a client that does not read may keep what it has no right to any more, in milliseconds.
const LINGER_MS: u64 = 5000;
const NS_PER_MS: u64 = 1_000_000;

/// What somebody follows.
pub(crate) struct Subscription {
    channel: Channel,
    framing: Framing,
    deliveries: StreamReader<Delivery>,
    settings: &'static Settings,
    /// When the right to it ends, in seconds since 1970.
    ends_s: Option<u64>,
    _place: Connection,
}

/// Where a subscription goes on, by `Last-Event-ID` or the query; at the beginning where neither says.
pub(crate) fn cursor(header: Option<&[u8]>, query: &str) -> Result<Cursor, Problem> {
    let place = match last_event_id(header, query)? {
        None => channel::Cursor::START,
        Some(id) => id.parse::<channel::Cursor>().map_err(|error| {
            let message = format!("`{LAST_EVENT_ID}`: {error}");
            RequestError::Invalid(vec![FieldError::new(LAST_EVENT_ID, FieldReason::NotAllowed, message)])
        })?,
    };
    Ok(Cursor { epoch: place.epoch, seq: place.seq })
}

/// The id of an event on the wire.
pub(crate) fn wire_id(place: &Cursor) -> String {
    channel::Cursor::new(place.epoch, place.seq).to_string()
}

/// Whether a channel has something after a cursor, now or later.
pub(crate) async fn goes_on(channel: &Channel, after: Cursor) -> Result<bool, Problem> {
    let page = events::read(channel.to_string(), after, 1).await.map_err(publish::problem)?;
    Ok(!page.ended || page.gap.is_some() || !page.entries.is_empty())
}

/// Follows a channel.
pub(crate) async fn follow(
    channel: Channel,
    after: Cursor,
    framing: Framing,
    settings: &'static Settings,
    ends_s: Option<u64>,
    place: Connection,
) -> Result<Subscription, Problem> {
    let deliveries = events::follow(channel.to_string(), after).await.map_err(publish::problem)?;
    Ok(Subscription { channel, framing, deliveries, settings, ends_s, _place: place })
}

/// Why a subscription ends while its client is there.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Finished,
    Slow,
    Lost,
    Expired,
}

impl End {
    /// What its client is told.
    pub(crate) fn event(self) -> StreamEvent<'static> {
        let (reason, message, resumable) = match self {
            Self::Finished => ("finished", "the channel has had its last event", false),
            Self::Slow => ("slow", "the events came faster than they were read", true),
            Self::Lost => ("closing", "the server ends the connection", true),
            Self::Expired => ("expired", "the token of this connection has expired", true),
        };
        StreamEvent::Disconnected { reason, message, resumable }
    }
}

impl Subscription {
    /// Writes until there is no more to write, or nobody to write to.
    pub(crate) async fn run(mut self, client: Client) {
        let Client { mut body, trailers, sent } = client;
        let ends = self.ends();
        let cut = {
            let gone = pin!(async {
                if sent.await.is_ok() {
                    pending::<()>().await;
                }
            });
            let write = pin!(self.write(&mut body, ends));
            let whole = pin!(select(write, gone));
            let late = pin!(async {
                match ends {
                    Some(ends) => ends.later(LINGER_MS).passed().await,
                    None => pending().await,
                }
            });
            matches!(select(whole, late).await, Either::Right(_))
        };
        if cut {
            let cut = trailers.write(Err(ErrorCode::HttpResponseTimeout));
            Deadline::after(clock::now(), LINGER_MS).bound(cut).await;
        }
    }

    /// When the right to it ends.
    fn ends(&self) -> Option<Deadline> {
        let now = clock::now();
        let ends_ms = self.ends_s?.saturating_mul(1000);
        Some(Deadline::after(now, ends_ms.saturating_sub(now.unix_ns / NS_PER_MS)))
    }

    async fn write(&mut self, body: &mut BodyWriter<u8>, ends: Option<Deadline>) {
        let mut out = Vec::new();
        if self.framing == Framing::Sse {
            sse::push_retry(&mut out, self.settings.retry_ms);
        }
        self.push_event(&mut out, &StreamEvent::Connected, None);
        if !send(body, out).await {
            return;
        }
        if let Some(end) = self.pump(body, ends).await {
            let mut out = Vec::new();
            self.push_event(&mut out, &end.event(), None);
            send(body, out).await;
        }
    }

    /// Writes what comes. Returns why no more comes, unless it is because the client has left.
    async fn pump(&mut self, body: &mut BodyWriter<u8>, ends: Option<Deadline>) -> Option<End> {
        let heartbeat_ms = self.settings.heartbeat_ms;
        let timer = |from| {
            let beat = Deadline::after(from, heartbeat_ms);
            ends.map_or(beat, |ends| beat.earlier(ends))
        };
        let mut wrote = clock::now();
        // Armed once and looked at when it rings: what is written meanwhile costs no timer of its own.
        let mut ring = Box::pin(timer(wrote).passed());
        let mut buffer = Vec::with_capacity(DELIVERIES_MAX);
        loop {
            let (result, mut batch) = {
                let mut read = pin!(self.deliveries.read(buffer));
                loop {
                    match select(read.as_mut(), ring.as_mut()).await {
                        Either::Left((read, _)) => break read,
                        Either::Right(((), _)) => {
                            let now = clock::now();
                            if ends.is_some_and(|ends| ends.is_past(now)) {
                                return Some(End::Expired);
                            }
                            if Deadline::after(wrote, heartbeat_ms).is_past(now) {
                                if !send(body, heartbeat(self.framing)).await {
                                    return None;
                                }
                                wrote = clock::now();
                            }
                            ring = Box::pin(timer(wrote).passed());
                        }
                    }
                }
            };
            // Asked on each delivery too, for a timer may be late.
            if ends.is_some_and(|ends| ends.is_past(clock::now())) {
                return Some(End::Expired);
            }
            let mut out = Vec::new();
            let mut end = None;
            for delivery in batch.drain(..) {
                end = self.push(&mut out, &delivery).or(end);
            }
            if !out.is_empty() {
                if !send(body, out).await {
                    return None;
                }
                wrote = clock::now();
            }
            if end.is_some() {
                return end;
            }
            // It ends after the channel's last event or after it was closed, and both were seen; otherwise it was lost.
            if !matches!(result, StreamResult::Complete(_)) {
                return Some(End::Lost);
            }
            buffer = batch;
        }
    }

    /// Draws a delivery; says why it is the last, if it is.
    fn push(&self, out: &mut Vec<u8>, delivery: &Delivery) -> Option<End> {
        match delivery {
            Delivery::Entry(entry) => {
                self.push_entry(out, entry);
                entry.event.finishes.then_some(End::Finished)
            }
            Delivery::Gap(gap) => {
                let (from, to) = (wire_id(&gap.missing_from), wire_id(&gap.missing_to));
                // Whoever resumes from here has been told.
                let event = StreamEvent::Gap { missing_from: &from, missing_to: &to };
                self.push_event(out, &event, Some(&to));
                None
            }
            Delivery::Closed(Closed::Slow) => Some(End::Slow),
            Delivery::Closed(Closed::Lost) => Some(End::Lost),
        }
    }

    fn push_entry(&self, out: &mut Vec<u8>, entry: &Entry) {
        let id = wire_id(&entry.at);
        if self.framing == Framing::Sse && entry.coalesced > 0 {
            let said = format!("{} replaced by later ones", entry.coalesced);
            sse::push_comment(out, &said);
        }
        self.push_frame(out, Some(&id), &entry.event.name, entry.event.data.as_bytes());
    }

    fn push_event(&self, out: &mut Vec<u8>, event: &StreamEvent<'_>, id: Option<&str>) {
        let data = event.data(&self.channel, clock::now().unix_ns / NS_PER_MS);
        self.push_frame(out, id, event.name(), &data);
    }

    fn push_frame(&self, out: &mut Vec<u8>, id: Option<&str>, name: &str, data: &[u8]) {
        match self.framing {
            Framing::Sse => {
                // What the store has taken as a name breaks no line; what broke one would be left out, not the event.
                let event = SseEvent::new(data);
                let event = id.and_then(|id| event.with_id(id).ok()).unwrap_or(event);
                event.with_name(name).unwrap_or(event).push(out);
            }
            Framing::Ndjson => {
                // Ends of line are white space between JSON's tokens, and nowhere else.
                let flat: Vec<u8> =
                    data.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect();
                out.extend(envelope(&self.channel, id, name, &flat));
                out.push(b'\n');
            }
        }
    }
}

fn heartbeat(framing: Framing) -> Vec<u8> {
    match framing {
        Framing::Sse => sse::HEARTBEAT.to_vec(),
        Framing::Ndjson => b"{\"type\":\"heartbeat\"}\n".to_vec(),
    }
}

/// Sends bytes; false when nobody reads any more.
async fn send(body: &mut BodyWriter<u8>, bytes: Vec<u8>) -> bool {
    body.write_all(bytes).await.is_empty()
}
