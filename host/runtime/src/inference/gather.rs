//! Outcomes of a call in lists, for a reader that takes about as long for one outcome as for many.
//!
//! A replica sends the outcomes of a batch together, which are a few texts. An adapter passes each list through its instance, its
//! driver and its sink, and each of these wakes the next one. While the replicas have enough other items of the call, outcomes therefore
//! wait for those of the next batches. An outcome waits less than the items behind it wait for theirs.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::inference::call::Outcomes;
use crate::types::Outcome;

/// The part of a call's items whose outcomes are one list.
const LIST_PARTS: usize = 4;
/// The part of a call's items that have to be without an outcome for others to wait: the replicas compute these meanwhile.
const OPEN_PARTS: usize = 2;
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_millis(20);

/// The outcomes of a call, gathered.
pub(crate) struct GatheredOutcomes {
    outcomes: Outcomes,
    /// Outcomes that were received and not read.
    received: Vec<Outcome>,
    /// The end of their wait.
    wait: Option<Pin<Box<Sleep>>>,
}

impl GatheredOutcomes {
    pub(crate) fn new(outcomes: Outcomes) -> Self {
        Self { outcomes, received: Vec::new(), wait: None }
    }

    /// Up to `max` outcomes; empty once the sender is dropped and every item has its outcome.
    pub(crate) fn poll_recv_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Outcome>> {
        loop {
            match self.outcomes.poll_list(cx) {
                Poll::Ready(Some(list)) => self.received.extend(list),
                Poll::Ready(None) => return Poll::Ready(self.read(max)),
                Poll::Pending => break,
            }
        }
        match self.received.is_empty() || self.poll_wait(cx, max).is_pending() {
            true => Poll::Pending,
            false => Poll::Ready(self.read(max)),
        }
    }

    /// Waits until the received outcomes should be read.
    fn poll_wait(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<()> {
        let (received, items_max) = (self.received.len(), self.outcomes.items_max());
        let is_list = received >= max.min(items_max / LIST_PARTS);
        let without_outcome = self.outcomes.open_items().saturating_sub(received);
        if is_list || without_outcome < items_max / OPEN_PARTS {
            return Poll::Ready(());
        }
        self.wait.get_or_insert_with(|| Box::pin(sleep(WAIT_MAX))).as_mut().poll(cx)
    }

    fn read(&mut self, max: usize) -> Vec<Outcome> {
        self.wait = None;
        let rest = self.received.split_off(self.received.len().min(max));
        let outcomes = std::mem::replace(&mut self.received, rest);
        self.outcomes.release(outcomes.len());
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::FutureExt as _;

    use super::*;
    use crate::inference::call::test_call;
    use crate::inference::reply::OutcomeSender;
    use crate::types::Output;

    const ITEMS_MAX: usize = 64;

    fn answer(replies: &mut Vec<OutcomeSender>, count: usize) {
        replies.drain(..count).for_each(|reply| reply.send(1, Ok(Output::Embedding(Vec::new()))));
    }

    async fn read(outcomes: &mut GatheredOutcomes, max: usize) -> Vec<u64> {
        let list = std::future::poll_fn(|cx| outcomes.poll_recv_many(cx, max)).await;
        list.iter().map(|outcome| outcome.id).collect()
    }

    #[tokio::test]
    async fn outcomes_wait_for_a_list_while_replicas_have_enough_items() {
        let (mut replies, outcomes) = test_call(ITEMS_MAX, ITEMS_MAX);
        let mut outcomes = GatheredOutcomes::new(outcomes);
        answer(&mut replies, 7);
        assert_eq!(read(&mut outcomes, 64).now_or_never(), None);
        assert_eq!(outcomes.outcomes.open_items(), ITEMS_MAX, "they are not read");
        answer(&mut replies, 9);
        assert_eq!(read(&mut outcomes, 64).now_or_never(), Some((0..16).collect::<Vec<_>>()));
        assert_eq!(outcomes.outcomes.open_items(), ITEMS_MAX - 16);
        // A reader with less room has a shorter list, and the rest next.
        answer(&mut replies, 7);
        assert_eq!(read(&mut outcomes, 4).now_or_never(), Some((16..20).collect::<Vec<_>>()));
        assert_eq!(read(&mut outcomes, 4).now_or_never(), None);
        assert_eq!(read(&mut outcomes, 3).now_or_never(), Some((20..23).collect::<Vec<_>>()));
    }

    #[tokio::test]
    async fn outcomes_are_read_at_once_when_replicas_have_few_items() {
        let (mut replies, outcomes) = test_call(ITEMS_MAX, 33);
        let mut outcomes = GatheredOutcomes::new(outcomes);
        answer(&mut replies, 1);
        assert_eq!(read(&mut outcomes, 64).now_or_never(), None, "a half of the call has no outcome");
        answer(&mut replies, 1);
        assert_eq!(read(&mut outcomes, 64).now_or_never(), Some(vec![0, 1]));
        answer(&mut replies, 31);
        assert_eq!(read(&mut outcomes, 64).now_or_never(), Some((2..33).collect::<Vec<_>>()));
        assert_eq!(read(&mut outcomes, 64).now_or_never(), Some(Vec::new()), "the call has ended");
    }

    #[tokio::test]
    async fn wait_for_a_list_is_bounded() {
        let (mut replies, outcomes) = test_call(ITEMS_MAX, ITEMS_MAX);
        let mut outcomes = GatheredOutcomes::new(outcomes);
        answer(&mut replies, 1);
        let start_time = Instant::now();
        assert_eq!(read(&mut outcomes, 64).await, [0]);
        assert!(start_time.elapsed() >= WAIT_MAX);
        // The next wait has a time of its own.
        answer(&mut replies, 1);
        assert_eq!(read(&mut outcomes, 64).now_or_never(), None);
    }
}
