//! The inputs and outputs of a stream.

use thiserror::Error;

use crate::{failure::Failure, named::named};

named! {
    /// Where a stream is in its life.
    pub enum StreamState {
        /// Created, not started: accepts no items.
        Initialized = "initialized",
        /// Takes items and releases batches.
        Running = "running",
        /// Accepts items and releases no batch; outcomes of batches at inference still arrive.
        Paused = "paused",
        /// Accepts no items and finishes those that it has.
        Stopping = "stopping",
        /// Every item has its result or error.
        Stopped = "stopped",
        /// Given up: every item that had no result then has an error.
        Error = "error",
    }
}

impl StreamState {
    /// True when a stream may go from this state to the next.
    pub fn may_become(self, next: Self) -> bool {
        use StreamState::{Error, Initialized, Paused, Running, Stopped, Stopping};
        matches!(
            (self, next),
            (Initialized, Running | Stopped)
                | (Running, Paused | Stopping)
                | (Paused, Running | Stopping)
                | (Stopping, Stopped)
                | (Initialized | Running | Paused | Stopping, Error)
        )
    }
}

/// A command that is not legal in the stream's state; the state stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a stream that is {state} cannot {command}")]
pub struct TransitionError {
    /// The state it is in.
    pub state: StreamState,
    /// The command.
    pub command: &'static str,
}

named! {
    /// Why a batch was released.
    pub enum FlushReason {
        /// On request.
        Manual = "manual",
        /// The window of the oldest item ended, or the delay before a retry.
        Timeout = "timeout",
        /// Acknowledgements made room for waiting items, or for a part of them.
        BackpressureAck = "backpressure_ack",
        /// A batch slot was free; or a caller's schedule said so.
        Scheduled = "scheduled",
        /// `batch_size` items were there.
        BatchSize = "batch_size",
        /// The stream stops.
        Shutdown = "shutdown",
    }
}

named! {
    /// Who can do something about an error.
    pub enum ErrorCategory {
        /// Who sent the item: it is wrong, or there are too many of them.
        Client = "client",
        /// Who runs the model: it fails.
        Model = "model",
        /// Who runs the server: it has too much to do.
        System = "system",
        /// Who runs what lies between the server and the model: it did not carry.
        Transport = "transport",
    }
}

impl From<&Failure> for ErrorCategory {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::InvalidInput(_)
            | Failure::UnknownModel { .. }
            | Failure::TooLong { .. }
            | Failure::Throttled { .. } => Self::Client,
            Failure::Engine(_) | Failure::Other(_) | Failure::CircuitOpen { .. } => Self::Model,
            Failure::Overloaded { .. } | Failure::DeadlineExceeded => Self::System,
            Failure::Unavailable(_) | Failure::RequestTimeout { .. } => Self::Transport,
        }
    }
}

/// Why a push was refused, with the item that was to be pushed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PushError<T> {
    /// No room; push again when a result or an error has been polled.
    #[error("the stream is full")]
    Full(T),
    /// The stream accepts no items in its state.
    #[error("the stream is not running")]
    NotRunning(T),
}

/// An attempt at an item, for inference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt<T> {
    /// Names this attempt; its outcome comes back under it.
    pub id: u64,
    /// The number that the push of the item returned.
    pub seq: u64,
    /// From 1.
    pub attempt: u32,
    /// The item.
    pub item: T,
}

/// A batch, for inference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedBatch<T> {
    /// Why now.
    pub reason: FlushReason,
    /// At least one; retries come first.
    pub attempts: Vec<Attempt<T>>,
}

/// A result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemResult<R> {
    /// The number that the push of the item returned.
    pub seq: u64,
    /// From the push to the outcome, in nanoseconds; waiting for results before it does not count.
    pub latency_ns: u64,
    /// What inference said.
    pub result: R,
}

/// Why an item has no result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Cause {
    /// Its last attempt failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The buffer was full and the drop policy chose it.
    #[error("the buffer is full and the item was dropped")]
    Dropped,
}

impl Cause {
    /// Who can do something about it.
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Failed(failure) => failure.into(),
            Self::Dropped => ErrorCategory::System,
        }
    }
}

/// An item that has no result and will have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemError<T> {
    /// The number that its push returned.
    pub seq: u64,
    /// The item.
    pub item: T,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why.
    pub cause: Cause,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn only_these_transitions_are_legal() {
        let mut table = String::new();
        for from in StreamState::ALL {
            let next: Vec<_> =
                StreamState::ALL.iter().filter(|to| from.may_become(**to)).map(|state| state.name()).collect();
            table.push_str(&format!("{from:<11} -> {}\n", next.join(", ")).replace("-> \n", "->\n"));
        }
        expect![[r#"
            initialized -> running, stopped, error
            running     -> paused, stopping, error
            paused      -> running, stopping, error
            stopping    -> stopped, error
            stopped     ->
            error       ->
        "#]]
        .assert_eq(&table);
        let error = TransitionError { state: StreamState::Stopped, command: "resume" };
        assert_eq!(error.to_string(), "a stream that is stopped cannot resume");
    }

    #[test]
    fn names_are_those_of_the_contract() {
        let reasons: Vec<_> = FlushReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(reasons, ["manual", "timeout", "backpressure_ack", "scheduled", "batch_size", "shutdown"]);
        let categories: Vec<_> = ErrorCategory::ALL.iter().map(|category| category.name()).collect();
        assert_eq!(categories, ["client", "model", "system", "transport"]);
    }

    #[test]
    fn each_failure_has_a_category() {
        let text = String::new;
        for (failure, category) in [
            (Failure::InvalidInput(text()), "client"),
            (Failure::UnknownModel { name: text(), served: Vec::new() }, "client"),
            (Failure::TooLong { tokens: 2, tokens_max: 1 }, "client"),
            (Failure::Throttled { retry_after_ms: 1 }, "client"),
            (Failure::Engine(text()), "model"),
            (Failure::Other(text()), "model"),
            (Failure::CircuitOpen { retry_after_ms: 1 }, "model"),
            (Failure::Overloaded { retry_after_ms: 1 }, "system"),
            (Failure::DeadlineExceeded, "system"),
            (Failure::Unavailable(text()), "transport"),
            (Failure::RequestTimeout { timeout_ms: 1 }, "transport"),
        ] {
            assert_eq!(Cause::Failed(failure).category().name(), category);
        }
        assert_eq!(Cause::Dropped.category(), ErrorCategory::System);
    }
}
