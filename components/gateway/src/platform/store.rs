//! Failures of the channel store as problems and as text for the log.

use weir_codec::http::problem::Problem;

use super::bindings::weir::stream::events::Failure;

/// The largest `Retry-After` for state that another instance owns, in milliseconds.
const RETRY_MS_MAX: u64 = 60_000;

/// The reason of a failure, for the log.
pub(crate) fn reason(failure: &Failure) -> String {
    match failure {
        Failure::Invalid(reason) => format!("the event is not valid: {reason}"),
        Failure::Finished => "the channel is finished".to_owned(),
        Failure::Fenced => "another instance owns it".to_owned(),
        Failure::TooLarge(reason) => format!("the event is too large: {reason}"),
        Failure::Unavailable(retry_after_ms) => {
            format!("the channel store cannot answer now; the next attempt may be made in {retry_after_ms} ms")
        }
        Failure::ShareExceeded(_) => "the user has its share of the channel store (events.user_percent_max)".to_owned(),
        Failure::Full(_) => "the channel store is full (events.state_bytes_max, events.channels_max)".to_owned(),
        Failure::Other(reason) => format!("the channel store failed: {reason}"),
    }
}

/// A failure as a problem for a client.
pub(crate) fn problem(failure: Failure) -> Problem {
    match failure {
        Failure::Invalid(text) => Problem::refused(422, "invalid_event", "The event is not valid", text, None),
        Failure::Finished => {
            let detail = "the channel has its last event; nothing can be published to it";
            Problem::refused(409, "channel_finished", "The channel is finished", detail, None)
        }
        Failure::Fenced => owned_elsewhere(1000),
        Failure::TooLarge(text) => Problem::refused(413, "event_too_large", "The event is too large", text, None),
        Failure::Unavailable(retry_after_ms) => Problem::refused(
            503,
            "events_unavailable",
            "The channel store cannot answer now",
            "the channel store cannot answer now",
            Some(retry_after_ms.max(1)),
        ),
        Failure::ShareExceeded(retry_after_ms) => Problem::share_exceeded(retry_after_ms),
        Failure::Full(retry_after_ms) => Problem::store_full(retry_after_ms),
        Failure::Other(_) => Problem::internal("the channel store failed"),
    }
}

/// 409: another instance owns it, and its lease ends in the given number of milliseconds unless it is renewed.
pub(crate) fn owned_elsewhere(remaining_ms: u64) -> Problem {
    let retry_after_ms = u32::try_from(remaining_ms.clamp(1, RETRY_MS_MAX)).unwrap_or(u32::MAX);
    let detail = "another instance owns it now; try again later, or at that instance";
    Problem::refused(409, "owned_elsewhere", "Another instance owns it", detail, Some(retry_after_ms))
}
