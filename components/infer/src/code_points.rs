//! A text by its code points.

/// A text with the byte of each of its code points, so that offsets in code points can be looked up.
pub struct CodePoints {
    text: String,
    /// The first byte of each code point, and the length of the text.
    bytes: Vec<usize>,
}

impl CodePoints {
    /// Indexes a text.
    pub fn new(text: String) -> Self {
        let bytes = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
        Self { text, bytes }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The code point that starts at `byte`, which is a boundary.
    pub fn at_byte(&self, byte: usize) -> usize {
        self.bytes.partition_point(|&start| start < byte)
    }

    /// The code points from `start` to before `end`, or what of them the text has.
    pub fn slice(&self, start: usize, end: usize) -> &str {
        let last = self.bytes.len() - 1;
        let end = end.min(last);
        &self.text[self.bytes[start.min(end)]..self.bytes[end]]
    }
}
