//! Failures of items: the core form of `weir:stream/types.failure`.

use thiserror::Error;

use crate::nearest::suggestion;

/// Why an item has no output. The message is for clients.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// The request to the model is invalid; retrying does not help.
    #[error("the model refused its input: {0}")]
    InvalidInput(String),
    /// No model of this name is served; retrying does not help.
    #[error("{}", unknown_model(.name, .served))]
    UnknownModel {
        /// The name.
        name: String,
        /// The served models; empty if they are not known.
        served: Vec<String>,
    },
    /// More tokens than the model accepts; retrying does not help.
    #[error("the text has at least {tokens} tokens and the model takes {tokens_max}")]
    TooLong {
        /// Tokens of the text, special tokens included; of a prompt that was refused without tokenizing it, the fewest that it can have.
        tokens: u32,
        /// Tokens that the model accepts.
        tokens_max: u32,
    },
    /// The queue is full; a retry after `retry_after_ms` milliseconds may help.
    #[error("the model's queue is full; retry in {retry_after_ms} ms")]
    Overloaded {
        /// The delay before a retry, in milliseconds.
        retry_after_ms: u32,
    },
    /// The caller has more than its share of the model's queue; a retry after `retry_after_ms` milliseconds may help.
    #[error("you have more than your share of the model's queue; retry in {retry_after_ms} ms")]
    Throttled {
        /// The delay before a retry, in milliseconds.
        retry_after_ms: u32,
    },
    /// The model's circuit breaker is open after repeated failures; a retry after `retry_after_ms` milliseconds may
    /// help.
    #[error("the model has failed too often and is left alone for {retry_after_ms} ms")]
    CircuitOpen {
        /// The delay before a retry, in milliseconds.
        retry_after_ms: u32,
    },
    /// The model cannot answer now; a retry may help.
    #[error("the model cannot answer now: {0}")]
    Unavailable(String),
    /// The item waited past its deadline; a retry may help.
    #[error("the text waited too long for the model")]
    DeadlineExceeded,
    /// The request exceeded its timeout; a retry may help.
    #[error("the request was not finished within {timeout_ms} ms")]
    RequestTimeout {
        /// The timeout, in milliseconds.
        timeout_ms: u64,
    },
    /// The engine failed on this item; a retry will most likely fail again.
    #[error("the engine failed on this text: {0}")]
    Engine(String),
    /// Any other failure; retrying does not help.
    #[error("{0}")]
    Other(String),
}

/// Most models that a message lists.
const LISTED_MAX: usize = 20;
/// Most code points of a name that a message quotes.
const NAME_CODE_POINTS_MAX: usize = 128;

fn unknown_model(name: &str, served: &[String]) -> String {
    // An empty name in the configuration disables a step.
    if name.is_empty() {
        return "this server has no model for this step".to_owned();
    }
    let excerpt: String = name.chars().filter(|c| !c.is_control()).take(NAME_CODE_POINTS_MAX).collect();
    let mut text = format!("no model named `{excerpt}` is served");
    let names: Vec<&str> = served.iter().map(String::as_str).collect();
    text += &suggestion(&excerpt, &names);
    if !names.is_empty() {
        let more = if names.len() > LISTED_MAX { " and others" } else { "" };
        text += &format!("; there are {}{more}", names[..names.len().min(LISTED_MAX)].join(", "));
    }
    text
}

/// The retry delay of temporary failures without a delay of their own, in milliseconds.
pub const RETRY_AFTER_MS: u32 = 1000;

impl Failure {
    /// A constant name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidInput(_) => "invalid_input",
            Self::UnknownModel { .. } => "unknown_model",
            Self::TooLong { .. } => "too_long",
            Self::Overloaded { .. } => "overloaded",
            Self::Throttled { .. } => "throttled",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::Unavailable(_) => "model_unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::RequestTimeout { .. } => "request_timeout",
            Self::Engine(_) => "engine_failed",
            Self::Other(_) => "inference_failed",
        }
    }

    /// The delay before a retry of the same request, in milliseconds; `None` if a retry does not help.
    pub fn retry_after_ms(&self) -> Option<u32> {
        match self {
            Self::Overloaded { retry_after_ms }
            | Self::Throttled { retry_after_ms }
            | Self::CircuitOpen { retry_after_ms } => Some(*retry_after_ms),
            Self::Unavailable(_) | Self::DeadlineExceeded | Self::RequestTimeout { .. } => Some(RETRY_AFTER_MS),
            Self::InvalidInput(_)
            | Self::UnknownModel { .. }
            | Self::TooLong { .. }
            | Self::Engine(_)
            | Self::Other(_) => None,
        }
    }

    /// True when the same request may succeed later.
    pub fn retryable(&self) -> bool {
        self.retry_after_ms().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_model_lists_the_served_models() {
        let text = |name: &str, served: &[&str]| {
            let served = served.iter().map(|name| (*name).to_owned()).collect();
            Failure::UnknownModel { name: name.to_owned(), served }.to_string()
        };
        assert_eq!(text("m", &[]), "no model named `m` is served");
        assert_eq!(text("m", &["entities"]), "no model named `m` is served; there are entities");
        assert_eq!(
            text("sentimnet", &["entities", "sentiment"]),
            "no model named `sentimnet` is served (did you mean `sentiment`?); there are entities, sentiment"
        );
        assert_eq!(text("a\u{1b}[31m\nb", &[]), "no model named `a[31mb` is served");
        assert_eq!(text(&"x".repeat(100_000), &[]).len(), 128 + "no model named `` is served".len());
        assert_eq!(text("", &["entities"]), "this server has no model for this step");
        let many: Vec<String> = (0..50).map(|n| format!("model{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(text("x", &many).ends_with("model19 and others"));
    }

    #[test]
    fn temporary_failures_have_a_retry_delay() {
        for (failure, code, after) in [
            (Failure::InvalidInput(String::new()), "invalid_input", None),
            (Failure::UnknownModel { name: String::new(), served: Vec::new() }, "unknown_model", None),
            (Failure::TooLong { tokens: 2, tokens_max: 1 }, "too_long", None),
            (Failure::Overloaded { retry_after_ms: 7 }, "overloaded", Some(7)),
            (Failure::Throttled { retry_after_ms: 8 }, "throttled", Some(8)),
            (Failure::CircuitOpen { retry_after_ms: 9 }, "circuit_open", Some(9)),
            (Failure::Unavailable(String::new()), "model_unavailable", Some(1000)),
            (Failure::DeadlineExceeded, "deadline_exceeded", Some(1000)),
            (Failure::RequestTimeout { timeout_ms: 1 }, "request_timeout", Some(1000)),
            (Failure::Engine(String::new()), "engine_failed", None),
            (Failure::Other(String::new()), "inference_failed", None),
        ] {
            assert_eq!((failure.code(), failure.retry_after_ms()), (code, after));
            assert_eq!(failure.retryable(), after.is_some());
        }
    }
}
