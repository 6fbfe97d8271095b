//! The text of one choice, from the bytes of its tokens.

use super::stop::{Cut, StopStrings};
use super::utf8::Utf8Assembler;

/// Converts the bytes of tokens to text: whole characters, without a stop string or a prefix of one.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    characters: Utf8Assembler,
    stops: StopStrings,
}

impl TextStream {
    /// A text that ends before the first of the given stop strings.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { characters: Utf8Assembler::default(), stops: StopStrings::new(stops) }
    }

    /// Adds the bytes of a token.
    pub fn push(&mut self, bytes: &[u8]) -> Cut {
        let text = self.characters.push(bytes);
        self.stops.push(&text)
    }

    /// Ends the text, and returns the rest of it. The U+FFFD of an incomplete character can complete a stop string too.
    pub fn finish(&mut self) -> Cut {
        let tail = self.characters.finish();
        let cut = self.stops.push(tail);
        match cut.stop {
            Some(_) => cut,
            None => Cut { text: cut.text + &self.stops.finish(), stop: None },
        }
    }
}
