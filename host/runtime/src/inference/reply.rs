//! The sender of one outcome, and outcomes that are sent together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use crate::types::{Failure, Outcome, Output};

/// Sends the outcome of one item to its call. If it is dropped before that, it sends `unavailable`, so that every item
/// gets an outcome.
pub(crate) struct OutcomeSender {
    id: u64,
    /// The call's flag: true once its outcomes are dropped.
    is_abandoned: Arc<AtomicBool>,
    tx: mpsc::UnboundedSender<Vec<Outcome>>,
    is_sent: bool,
}

impl OutcomeSender {
    pub(crate) fn new(id: u64, is_abandoned: Arc<AtomicBool>, tx: mpsc::UnboundedSender<Vec<Outcome>>) -> Self {
        Self { id, is_abandoned, tx, is_sent: false }
    }

    /// A sender without a receiver.
    pub(crate) fn without_receiver() -> Self {
        let (tx, _) = mpsc::unbounded_channel();
        Self::new(0, Arc::default(), tx)
    }

    pub(crate) fn send(mut self, tokens: u32, result: Result<Output, Failure>) {
        self.send_once(tokens, result);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::SeqCst)
    }

    /// Drops the sender without an outcome: the item gets another sender.
    pub(crate) fn discard(mut self) {
        self.is_sent = true;
    }

    /// Sends the outcome before the replica that has the item gives one, which is then discarded.
    pub(crate) fn send_early(&mut self, result: Result<Output, Failure>) {
        self.send_once(0, result);
    }

    /// Whether the item has its outcome.
    pub(crate) fn is_sent(&self) -> bool {
        self.is_sent
    }

    fn send_once(&mut self, tokens: u32, result: Result<Output, Failure>) {
        if std::mem::replace(&mut self.is_sent, true) {
            return;
        }
        // An error means that the receiver is dropped.
        let _ = self.tx.send(vec![Outcome { id: self.id, tokens, result }]);
    }
}

/// Collects outcomes. Those of one call are sent as one list when this is dropped, so that the receiver is woken once
/// and not for each outcome.
#[derive(Default)]
pub(crate) struct OutcomeLists(Vec<(mpsc::UnboundedSender<Vec<Outcome>>, Vec<Outcome>)>);

impl OutcomeLists {
    pub(crate) fn add(&mut self, mut sender: OutcomeSender, tokens: u32, result: Result<Output, Failure>) {
        if std::mem::replace(&mut sender.is_sent, true) {
            return;
        }
        let outcome = Outcome { id: sender.id, tokens, result };
        // Outcomes of one call often follow each other.
        match self.0.iter_mut().rev().find(|(tx, _)| tx.same_channel(&sender.tx)) {
            Some((_, list)) => list.push(outcome),
            None => self.0.push((sender.tx.clone(), vec![outcome])),
        }
    }
}

impl Drop for OutcomeLists {
    fn drop(&mut self) {
        for (tx, list) in self.0.drain(..) {
            // An error means that the receiver is dropped.
            let _ = tx.send(list);
        }
    }
}

impl Drop for OutcomeSender {
    fn drop(&mut self) {
        if !self.is_sent {
            self.send_once(0, Err(Failure::Unavailable("the replica that had this item was lost".into())));
        }
    }
}
