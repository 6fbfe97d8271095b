//! Converts the response of a server to events of `weir:stream/generate`.
//!
//! `begun` is withheld until there is text: until then a failed attempt can be retried, and the host can ask another server. The `done`
//! events are withheld until the server has reported the number of tokens.

use weir_codec::generation::upstream::{UpstreamEvent, UpstreamKind, UpstreamStream};
use weir_core::failure::Failure;

use crate::{
    bindings::weir::stream::generate_types::{Begun, Done, EventKind},
    convert,
};

/// The response of a server to one attempt.
#[derive(Debug)]
pub struct UpstreamResponse {
    stream: UpstreamStream,
    begun: Begun,
    has_begun: bool,
    /// The end of each choice that has one.
    done: Vec<Option<Done>>,
    /// Events with text: the number of tokens if the server reports none.
    pieces: u32,
    prompt_tokens: Option<u32>,
    tokens: Option<u32>,
}

/// The end of a response.
#[derive(Debug, PartialEq)]
pub struct ResponseEnd {
    /// The last events.
    pub events: Vec<EventKind>,
    /// Tokens of the prompt and of all choices.
    pub tokens: u64,
}

impl UpstreamResponse {
    /// The response to a request with this number of choices, at the end of none. `seed` is reported in `begun`; a server may ignore it.
    pub fn new(kind: UpstreamKind, choices: u32, seed: u64) -> Self {
        Self {
            stream: UpstreamStream::new(kind, choices),
            begun: Begun { prompt_tokens: 0, cached_tokens: 0, seed },
            has_begun: false,
            done: vec![None; choices as usize],
            pieces: 0,
            prompt_tokens: None,
            tokens: None,
        }
    }

    /// Whether text was returned.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether every choice has ended and the number of tokens is known: the rest of the body can be ignored.
    pub fn is_complete(&self) -> bool {
        self.is_over() && self.tokens.is_some()
    }

    /// Whether every choice has ended.
    pub fn is_over(&self) -> bool {
        self.done.iter().all(Option::is_some)
    }

    /// Tokens so far, those of the prompt included.
    pub fn tokens(&self) -> u64 {
        let prompt_tokens = self.prompt_tokens.unwrap_or(self.begun.prompt_tokens);
        u64::from(prompt_tokens) + u64::from(self.tokens.unwrap_or(self.pieces))
    }

