//! Captions as chunks: SubRip (`.srt`) and WebVTT (`.vtt`, <https://www.w3.org/TR/webvtt1/>).
//!
//! A cue is a chunk: the lines of its text are joined by a space and their markup is dropped. WebVTT names the speaker by
//! `<v Name>`: the first of a cue counts. A cue that cannot be read is an error with its line in the file, and reading continues.
//!
//! | | WebVTT | SubRip |
//! |---|---|---|
//! | a cue ends | at an empty line, or at a line with `-->` | where the next cue begins |
//! | a line of white space | is part of the text | is part of the text |
//! | the line above the times | is the name of the cue | is its number, if it is a number |
//! | `&eacute;` | is decoded | is text |
//!
//! Cues may overlap, as two people may speak at once. They are given in the order of their start.

mod cue_text;
mod encoding;
mod references;
mod sniff;

use std::cmp::Ordering;

use thiserror::Error;
use weir_core::transcripts::Chunk;

pub use self::{
    encoding::{EncodingError, EncodingReason, decode},
    sniff::{Content, sniff},
};

use self::cue_text::CueText;

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Captions {
    /// SubRip.
    Srt,
    /// WebVTT.
    WebVtt,
}

impl Captions {
    /// The format of a text: WebVTT when it says so.
    pub fn of_text(text: &str) -> Self {
        match without_bom(text).trim_start().starts_with(SIGNATURE) {
            true => Self::WebVtt,
            false => Self::Srt,
        }
    }
}

const SIGNATURE: &str = "WEBVTT";
const ARROW: &str = "-->";

/// A cue.
#[derive(Debug, Clone, PartialEq)]
pub struct Cue {
    /// The line of its times, from 1.
    pub line: u64,
    /// What is said in it.
    pub chunk: Chunk,
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

/// Reads the cues of a text, in the order of their start; of those that start together, in the order of the text. An error stands
/// where its line stands among the cues.
pub fn read(text: &str, format: Captions) -> Vec<Result<Cue, CaptionError>> {
    let mut reader = Reader::new(without_bom(text));
    match format {
        Captions::Srt => reader.subrip(),
        Captions::WebVtt => reader.web_vtt(),
    }
    in_order(reader.read)
}

/// Sorts cues by their start. The order of the text is preserved where it is the order of time, errors included.
fn in_order(read: Vec<Result<Cue, CaptionError>>) -> Vec<Result<Cue, CaptionError>> {
    let mut latest = f64::NEG_INFINITY;
    let mut placed: Vec<(f64, Result<Cue, CaptionError>)> = Vec::with_capacity(read.len());
    for cue in read {
        let at = cue.as_ref().map_or(latest, |cue| cue.chunk.start);
        latest = latest.max(at);
        placed.push((at, cue));
    }
    placed.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    placed.into_iter().map(|(_, cue)| cue).collect()
}

fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The lines of a text and the cues that were read.
struct Reader<'t> {
    lines: Vec<&'t str>,
    /// Index of the next line.
    next: usize,
    read: Vec<Result<Cue, CaptionError>>,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Self {
        let mut lines = Vec::new();
        let mut rest = Some(text).filter(|text| !text.is_empty());
        while let Some(text) = rest {
            let (line, after) = split(text);
            lines.push(line);
            rest = after;
        }
        Self { lines, next: 0, read: Vec::new() }
    }

