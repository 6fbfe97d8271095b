//! The feed of a held connection: the events of a channel as they are published, heartbeats while there are none, and
//! the reason of the end.
//!
//! A feed reads from the store only when its client can be written to: the store bounds the waiting events, and closes
//! subscribers that are too slow. An idle feed consists of a subscription and one timer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, Sleep};
use weir_codec::channels::filter::EventFilter;
use weir_codec::channels::hold::Terms;
use weir_codec::channels::route::Channel;
use weir_codec::channels::subscription::{EventRenderer, SubscriptionEnd, render_event};
use weir_codec::http::framing::Framing;
use weir_core::channels::{CloseReason, Delivery, Entry, Throttle};
use weir_events::Subscription;

use crate::sse::gzip::{self, Gzip};
use crate::sse::subscribers::SubscriberPermit;

/// Most events in one write.
const WRITE_EVENTS_MAX: usize = 64;
/// The size in bytes at which a write ends; a write has at least one event, even if that is larger.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// The time between the end of a client's authorization and its disconnection, if it does not read.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// Bytes to be written next.
pub(crate) struct FeedOutput {
    /// The bytes, after the requested room.
    pub(crate) bytes: Vec<u8>,
    /// True for the last bytes of the feed.
    pub(crate) last: bool,
}

/// The filter and the throttle of a client that requests a part of the events.
struct ChannelPart {
    filter: EventFilter,
    throttle: Throttle<Arc<Entry>>,
    /// The origin of the throttle's clock.
    start_time: Instant,
}

impl ChannelPart {
    fn now_ns(&self, now: Instant) -> u64 {
        u64::try_from((now - self.start_time).as_nanos()).unwrap_or(u64::MAX)
    }

    /// When the progress that the throttle holds back is due.
    fn due(&self) -> Option<Instant> {
        self.throttle.poll_timeout().map(|due_ns| self.start_time + Duration::from_nanos(due_ns))
    }
}

/// The rendered events for one subscriber.
pub(crate) struct Feed {
    renderer: EventRenderer,
    subscription: Subscription,
    heartbeat: Duration,
    /// When the client's authorization expires.
    expires: Option<Instant>,
    last_write: Instant,
    /// Reset when it fires or when an earlier time is needed, but not at each write.
    timer: Pin<Box<Sleep>>,
    /// Set for a client that accepts gzip.
    gzip: Option<Gzip>,
    /// Set for a client that requests a part of the events; boxed, since most clients do not.
    part: Option<Box<ChannelPart>>,
    _permit: SubscriberPermit,
}

impl Feed {
    /// Must be called in a tokio runtime with a clock.
    pub(crate) fn new(channel: Channel, terms: &Terms, subscription: Subscription, permit: SubscriberPermit) -> Self {
        let now = Instant::now();
        let expires = terms.expires_at_s.map(|expires_at_s| {
            let left_ms = expires_at_s.saturating_mul(1000).saturating_sub(unix_ms());
            // Bounded, since a timer cannot represent every time: a token that is valid for more than a century counts
            // as expired then.
            const LEFT_MS_MAX: u64 = 100 * 365 * 86_400_000;
            now + Duration::from_millis(left_ms.min(LEFT_MS_MAX))
        });
        let heartbeat = Duration::from_millis(terms.heartbeat_ms);
        let first = expires.map_or(now + heartbeat, |expires| expires.min(now + heartbeat));
        Self {
            renderer: EventRenderer::new(channel, terms.framing),
            subscription,
            heartbeat,
            expires,
            last_write: now,
            timer: Box::pin(tokio::time::sleep_until(first)),
            gzip: None,
            part: (!terms.filter.is_default()).then(|| {
                let throttle = Throttle::new(u64::from(terms.filter.throttle_ms) * 1_000_000);
                Box::new(ChannelPart { filter: terms.filter.clone(), throttle, start_time: now })
            }),
            _permit: permit,
        }
    }

    /// Whether the feed can be compressed. Only server-sent events are, since they are rendered and compressed once for
    /// all subscribers.
    pub(crate) fn can_gzip(&self) -> bool {
        self.renderer.framing() == Framing::Sse
    }

    /// Compresses everything from now on; returns the head of the stream with the compressed `first`.
    pub(crate) fn start_gzip(&mut self, first: &[u8]) -> Vec<u8> {
        let mut begin = Vec::new();
        Gzip::push_head(&mut begin);
        self.gzip.insert(Gzip::default()).push(&mut begin, first);
        begin
    }

    /// The next bytes to write, after `room` bytes for the caller. Must not be called again after the last piece.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<FeedOutput> {
        loop {
            let piece = ready!(self.poll_piece(cx, room));
            // The filter may have removed all events of a batch. An empty chunk would end the response.
            if piece.bytes.len() > room || piece.last {
                return Poll::Ready(piece);
            }
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<FeedOutput> {
        // Allocates nothing until an event has arrived.
        let mut batch = Vec::new();
        let ready = self.subscription.poll_batch(cx, &mut batch, WRITE_EVENTS_MAX, WRITE_BYTES_MAX);
        let now = Instant::now();
        // Checked on each delivery too, since a timer may be late.
        if self.expires.is_some_and(|expires| expires <= now) {
            return Poll::Ready(self.piece(vec![0; room], Some(SubscriptionEnd::Expired)));
        }
        if ready.is_pending() {
            return self.poll_timer(cx, room);
        }
        let mut bytes = Vec::with_capacity(room + batch.iter().map(size).sum::<usize>());
        bytes.resize(room, 0);
        // An empty batch without a last event or a close before it means that the subscription was lost.
        let mut end = batch.is_empty().then_some(SubscriptionEnd::Lost);
        for delivery in batch {
            end = self.push(&mut bytes, delivery).or(end);
        }
        // Filtered events do not postpone the heartbeat.
        if bytes.len() > room {
            self.last_write = now;
        }
        Poll::Ready(self.piece(bytes, end))
    }

    /// Ready when a client that does not read must be disconnected because its authorization has expired.
    pub(crate) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.expires.map(|expires| expires + EXPIRY_GRACE) else { return Poll::Pending };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }

