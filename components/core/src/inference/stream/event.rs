//! The inputs and outputs of a stream.

use thiserror::Error;

use crate::{failure::Failure, named::named};

named! {
    /// The state of a stream.
    pub enum StreamState {
        /// Created, not started: accepts no items.
        Initialized = "initialized",
        /// Accepts items and releases batches.
        Running = "running",
        /// Accepts items and releases no batches; outcomes of batches at inference are still handled.
        Paused = "paused",
        /// Accepts no items and finishes the remaining ones.
        Stopping = "stopping",
        /// Every item has its result or error.
        Stopped = "stopped",
        /// Aborted: every item without a result has an error.
        Error = "error",
    }
}

impl StreamState {
    /// True when the transition from this state to `next` is legal.
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

/// A command that is not legal in the stream's state, which is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a stream that is {state} cannot {command}")]
pub struct TransitionError {
    /// The state of the stream.
    pub state: StreamState,
    /// The command.
    pub command: &'static str,
}

named! {
    /// Why a batch was released.
    pub enum FlushReason {
        /// A flush was requested.
        Manual = "manual",
        /// The window of the oldest item ended, or the delay before a retry.
        Timeout = "timeout",
        /// Acknowledgements made room for waiting items, or for a part of them.
        BackpressureAck = "backpressure_ack",
        /// A batch slot was free, or a caller flushed on a schedule.
        Scheduled = "scheduled",
        /// `batch_size` items were waiting.
        BatchSize = "batch_size",
        /// The stream stops.
        Shutdown = "shutdown",
    }
}

named! {
    /// The party that can fix an error.
    pub enum ErrorCategory {
        /// The sender: the item is invalid, or there are too many of them.
        Client = "client",
        /// The operator of the model: the model fails.
        Model = "model",
        /// The operator of the server: it is overloaded.
        System = "system",
        /// The operator of the connection between server and model: it is unavailable or too slow.
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

/// Why a push was refused, with its item.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PushError<T> {
    /// There is no room. Push again after a result or an error was polled.
    #[error("the stream is full")]
    Full(T),
    /// The stream accepts no items in its state.
    #[error("the stream is not running")]
    NotRunning(T),
}

/// An attempt at an item, for inference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt<T> {
    /// The id of the attempt, for [`super::Stream::handle_outcome`].
    pub id: u64,
    /// The number that the push of the item returned.
    pub seq: u64,
    /// The number of the attempt at the item, from 1.
    pub attempt: u32,
    /// The item.
    pub item: T,
}

/// A batch, for inference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedBatch<T> {
    /// Why it was released.
    pub reason: FlushReason,
    /// At least one attempt; retries are first.
    pub attempts: Vec<Attempt<T>>,
}

/// A result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemResult<R> {
    /// The number that the push of the item returned.
    pub seq: u64,
    /// The time from the push to the outcome, in nanoseconds, without the wait for earlier results.
    pub latency_ns: u64,
    /// The number of attempts.
    pub attempts: u32,
    /// The result of inference.
    pub result: R,
}

/// Why an item has no result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Cause {
    /// Its last attempt failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The buffer was full, and the drop policy selected the item.
    #[error("the buffer is full and the item was dropped")]
    Dropped,
}

impl Cause {
    /// The party that can fix it.
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Failed(failure) => failure.into(),
            Self::Dropped => ErrorCategory::System,
        }
    }
}

/// An item without a result, as its final outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemError<T> {
    /// The number that its push returned.
    pub seq: u64,
    /// The item.
    pub item: T,
    /// The number of attempts.
    pub attempts: u32,
    /// Why it has no result.
    pub cause: Cause,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn legal_transitions_are_listed() {
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
