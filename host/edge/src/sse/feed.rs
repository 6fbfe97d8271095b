//! What a held connection is fed with: the events of a channel as they come, heartbeats while there are none, and why it ends.
//!
//! Nothing is read from the store while the client takes nothing: what waits there is bounded, and who is too slow is closed
//! there. A feed at rest is a seat in its channel and one timer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, Sleep};
use weir_codec::channels::hold::Terms;
use weir_codec::channels::route::Channel;
use weir_codec::channels::subscription::{Drawing, End, draw_event};
use weir_codec::http::framing::Framing;
use weir_core::channels::{Closed, Delivery, Entry};
use weir_events::Subscription;

use crate::sse::gzip::{self, Gzip};
use crate::sse::hold::HoldPlace;

/// Most events in one write.
const WRITE_EVENTS_MAX: usize = 64;
/// Bytes of events from which one write takes no more; one event is taken whatever its size.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// How long a client that does not read may keep what it has no right to any more.
const LINGER: Duration = Duration::from_secs(5);

/// What is to be written next.
pub(crate) struct Piece {
    /// The bytes, behind as much room as was asked for.
    pub(crate) bytes: Vec<u8>,
    /// True when nothing comes after it.
    pub(crate) last: bool,
}

/// The events for one subscriber, drawn.
pub(crate) struct Feed {
    drawing: Drawing,
    subscription: Subscription,
    heartbeat: Duration,
    /// When the client's right ends.
    ends: Option<Instant>,
    wrote: Instant,
    /// Armed once and looked at when it rings: what is written meanwhile costs no timer of its own.
    timer: Pin<Box<Sleep>>,
    /// Of a client that reads gzip.
    gzip: Option<Gzip>,
    _place: HoldPlace,
}

impl Feed {
    /// Must be called in a tokio runtime with a clock.
    pub(crate) fn new(channel: Channel, terms: &Terms, subscription: Subscription, place: HoldPlace) -> Self {
        let now = Instant::now();
        let ends = terms.ends_s.map(|ends_s| {
            let left_ms = ends_s.saturating_mul(1000).saturating_sub(unix_ms());
            // A timer cannot be set for all of time: a token that lasts longer than a century is looked at again then.
            const LEFT_MS_MAX: u64 = 100 * 365 * 86_400_000;
            now + Duration::from_millis(left_ms.min(LEFT_MS_MAX))
        });
        let heartbeat = Duration::from_millis(terms.heartbeat_ms);
        let first = ends.map_or(now + heartbeat, |ends| ends.min(now + heartbeat));
        Self {
            drawing: Drawing::new(channel, terms.framing),
            subscription,
            heartbeat,
            ends,
            wrote: now,
            timer: Box::pin(tokio::time::sleep_until(first)),
            gzip: None,
            _place: place,
        }
    }

    /// Whether it can be compressed: what all who follow share is worth it, lines are drawn for each.
    pub(crate) fn can_gzip(&self) -> bool {
        self.drawing.framing() == Framing::Sse
    }

    /// Compresses what comes from now on, and what it begins with.
    pub(crate) fn gzip(&mut self, first: &[u8]) -> Vec<u8> {
        let mut begin = Vec::new();
        Gzip::push_head(&mut begin);
        self.gzip.insert(Gzip::default()).push(&mut begin, first);
        begin
    }