    /// Takes bytes of the body; returns the events that they complete.
    ///
    /// # Errors
    ///
    /// The failure that the server reports.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<EventKind>, Failure> {
        let events = self.stream.push(bytes);
        self.take(events)
    }

    /// Takes the end of the body; returns the last events.
    ///
    /// # Errors
    ///
    /// `unavailable` if a choice has no finish reason, or the failure that the server reports.
    pub fn end(mut self) -> Result<ResponseEnd, Failure> {
        if !self.is_over() {
            let events = self.stream.end();
            self.take(events)?;
        }
        // The reader counts finish reasons, and one that is repeated may stand for one that is missing.
        if !self.is_over() {
            return Err(Failure::Unavailable("the stream of the upstream ended without a finish reason".to_owned()));
        }
        let tokens = self.tokens();
        let (mut events, mut unassigned) = (Vec::new(), self.tokens.unwrap_or(self.pieces));
        self.begin(&mut events);
        for done in self.done.into_iter().flatten() {
            // The server reports the sum of all choices.
            let tokens = std::mem::take(&mut unassigned);
            events.push(EventKind::Done(Done { tokens, prompt_tokens: self.prompt_tokens, ..done }));
        }
        Ok(ResponseEnd { events, tokens })
    }

    fn take(&mut self, events: Vec<UpstreamEvent>) -> Result<Vec<EventKind>, Failure> {
        let mut kinds = Vec::with_capacity(events.len());
        for event in events {
            match event {
                UpstreamEvent::Begun { prompt_tokens, cached_tokens } => {
                    (self.begun.prompt_tokens, self.begun.cached_tokens) = (prompt_tokens, cached_tokens);
                }
                UpstreamEvent::Piece(token) if self.is_open(token.index) => {
                    self.begin(&mut kinds);
                    self.pieces = self.pieces.saturating_add(1);
                    kinds.push(EventKind::Piece(convert::piece(token)));
                }
                UpstreamEvent::Tool(delta) if self.is_open(delta.index) => {
                    self.begin(&mut kinds);
                    self.pieces = self.pieces.saturating_add(1);
                    kinds.push(EventKind::Tool(convert::tool(delta)));
                }
                UpstreamEvent::Done { index, finish, stop } => {
                    if self.is_open(index) {
                        let reason = convert::reason(finish);
                        let done = Done { index, reason, stop, tokens: 0, prompt_tokens: None };
                        self.done[index as usize] = Some(done);
                    }
                }
                UpstreamEvent::PromptTokens(tokens) => self.prompt_tokens = Some(tokens),
                UpstreamEvent::Tokens(tokens) => self.tokens = Some(tokens),
                UpstreamEvent::Failed(failure) => return Err(failure),
                // The choice was not requested, or has ended.
                UpstreamEvent::Piece(_) | UpstreamEvent::Tool(_) => {}
            }
        }
        Ok(kinds)
    }

    fn is_open(&self, index: u32) -> bool {
        self.done.get(index as usize).is_some_and(Option::is_none)
    }

    fn begin(&mut self, kinds: &mut Vec<EventKind>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            kinds.push(EventKind::Begun(self.begun));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::weir::stream::generate_types::Reason;

    fn openai(choices: u32) -> UpstreamResponse {
        UpstreamResponse::new(UpstreamKind::OpenAi, choices, 7)
    }

    fn push(response: &mut UpstreamResponse, chunk: &str) -> Result<Vec<EventKind>, Failure> {
        response.push(format!("data: {chunk}\n\n").as_bytes())
    }

    fn chunk(index: u32, text: &str, finish: Option<&str>) -> String {
        let finish = finish.map_or("null".to_owned(), |finish| format!("\"{finish}\""));
        format!(r#"{{"choices":[{{"index":{index},"delta":{{"content":"{text}"}},"finish_reason":{finish}}}]}}"#)
    }

    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":5}}"#;

    #[test]
    fn begun_waits_for_text_and_done_for_the_usage() {
        let mut response = openai(1);
        assert_eq!(push(&mut response, &chunk(0, "", None)), Ok(Vec::new()), "a role is not text");
        assert!(!response.has_begun());
        let kinds = push(&mut response, &chunk(0, "Hi", None)).unwrap();
        assert!(matches!(&kinds[..], [EventKind::Begun(begun), EventKind::Piece(_)] if begun.seed == 7));
        assert_eq!(push(&mut response, &chunk(0, "", Some("length"))), Ok(Vec::new()));
        assert!(response.is_over() && !response.is_complete());
        assert_eq!(push(&mut response, USAGE), Ok(Vec::new()));
        assert!(response.is_complete());
        let ResponseEnd { events, tokens } = response.end().unwrap();
        let done = Done { index: 0, reason: Reason::Length, stop: None, tokens: 5, prompt_tokens: Some(11) };
        assert_eq!((events, tokens), (vec![EventKind::Done(done)], 16));
    }

    #[test]
    fn answer_without_text_has_begun_and_done_at_its_end() {
        let mut response = openai(1);
        push(&mut response, &chunk(0, "", Some("stop"))).unwrap();
        let events = response.end().unwrap().events;
        assert!(matches!(&events[..], [EventKind::Begun(_), EventKind::Done(_)]), "{events:?}");
    }

    #[test]
    fn every_choice_needs_an_end_of_its_own() {
        let mut response = openai(2);
        push(&mut response, &chunk(0, "a", Some("stop"))).unwrap();
        push(&mut response, &chunk(0, "b", Some("stop"))).unwrap();
        let late = push(&mut response, &chunk(0, "c", None)).unwrap();
        assert_eq!(late, Vec::new(), "the choice has ended");
        push(&mut response, &chunk(9, "x", Some("stop"))).unwrap();
        assert!(matches!(response.end(), Err(Failure::Unavailable(_))));
        let mut response = openai(2);
        for index in [1, 0] {
            push(&mut response, &chunk(index, "a", Some("stop"))).unwrap();
        }
        let events = response.end().unwrap().events;
        let tokens: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                EventKind::Done(done) => Some((done.index, done.tokens)),
                _ => None,
            })
            .collect();
        assert_eq!(tokens, [(0, 2), (1, 0)], "pieces are counted if there is no usage");
    }

    #[test]
    fn stream_that_ends_early_or_fails_is_a_failure() {
        let mut response = openai(1);
        push(&mut response, &chunk(0, "a", None)).unwrap();
        assert!(matches!(response.end(), Err(Failure::Unavailable(_))));
        assert_eq!(openai(1).end().unwrap_err(), openai(1).end().unwrap_err());
        let error = push(&mut openai(1), r#"{"error":{"message":"broke"}}"#);
        assert_eq!(error, Err(Failure::Engine("broke".to_owned())));
    }
}
