//! The encoding of a captions file: UTF-8, or UTF-16 if it is detected. Other encodings are refused with the line of the error.
//!
//! No character is replaced: 8-bit encodings such as Latin-1 and windows-1252 cannot be distinguished from each other, so they are
//! refused.

use std::borrow::Cow;

use thiserror::Error;

/// Why bytes cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct EncodingError {
    /// The line, from 1.
    pub line: u64,
    /// The error in this line.
    pub reason: EncodingReason,
}

/// The reason of an encoding error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EncodingReason {
    /// A byte is not UTF-8.
    #[error("byte 0x{byte:02X} is not UTF-8; save the file as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8")]
    NotUtf8 {
        /// The byte.
        byte: u8,
    },
    /// UTF-16 with an unpaired surrogate, or with an odd number of bytes.
    #[error("the UTF-16 text is damaged; save the file as UTF-8")]
    Utf16,
    /// There is a NUL character.
    #[error("there is a NUL character (U+0000), so this is no text in UTF-8 or UTF-16; save the file as UTF-8")]
    Nul,
}

/// The encoding of a text, detected from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Utf16Le,
    Utf16Be,
}

impl Encoding {
    /// Detects the encoding by the byte order mark, which is skipped, or by the positions of zero bytes in the first characters.
    pub(super) fn of(bytes: &[u8]) -> (Self, &[u8]) {
        match bytes {
            [0xef, 0xbb, 0xbf, rest @ ..] => (Self::Utf8, rest),
            [0xff, 0xfe, rest @ ..] => (Self::Utf16Le, rest),
            [0xfe, 0xff, rest @ ..] => (Self::Utf16Be, rest),
            [1..=127, 0, 1..=127, 0, ..] => (Self::Utf16Le, bytes),
            [0, 1..=127, 0, 1..=127, ..] => (Self::Utf16Be, bytes),
            _ => (Self::Utf8, bytes),
        }
    }

    pub(super) fn unit(self, pair: [u8; 2]) -> u16 {
        match self {
            Self::Utf16Be => u16::from_be_bytes(pair),
            Self::Utf8 | Self::Utf16Le => u16::from_le_bytes(pair),
        }
    }
}

/// The text in a file, without a byte order mark.
///
/// # Errors
///
/// [`EncodingError`]: it is neither UTF-8 nor UTF-16, or is damaged.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, EncodingError> {
    let (encoding, bytes) = Encoding::of(bytes);
    let text = match encoding {
        Encoding::Utf8 => match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(error) => {
                let (read, rest) = bytes.split_at(error.valid_up_to());
                let byte = rest.first().copied().unwrap_or_default();
                return Err(EncodingError { line: line_of(read), reason: EncodingReason::NotUtf8 { byte } });
            }
        },
        Encoding::Utf16Le | Encoding::Utf16Be => {
            let (pairs, half) = bytes.as_chunks::<2>();
            let mut text = String::with_capacity(pairs.len());
            let damaged = |text: &str| EncodingError { line: line_of(text.as_bytes()), reason: EncodingReason::Utf16 };
            for character in char::decode_utf16(pairs.iter().map(|pair| encoding.unit(*pair))) {
                text.push(character.map_err(|_| damaged(&text))?);
            }
            if !half.is_empty() {
                return Err(damaged(&text));
            }
            Cow::Owned(text)
        }
    };
    match text.find('\0') {
        Some(at) => Err(EncodingError { line: line_of(&text.as_bytes()[..at]), reason: EncodingReason::Nul }),
        None => Ok(text),
    }
}

/// The number of the line after these bytes, from 1; lines end with CR LF, LF or CR.
fn line_of(before: &[u8]) -> u64 {
    let ends = before.iter().filter(|byte| matches!(byte, b'\r' | b'\n')).count();
    let pairs = before.windows(2).filter(|pair| *pair == b"\r\n").count();
    (ends - pairs) as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, unit: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(unit).collect()
    }

    #[test]
    fn utf8_and_utf16_are_read_with_and_without_a_byte_order_mark() {
        let text = "1\r\n00:00:01,000 --> 00:00:02,000\r\ncafé 🙂\r\n";
        let marked = format!("\u{feff}{text}");
        for bytes in [
            text.as_bytes().to_vec(),
            marked.as_bytes().to_vec(),
            utf16(text, u16::to_le_bytes),
            utf16(text, u16::to_be_bytes),
            utf16(&marked, u16::to_le_bytes),
            utf16(&marked, u16::to_be_bytes),
        ] {
            assert_eq!(decode(&bytes).unwrap(), text, "{bytes:02x?}");
        }
        assert_eq!(decode(b"").unwrap(), "");
    }

    #[test]
    fn other_encodings_are_refused_with_the_line() {
        let not_utf8 = |byte| EncodingReason::NotUtf8 { byte };
        let mut cut = utf16("\u{feff}a\nb", u16::to_le_bytes);
        cut.pop();
        let mut lone = utf16("\u{feff}a\r\nb", u16::to_be_bytes);
        lone.extend([0xd8, 0x00, 0x00, b'x']);
        for (bytes, line, reason) in [
            (b"1\r\n2\ncaf\xe9\r\n".to_vec(), 3, not_utf8(0xe9)),
            (b"a\rb\r\x93q\x94".to_vec(), 3, not_utf8(0x93)),
            (b"ab\ncd\0".to_vec(), 2, EncodingReason::Nul),
            (b"a\0bc".to_vec(), 1, EncodingReason::Nul),
            (b"\xff\xfe\0\0W\0\0\0".to_vec(), 1, EncodingReason::Nul),
            (cut, 2, EncodingReason::Utf16),
            (lone, 2, EncodingReason::Utf16),
        ] {
            assert_eq!(decode(&bytes), Err(EncodingError { line, reason }), "{bytes:02x?}");
        }
    }
}