    /// What there is to write, once there is something, behind so many bytes of room. Not to be called again after the last.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Piece> {
        // Nothing is taken from the heap until something has come.
        let mut batch = Vec::new();
        let ready = self.subscription.poll_batch(cx, &mut batch, WRITE_EVENTS_MAX, WRITE_BYTES_MAX);
        let now = Instant::now();
        // Asked on each delivery too, for a timer may be late.
        if self.ends.is_some_and(|ends| ends <= now) {
            return Poll::Ready(self.piece(vec![0; room], Some(End::Expired)));
        }
        if ready.is_pending() {
            return self.poll_quiet(cx, room);
        }
        self.wrote = now;
        let mut bytes = Vec::with_capacity(room + batch.iter().map(size).sum::<usize>());
        bytes.resize(room, 0);
        // It ends after the channel's last event or after it was closed, and both are seen; otherwise it was lost.
        let mut end = batch.is_empty().then_some(End::Lost);
        for delivery in batch {
            end = self.push(&mut bytes, delivery).or(end);
        }
        Poll::Ready(self.piece(bytes, end))
    }

    /// Ready when a client that takes nothing is to be cut: it keeps what it has no right to any more.
    pub(crate) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(cut) = self.ends.map(|ends| ends + LINGER) else { return Poll::Pending };
        if self.timer.deadline() != cut {
            self.timer.as_mut().reset(cut);
        }
        self.timer.as_mut().poll(cx)
    }

    /// Waits for the next heartbeat, or the end of the client's right.
    fn poll_quiet(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Piece> {
        loop {
            let next = self.wrote + self.heartbeat;
            let next = self.ends.map_or(next, |ends| ends.min(next));
            if self.timer.deadline() > next {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if self.ends.is_some_and(|ends| ends <= now) {
                return Poll::Ready(self.piece(vec![0; room], Some(End::Expired)));
            }
            if self.wrote + self.heartbeat <= now {
                self.wrote = now;
                let mut bytes = vec![0; room];
                self.push_own(&mut bytes, |drawing, out| out.extend_from_slice(drawing.heartbeat()));
                return Poll::Ready(self.piece(bytes, None));
            }
            self.timer.as_mut().reset(next);
        }
    }

    /// Draws a delivery; says why it is the last, if it is.
    fn push(&mut self, out: &mut Vec<u8>, delivery: Delivery) -> Option<End> {
        match delivery {
            Delivery::Event { entry, coalesced } => {
                if coalesced > 0 {
                    self.push_own(out, |drawing, out| drawing.push_coalesced(out, coalesced));
                }
                self.push_entry(out, &entry);
                entry.finishes.then_some(End::Finished)
            }
            Delivery::Gap(gap) => {
                let (from, to) = (gap.missing_from.to_string(), gap.missing_to.to_string());
                self.push_own(out, |drawing, out| drawing.push_gap(out, &from, &to, unix_ms()));
                None
            }
            Delivery::Closed(Closed::Slow) => Some(End::Slow),
            Delivery::Closed(Closed::Lost) => Some(End::Lost),
        }
    }

    /// An event: as a server-sent event it is drawn, and compressed, once for all who follow.
    fn push_entry(&mut self, out: &mut Vec<u8>, entry: &Entry) {
        if self.drawing.framing() == Framing::Ndjson {
            let id = entry.cursor.to_string();
            return self.push_own(out, |drawing, out| drawing.push_event(out, &id, &entry.name, entry.data.as_bytes()));
        }
        let drawn = entry.drawn_once(draw);
        match &mut self.gzip {
            None => out.extend_from_slice(drawn),
            Some(gzip) => gzip.push_packed(out, drawn, entry.packed_once(|_| gzip::pack(drawn))),
        }
    }

    /// What is for this subscriber alone.
    fn push_own(&mut self, out: &mut Vec<u8>, draw: impl FnOnce(&Drawing, &mut Vec<u8>)) {
        let Some(gzip) = &mut self.gzip else { return draw(&self.drawing, out) };
        let mut plain = Vec::new();
        draw(&self.drawing, &mut plain);
        gzip.push(out, &plain);
    }

    /// What is written, with why nothing comes after it.
    fn piece(&mut self, mut bytes: Vec<u8>, end: Option<End>) -> Piece {
        if let Some(end) = end {
            self.push_own(&mut bytes, |drawing, out| drawing.push_end(out, end, unix_ms()));
            if let Some(gzip) = &self.gzip {
                gzip.push_end(&mut bytes);
            }
        }
        Piece { bytes, last: end.is_some() }
    }
}

/// About how many bytes a delivery is drawn with.
fn size(delivery: &Delivery) -> usize {
    match delivery {
        Delivery::Event { entry, .. } => entry.bytes(),
        Delivery::Gap(_) | Delivery::Closed(_) => 0,
    }
}

/// An event as a server-sent event, which all who follow share.
fn draw(entry: &Entry) -> Vec<u8> {
    draw_event(&entry.cursor.to_string(), &entry.name, entry.data.as_bytes())
}

/// The time, in milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
