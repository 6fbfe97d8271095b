//! Captions as chunks: SubRip (`.srt`) and WebVTT (`.vtt`, <https://www.w3.org/TR/webvtt1/>).
//!
//! A cue becomes a chunk: the lines of its text are joined by a space and their markup is removed. The first `<v Name>` of a WebVTT cue is
//! its speaker. A cue that cannot be read is an error with its line in the file, and reading continues.
//!
//! | | WebVTT | SubRip |
//! |---|---|---|
//! | a cue ends | at an empty line, or at a line with `-->` | where the next cue begins |
//! | a line of white space | is part of the text | is part of the text |
//! | the line above the times | is the name of the cue | is its number, if it is a number |
//! | `&eacute;` | is decoded | is text |
//!
//! Cues may overlap, since two people may speak at the same time. They are returned in the order of their start.

mod cue_text;
mod encoding;
mod format;
mod references;
mod sniff;

use std::cmp::Ordering;

use thiserror::Error;
use weir_core::transcripts::Chunk;

pub use self::{
    encoding::{EncodingError, EncodingReason, decode},
    format::Captions,
    sniff::{Content, sniff},
};

use self::{
    cue_text::CueText,
    format::{ARROW, SIGNATURE, without_bom},
};

/// A cue.
#[derive(Debug, Clone, PartialEq)]
pub struct Cue {
    /// The line of its times, from 1.
    pub line: u64,
    /// The chunk with its text.
    pub chunk: Chunk,
}

/// Why a cue cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {reason}")]
pub struct CaptionError {
    /// The line, from 1.
    pub line: u64,
    /// The error in this line.
    pub reason: CaptionReason,
}

/// The reason of an error in captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CaptionReason {
    /// The file does not begin with `WEBVTT`.
    #[error("a WebVTT file begins with WEBVTT")]
    Header,
    /// A line has an arrow without a valid time on both sides.
    #[error("the times of a cue are as in 00:01:02.345 --> 00:01:04.000")]
    Times,
    /// There is text where the times of a cue were expected.
    #[error("a cue begins with its times")]
    NoTimes,
}

/// Reads the cues of a text, sorted by their start; cues with the same start are in the order of the text. An error keeps its position
/// among the cues.
pub fn read(text: &str, format: Captions) -> Vec<Result<Cue, CaptionError>> {
    let mut reader = Reader::new(without_bom(text));
    match format {
        Captions::Srt => reader.subrip(),
        Captions::WebVtt => reader.web_vtt(),
    }
    in_order(reader.cues)
}

/// Sorts cues by their start. The sort is stable, and errors keep their position after the cue before them.
fn in_order(cues: Vec<Result<Cue, CaptionError>>) -> Vec<Result<Cue, CaptionError>> {
    let mut latest = f64::NEG_INFINITY;
    let mut timed: Vec<(f64, Result<Cue, CaptionError>)> = Vec::with_capacity(cues.len());
    for cue in cues {
        let at = cue.as_ref().map_or(latest, |cue| cue.chunk.start);
        latest = latest.max(at);
        timed.push((at, cue));
    }
    timed.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    timed.into_iter().map(|(_, cue)| cue).collect()
}

/// The lines of a text and the cues read from them.
struct Reader<'t> {
    lines: Vec<&'t str>,
    /// Index of the next line.
    next: usize,
    cues: Vec<Result<Cue, CaptionError>>,
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
        Self { lines, next: 0, cues: Vec::new() }
    }

    fn line(&self, index: usize) -> Option<&'t str> {
        self.lines.get(index).copied()
    }

    fn error(&mut self, index: usize, reason: CaptionReason) {
        self.cues.push(Err(CaptionError { line: index as u64 + 1, reason }));
    }

    fn cue(&mut self, index: usize, times: (f64, f64), text: &[&str], format: Captions) {
        let (start, end) = times;
        let CueText { joined, speaker } = CueText::read(text, format);
        let chunk = Chunk { start, end, text: joined, speaker_id: speaker };
        self.cues.push(Ok(Cue { line: index as u64 + 1, chunk }));
    }

    /// Reads SubRip: a cue is a number, a line of times, and all lines up to the next cue.
    fn subrip(&mut self) {
        // The first line that belongs to no cue, at the beginning or after a cue whose times cannot be read.
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
            let has_heading = stray.take_if(|first| *first + 1 == index).is_some();
            self.stray(&mut stray);
            let Some(times) = read_times(line) else {
                self.error(index, CaptionReason::Times);
                while self.line(self.next).is_some_and(|line| !is_blank(line) && !looks_timed(line)) {
                    self.next += 1;
                }
                continue;
            };
            let numbered = has_heading && is_number(self.lines[index - 1]);
            self.subrip_text(index, times, numbered);
        }
        self.stray(&mut stray);
    }

    /// Records an error for lines that belong to no cue.
    fn stray(&mut self, first: &mut Option<usize>) {
        if let Some(index) = first.take() {
            self.error(index, CaptionReason::NoTimes);
        }
    }

    /// Reads the text of cues, from one whose times were read up to a line of times that cannot be read.
    fn subrip_text(&mut self, index: usize, times: (f64, f64), numbered: bool) {
        let (mut index, mut times, mut numbered) = (index, times, numbered);
        loop {
            let from = self.next;
            while self.line(self.next).is_some_and(|line| !looks_timed(line)) {
                self.next += 1;
            }
            let times_line = self.line(self.next);
            let mut text = &self.lines[from..self.next];
            // The line above the next times is the next number, if it follows an empty line or if cues are numbered.
            let mut next_numbered = false;
            if times_line.is_some()
                && let [rest @ .., last] = text
                && is_number(last)
                && (numbered || rest.last().is_some_and(|line| is_blank(line)))
            {
                (text, next_numbered) = (rest, true);
            }
            let text = text.to_vec();
            self.cue(index, times, &text, Captions::Srt);
            let Some(next_times) = times_line.and_then(read_times) else { return };
            (index, times, numbered) = (self.next, next_times, next_numbered);
            self.next += 1;
        }
    }

    /// Reads WebVTT by section 6.1 of the specification, except that parts which it drops are errors.
    fn web_vtt(&mut self) {
        while self.line(self.next).is_some_and(is_blank) {
            self.next += 1;
        }
        let signature = self.line(self.next).and_then(|line| line.trim_start().strip_prefix(SIGNATURE));
        if !signature.is_some_and(|after| after.is_empty() || after.starts_with([' ', '\t'])) {
            self.error(self.next, CaptionReason::Header);
            return;
        }
        // The header extends to the first empty line, or to a cue.
        self.next += 1;
        while self.line(self.next).is_some_and(|line| !line.is_empty() && !line.contains(ARROW)) {
            self.next += 1;
        }
        while self.next < self.lines.len() {
            self.block();
        }
    }

    /// Reads a block of WebVTT: the lines up to an empty line. The times are on its first line, or on the second below a name.
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
        // NOTE, STYLE and REGION begin a block without a cue, unless times are on the next line: then they are the name of the cue.
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

/// The first line, which ends with CR LF, LF or CR, and the text after it, if any.
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

/// True when a line with an arrow looks like the times of a cue: `go --> there` is speech in SubRip.
fn looks_timed(line: &str) -> bool {
    line.split_once(ARROW).is_some_and(|(start, _)| {
        let start = start.trim();
        start.starts_with(|c: char| c.is_ascii_digit()) && start.contains(':') && !start.contains(char::is_alphabetic)
    })
}

/// Reads `00:01:02,345 --> 00:01:04.000`. Text after the times is ignored, and hours may be absent.
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
