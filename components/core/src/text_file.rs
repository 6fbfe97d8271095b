//! Text files that an operator writes by hand: UTF-8, with or without a byte order mark.
//!
//! Editors on Windows write a byte order mark and end lines with CR LF; both are accepted. UTF-16, which PowerShell's
//! `>` writes, is refused with a reason.

use thiserror::Error;

/// The byte order mark of UTF-8 (RFC 3629, section 6).
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Why a file is not a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TextFileError {
    /// It has the byte order mark of UTF-16 or UTF-32, or NUL characters.
    #[error("the file is UTF-16 or binary; save it as UTF-8 text")]
    Utf16,
    /// It is not UTF-8.
    #[error("the file is not UTF-8 (byte {at}); save it as UTF-8 text")]
    NotUtf8 {
        /// The index of the first byte that is not part of a character.
        at: usize,
    },
}

/// The contents after the byte order mark, if there is one.
pub fn without_bom(contents: &[u8]) -> &[u8] {
    contents.strip_prefix(BOM).unwrap_or(contents)
}

/// The text of a file, without its byte order mark. Line ends are unchanged: `str::lines` and JSON accept CR LF.
///
/// # Errors
///
/// The contents are UTF-16, or not UTF-8.
pub fn text(contents: &[u8]) -> Result<&str, TextFileError> {
    if contents.starts_with(b"\xff\xfe") || contents.starts_with(b"\xfe\xff") || contents.contains(&0) {
        return Err(TextFileError::Utf16);
    }
    let contents_without_bom = without_bom(contents);
    let skipped = contents.len() - contents_without_bom.len();
    std::str::from_utf8(contents_without_bom)
        .map_err(|error| TextFileError::NotUtf8 { at: error.valid_up_to() + skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_mark_is_removed_once() {
        assert_eq!(text(b"\xef\xbb\xbfa\r\nb"), Ok("a\r\nb"));
        assert_eq!(text("\u{feff}\u{feff}a".as_bytes()), Ok("\u{feff}a"));
        assert_eq!(text(b"a"), Ok("a"));
        assert_eq!(text(b""), Ok(""));
        assert_eq!(without_bom(b"\xef\xbb\xbf\xff"), b"\xff");
    }

    #[test]
    fn utf16_and_binary_are_refused() {
        let utf16 = |bytes: fn(u16) -> [u8; 2]| "key".encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        for contents in [
            [b"\xff\xfe".to_vec(), utf16(u16::to_le_bytes)].concat(),
            [b"\xfe\xff".to_vec(), utf16(u16::to_be_bytes)].concat(),
            utf16(u16::to_le_bytes),
            utf16(u16::to_be_bytes),
            b"a\0".to_vec(),
        ] {
            assert_eq!(text(&contents), Err(TextFileError::Utf16), "{contents:?}");
        }
        assert_eq!(text(b"ab\xe9"), Err(TextFileError::NotUtf8 { at: 2 }));
        assert_eq!(text(b"\xef\xbb\xbfab\xe9"), Err(TextFileError::NotUtf8 { at: 5 }));
    }
}
