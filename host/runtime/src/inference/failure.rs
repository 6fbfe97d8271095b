//! The failures of items as text and as codes.

use crate::types::Failure;

/// The message of a failure, for people.
pub fn text(failure: &Failure) -> String {
    match failure {
        Failure::UnknownModel(name) => format!("no model named `{name}` is served here"),
        Failure::InvalidInput(text) | Failure::Unavailable(text) | Failure::Engine(text) | Failure::Other(text) => {
            text.clone()
        }
        Failure::TooLong(counts) => {
            format!("the text has {} tokens, and the model takes {}", counts.tokens, counts.tokens_max)
        }
        Failure::Overloaded(retry_after_ms) => format!("the queue is full; retry after {retry_after_ms} ms"),
        Failure::Throttled(retry_after_ms) => {
            format!("the caller has more than its share of the queue; retry after {retry_after_ms} ms")
        }
        Failure::CircuitOpen(retry_after_ms) => {
            format!("the model has failed too often of late; retry after {retry_after_ms} ms")
        }
        Failure::DeadlineExceeded => "the item waited past its deadline".into(),
    }
}

/// The code of a failure, for programs.
pub fn code(failure: &Failure) -> &'static str {
    match failure {
        Failure::InvalidInput(_) => "invalid_input",
        Failure::UnknownModel(_) => "unknown_model",
        Failure::TooLong(_) => "too_long",
        Failure::Overloaded(_) => "overloaded",
        Failure::Throttled(_) => "throttled",
        Failure::CircuitOpen(_) => "circuit_open",
        Failure::Unavailable(_) => "model_unavailable",
        Failure::DeadlineExceeded => "deadline_exceeded",
        Failure::Engine(_) => "engine_failed",
        Failure::Other(_) => "inference_failed",
    }
}