    /// Waits for the next heartbeat, or the end of the client's authorization.
    fn poll_timer(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<FeedOutput> {
        loop {
            let next = self.last_write + self.heartbeat;
            let next = self.expires.map_or(next, |expires| expires.min(next));
            let due = self.part.as_ref().and_then(|part| part.due());
            let next = due.map_or(next, |due| due.min(next));
            if self.timer.deadline() > next {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if self.expires.is_some_and(|expires| expires <= now) {
                return Poll::Ready(self.piece(vec![0; room], Some(SubscriptionEnd::Expired)));
            }
            if due.is_some_and(|due| due <= now) {
                self.last_write = now;
                let mut bytes = vec![0; room];
                let mut entries = Vec::new();
                if let Some(part) = &mut self.part {
                    let now_ns = part.now_ns(now);
                    part.throttle.handle_timer(now_ns, &mut entries);
                }
                entries.iter().for_each(|entry| self.push_entry(&mut bytes, entry));
                return Poll::Ready(self.piece(bytes, None));
            }
            if self.last_write + self.heartbeat <= now {
                self.last_write = now;
                let mut bytes = vec![0; room];
                self.push_own(&mut bytes, |renderer, out| out.extend_from_slice(renderer.heartbeat()));
                return Poll::Ready(self.piece(bytes, None));
            }
            self.timer.as_mut().reset(next);
        }
    }

    /// Renders a delivery; returns the reason of the end, if it is the last.
    fn push(&mut self, out: &mut Vec<u8>, delivery: Delivery) -> Option<SubscriptionEnd> {
        match delivery {
            Delivery::Event { entry, coalesced } => {
                let end = entry.finishes.then_some(SubscriptionEnd::Finished);
                let is_admitted = self.part.as_ref().is_none_or(|part| part.filter.admits(&entry.name, &entry.data));
                if is_admitted && coalesced > 0 {
                    self.push_own(out, |renderer, out| renderer.push_coalesced(out, coalesced));
                }
                match &mut self.part {
                    None => self.push_entry(out, &entry),
                    Some(part) if is_admitted => {
                        let (now_ns, key, mut due) = (part.now_ns(Instant::now()), entry.coalesce.clone(), Vec::new());
                        part.throttle.handle_event(now_ns, key.as_deref(), entry, &mut due);
                        due.iter().for_each(|entry| self.push_entry(out, entry));
                    }
                    Some(_) => {}
                }
                if end.is_some() {
                    self.push_held(out);
                }
                end
            }
            Delivery::Gap(gap) => {
                self.push_held(out);
                let (from, to) = (gap.missing_from.to_string(), gap.missing_to.to_string());
                self.push_own(out, |renderer, out| renderer.push_gap(out, &from, &to, unix_ms()));
                None
            }
            Delivery::Closed(reason) => {
                self.push_held(out);
                Some(match reason {
                    CloseReason::Slow => SubscriptionEnd::Slow,
                    CloseReason::Lost => SubscriptionEnd::Lost,
                })
            }
        }
    }

    /// Renders the progress that the throttle holds back, before something that must follow it.
    fn push_held(&mut self, out: &mut Vec<u8>) {
        let mut held = Vec::new();
        if let Some(part) = &mut self.part {
            part.throttle.drain(&mut held);
        }
        held.iter().for_each(|entry| self.push_entry(out, entry));
    }

    /// Renders an event. As a server-sent event it is rendered, and compressed, once for all subscribers.
    fn push_entry(&mut self, out: &mut Vec<u8>, entry: &Entry) {
        if self.renderer.framing() == Framing::Ndjson {
            let id = entry.cursor.to_string();
            return self
                .push_own(out, |renderer, out| renderer.push_event(out, &id, &entry.name, entry.data.as_bytes()));
        }
        let rendered = entry.rendered_once(render);
        match &mut self.gzip {
            None => out.extend_from_slice(rendered),
            Some(gzip) => gzip.push_packed(out, rendered, entry.compressed_once(|_| gzip::pack(rendered))),
        }
    }

    /// Renders something for this subscriber alone.
    fn push_own(&mut self, out: &mut Vec<u8>, render: impl FnOnce(&EventRenderer, &mut Vec<u8>)) {
        let Some(gzip) = &mut self.gzip else { return render(&self.renderer, out) };
        let mut plain = Vec::new();
        render(&self.renderer, &mut plain);
        gzip.push(out, &plain);
    }

    /// A piece, with the reason of the end if it is the last.
    fn piece(&mut self, mut bytes: Vec<u8>, end: Option<SubscriptionEnd>) -> FeedOutput {
        if let Some(end) = end {
            self.push_own(&mut bytes, |renderer, out| renderer.push_end(out, end, unix_ms()));
            if let Some(gzip) = &self.gzip {
                gzip.push_end(&mut bytes);
            }
        }
        FeedOutput { bytes, last: end.is_some() }
    }
}

/// The approximate size of a rendered delivery, in bytes.
fn size(delivery: &Delivery) -> usize {
    match delivery {
        Delivery::Event { entry, .. } => entry.bytes(),
        Delivery::Gap(_) | Delivery::Closed(_) => 0,
    }
}

/// An event as a server-sent event.
fn render(entry: &Entry) -> Vec<u8> {
    render_event(&entry.cursor.to_string(), &entry.name, entry.data.as_bytes())
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
