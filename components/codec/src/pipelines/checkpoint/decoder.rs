//! Decodes a checkpoint in parts of bounded size.

use weir_core::pipelines::{Checkpoint, Definition};

use super::{CHECKPOINT_BYTES_MAX, CheckpointError, Values, checked};

/// Values of more bytes are decoded one by one.
const SMALL_BYTES: usize = 1 << 10;
/// The beginnings of members whose value is a JSON value in a string, as the encoder writes them.
const MEMBERS: [&[u8]; 3] = [b"\"input\":\"", b"\"output\":\"", b"\"completed\":\""];

/// A checkpoint whose large values are decoded one by one: each is replaced by its number, so that the remaining text is
/// short.
#[derive(Debug)]
pub struct Decoder<'b> {
    bytes: &'b [u8],
    /// The position of the scan.
    at: usize,
    /// The beginning of the content of the current string.
    string: Option<usize>,
    /// The end of the part of the bytes that is in `rest` or in `values`.
    copied: usize,
    rest: Vec<u8>,
    values: Values,
}

impl<'b> Decoder<'b> {
    /// Begins to decode the output of [`super::Encoder`].
    ///
    /// # Errors
    ///
    /// There are too many bytes.
    pub fn new(bytes: &'b [u8]) -> Result<Self, CheckpointError> {
        if bytes.len() > CHECKPOINT_BYTES_MAX {
            return Err(CheckpointError::TooLarge(bytes.len()));
        }
        Ok(Self { bytes, at: 0, string: None, copied: 0, rest: Vec::new(), values: Values::default() })
    }

    /// Scans about `bytes_max` bytes, up to the end of one large value; returns whether more remain.
    ///
    /// # Errors
    ///
    /// A large value is not JSON.
    pub fn advance(&mut self, bytes_max: usize) -> Result<bool, CheckpointError> {
        let end = self.at.saturating_add(bytes_max).min(self.bytes.len());
        while self.at < end {
            let Some(start) = self.string else {
                let quote = self.bytes[self.at..end].iter().position(|byte| *byte == b'"');
                self.at = quote.map_or(end, |quote| self.at + quote + 1);
                self.string = quote.map(|_| self.at);
                continue;
            };
            let Some(found) = self.bytes[self.at..end].iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                self.at = end;
                continue;
            };
            self.at += found;
            if self.bytes[self.at] == b'\\' {
                self.at += 2;
                continue;
            }
            let quote = self.at;
            self.at += 1;
            self.string = None;
            let is_value = MEMBERS.iter().any(|member| self.bytes[..start].ends_with(member));
            if is_value && quote - start > SMALL_BYTES {
                self.take(start, quote)?;
                return Ok(self.at < self.bytes.len());
            }
        }
        Ok(self.at < self.bytes.len())
    }

    /// Takes the value in a string out of the text.
    fn take(&mut self, start: usize, quote: usize) -> Result<(), CheckpointError> {
        let text: String = serde_json::from_slice(&self.bytes[start - 1..=quote])?;
        let index = self.values.0.len();
        self.values.0.push(checked(text.into())?);
        self.rest.extend_from_slice(&self.bytes[self.copied..start]);
        self.rest.extend_from_slice(format!("\\u0000{index}").as_bytes());
        self.copied = quote;
        Ok(())
    }

    /// The definition and the checkpoint, after the last part.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]
    pub fn finish(mut self) -> Result<(Definition, Checkpoint), CheckpointError> {
        self.rest.extend_from_slice(&self.bytes[self.copied..]);
        super::read(&self.rest, &self.values)
    }
}
