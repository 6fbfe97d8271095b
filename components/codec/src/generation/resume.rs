//! Where a client that comes back to a generation continues.

use crate::{
    channels::route::Channel,
    inference::query::decode,
    json::field::{FieldError, FieldReason, RequestError},
};
use weir_core::channels::Kind;

/// What the query of a request for a generation says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resume {
    /// The answer is a stream.
    pub stream: bool,
    /// The client has the frames up to this one.
    pub after: Option<u64>,
}

impl Resume {
    /// Reads `stream` and `starting_after` of a query, and the header `Last-Event-ID`, which counts before the query.
    ///
    /// # Errors
    ///
    /// One of them cannot be understood.
    pub fn read(query: &str, last_event_id: Option<&str>) -> Result<Self, RequestError> {
        let mut resume = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value);
            match &*decode(name) {
                "stream" => resume.stream = flag("stream", &value)?,
                "starting_after" => resume.after = Some(number("starting_after", &value)?),
                _ => {}
            }
        }
        if let Some(id) = last_event_id.map(str::trim).filter(|id| !id.is_empty()) {
            resume.after = Some(number("Last-Event-ID", id)?);
        }
        Ok(resume)
    }
}

/// Whether a query asks for a generation that continues when its client has left.
///
/// # Errors
///
/// `detach` is neither `true` nor `false`.
pub fn detach(query: &str) -> Result<Option<bool>, RequestError> {
    let mut found = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name) == "detach" {
            found = Some(flag("detach", &decode(value))?);
        }
    }
    Ok(found)
}

/// Whether a query asks for server-sent events, as Gemini's streams do: `alt=sse`.
pub fn is_sse(query: &str) -> bool {
    query.split('&').any(|pair| pair == "alt=sse")
}

/// The channel of a generation.
///
/// # Errors
///
/// The id is not fit.
pub fn channel(generation_id: &str) -> Result<Channel, RequestError> {
    Channel::new(Kind::Generation, generation_id)
        .map_err(|error| RequestError::Invalid(vec![crate::channels::route::id_error(error, "generation_id")]))
}

fn flag(name: &'static str, value: &str) -> Result<bool, RequestError> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(wrong(name, "must be true or false")),
    }
}

fn number(name: &'static str, value: &str) -> Result<u64, RequestError> {
    // In Weir's own dialect an id is the place in the channel, where every event is one frame.
    if let Some(seq) = value.split_once('-').and_then(|(_, seq)| seq.parse::<u64>().ok()) {
        return seq.checked_sub(1).ok_or_else(|| wrong(name, "names no event"));
    }
    value.parse().map_err(|_| wrong(name, "must be the number of a frame, as `id` in the stream has it"))
}

fn wrong(name: &'static str, what: &str) -> RequestError {
    RequestError::Invalid(vec![FieldError::new(name, FieldReason::NotAllowed, format!("`{name}` {what}"))])
}
