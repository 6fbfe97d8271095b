//! Captions as chunks: SubRip (`.srt`) and WebVTT (the W3C's, `.vtt`).
//!
//! A cue is a chunk; the lines of its text are joined by a space and their markup is dropped. WebVTT says who speaks by
//! `<v Name>`: the first of a cue counts. A cue that cannot be read is told with its line, and reading goes on.

use thiserror::Error;
use weir_core::session::Chunk;

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Captions {
    /// SubRip.
    Srt,
    /// WebVTT.
    WebVtt,
}

impl Captions {
    /// The format of a file, by its name or else by how it begins.
    pub fn of_file(name: &str, text: &str) -> Option<Self> {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        match extension.as_deref() {
            Some("srt") => Some(Self::Srt),
            Some("vtt") => Some(Self::WebVtt),
            _ => without_bom(text).starts_with("WEBVTT").then_some(Self::WebVtt),
        }
    }
}

/// Why a cue is no chunk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {reason}")]
pub struct CaptionError {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: CaptionReason,
}

/// The ways in which a cue can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CaptionReason {
    /// The file does not begin with `WEBVTT`.
    #[error("a WebVTT file begins with WEBVTT")]
    Header,
    /// There is an arrow, and not a time on both sides of it.
    #[error("the times of a cue are as in 00:01:02.345 --> 00:01:04.000")]
    Times,
    /// There is text where a cue's times were expected.
    #[error("a cue begins with its times")]
    NoTimes,
}

/// Reads captions cue by cue.
pub fn read(text: &str, format: Captions) -> impl Iterator<Item = Result<Chunk, CaptionError>> + '_ {
    let mut lines = Lines { rest: Some(without_bom(text)), number: 0 };
    let mut header = format == Captions::WebVtt;
    std::iter::from_fn(move || {
        if std::mem::take(&mut header) {
            let first = lines.next().unwrap_or_default();
            let after = first.strip_prefix("WEBVTT").map(|after| after.is_empty() || after.starts_with([' ', '\t']));
            if after != Some(true) {
                lines.rest = None;
                return Some(Err(CaptionError { line: 1, reason: CaptionReason::Header }));
            }
            // Up to the first empty line, all belongs to the header; a cue may follow it at once.
            lines.skip_block_without_times();
        }
        lines.cue(format)
    })
}

fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Lines by CR LF, LF or CR.
struct Lines<'t> {
    rest: Option<&'t str>,
    number: u64,
}

impl<'t> Lines<'t> {
    fn next(&mut self) -> Option<&'t str> {
        let (line, rest) = split(self.rest?);
        (self.rest, self.number) = (rest, self.number + 1);
        Some(line)
    }

    fn peek(&self) -> Option<&'t str> {
        self.rest.map(|rest| split(rest).0)
    }

    fn skip_block_without_times(&mut self) {
        while let Some(line) = self.peek()
            && !is_blank(line)
            && !line.contains("-->")
        {
            self.next();
        }
    }

    /// The next cue, blocks that are none passed over.
    fn cue(&mut self, format: Captions) -> Option<Result<Chunk, CaptionError>> {
        loop {
            let first = loop {
                let line = self.next()?;
                if !is_blank(line) {
                    break line;
                }
            };
            let mut line_number = self.number;
            let vtt = format == Captions::WebVtt;
            if vtt && ["NOTE", "STYLE", "REGION"].iter().any(|name| is_named(first, name)) {
                self.skip_to_blank();
                continue;
            }
            let mut times = first;
            if !first.contains("-->") {
                // A number or a name, then the times.
                let Some(next) = self.peek().filter(|next| next.contains("-->")) else {
                    self.skip_to_blank();
                    return Some(Err(CaptionError { line: line_number, reason: CaptionReason::NoTimes }));
                };
                self.next();
                (times, line_number) = (next, self.number);
            }
            let Some((start, end)) = read_times(times) else {
                self.skip_to_blank();
                return Some(Err(CaptionError { line: line_number, reason: CaptionReason::Times }));
            };
            let mut text = Text::default();
            while let Some(line) = self.peek()
                && !is_blank(line)
                && !line.contains("-->")
            {
                self.next();
                text.line(line, vtt);
            }
            return Some(Ok(Chunk { start, end, text: text.joined, speaker_id: text.speaker }));
        }
    }

    fn skip_to_blank(&mut self) {
        while self.peek().is_some_and(|line| !is_blank(line)) {
            self.next();
        }
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.find(['\r', '\n']) {
        None => (text, None),
        Some(at) => {
            let width = if text[at..].starts_with("\r\n") { 2 } else { 1 };
            (&text[..at], Some(&text[at + width..]).filter(|rest| !rest.is_empty()))
        }
    }
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty()
}

