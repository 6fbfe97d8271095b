//! A subscription: the retained events of a channel after a cursor, then live ones, as server-sent events or NDJSON, until the last event
//! of the channel, the end of the authorization, or the disconnect.
//!
//! This is for hosts without an intermediary. With one, [`crate::channels::grip`] instructs it, and the gateway has no
//! state of a subscription.
//!
//! Memory is bounded: while the client does not read, nothing is read from the store, which bounds the events that
//! wait.

use std::{future::pending, pin::pin};

use futures::future::{Either, select};
use spin_sdk::wasip3::{http::types::ErrorCode, wit_bindgen::StreamWriter as BodyWriter};
use weir_codec::{
    channels::{
        filter::EventFilter,
        route::Channel,
        subscribe as resume,
        subscription::{EventRenderer, SubscriptionEnd},
    },
    http::{framing::Framing, problem::Problem},
};
use weir_core::channels::{Cursor, Throttle};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult};

use crate::{
    auth::SubscriptionPermit,
    http::response::{Client, send},
    platform::{
        bindings::weir::stream::events::{self, Closed, Delivery, Entry, Gap},
        clock::{self, Deadline},
        settings::Settings,
        store,
    },
};

/// The most deliveries in one read. Those of one read are sent with one write.
const DELIVERIES_MAX: usize = 64;
/// The time from the end of the authorization to the disconnect of a client that does not read, in milliseconds.
const LINGER_MS: u64 = 5000;
const NS_PER_MS: u64 = 1_000_000;

/// A subscription of one client to one channel.
pub(crate) struct Subscription {
    renderer: EventRenderer,
    deliveries: StreamReader<Delivery>,
    settings: &'static Settings,
    /// When the authorization expires, in seconds since 1970.
    expires_at_s: Option<u64>,
    filter: EventFilter,
    throttle: Throttle<Entry>,
    _permit: SubscriptionPermit,
}

/// The cursor after which a subscription resumes, from `Last-Event-ID` or the query.
pub(crate) fn cursor(header: Option<&[u8]>, query: &str) -> Result<Cursor, Problem> {
    Ok(resume::cursor(header, query)?)
}

/// Whether a channel has events after a cursor or may have some later.
pub(crate) async fn has_more(channel: &Channel, after: Cursor) -> Result<bool, Problem> {
    let page = events::read(channel.to_string(), after, 1).await.map_err(store::problem)?;
    Ok(!page.ended || page.gap.is_some() || !page.entries.is_empty())
}

/// Follows a channel.
pub(crate) async fn follow(
    channel: Channel,
    after: Cursor,
    framing: Framing,
    settings: &'static Settings,
    expires_at_s: Option<u64>,
    permit: SubscriptionPermit,
    filter: EventFilter,
) -> Result<Subscription, Problem> {
    let user = permit.user().map(str::to_owned);
    let deliveries = events::follow(channel.to_string(), after, user).await.map_err(store::problem)?;
    let throttle = Throttle::new(u64::from(filter.throttle_ms) * NS_PER_MS);
    let renderer = EventRenderer::new(channel, framing);
    Ok(Subscription { renderer, deliveries, settings, expires_at_s, filter, throttle, _permit: permit })
}

impl Subscription {
    /// Writes until the subscription ends or the client is gone.
    pub(crate) async fn run(mut self, client: Client) {
        let Client { mut body, trailers, sent } = client;
        let expiry = self.expiry();
        let is_cut = {
            let disconnected = pin!(async {
                if sent.await.is_ok() {
                    pending::<()>().await;
                }
            });
            let write = pin!(self.write(&mut body, expiry));
            let served = pin!(select(write, disconnected));
            let overdue = pin!(async {
                match expiry {
                    Some(expiry) => expiry.later(LINGER_MS).passed().await,
                    None => pending().await,
                }
            });
            matches!(select(served, overdue).await, Either::Right(_))
        };
        if is_cut {
            let cut = trailers.write(Err(ErrorCode::HttpResponseTimeout));
            Deadline::after(clock::now(), LINGER_MS).bound(cut).await;
        }
    }

    /// When the authorization expires.
    fn expiry(&self) -> Option<Deadline> {
        let now = clock::now();
        let expires_at_ms = self.expires_at_s?.saturating_mul(1000);
        Some(Deadline::after(now, expires_at_ms.saturating_sub(now.unix_ns / NS_PER_MS)))
    }

    async fn write(&mut self, body: &mut BodyWriter<u8>, expiry: Option<Deadline>) {
        let mut out = Vec::new();
        self.renderer.push_begin(&mut out, self.settings.retry_ms, unix_ms());
        if !send(body, out).await {
            return;
        }
        if let Some(end) = self.pump(body, expiry).await {
            let mut out = Vec::new();
            self.renderer.push_end(&mut out, end, unix_ms());
            send(body, out).await;
        }
    }

