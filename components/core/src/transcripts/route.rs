//! The queues of final segments: one bounded queue for each workflow; the least urgent segments are dropped first.

use std::collections::VecDeque;

use super::intent::Intent;
use crate::named::named;

named! {
    /// The workflows, the most urgent first.
    pub enum Workflow {
        /// Questions and clarifications.
        Question = "question",
        /// Action items and commitments.
        ActionItem = "action_item",
        /// Decisions and agreements.
        Decision = "decision",
        /// All other segments.
        General = "general",
    }
}

impl From<Intent> for Workflow {
    fn from(intent: Intent) -> Self {
        match intent {
            Intent::Question | Intent::Clarification => Self::Question,
            Intent::ActionItem | Intent::Commitment => Self::ActionItem,
            Intent::Decision | Intent::Agreement => Self::Decision,
            Intent::General => Self::General,
        }
    }
}

/// The number of workflows.
pub const WORKFLOWS: usize = Workflow::ALL.len();

/// The bounds of the queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingConfig {
    /// Most segments in the queue of each workflow, in the order of [`Workflow::ALL`]. With 0 there is no queue, and no
    /// drops.
    pub queue_len_max: [usize; WORKFLOWS],
    /// Most segments in all queues.
    pub queued_max: usize,
}

impl Default for RoutingConfig {
    /// No queues: the events of final segments contain their workflow. Queues without a consumer would only use memory
    /// and drop segments.
    fn default() -> Self {
        Self { queue_len_max: [0; WORKFLOWS], queued_max: 128 }
    }
}

impl RoutingConfig {
    /// A queue for each workflow, of at most 64 segments each and 128 in total.
    pub fn queued() -> Self {
        Self { queue_len_max: [64; WORKFLOWS], ..Self::default() }
    }
}

/// The queues.
#[derive(Debug, Clone)]
pub(super) struct Router<T> {
    pub(super) queues: [VecDeque<T>; WORKFLOWS],
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self { queues: std::array::from_fn(|_| VecDeque::new()) }
    }
}

impl<T> Router<T> {
    /// Adds an item to the queue of its workflow. Returns the dropped item: the oldest of the queue if that is full, or
    /// the oldest of the least urgent queue if all together are full, which may be the item itself.
    pub(super) fn push(&mut self, config: &RoutingConfig, workflow: Workflow, item: T) -> Option<(Workflow, T)> {
        let own = workflow as usize;
        let len_max = config.queue_len_max[own];
        if len_max == 0 {
            return None;
        }
        // The drop precedes the addition, so no queue exceeds its bound.
        let from = if self.queues[own].len() >= len_max {
            own
        } else if self.queued() >= config.queued_max {
            match self.queues.iter().rposition(|queue| !queue.is_empty()) {
                Some(least) if least >= own => least,
                // All queued segments are more urgent.
                _ => return Some((workflow, item)),
            }
        } else {
            self.queues[own].push_back(item);
            return None;
        };
        let dropped = self.queues[from].pop_front()?;
        self.queues[own].push_back(item);
        Some((Workflow::ALL[from], dropped))
    }

    pub(super) fn depths(&self) -> [usize; WORKFLOWS] {
        std::array::from_fn(|at| self.queues[at].len())
    }

    fn queued(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intents_have_the_workflows_of_the_contract() {
        let workflows: Vec<&str> = Intent::ALL.iter().map(|intent| Workflow::from(*intent).name()).collect();
        assert_eq!(
            workflows,
            ["question", "question", "action_item", "action_item", "decision", "decision", "general"]
        );
    }

    #[test]
    fn least_urgent_segment_is_dropped_first() {
        let config = RoutingConfig { queue_len_max: [3; 4], queued_max: 4 };
        let mut router = Router::default();
        use Workflow::{ActionItem, General, Question};
        assert_eq!(router.push(&config, General, 1), None);
        assert_eq!(router.push(&config, Question, 2), None);
        assert_eq!(router.push(&config, Question, 3), None);
        assert_eq!(router.push(&config, Question, 4), None);
        assert_eq!(router.push(&config, Question, 5), Some((Question, 2)));
        assert_eq!(router.push(&config, ActionItem, 6), Some((General, 1)));
        assert_eq!(router.push(&config, General, 7), Some((General, 7)));
        assert_eq!(router.queues, [vec![3, 4, 5], vec![6], vec![], vec![]]);
        assert_eq!(router.depths(), [3, 1, 0, 0]);
        let none = RoutingConfig { queue_len_max: [0; 4], queued_max: 4 };
        assert_eq!(router.push(&none, Question, 8), None);
        assert_eq!(router.depths(), [3, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn each_dropped_segment_is_counted(pushes in proptest::collection::vec(0usize..4, 0..60), len_max in 1usize..5, all in 0usize..9) {
            let config = RoutingConfig { queue_len_max: [len_max; 4], queued_max: all };
            let mut router = Router::default();
            let (mut pushed, mut removed) = (0, Vec::new());
            for push in pushes {
                removed.extend(router.push(&config, Workflow::ALL[push], pushed).map(|(_, item)| item));
                pushed += 1;
                prop_assert!(router.depths().iter().all(|depth| *depth <= len_max));
                prop_assert!(router.queued() <= all);
            }
            removed.extend(router.queues.into_iter().flatten());
            removed.sort_unstable();
            prop_assert_eq!(removed, (0..pushed).collect::<Vec<i32>>());
        }
    }
}
