//! Texts indexed by code points.

/// A text with the byte offset of each code point, which converts between offsets in code points and in bytes.
pub struct CodePoints {
    text: String,
    /// The byte offset of each code point, and the length of the text in bytes.
    bytes: Vec<usize>,
}

impl CodePoints {
    /// Indexes a text.
    pub fn new(text: String) -> Self {
        let bytes = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
        Self { text, bytes }
    }

    /// The indexed text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The index of the code point that starts at `byte`, which must be a boundary.
    pub fn at_byte(&self, byte: usize) -> usize {
        self.bytes.partition_point(|&start| start < byte)
    }

    /// The code points from `start` to before `end`, clipped to the text.
    pub fn slice(&self, start: usize, end: usize) -> &str {
        let last = self.bytes.len() - 1;
        let end = end.min(last);
        &self.text[self.bytes[start.min(end)]..self.bytes[end]]
    }
}
