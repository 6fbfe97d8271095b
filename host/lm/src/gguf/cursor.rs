//! Reads numbers and texts from bytes.

use super::error::GgufError;

/// Bytes and a read position.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The number of unread bytes.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(super) fn bytes(&mut self, count: usize, what: &str) -> Result<&'a [u8], GgufError> {
        if count > self.remaining() {
            return Err(self.truncated(what));
        }
        let bytes = &self.bytes[self.position..self.position + count];
        self.position += count;
        Ok(bytes)
    }

    pub(super) fn truncated(&self, what: &str) -> GgufError {
        GgufError::Truncated { what: what.to_owned(), position: self.position }
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a count of `what`, at most `count_max`.
    pub(super) fn count(&mut self, what: &str, count_max: u64) -> Result<u64, GgufError> {
        let count = self.u64(what)?;
        if count > count_max {
            return Err(GgufError::TooMany { what: what.to_owned(), count, count_max });
        }
        Ok(count)
    }

    /// Reads a text, which its length precedes.
    pub(super) fn string(&mut self, what: &str, bytes_max: u64) -> Result<String, GgufError> {
        let bytes = self.u64(what)?;
        if bytes > bytes_max {
            return Err(GgufError::TooLong { what: what.to_owned(), bytes, bytes_max });
        }
        let text = self.bytes(bytes as usize, what)?;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(GgufError::NotUtf8 { what: what.to_owned() }),
        }
    }
}