    fn line(&self, index: usize) -> Option<&'t str> {
        self.lines.get(index).copied()
    }

    fn error(&mut self, index: usize, reason: CaptionReason) {
        self.read.push(Err(CaptionError { line: index as u64 + 1, reason }));
    }

    fn cue(&mut self, index: usize, times: (f64, f64), text: &[&str], format: Captions) {
        let (start, end) = times;
        let CueText { joined, speaker } = CueText::read(text, format);
        let chunk = Chunk { start, end, text: joined, speaker_id: speaker };
        self.read.push(Ok(Cue { line: index as u64 + 1, chunk }));
    }

    /// Reads SubRip: a cue is a number, a line of times, and all that follows up to the next.
    fn subrip(&mut self) {
        // Lines that belong to no cue, from the beginning or after a cue whose times cannot be read.
        let mut stray: Option<usize> = None;
        while let Some(line) = self.line(self.next) {
            let index = self.next;
            self.next += 1;
            if !looks_timed(line) {
                if is_blank(line) {
                    self.stray(&mut stray);
                } else {
                    stray.get_or_insert(index);
                }
                continue;
            }
            // A single line above the times is a number or a name.
            let named = stray.take_if(|first| *first + 1 == index).is_some();
            self.stray(&mut stray);
            let Some(times) = read_times(line) else {
                self.error(index, CaptionReason::Times);
                while self.line(self.next).is_some_and(|line| !is_blank(line) && !looks_timed(line)) {
                    self.next += 1;
                }
                continue;
            };
            let numbered = named && is_number(self.lines[index - 1]);
            self.subrip_text(index, times, numbered);
        }
        self.stray(&mut stray);
    }

    /// Reports lines that belong to no cue.
    fn stray(&mut self, first: &mut Option<usize>) {
        if let Some(index) = first.take() {
            self.error(index, CaptionReason::NoTimes);
        }
    }

    /// The text of cues, from one whose times were read to where a line of times cannot be read.
    fn subrip_text(&mut self, index: usize, times: (f64, f64), numbered: bool) {
        let (mut index, mut times, mut numbered) = (index, times, numbered);
        loop {
            let from = self.next;
            while self.line(self.next).is_some_and(|line| !looks_timed(line)) {
                self.next += 1;
            }
            let found = self.line(self.next);
            let mut text = &self.lines[from..self.next];
            // Above the next times stands the next number: after an empty line, or at once where cues are numbered.
            let mut next_numbered = false;
            if found.is_some()
                && let [rest @ .., last] = text
                && is_number(last)
                && (numbered || rest.last().is_some_and(|line| is_blank(line)))
            {
                (text, next_numbered) = (rest, true);
            }
            let text = text.to_vec();
            self.cue(index, times, &text, Captions::Srt);
            let Some(read) = found.and_then(read_times) else { return };
            (index, times, numbered) = (self.next, read, next_numbered);
            self.next += 1;
        }
    }

    /// Reads WebVTT: section 6.1 of the specification, except that a part which that drops is an error.
    fn web_vtt(&mut self) {
        while self.line(self.next).is_some_and(is_blank) {
            self.next += 1;
        }
        let signature = self.line(self.next).and_then(|line| line.trim_start().strip_prefix(SIGNATURE));
        if !signature.is_some_and(|after| after.is_empty() || after.starts_with([' ', '\t'])) {
            self.error(self.next, CaptionReason::Header);
            return;
        }
        // Up to the first empty line all belongs to the header; a cue may follow it at once.
        self.next += 1;
        while self.line(self.next).is_some_and(|line| !line.is_empty() && !line.contains(ARROW)) {
            self.next += 1;
        }
        while self.next < self.lines.len() {
            self.block();
        }
    }

    /// A block of WebVTT: the lines up to an empty one. Times stand on its first line, or on its second below a name.
    fn block(&mut self) {
        let first = self.next;
        let mut timed = None;
        while let Some(line) = self.line(self.next) {
            let count = self.next - first;
            if line.contains(ARROW) {
                if timed.is_some() || count > 1 {
                    // The next block begins here.
                    break;
                }
                timed = Some(self.next);
            } else if line.is_empty() {
                break;
            }
            self.next += 1;
        }
        let lines = self.lines[first..self.next].to_vec();
        if self.line(self.next).is_some_and(str::is_empty) {
            self.next += 1;
        }
        let opening = lines.first().copied().unwrap_or_default();
        // NOTE, STYLE and REGION begin a block without a cue, unless times stand directly below: then they are its name.
        let is_named = |name| {
            opening.strip_prefix(name).is_some_and(|rest: &str| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        let is_other = ["NOTE", "STYLE", "REGION"].into_iter().any(is_named);
        match timed {
            Some(index) => match read_times(self.lines[index]) {
                Some(times) => self.cue(index, times, &lines[index - first + 1..], Captions::WebVtt),
                None if is_other && !looks_timed(self.lines[index]) => {}
                None => self.error(index, CaptionReason::Times),
            },
            None if is_other => {}
            None => {
                if let Some(at) = lines.iter().position(|line| !is_blank(line)) {
                    self.error(first + at, CaptionReason::NoTimes);
                }
            }
        }
    }
}

/// The first line, by CR LF, LF or CR, and what follows it, if anything.
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

fn is_number(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a line with an arrow is meant as the times of a cue: `go --> there` is speech in SubRip.
fn looks_timed(line: &str) -> bool {
    line.split_once(ARROW).is_some_and(|(start, _)| {
        let start = start.trim();
        start.starts_with(|c: char| c.is_ascii_digit()) && start.contains(':') && !start.contains(char::is_alphabetic)
    })
}

/// `00:01:02,345 --> 00:01:04.000`; what follows is ignored, and hours may be absent.
fn read_times(line: &str) -> Option<(f64, f64)> {
    let (start, after) = line.split_once(ARROW)?;
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

#[cfg(test)]
mod tests;
