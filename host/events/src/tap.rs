//! Observation of all events that are appended through a store: for the events file and metrics.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use weir_core::channels::{ChannelName, Cursor, Draft, Entry};

/// The most events that wait for a tap; beyond it the oldest are dropped, and their number is reported.
const EVENTS_MAX: usize = 1024;

/// One item of a tap.
#[derive(Debug, Clone)]
pub enum TapItem {
    /// An event that was appended, once it is in the store. The events of one publisher come in order; those of
    /// different publishers on one channel may not: their order is that of the cursors.
    Event {
        /// The channel that it was appended to.
        channel: ChannelName,
        /// The event with its cursor.
        entry: Arc<Entry>,
    },
    /// The number of events that were dropped because this tap was too slow.
    Missed(u64),
}

/// Observes all appended events of every channel from its creation on. It delays no publisher: events that it does not
/// read in time are dropped.
#[derive(Debug)]
pub struct Tap {
    receiver: broadcast::Receiver<(ChannelName, Arc<Entry>)>,
}

impl Tap {
    /// The next event; none when the store is closed.
    pub async fn next(&mut self) -> Option<TapItem> {
        match self.receiver.recv().await {
            Ok((channel, entry)) => Some(TapItem::Event { channel, entry }),
            Err(RecvError::Lagged(missed)) => Some(TapItem::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next event, if one is waiting.
    pub fn try_next(&mut self) -> Option<TapItem> {
        match self.receiver.try_recv() {
            Ok((channel, entry)) => Some(TapItem::Event { channel, entry }),
            Err(TryRecvError::Lagged(missed)) => Some(TapItem::Missed(missed)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    /// True when the store is closed: only waiting events are left.
    pub fn is_closed(&self) -> bool {
        self.receiver.is_closed()
    }

    /// The next event, for a blocking thread; none when the store is closed.
    pub fn blocking_next(&mut self) -> Option<TapItem> {
        match self.receiver.blocking_recv() {
            Ok((channel, entry)) => Some(TapItem::Event { channel, entry }),
            Err(RecvError::Lagged(missed)) => Some(TapItem::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

/// The sending end of all taps, in the store.
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

    /// A copy of events that are about to be appended, for the taps; none when there is no tap.
    pub(crate) fn copy_of(&self, drafts: &[Draft]) -> Option<Vec<Draft>> {
        (self.sender.receiver_count() > 0).then(|| drafts.to_vec())
    }

    pub(crate) fn appended(&self, channel: &ChannelName, drafts: Vec<Draft>, cursors: &[Cursor], now_ms: u64) {
        for (draft, cursor) in drafts.into_iter().zip(cursors) {
            // The last tap may have been dropped since.
            let _ = self.sender.send((channel.clone(), Arc::new(draft.at(*cursor, now_ms))));
        }
    }
}
