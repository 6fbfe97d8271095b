//! Reads the lines of files as inputs, by the rules of a stream of lines over HTTP.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use weir_codec::http::lines::{self, Lines};
use weir_codec::inference::output::{Id, ItemError};
use weir_codec::inference::request::{Input, LineRules};
use weir_codec::inference::task::Task;

/// The longest line, bytes: the longest text of a model with every character escaped in JSON.
const LINE_BYTES_MAX: usize = 6_000_000;
/// Bytes that are read of a file at once.
const READ_BYTES: usize = 1 << 16;

/// One line of the input.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// An input.
    Input(Input),
    /// An invalid line: its id if that can be read, and the error.
    Refused(Option<Id>, ItemError),
    /// The rest of a file cannot be read, and why.
    Broken(String),
}

/// Reads files one after another. Blank lines are skipped.
pub(crate) struct Reader {
    rules: LineRules,
    /// The files still to be read, last first.
    files: Vec<PathBuf>,
    current: Option<OpenFile>,
    bytes_total: Option<u64>,
}

/// A file that is being read.
struct OpenFile {
    name: String,
    source: Box<dyn BufRead + Send>,
    lines: Lines,
    /// True if the buffered bytes contain the end of another line.
    has_line: bool,
}

impl Reader {
    /// Checks that every file can be read, before the first one is read.
    pub(crate) fn open(files: &[PathBuf], task: Task) -> anyhow::Result<Self> {
        let bytes_total = check(files)?;
        let rules = LineRules::file(task, LINE_BYTES_MAX);
        Ok(Self { rules, files: files.iter().rev().cloned().collect(), current: None, bytes_total })
    }

    /// The length of all files together, bytes; `None` if it is unknown.
    pub(crate) fn bytes_total(&self) -> Option<u64> {
        self.bytes_total
    }

    /// Whether there is another line without waiting for the source.
    pub(crate) fn has_line(&self) -> bool {
        self.current.as_ref().is_some_and(|file| file.has_line)
    }

    /// The next line, and the number of bytes read for it; `None` at the end of the last file.
    pub(crate) fn next(&mut self) -> Option<(Line, u64)> {
        let mut read = 0;
        loop {
            if self.current.is_none() {
                let path = self.files.pop()?;
                match OpenFile::open(&path) {
                    Ok(file) => self.current = Some(file),
                    Err(error) => {
                        return Some((Line::Broken(format!("{} cannot be read: {error}", path.display())), read));
                    }
                }
            }
            let Some(file) = &mut self.current else { continue };
            match file.next(self.rules, &mut read) {
                Ok(Some(line)) => return Some((line, read)),
                Ok(None) => self.current = None,
                Err(error) => {
                    let line = Line::Broken(format!("{} cannot be read: {error}", file.name));
                    self.current = None;
                    return Some((line, read));
                }
            }
        }
    }
}

/// Checks that every file can be read. Returns their total length, bytes, if it is known.
///
/// Only regular files are opened: opening and closing a pipe would end its writer.
pub(super) fn check(files: &[PathBuf]) -> anyhow::Result<Option<u64>> {
    let mut bytes_total = Some(0);
    for path in files {
        if is_stdin(path) {
            bytes_total = None;
            continue;
        }
        let unreadable = || format!("{} cannot be read", path.display());
        let meta = std::fs::metadata(path).with_context(unreadable)?;
        anyhow::ensure!(!meta.is_dir(), "{} is a folder", path.display());
        if meta.is_file() {
            File::open(path).with_context(unreadable)?;
        }
        bytes_total = bytes_total.filter(|_| meta.is_file()).map(|total: u64| total + meta.len());
    }
    Ok(bytes_total)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl OpenFile {
    fn open(path: &Path) -> std::io::Result<Self> {
        let source: Box<dyn BufRead + Send> = match is_stdin(path) {
            true => Box::new(BufReader::new(std::io::stdin())),
            false => Box::new(BufReader::with_capacity(READ_BYTES, File::open(path)?)),
        };
        Ok(Self::new(path.display().to_string(), source))
    }

    fn new(name: String, source: Box<dyn BufRead + Send>) -> Self {
        Self { name, source, lines: Lines::new(LINE_BYTES_MAX), has_line: false }
    }

    /// The next line, or `None` at the end. Adds the bytes that were read to `read`.
    fn next(&mut self, rules: LineRules, read: &mut u64) -> std::io::Result<Option<Line>> {
        loop {
            let bytes = match self.source.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                bytes => bytes?,
            };
            if bytes.is_empty() {
                return Ok(self.lines.last_line().map(|line| parse(rules, &line)));
            }
            let mut rest = bytes;
            let line = self.lines.next_line(&mut rest).map(|line| parse(rules, &line));
            let count = bytes.len() - rest.len();
            self.has_line = rest.contains(&b'\n');
            self.source.consume(count);
            *read += count as u64;
            if line.is_some() {
                return Ok(line);
            }
        }
    }
}

fn parse(rules: LineRules, line: &lines::Line<'_>) -> Line {
    match rules.read(line) {
        Ok(input) => Line::Input(input),
        Err((id, error)) => Line::Refused(id, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Line {
        Line::Input(Input { text: text.into(), text_pair: None, id: None })
    }

    /// The lines of a file that is read in pieces of `piece_bytes`, and the number of bytes read.
    fn read(file: &[u8], piece_bytes: usize) -> (Vec<Line>, u64) {
        let source = BufReader::with_capacity(piece_bytes, std::io::Cursor::new(file.to_vec()));
        let mut file = OpenFile::new("file".into(), Box::new(source));
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some(line) = file.next(LineRules::file(Task::Classify, LINE_BYTES_MAX), &mut bytes).unwrap() {
            lines.push(line);
        }
        (lines, bytes)
    }

    #[test]
    fn byte_order_mark_and_blank_lines_are_skipped() {
        let file = b"\xef\xbb\xbf{\"text\":\"a\"}\r\n\n \t\r\n\"b\"\n\nplain\r\n\xef\xbb\xbf";
        for piece_bytes in [1, 2, 7, 1000] {
            let (lines, bytes) = read(file, piece_bytes);
            assert_eq!(lines, [text("a"), text("b"), text("plain"), text("\u{feff}")]);
            assert_eq!(bytes, file.len() as u64);
        }
    }

    #[test]
    fn refused_lines_have_the_number_of_the_file() {
        let (lines, _) = read(b"\na\n\n{\"text\":1}\n\xff\n", 3);
        let numbers: Vec<Option<u64>> = lines
            .iter()
            .map(|line| match line {
                Line::Refused(_, error) => error.line,
                _ => None,
            })
            .collect();
        assert_eq!(numbers, [None, Some(4), Some(5)]);
    }

    #[test]
    fn line_over_the_bound_is_one_refused_line() {
        let mut long = vec![b'x'; LINE_BYTES_MAX + 10];
        long.extend(b"\nnext\nlast");
        let (lines, bytes) = read(&long, READ_BYTES);
        assert!(matches!(&lines[0], Line::Refused(None, error) if error.code == "line_too_long"), "{:?}", lines[0]);
        assert_eq!(lines[1..], [text("next"), text("last")]);
        assert_eq!(bytes, long.len() as u64);
    }
}
