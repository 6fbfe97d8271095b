//! Splits NDJSON that arrives in pieces into lines.
//!
//! Lines end with LF or CR LF; the last line needs no end. A byte order mark before the first line is skipped. A line that is complete in
//! one piece is borrowed from it; only incomplete lines are copied. A line over the bound is dropped and reported once.

/// The byte order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank, or that is too long.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number, from 1, blank lines included.
    pub number: u64,
    /// Its content without the line end; `None` when it is over the bound.
    pub content: Option<&'a [u8]>,
}

/// Splits bytes into lines. Buffers at most `bytes_max` and a few more bytes.
#[derive(Debug)]
pub struct Lines {
    bytes_max: usize,
    /// The beginning of an incomplete line, or the line that was returned last.
    buffer: Vec<u8>,
    /// `buffer` is a line that was returned.
    is_returned: bool,
    /// The current line is too long; its bytes are dropped.
    too_long: bool,
    /// Number of lines so far.
    count: u64,
    /// Bytes of a byte order mark that were read at the beginning; `None` once it is known whether there is one.
    mark_bytes: Option<usize>,
}

impl Lines {
    /// Lines of at most `bytes_max` bytes, without their ends.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, buffer: Vec::new(), is_returned: false, too_long: false, count: 0, mark_bytes: Some(0) }
    }

    /// The next complete line, which is removed from `bytes`. `None` when no line ends in `bytes`, which are consumed then.
    pub fn next_line<'s, 'b: 's>(&'s mut self, bytes: &mut &'b [u8]) -> Option<Line<'s>> {
        self.clear_returned();
        self.skip_mark(bytes);
        loop {
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.append(std::mem::take(bytes));
                return None;
            };
            let (rest, after) = (&bytes[..end], &bytes[end + 1..]);
            *bytes = after;
            self.count += 1;
            let number = self.count;
            if self.buffer.is_empty() && !self.too_long {
                let line = without_cr(rest);
                if line.len() > self.bytes_max {
                    return Some(Line { number, content: None });
                }
                if is_blank(line) {
                    continue;
                }
                return Some(Line { number, content: Some(line) });
            }
            self.append(rest);
            if std::mem::take(&mut self.too_long) {
                return Some(Line { number, content: None });
            }
            if self.is_blank_line() {
                self.buffer.clear();
                continue;
            }
            return Some(self.return_line(number));
        }
    }

    /// The last line, which has no LF.
    pub fn last_line(&mut self) -> Option<Line<'_>> {
        self.clear_returned();
        if let Some(matched @ 1..) = self.mark_bytes.take() {
            self.buffer.extend_from_slice(&MARK[..matched]);
        }
        if std::mem::take(&mut self.too_long) {
            self.count += 1;
            return Some(Line { number: self.count, content: None });
        }
        if self.is_blank_line() {
            return None;
        }
        self.count += 1;
        Some(self.return_line(self.count))
    }

    /// Removes a byte order mark from the beginning of the first bytes; a partial one belongs to the first line.
    fn skip_mark(&mut self, bytes: &mut &[u8]) {
        while let Some(matched) = self.mark_bytes {
            let Some((first, rest)) = bytes.split_first() else { return };
            if *first == MARK[matched] {
                *bytes = rest;
                self.mark_bytes = Some(matched + 1).filter(|matched| *matched < MARK.len());
            } else {
                self.buffer.extend_from_slice(&MARK[..matched]);
                self.mark_bytes = None;
            }
        }
    }

    /// Returns the line in the buffer.
    fn return_line(&mut self, number: u64) -> Line<'_> {
        self.is_returned = true;
        let line = without_cr(&self.buffer);
        Line { number, content: (line.len() <= self.bytes_max).then_some(line) }
    }

    /// True when the buffer is a line of white space. It is skipped, unless it is too long, since the dropped part is unknown.
    fn is_blank_line(&self) -> bool {
        let line = without_cr(&self.buffer);
        line.len() <= self.bytes_max && is_blank(line)
    }

    fn clear_returned(&mut self) {
        if std::mem::take(&mut self.is_returned) {
            self.buffer.clear();
        }
    }

    /// Buffers bytes of an incomplete line unless it exceeds the bound; one more byte is allowed for a CR.
    fn append(&mut self, bytes: &[u8]) {
        if self.too_long {
            return;
        }
        if self.buffer.len() + bytes.len() > self.bytes_max + 1 {
            self.too_long = true;
            self.buffer = Vec::new();
            return;
        }
        self.buffer.extend_from_slice(bytes);
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (u64, Option<Vec<u8>>);

    fn own(line: Line<'_>) -> Owned {
        (line.number, line.content.map(<[u8]>::to_vec))
    }

    /// The lines of bytes that arrive in pieces.
    fn lines_of(pieces: &[&[u8]], bytes_max: usize) -> Vec<Owned> {
        let mut lines = Lines::new(bytes_max);
        let mut result = Vec::new();
        for piece in pieces {
            let mut bytes = *piece;
            while let Some(line) = lines.next_line(&mut bytes) {
                result.push(own(line));
            }
            assert!(bytes.is_empty());
            assert!(lines.buffer.len() <= bytes_max + 1, "{} bytes are buffered", lines.buffer.len());
        }
        result.extend(lines.last_line().map(own));
        assert_eq!(lines.last_line(), None);
        result
    }

    fn check(pieces: &[&str], want: &[(u64, Option<&str>)]) {
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
        let want: Vec<Owned> =
            want.iter().map(|(number, line)| (*number, line.map(|l| l.as_bytes().to_vec()))).collect();
        assert_eq!(lines_of(&pieces, 4), want);
    }

    #[test]
    fn line_ends_with_lf_cr_lf_or_the_end_of_input() {
        check(&["a\nb\r\nc"], &[(1, Some("a")), (2, Some("b")), (3, Some("c"))]);
        check(&["a", "b\r", "\n", "c\n"], &[(1, Some("ab")), (2, Some("c"))]);
        check(&["a\rb\n"], &[(1, Some("a\rb"))]);
        check(&["a\r"], &[(1, Some("a"))]);
    }

    #[test]
    fn blank_lines_are_counted_and_skipped() {
        check(&["\n \t\r\n\n", "a\n", "  ", "\n", "\r\n", " "], &[(4, Some("a"))]);
    }

    #[test]
    fn line_over_the_limit_is_reported_once() {
        check(&["1234\r\n12345\n1\n"], &[(1, Some("1234")), (2, None), (3, Some("1"))]);
        check(&["12", "34", "5", "67", "89\n", "1\n"], &[(1, None), (2, Some("1"))]);
        check(&["1234", "\r", "\n"], &[(1, Some("1234"))]);
        check(&["12345678"], &[(1, None)]);
        check(&["      \n1"], &[(1, None), (2, Some("1"))]);
        check(&["   ", "   ", "\n1"], &[(1, None), (2, Some("1"))]);
    }

    #[test]
    fn byte_order_mark_is_skipped_before_the_first_line_only() {
        check(&["\u{feff}1234\n\u{feff}\n"], &[(1, Some("1234")), (2, Some("\u{feff}"))]);
        check(&["\u{feff}\r\n\u{feff}"], &[(2, Some("\u{feff}"))]);
        check(&["\u{feff}\u{feff}"], &[(1, Some("\u{feff}"))]);
        assert_eq!(lines_of(&[b"\xef", b"\xbb", b"\xbfa"], 1), [(1, Some(b"a".to_vec()))]);
        assert_eq!(lines_of(&[b"\xef", b"\xbba"], 4), [(1, Some(b"\xef\xbba".to_vec()))]);
        assert_eq!(lines_of(&[b"\xef\xbb"], 4), [(1, Some(b"\xef\xbb".to_vec()))]);
    }

    /// The expected lines, computed from all bytes at once.
    fn reference(all: &[u8], bytes_max: usize) -> Vec<Owned> {
        let all = all.strip_prefix(MARK).unwrap_or(all);
        let mut result = Vec::new();
        for (number, line) in (1..).zip(all.split(|&byte| byte == b'\n')) {
            let line = without_cr(line);
            if line.len() > bytes_max || !is_blank(line) {
                result.push((number, (line.len() <= bytes_max).then(|| line.to_vec())));
            }
        }
        result
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_the_pieces(
            all in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), Just(b'{')], 0..80),
            mark in 0..=MARK.len(),
            cuts in proptest::collection::vec(0usize..80, 0..12),
            bytes_max in 1usize..8,
        ) {
            let all = [&MARK[..mark], &all].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(all.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for at in cuts.into_iter().chain([all.len()]) {
                pieces.push(&all[from..at]);
                from = at;
            }
            prop_assert_eq!(lines_of(&pieces, bytes_max), reference(&all, bytes_max));
        }
    }
}
