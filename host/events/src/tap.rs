//! Everything that is appended through a store, for who looks at all channels at once: a file, metrics.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use weir_core::channels::{ChannelName, Cursor, Draft, Entry};

/// Most events that wait for a tap; past it the oldest are missed, and it is told how many.
const EVENTS_MAX: usize = 1024;

/// What a tap gives.
#[derive(Debug, Clone)]
pub enum Tapped {
    /// An event that was appended, once it is in the store. Those of one publisher come in order; the order of a channel is that
    /// of the places.
    Event {
        /// To which channel.
        channel: ChannelName,
        /// In its place.
        entry: Arc<Entry>,
    },
    /// So many events were missed, for this tap was too slow.
    Missed(u64),
}

/// Sees what is appended to every channel from when it was made. Slowing down nobody: what it does not take in time it misses.
#[derive(Debug)]
pub struct Tap {
    receiver: broadcast::Receiver<(ChannelName, Arc<Entry>)>,
}

impl Tap {
    /// The next event; none when the store is gone.
    pub async fn next(&mut self) -> Option<Tapped> {
        match self.receiver.recv().await {
            Ok((channel, entry)) => Some(Tapped::Event { channel, entry }),
            Err(RecvError::Lagged(missed)) => Some(Tapped::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next event if there is one now.
    pub fn try_next(&mut self) -> Option<Tapped> {
        match self.receiver.try_recv() {
            Ok((channel, entry)) => Some(Tapped::Event { channel, entry }),
            Err(TryRecvError::Lagged(missed)) => Some(Tapped::Missed(missed)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    /// True when the store is gone: nothing comes but what waits already.
    pub fn is_closed(&self) -> bool {
        self.receiver.is_closed()
    }

    /// The next event, for a thread of its own; none when the store is gone.
    pub fn blocking_next(&mut self) -> Option<Tapped> {
        match self.receiver.blocking_recv() {
            Ok((channel, entry)) => Some(Tapped::Event { channel, entry }),
            Err(RecvError::Lagged(missed)) => Some(Tapped::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

/// The other end, in the store.
#[derive(Debug)]
pub(crate) struct Taps {
    sender: broadcast::Sender<(ChannelName, Arc<Entry>)>,
}

impl Default for Taps {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(EVENTS_MAX) }
    }
}

impl Taps {
    pub(crate) fn tap(&self) -> Tap {
        Tap { receiver: self.sender.subscribe() }
    }

    /// What taps will need of events that are about to be appended; nothing when nobody looks.
    pub(crate) fn keep(&self, drafts: &[Draft]) -> Option<Vec<Draft>> {
        (self.sender.receiver_count() > 0).then(|| drafts.to_vec())
    }

    pub(crate) fn appended(&self, channel: &ChannelName, drafts: Vec<Draft>, places: &[Cursor], now_ms: u64) {
        for (draft, place) in drafts.into_iter().zip(places) {
            // Nobody may look any more.
            let _ = self.sender.send((channel.clone(), Arc::new(draft.at(*place, now_ms))));
        }
    }
}
