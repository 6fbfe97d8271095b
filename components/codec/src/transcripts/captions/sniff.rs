//! Detects by content whether a file is captions or lines of JSON.

use super::{
    encoding::Encoding,
    format::{ARROW, SIGNATURE},
};

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// SubRip or WebVTT.
    Captions,
    /// Anything else; a transcript is lines of JSON then.
    Lines,
}

/// The content of a file that begins with `bytes`; `None` if more bytes are needed. With `whole`, `bytes` is the whole file.
///
/// WebVTT begins with its signature. SubRip begins with times, or with one line above them.
pub fn sniff(bytes: &[u8], whole: bool) -> Option<Content> {
    let undecided = whole.then_some(Content::Lines);
    // Part of a byte order mark, or of the first characters of UTF-16.
    if bytes.len() < 4 && (!bytes.starts_with(b"{") || bytes.contains(&0)) {
        return undecided;
    }
    let (encoding, rest) = Encoding::of(bytes);
    let text = match encoding {
        // Invalid UTF-8 in later lines does not matter here.
        Encoding::Utf8 => String::from_utf8_lossy(rest).into_owned(),
        Encoding::Utf16Le | Encoding::Utf16Be => {
            let units = rest.as_chunks::<2>().0.iter().map(|pair| encoding.unit(*pair));
            char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
    };
    let text = text.trim_start();
    if text.starts_with(SIGNATURE) {
        return Some(Content::Captions);
    }
    if text.starts_with(['{', '[', '"']) {
        return Some(Content::Lines);
    }
    if SIGNATURE.starts_with(text) {
        return undecided;
    }
    let mut lines = text.split_inclusive(['\r', '\n']).filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or_default();
    if first.contains(ARROW) {
        return Some(Content::Captions);
    }
    match lines.next() {
        Some(second) if second.contains(ARROW) => Some(Content::Captions),
        Some(second) if second.ends_with(['\r', '\n']) => Some(Content::Lines),
        // The line that may have the times is incomplete.
        _ => undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the result for a file that arrives byte by byte, and for the whole file.
    fn check(file: &[u8], want: Content) {
        let first = (0..=file.len()).find_map(|end| sniff(&file[..end], end == file.len()));
        assert_eq!(first, Some(want), "{}", String::from_utf8_lossy(file));
        assert_eq!(sniff(file, true), Some(want), "{}", String::from_utf8_lossy(file));
    }

    #[test]
    fn captions_are_recognized_in_pieces_of_any_size() {
        let srt = "1\r\n00:00:01,000 --> 00:00:02,000\r\na\r\n";
        let utf16 = |text: &str, unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
        for text in [
            "WEBVTT",
            "\u{feff}WEBVTT\n\n",
            "\n\n WEBVTT - x",
            srt,
            "\u{feff}\n1\n00:00:01,000 --> 0",
            "00:01.000 --> x",
        ] {
            check(text.as_bytes(), Content::Captions);
        }
        check(&utf16(srt, u16::to_le_bytes), Content::Captions);
        check(&utf16("\u{feff}WEBVTT", u16::to_be_bytes), Content::Captions);
        check(b"1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9\n", Content::Captions);
    }

    #[test]
    fn other_files_are_lines() {
        for text in [
            "",
            "{",
            "\n",
            "{\"start\":0,\"text\":\"a --> b\"}\n1\n--> ",
            "\u{feff}{\"start\"",
            "\"WEBVTT\"",
            "nonsense\nmore\n",
            "WEBV",
            "1\n2\n--> ",
        ] {
            check(text.as_bytes(), Content::Lines);
        }
    }

    #[test]
    fn first_json_line_is_recognized_at_once() {
        assert_eq!(sniff(b"{", false), Some(Content::Lines));
        assert_eq!(sniff(b"{\"", false), Some(Content::Lines));
        assert_eq!(sniff(b"\xef\xbb\xbf{", false), Some(Content::Lines));
        assert_eq!(sniff(b"{\0", false), None);
    }
}
