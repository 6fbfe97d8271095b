//! Where a client that reconnects to a generation continues.

use std::borrow::Cow;

use crate::{
    channels::route::Channel,
    inference::query::decode,
    json::field::{FieldError, FieldReason, RequestError},
};
use weir_core::channels::Kind;

/// The parameters of a request for a generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resume {
    /// The response is a stream.
    pub stream: bool,
    /// The number of the last frame that the client has.
    pub after: Option<u64>,
}

impl Resume {
    /// Reads `stream` and `starting_after` from a query, and the header `Last-Event-ID`, which takes precedence.
    ///
    /// # Errors
    ///
    /// One of them has an invalid value.
    pub fn read(query: &str, last_event_id: Option<&str>) -> Result<Self, RequestError> {
        let mut resume = Self::default();
        if let Some(value) = parameter(query, "stream")? {
            resume.stream = flag("stream", &value)?;
        }
        if let Some(value) = parameter(query, "starting_after")? {
            resume.after = Some(number("starting_after", &value)?);
        }
        if let Some(id) = last_event_id.map(str::trim).filter(|id| !id.is_empty()) {
            resume.after = Some(number("Last-Event-ID", id)?);
        }
        Ok(resume)
    }
}

/// Reads `detach` from a query: whether the generation continues when its client disconnects. `None` if it is absent.
///
/// # Errors
///
/// `detach` is neither `true` nor `false`, or appears twice.
pub fn detach(query: &str) -> Result<Option<bool>, RequestError> {
    parameter(query, "detach")?.map(|value| flag("detach", &value)).transpose()
}

/// The value of a parameter, which may appear once; without `=` it is empty.
fn parameter<'q>(query: &'q str, wanted: &'static str) -> Result<Option<Cow<'q, str>>, RequestError> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(name, _)| decode(name) == wanted).map(|(_, value)| decode(value));
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(invalid(wanted, "must be given once")),
    }
}

/// True when a query requests server-sent events with `alt=sse`, as for Gemini's streams.
pub fn is_sse(query: &str) -> bool {
    query.split('&').any(|pair| pair == "alt=sse")
}

/// The channel of a generation.
///
/// # Errors
///
/// The id is invalid.
pub fn channel(generation_id: &str) -> Result<Channel, RequestError> {
    Channel::new(Kind::Generation, generation_id)
        .map_err(|error| RequestError::Invalid(vec![crate::channels::route::id_error(error, "generation_id")]))
}

fn flag(name: &'static str, value: &str) -> Result<bool, RequestError> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(invalid(name, "must be true or false")),
    }
}

fn number(name: &'static str, value: &str) -> Result<u64, RequestError> {
    // In Weir's own dialect an id is a cursor of the channel, in which every event is one frame.
    if let Some(seq) = value.split_once('-').and_then(|(_, seq)| seq.parse::<u64>().ok()) {
        return seq.checked_sub(1).ok_or_else(|| invalid(name, "names no event"));
    }
    value.parse().map_err(|_| invalid(name, "must be the number of a frame, as `id` in the stream has it"))
}

fn invalid(name: &'static str, what: &str) -> RequestError {
    RequestError::Invalid(vec![FieldError::new(name, FieldReason::NotAllowed, format!("`{name}` {what}"))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_that_appears_twice_is_refused() {
        let once = Resume::read("a=1&stream=true&starting_after=3", None).unwrap();
        assert_eq!(once, Resume { stream: true, after: Some(3) });
        for query in ["stream=true&stream=false", "starting_after=1&x&starting_after=1", "%73tream=1&stream"] {
            assert!(matches!(Resume::read(query, None), Err(RequestError::Invalid(_))), "{query}");
        }
        assert!(detach("detach=true&detach=true").is_err());
        assert_eq!((detach("detach").unwrap(), detach("x=1").unwrap()), (Some(true), None));
    }
}