    /// Writes deliveries. Returns why the subscription ends; none when the client has disconnected.
    async fn pump(&mut self, body: &mut BodyWriter<u8>, expiry: Option<Deadline>) -> Option<SubscriptionEnd> {
        let heartbeat_ms = self.settings.heartbeat_ms;
        let next_wake = |from, due_ns: Option<u64>| {
            let beat = Deadline::after(from, heartbeat_ms);
            let beat = expiry.map_or(beat, |expiry| beat.earlier(expiry));
            due_ns.map_or(beat, |due_ns| beat.earlier(Deadline::at(due_ns)))
        };
        let mut wrote = clock::now();
        // One timer for all writes: it is inspected when it fires, so that a write needs no timer of its own.
        let mut timer = Box::pin(next_wake(wrote, None).passed());
        let mut buffer = Vec::with_capacity(DELIVERIES_MAX);
        loop {
            let (result, mut batch) = {
                let mut read = pin!(self.deliveries.read(buffer));
                loop {
                    match select(read.as_mut(), timer.as_mut()).await {
                        Either::Left((read, _)) => break read,
                        Either::Right(((), _)) => {
                            let now = clock::now();
                            if expiry.is_some_and(|expiry| expiry.is_past(now)) {
                                return Some(SubscriptionEnd::Expired);
                            }
                            if Deadline::after(wrote, heartbeat_ms).is_past(now) {
                                if !send(body, self.renderer.heartbeat().to_vec()).await {
                                    return None;
                                }
                                wrote = clock::now();
                            }
                            let mut due = Vec::new();
                            self.throttle.handle_timer(clock::monotonic_ns(), &mut due);
                            let mut out = Vec::new();
                            due.iter().for_each(|entry| push_entry(&self.renderer, &mut out, entry));
                            if !out.is_empty() {
                                if !send(body, out).await {
                                    return None;
                                }
                                wrote = clock::now();
                            }
                            timer = Box::pin(next_wake(wrote, self.throttle.poll_timeout()).passed());
                        }
                    }
                }
            };
            // Checked on every delivery too, since a timer may be late.
            if expiry.is_some_and(|expiry| expiry.is_past(clock::now())) {
                return Some(SubscriptionEnd::Expired);
            }
            let mut out = Vec::new();
            let mut end = None;
            let was_idle = self.throttle.poll_timeout().is_none();
            for delivery in batch.drain(..) {
                end = self.push(&mut out, delivery).or(end);
            }
            if was_idle && self.throttle.poll_timeout().is_some() {
                timer = Box::pin(next_wake(wrote, self.throttle.poll_timeout()).passed());
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
            // The stream ends after the last event or after `closed`, both of which are handled above; otherwise
            // deliveries were lost.
            if !matches!(result, StreamResult::Complete(_)) {
                return Some(SubscriptionEnd::Lost);
            }
            buffer = batch;
        }
    }

    /// Renders a delivery; returns the reason if the subscription ends with it.
    fn push(&mut self, out: &mut Vec<u8>, delivery: Delivery) -> Option<SubscriptionEnd> {
        let mut due = Vec::new();
        let (mut gap, mut end) = (None, None);
        match delivery {
            Delivery::Entry(entry) => {
                end = entry.event.finishes.then_some(SubscriptionEnd::Finished);
                if self.filter.admits(&entry.event.name, &entry.event.data) {
                    self.renderer.push_coalesced(out, entry.coalesced);
                    let key = entry.event.coalesce.clone();
                    self.throttle.handle_event(clock::monotonic_ns(), key.as_deref(), entry, &mut due);
                }
            }
            Delivery::Gap(missing) => gap = Some(missing),
            Delivery::Closed(Closed::Slow) => end = Some(SubscriptionEnd::Slow),
            Delivery::Closed(Closed::Lost) => end = Some(SubscriptionEnd::Lost),
        }
        if end.is_some() || gap.is_some() {
            self.throttle.drain(&mut due);
        }
        due.iter().for_each(|entry| push_entry(&self.renderer, out, entry));
        if let Some(gap) = gap {
            push_gap(&self.renderer, out, &gap);
        }
        end
    }
}

/// Renders an event of the channel.
pub(crate) fn push_entry(renderer: &EventRenderer, out: &mut Vec<u8>, entry: &Entry) {
    renderer.push_event(out, &entry.at.to_string(), &entry.event.name, entry.event.data.as_bytes());
}

/// Renders a gap.
pub(crate) fn push_gap(renderer: &EventRenderer, out: &mut Vec<u8>, gap: &Gap) {
    renderer.push_gap(out, &gap.missing_from.to_string(), &gap.missing_to.to_string(), unix_ms());
}

/// The time, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    clock::now().unix_ns / NS_PER_MS
}