fn is_named(line: &str, name: &str) -> bool {
    line.strip_prefix(name).is_some_and(|after| after.is_empty() || after.starts_with([' ', '\t']))
}

/// `00:01:02,345 --> 00:01:04.000`, and what follows it ignored; hours may be absent.
fn read_times(line: &str) -> Option<(f64, f64)> {
    let (start, after) = line.split_once("-->")?;
    let end = after.split_whitespace().next()?;
    Some((read_time(start.trim())?, read_time(end)?))
}

fn read_time(text: &str) -> Option<f64> {
    let (whole, milliseconds) = text.rsplit_once(['.', ','])?;
    let digits = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
        let good = lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        if good { text.parse::<u64>().ok() } else { None }
    };
    let milliseconds = digits(milliseconds, 3..=3)?;
    let mut parts = whole.rsplit(':');
    let seconds = digits(parts.next()?, 2..=2).filter(|seconds| *seconds < 60)?;
    let minutes = digits(parts.next()?, 2..=2).filter(|minutes| *minutes < 60)?;
    let hours = match parts.next() {
        Some(hours) => digits(hours, 1..=6)?,
        None => 0,
    };
    if parts.next().is_some() {
        return None;
    }
    Some((((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds) as f64 / 1000.0)
}

/// The text of a cue.
#[derive(Default)]
struct Text {
    joined: String,
    speaker: Option<String>,
}

impl Text {
    /// Adds a line without its markup.
    fn line(&mut self, line: &str, vtt: bool) {
        if !self.joined.is_empty() {
            self.joined.push(' ');
        }
        let mut rest = line.trim();
        while let Some(at) = rest.find(['<', '{', '&']) {
            self.joined.push_str(&rest[..at]);
            rest = &rest[at..];
            let taken = match rest.as_bytes()[0] {
                b'<' => self.tag(rest, vtt),
                b'{' if !vtt && rest.starts_with("{\\") => rest.find('}').map(|end| end + 1),
                b'&' if vtt => self.reference(rest),
                _ => None,
            };
            // What is no markup is text.
            let width = taken.unwrap_or_else(|| {
                self.joined.push_str(&rest[..1]);
                1
            });
            rest = &rest[width..];
        }
        self.joined.push_str(rest);
    }

    /// Drops a tag. Returns how long it is.
    fn tag(&mut self, rest: &str, vtt: bool) -> Option<usize> {
        let end = rest.find('>')?;
        let tag = &rest[1..end];
        let begins = |c: char| c == '/' || c.is_ascii_alphabetic() || (vtt && c.is_ascii_digit());
        let is_tag = tag.starts_with(begins) || (vtt && tag.is_empty());
        if !is_tag {
            return None;
        }
        // `<v.loud Ann>`: classes, then the name.
        if vtt && self.speaker.is_none() && (tag.starts_with("v ") || tag.starts_with("v.") || tag.starts_with("v\t")) {
            let name = tag.split_once([' ', '\t']).map(|(_, name)| name.trim()).filter(|name| !name.is_empty());
            self.speaker = name.map(|name| {
                let mut named = Self::default();
                named.line(name, true);
                named.joined
            });
        }
        Some(end + 1)
    }

    /// Writes what a character reference stands for. Returns how long it is.
    fn reference(&mut self, rest: &str) -> Option<usize> {
        const KNOWN: [(&str, &str); 6] = [
            ("&amp;", "&"),
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&nbsp;", "\u{a0}"),
            ("&lrm;", "\u{200e}"),
            ("&rlm;", "\u{200f}"),
        ];
        let (name, stands_for) = KNOWN.iter().find(|(name, _)| rest.starts_with(name))?;
        self.joined.push_str(stands_for);
        Some(name.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, format: Captions, want: &[&str]) {
        let got: Vec<String> = read(text, format)
            .map(|cue| match cue {
                Ok(Chunk { start, end, text, speaker_id }) => {
                    let speaker = speaker_id.map_or(String::new(), |name| format!(" {name}:"));
                    format!("{start}-{end}{speaker} {text}")
                }
                Err(error) => error.to_string(),
            })
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn subrip() {
        check(
            "\u{feff}1\r\n00:00:01,000 --> 00:00:02,500 X1:1 X2:2\r\n<i>Hello</i> &amp; 1 < 2\r\n{\\an8}there\r\n\r\n2\r\n01:00:00,001 --> 01:00:01,000\r\n\r\n",
            Captions::Srt,
            &["1-2.5 Hello &amp; 1 < 2 there", "3600.001-3601 "],
        );
        check(
            "1\n00:00:01 --> 00:00:02,000\nlost\n\nno times\nat all\n\n3\n00:00:03,000 --> 00:00:04,000\nkept",
            Captions::Srt,
            &[
                "line 2: the times of a cue are as in 00:01:02.345 --> 00:01:04.000",
                "line 5: a cue begins with its times",
                "3-4 kept",
            ],
        );
        check("", Captions::Srt, &[]);
    }

    #[test]
    fn web_vtt() {
        check(
            "WEBVTT - a title\nKind: captions\n\nNOTE a note\n00 --> is not a cue\n\nSTYLE\n::cue {}\n\nintro\n00:01.000 --> 00:02.000 align:start\n<v.loud Ann &amp; Bo>Hi <00:01.500><b>you</b>\n<v Cy>&lt;there&gt; a&b\n\n00:02.000 --> 100:00:00.000\n- x",
            Captions::WebVtt,
            &["1-2 Ann & Bo: Hi you <there> a&b", "2-360000 - x"],
        );
        check("WEBVTT\n00:01.000 --> 00:02.000\na\n00:02.000 --> 00:03.000\nb", Captions::WebVtt, &["1-2 a", "2-3 b"]);
        check("WEBVTTX\n\n00:01.000 --> 00:02.000\na", Captions::WebVtt, &["line 1: a WebVTT file begins with WEBVTT"]);
        check(
            "WEBVTT\n\n00:60.000 --> 00:61.000\na",
            Captions::WebVtt,
            &["line 3: the times of a cue are as in 00:01:02.345 --> 00:01:04.000"],
        );
    }

    #[test]
    fn formats_are_found() {
        assert_eq!(Captions::of_file("a.SRT", ""), Some(Captions::Srt));
        assert_eq!(Captions::of_file("a.b.vtt", ""), Some(Captions::WebVtt));
        assert_eq!(Captions::of_file("-", "\u{feff}WEBVTT\n"), Some(Captions::WebVtt));
        assert_eq!(Captions::of_file("a.jsonl", "{}"), None);
    }

    proptest! {
        #[test]
        fn nothing_can_hurt(text in "(WEBVTT)?[0-9:.,> <v/&{}a\r\n\u{2028}é-]{0,120}(\n00:01.000 --> 00:02.000\n)?.{0,20}") {
            for format in [Captions::Srt, Captions::WebVtt] {
                let cues = read(&text, format).count();
                prop_assert!(cues <= text.len() + 1);
            }
        }
    }
}
