//! The events of a generation that are appended together, and when.

use weir_codec::generation::event::{GenerationEvent, Token, ToolDelta};

/// What a channel keeps is shared out: the first part of it has an event for each piece, the others have several pieces in each, so that a
/// long text stays whole in its channel. Thousandths of the events that are kept, and the pieces of an event up to there.
const PIECES: [(u64, usize); 3] = [(600, 1), (750, 4), (850, 16)];
/// The pieces of an event beyond.
const PIECES_MAX: usize = 64;

/// Events that wait to be appended.
#[derive(Debug)]
pub(super) struct EventBatch {
    pending: Vec<GenerationEvent>,
    pieces: usize,
    /// Events that were appended.
    appended: u64,
    /// Events that the channel keeps.
    events_max: u64,
}

impl EventBatch {
    pub(super) fn new(events_max: u64) -> Self {
        Self { pending: Vec::new(), pieces: 0, appended: 0, events_max: events_max.max(1) }
    }

    /// Adds an event. Pieces of the same text that wait together become one.
    pub(super) fn push(&mut self, event: GenerationEvent) {
        self.pieces += 1;
        match (&event, self.pending.iter_mut().rev().find_map(|pending| follows(pending, &event))) {
            (GenerationEvent::Token(token), Some(Growing::Token(before))) => {
                before.text.push_str(&token.text);
                before.tokens.extend(token.tokens.iter().cloned());
            }
            (GenerationEvent::ToolCall(delta), Some(Growing::Call(before))) => {
                before.arguments.push_str(&delta.arguments);
            }
            _ => self.pending.push(event),
        }
    }

    /// What is to be appended now: all that waits, if that is enough or the end.
    pub(super) fn take(&mut self) -> Option<Vec<GenerationEvent>> {
        let is_last = self.pending.last().is_some_and(GenerationEvent::is_last);
        let share = self.appended.saturating_mul(1000) / self.events_max;
        let pieces = PIECES.iter().find(|(up_to, _)| share < *up_to).map_or(PIECES_MAX, |(_, pieces)| *pieces);
        if self.pending.is_empty() || !(is_last || self.pieces >= pieces) {
            return None;
        }
        self.pieces = 0;
        self.appended += self.pending.len() as u64;
        Some(std::mem::take(&mut self.pending))
    }
}

/// An event that another can become a part of.
enum Growing<'a> {
    Token(&'a mut Token),
    Call(&'a mut ToolDelta),
}

/// The pending event that an event continues, if this is it.
fn follows<'a>(pending: &'a mut GenerationEvent, event: &GenerationEvent) -> Option<Growing<'a>> {
    match (pending, event) {
        (GenerationEvent::Token(before), GenerationEvent::Token(token)) if before.index == token.index => {
            Some(Growing::Token(before))
        }
        (GenerationEvent::ToolCall(before), GenerationEvent::ToolCall(delta))
            if (before.index, before.call) == (delta.index, delta.call)
                && delta.id.is_none()
                && delta.name.is_none() =>
        {
            Some(Growing::Call(before))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use weir_codec::generation::event::{Done, Finish, Usage};

    use super::*;

    fn token(text: &str) -> GenerationEvent {
        GenerationEvent::Token(Token { index: 0, text: text.to_owned(), tokens: Vec::new() })
    }

    #[test]
    fn text_of_any_length_fits_what_a_channel_keeps() {
        let mut batch = EventBatch::new(1000);
        let (mut events, mut text) = (0, String::new());
        let mut take = |batch: &mut EventBatch| {
            for event in batch.take().unwrap_or_default() {
                events += 1;
                if let GenerationEvent::Token(token) = event {
                    text.push_str(&token.text);
                }
            }
        };
        for _ in 0..8192 {
            batch.push(token("x"));
            take(&mut batch);
        }
        let usage = Some(Usage::default());
        batch.push(GenerationEvent::Done(Done { index: 0, finish_reason: Finish::Length, stop: None, usage }));
        take(&mut batch);
        assert_eq!(text.len(), 8192);
        assert!(events < 1000, "{events}");
    }

    #[test]
    fn pieces_that_wait_together_are_one_event() {
        let mut batch = EventBatch::new(1000);
        batch.push(token("a"));
        batch.push(token("b"));
        let events = batch.take().unwrap();
        assert_eq!(events, [token("ab")]);
        assert_eq!(batch.take(), None);
    }
}
