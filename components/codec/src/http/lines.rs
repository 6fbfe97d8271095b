//! NDJSON in: bytes as they arrive, cut into lines.
//!
//! Lines end with LF or CR LF; the last needs no end. A byte order mark before the first is skipped. A line that is complete in one piece
//! is borrowed from it; only incomplete lines are copied. A line over the bound is dropped: it is skipped to its end and reported once.

/// The byte order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank, or too long to say.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number, from 1, blank lines included.
    pub number: u64,
    /// What is on it without its end; none when that is longer than it may be.
    pub content: Option<&'a [u8]>,
}

/// Cuts bytes into lines. Holds at most `bytes_max` and a few bytes.
#[derive(Debug)]
pub struct Lines {
    bytes_max: usize,
    /// The beginning of a line whose end has not come, and after [`Self::next_line`] perhaps a whole line.
    begun: Vec<u8>,
    /// `begun` is a line that was returned.
    given: bool,
    /// The line in progress is too long; its bytes are dropped.
    too_long: bool,
    /// How many lines have ended.
    ended: u64,
    /// Bytes of a byte order mark that came first; none once it is known whether there is one.
    marked: Option<usize>,
}

impl Lines {
    /// Lines of at most `bytes_max` bytes, without their ends.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, begun: Vec::new(), given: false, too_long: false, ended: 0, marked: Some(0) }
    }

    /// The next complete line, which is removed from `bytes`. None when no line ends there: `bytes` is consumed then.
    pub fn next_line<'s, 'b: 's>(&'s mut self, bytes: &mut &'b [u8]) -> Option<Line<'s>> {
        self.forget();
        self.skip_mark(bytes);
        loop {
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.keep(std::mem::take(bytes));
                return None;
            };
            let (rest, after) = (&bytes[..end], &bytes[end + 1..]);
            *bytes = after;
            self.ended += 1;
            let number = self.ended;
            if self.begun.is_empty() && !self.too_long {
                let line = without_cr(rest);
                if line.len() > self.bytes_max {
                    return Some(Line { number, content: None });
                }
                if is_blank(line) {
                    continue;
                }
                return Some(Line { number, content: Some(line) });
            }
            self.keep(rest);
            if std::mem::take(&mut self.too_long) {
                return Some(Line { number, content: None });
            }
            if self.is_nothing() {
                self.begun.clear();
                continue;
            }
            return Some(self.give(number));
        }
    }

    /// The last line, which has no LF.
    pub fn last_line(&mut self) -> Option<Line<'_>> {
        self.forget();
        if let Some(seen @ 1..) = self.marked.take() {
            self.begun.extend_from_slice(&MARK[..seen]);
        }
        if std::mem::take(&mut self.too_long) {
            self.ended += 1;
            return Some(Line { number: self.ended, content: None });
        }
        if self.is_nothing() {
            return None;
        }
        self.ended += 1;
        Some(self.give(self.ended))
    }

    /// Takes a byte order mark from the beginning of the first bytes; part of one is the beginning of a line.
    fn skip_mark(&mut self, bytes: &mut &[u8]) {
        while let Some(seen) = self.marked {
            let Some((first, rest)) = bytes.split_first() else { return };
            if *first == MARK[seen] {
                *bytes = rest;
                self.marked = Some(seen + 1).filter(|seen| *seen < MARK.len());
            } else {
                self.begun.extend_from_slice(&MARK[..seen]);
                self.marked = None;
            }
        }
    }

    /// Returns the collected line.
    fn give(&mut self, number: u64) -> Line<'_> {
        self.given = true;
        let line = without_cr(&self.begun);
        Line { number, content: (line.len() <= self.bytes_max).then_some(line) }
    }

    /// A line of white space is skipped, unless it is too long: the dropped part is unknown.
    fn is_nothing(&self) -> bool {
        let line = without_cr(&self.begun);
        line.len() <= self.bytes_max && is_blank(line)
    }

    fn forget(&mut self) {
        if std::mem::take(&mut self.given) {
            self.begun.clear();
        }
    }

    /// Keeps bytes of a line whose end has not come, as long as it may still fit; its end may have a CR.
    fn keep(&mut self, bytes: &[u8]) {
        if self.too_long {
            return;
        }
        if self.begun.len() + bytes.len() > self.bytes_max + 1 {
            self.too_long = true;
            self.begun = Vec::new();
            return;
        }
        self.begun.extend_from_slice(bytes);
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

    /// The lines of text that arrives in pieces.
    fn cut(pieces: &[&[u8]], bytes_max: usize) -> Vec<Owned> {
        let mut lines = Lines::new(bytes_max);
        let mut found = Vec::new();
        for piece in pieces {
            let mut bytes = *piece;
            while let Some(line) = lines.next_line(&mut bytes) {
                found.push(own(line));
            }
            assert!(bytes.is_empty());
            assert!(lines.begun.len() <= bytes_max + 1, "it keeps {} bytes", lines.begun.len());
        }
        found.extend(lines.last_line().map(own));
        assert_eq!(lines.last_line(), None);
        found
    }

    fn check(pieces: &[&str], want: &[(u64, Option<&str>)]) {
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
        let want: Vec<Owned> =
            want.iter().map(|(number, line)| (*number, line.map(|l| l.as_bytes().to_vec()))).collect();
        assert_eq!(cut(&pieces, 4), want);
    }

    #[test]
    fn ends_of_lines() {
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
        assert_eq!(cut(&[b"\xef", b"\xbb", b"\xbfa"], 1), [(1, Some(b"a".to_vec()))]);
        assert_eq!(cut(&[b"\xef", b"\xbba"], 4), [(1, Some(b"\xef\xbba".to_vec()))]);
        assert_eq!(cut(&[b"\xef\xbb"], 4), [(1, Some(b"\xef\xbb".to_vec()))]);
    }

    /// What `Lines` should find, by looking at all of it.
    fn reference(all: &[u8], bytes_max: usize) -> Vec<Owned> {
        let all = all.strip_prefix(MARK).unwrap_or(all);
        let mut found = Vec::new();
        for (number, line) in (1..).zip(all.split(|&byte| byte == b'\n')) {
            let line = without_cr(line);
            if line.len() > bytes_max || !is_blank(line) {
                found.push((number, (line.len() <= bytes_max).then(|| line.to_vec())));
            }
        }
        found
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
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
            prop_assert_eq!(cut(&pieces, bytes_max), reference(&all, bytes_max));
        }
    }
}
