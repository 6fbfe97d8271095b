//! Lines of files, as inputs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// The longest line, bytes: the longest text that a model is given, as JSON escapes may write it.
const LINE_BYTES_MAX: u64 = 6_000_000;

/// One line of the input.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// An input.
    Text { text: String, text_pair: Option<String> },
    /// A line that is no input, and why.
    Bad(String),
    /// The input could not be read any further, and why.
    Broken(String),
}

/// Reads files one after another.
pub(crate) struct Reader {
    /// The files still to be read, last first.
    files: Vec<PathBuf>,
    current: Option<(String, Box<dyn BufRead + Send>)>,
    bytes_total: Option<u64>,
}

impl Reader {
    /// Checks that every file can be read, before anything runs.
    pub(crate) fn open(files: &[PathBuf]) -> anyhow::Result<Self> {
        let mut bytes_total = Some(0);
        for path in files.iter().filter(|path| !is_stdin(path)) {
            let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
            let meta = file.metadata().with_context(|| format!("{} cannot be read", path.display()))?;
            anyhow::ensure!(!meta.is_dir(), "{} is a folder", path.display());
            bytes_total = bytes_total.filter(|_| meta.is_file()).map(|total: u64| total + meta.len());
        }
        if files.iter().any(|path| is_stdin(path)) {
            bytes_total = None;
        }
        Ok(Self { files: files.iter().rev().cloned().collect(), current: None, bytes_total })
    }

    /// How long all files are together, when that can be known.
    pub(crate) fn bytes_total(&self) -> Option<u64> {
        self.bytes_total
    }

    /// The next line, and how many bytes it took; `None` at the end of the last file.
    pub(crate) fn next(&mut self) -> Option<(Line, u64)> {
        loop {
            if self.current.is_none() {
                let path = self.files.pop()?;
                match open(&path) {
                    Ok(reader) => self.current = Some((path.display().to_string(), reader)),
                    Err(error) => {
                        return Some((Line::Broken(format!("{} cannot be read: {error}", path.display())), 0));
                    }
                }
            }
            let Some((name, reader)) = &mut self.current else { continue };
            match read_line(reader.as_mut()) {
                Ok(None) => self.current = None,
                Ok(Some(line)) => return Some(line),
                Err(error) => {
                    let line = Line::Broken(format!("{name} cannot be read: {error}"));
                    self.current = None;
                    return Some((line, 0));
                }
            }
        }
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn open(path: &Path) -> std::io::Result<Box<dyn BufRead + Send>> {
    if is_stdin(path) {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    Ok(Box::new(BufReader::with_capacity(1 << 16, File::open(path)?)))
}

fn read_line(reader: &mut dyn BufRead) -> std::io::Result<Option<(Line, u64)>> {
    let mut bytes = Vec::new();
    let mut read = reader.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes)? as u64;
    if read == 0 {
        return Ok(None);
    }
    if read > LINE_BYTES_MAX && bytes.last() != Some(&b'\n') {
        read += skip_line(reader)?;
        return Ok(Some((Line::Bad(format!("the line is longer than {LINE_BYTES_MAX} bytes")), read)));
    }
    Ok(Some((parse(&bytes), read)))
}

/// Skips the rest of a line; says how many bytes that was.
fn skip_line(reader: &mut dyn BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(skipped);
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let count = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(count);
        skipped += count as u64;
        if end.is_some() {
            return Ok(skipped);
        }
    }
}

/// A line that is a JSON object must have `text`; anything else is a text as it stands.
fn parse(bytes: &[u8]) -> Line {
    #[derive(Deserialize)]
    struct Object {
        text: String,
        text_pair: Option<String>,
    }
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Line::Bad(format!("the line is not UTF-8 (at byte {})", error.valid_up_to())),
    };
    if !text.trim_start().starts_with('{') {
        return Line::Text { text: text.to_string(), text_pair: None };
    }
    match serde_json::from_str::<Object>(text) {
        Ok(Object { text, text_pair }) => Line::Text { text, text_pair },
        Err(error) => Line::Bad(format!("the line is no JSON object with a string `text`: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Line {
        Line::Text { text: text.into(), text_pair: None }
    }

    #[test]
    fn lines_are_texts_or_objects() {
        assert_eq!(parse(b"plain\r\n"), text("plain"));
        assert_eq!(parse(b"\n"), text(""));
        assert_eq!(parse(br#"{"text":"a","label":"x"}"#), text("a"));
        let pair = Line::Text { text: "a".into(), text_pair: Some("b".into()) };
        assert_eq!(parse(br#" {"text":"a","text_pair":"b"}"#), pair);
        for bad in [&b"{\"text\":1}"[..], b"{}", b"{not json", b"\xff\xfe"] {
            assert!(matches!(parse(bad), Line::Bad(_)), "{bad:?}");
        }
    }

    #[test]
    fn an_endless_line_is_one_bad_line() {
        let mut long = vec![b'x'; LINE_BYTES_MAX as usize + 10];
        long.extend(b"\nnext\nlast");
        let mut reader: &[u8] = &long;
        assert!(matches!(read_line(&mut reader).unwrap(), Some((Line::Bad(_), n)) if n == LINE_BYTES_MAX + 11));
        assert_eq!(read_line(&mut reader).unwrap(), Some((text("next"), 5)));
        assert_eq!(read_line(&mut reader).unwrap(), Some((text("last"), 4)));
        assert_eq!(read_line(&mut reader).unwrap(), None);
    }
}
