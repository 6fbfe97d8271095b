//! Batches the events of a generation for appends.

use weir_codec::generation::event::{GenerationEvent, Token, ToolDelta};

/// Pieces of text per event, by the share of the channel's retained events that is used, in thousandths. The first part
/// of a text has one event for each piece; later events have several, so that a channel retains all of a long text.
const PIECES_BY_SHARE: [(u64, usize); 3] = [(600, 1), (750, 4), (850, 16)];
/// Pieces per event beyond those shares.
const PIECES_MAX: usize = 64;

/// Events that wait to be appended.
#[derive(Debug)]
pub(super) struct EventBatch {
    pending: Vec<GenerationEvent>,
    pieces: usize,
    /// The number of events that were appended.
    appended: u64,
    /// The number of events that the channel retains.
    events_max: u64,
}

impl EventBatch {
    pub(super) fn new(events_max: u64) -> Self {
        Self { pending: Vec::new(), pieces: 0, appended: 0, events_max: events_max.max(1) }
    }

    /// Adds an event. Pieces of the same text that wait together are merged.
    pub(super) fn push(&mut self, event: GenerationEvent) {
        self.pieces += 1;
        match (&event, self.pending.iter_mut().rev().find_map(|pending| extendable(pending, &event))) {
            (GenerationEvent::Token(token), Some(Extendable::Token(before))) => {
                before.text.push_str(&token.text);
                before.tokens.extend(token.tokens.iter().cloned());
            }
            (GenerationEvent::ToolCall(delta), Some(Extendable::Call(before))) => {
                before.arguments.push_str(&delta.arguments);
            }
            _ => self.pending.push(event),
        }
    }

    /// The events to append now: all that wait, if there are enough pieces or the last event is among them.
    pub(super) fn take(&mut self) -> Option<Vec<GenerationEvent>> {
        let is_last = self.pending.last().is_some_and(GenerationEvent::is_last);
        let share = self.appended.saturating_mul(1000) / self.events_max;
        let pieces = PIECES_BY_SHARE.iter().find(|(up_to, _)| share < *up_to).map_or(PIECES_MAX, |(_, pieces)| *pieces);
        if self.pending.is_empty() || !(is_last || self.pieces >= pieces) {
            return None;
        }
        self.pieces = 0;
        self.appended += self.pending.len() as u64;
        Some(std::mem::take(&mut self.pending))
    }
}

/// A pending event to which a later one can be added.
enum Extendable<'a> {
    Token(&'a mut Token),
    Call(&'a mut ToolDelta),
}

/// A pending event, if `event` can be added to it.
fn extendable<'a>(pending: &'a mut GenerationEvent, event: &GenerationEvent) -> Option<Extendable<'a>> {
    match (pending, event) {
        (GenerationEvent::Token(before), GenerationEvent::Token(token)) if before.index == token.index => {
            Some(Extendable::Token(before))
        }
        (GenerationEvent::ToolCall(before), GenerationEvent::ToolCall(delta))
            if (before.index, before.call) == (delta.index, delta.call)
                && delta.id.is_none()
                && delta.name.is_none() =>
        {
            Some(Extendable::Call(before))
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
    fn long_text_fits_the_retention_of_a_channel() {
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
    fn pieces_that_wait_together_are_merged() {
        let mut batch = EventBatch::new(1000);
        batch.push(token("a"));
        batch.push(token("b"));
        let events = batch.take().unwrap();
        assert_eq!(events, [token("ab")]);
        assert_eq!(batch.take(), None);
    }
}
