//! Results as lines of a file or of the standard output.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use weir_codec::adapter::error_line::error_line;
use weir_core::adapter::{Destination, ResultRecord};

use super::file_error;
use crate::driver::{BoxFuture, DriverError, Rejected, Sink, SinkMark};

/// The format of a file of results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkFormat {
    /// A JSON object on each line.
    Ndjson,
    /// One JSON array.
    Json,
    /// Rows after a row with the names of the columns.
    Csv {
        /// The row with the names.
        columns: String,
    },
    /// Human-readable lines.
    Text,
    /// A human-readable table.
    Table,
}

/// The target of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkTarget {
    /// The standard output.
    Stdout,
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether results are appended to its content.
        append: bool,
    },
}

/// Writes results as lines.
pub struct LineSink {
    format: SinkFormat,
    out: Output,
    /// The path, if it is a file.
    path: Option<PathBuf>,
    bytes: u64,
    results: u64,
}

enum Output {
    /// Written synchronously: a background write that outlives its sink would corrupt the output of the next one.
    File(File),
    /// Written on a thread for blocking work: its reader may be slow.
    Stdout(tokio::fs::File),
}

impl LineSink {
    /// Opens the target. With a mark of the same file, the file is truncated to the mark and continued.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or is shorter than the mark.
    pub fn open(target: &SinkTarget, format: SinkFormat, mark: Option<&SinkMark>) -> Result<Self, DriverError> {
        let SinkTarget::File { path, append } = target else {
            // The descriptor itself, without a buffer, so that the text is written when the write has resolved.
            let stdout = std::io::stdout().as_fd().try_clone_to_owned();
            let stdout = stdout.map_err(|error| DriverError::Config(format!("the standard output: {error}")))?;
            let out = Output::Stdout(tokio::fs::File::from_std(stdout.into()));
            return Ok(Self { format, out, path: None, bytes: 0, results: 0 });
        };
        let failed = |error: std::io::Error| file_error(path, &error);
        let mark = mark.filter(|mark| mark.path == path.display().to_string());
        let keeps = *append || mark.is_some();
        let mut options = File::options();
        options.write(true).create(true).truncate(!keeps);
        let mut file = options.open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let (bytes, results) = match mark {
            Some(mark) if mark.bytes > length => {
                return Err(DriverError::Config(format!(
                    "{} has {length} bytes, and {} were written to it; remove the checkpoint to begin again",
                    path.display(),
                    mark.bytes
                )));
            }
            Some(mark) => {
                file.set_len(mark.bytes).map_err(failed)?;
                (mark.bytes, mark.results)
            }
            None if length > 0 && format == SinkFormat::Json => {
                return Err(DriverError::Config(format!(
                    "{} is not empty, and an array cannot be continued; use ndjson, or do not append",
                    path.display()
                )));
            }
            None => (length, 0),
        };
        file.seek(std::io::SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { format, out: Output::File(file), path: Some(path.clone()), bytes, results })
    }

    fn render(&mut self, results: &[ResultRecord]) -> Vec<u8> {
        let mut text = Vec::new();
        for result in results {
            let is_error = result.destination == Destination::Error;
            let line = if is_error { Cow::Owned(error_line(result)) } else { Cow::Borrowed(&result.payload[..]) };
            if is_error && !matches!(self.format, SinkFormat::Ndjson | SinkFormat::Json) {
                // An error is not a row of this format, but must not be lost.
                eprintln!("{}", String::from_utf8_lossy(&line));
                continue;
            }
            match &self.format {
                SinkFormat::Json => text.extend_from_slice(if self.results == 0 { b"[\n" } else { b",\n" }),
                SinkFormat::Csv { columns } if self.bytes == 0 && text.is_empty() => {
                    text.extend_from_slice(columns.as_bytes());
                    text.push(b'\n');
                }
                SinkFormat::Table if self.results == 0 => text.extend_from_slice(table_head(&line).as_bytes()),
                _ => {}
            }
            match &self.format {
                SinkFormat::Table => text.extend_from_slice(table_row(&line).as_bytes()),
                _ => text.extend_from_slice(&line),
            }
            if self.format != SinkFormat::Json {
                text.push(b'\n');
            }
            self.results += 1;
        }
        text
    }

    async fn write_text(&mut self, text: &[u8]) -> Result<(), DriverError> {
        let result = match &mut self.out {
            Output::File(file) => file.write_all(text),
            Output::Stdout(file) => match file.write_all(text).await {
                Ok(()) => file.flush().await,
                Err(error) => Err(error),
            },
        };
        self.bytes += text.len() as u64;
        result.map_err(|error| match &self.path {
            Some(path) => file_error(path, &error),
            // A closed standard output stays closed, so another attempt is useless.
            None => DriverError::Config(format!("the standard output: {error}")),
        })
    }
}

impl Sink for LineSink {
    fn write<'a>(&'a mut self, results: &'a [ResultRecord]) -> BoxFuture<'a, Result<Vec<Rejected>, DriverError>> {
        let text = self.render(results);
        Box::pin(async move { self.write_text(&text).await.map(|()| Vec::new()) })
    }

    fn mark(&self) -> Option<SinkMark> {
        let path = self.path.as_ref()?.display().to_string();
        Some(SinkMark { path, bytes: self.bytes, results: self.results })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        let end: &[u8] = match self.format {
            SinkFormat::Json if self.results == 0 => b"[]\n",
            SinkFormat::Json => b"\n]\n",
            _ => b"",
        };
        Box::pin(async move {
            // The end of the array is not part of the mark, so that a later start may continue the array.
            let bytes = self.bytes;
            self.write_text(end).await?;
            self.bytes = bytes;
            Ok(())
        })
    }
}

/// The widths of the columns of a table, by their names; others have [`OTHER_WIDTH`].
const WIDTHS: [(&str, usize); 5] = [("id", 16), ("label", 12), ("score", 8), ("language", 8), ("user", 12)];
const OTHER_WIDTH: usize = 60;

fn width(name: &str) -> usize {
    WIDTHS.iter().find(|(known, _)| *known == name).map_or(OTHER_WIDTH, |(_, width)| *width)
}

fn cells(line: &[u8]) -> Vec<(String, String)> {
    let Ok(Value::Object(members)) = serde_json::from_slice(line) else { return Vec::new() };
    let cell = |value: Value| match value {
        Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        Value::Number(number) => number.as_f64().map_or(number.to_string(), |score| format!("{score:.4}")),
        other => other.to_string(),
    };
    members.into_iter().map(|(name, value)| (name, cell(value))).collect()
}

fn table_head(line: &[u8]) -> String {
    let names: Vec<String> =
        cells(line).iter().map(|(name, _)| format!("{:<width$}", name.to_uppercase(), width = width(name))).collect();
    format!("{}\n", names.join("  ").trim_end())
}

fn table_row(line: &[u8]) -> String {
    let columns: Vec<String> = cells(line)
        .iter()
        .map(|(name, cell)| {
            let width = width(name);
            let short: String = match cell.chars().count() > width {
                true => cell.chars().take(width - 1).chain(['…']).collect(),
                false => cell.clone(),
            };
            format!("{short:<width$}")
        })
        .collect();
    columns.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(payload: &str) -> ResultRecord {
        ResultRecord {
            payload: payload.as_bytes().to_vec(),
            key: None,
            headers: Vec::new(),
            destination: Destination::Output,
            origin: String::new(),
            completes: Vec::new(),
        }
    }

    #[tokio::test]
    async fn array_is_continued_at_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        let target = SinkTarget::File { path: path.clone(), append: false };
        let mut sink = LineSink::open(&target, SinkFormat::Json, None).unwrap();
        sink.write(&[result("1"), result("2")]).await.unwrap();
        let mark = sink.mark();
        sink.write(&[result("lost")]).await.unwrap();
        drop(sink);
        let mut sink = LineSink::open(&target, SinkFormat::Json, mark.as_ref()).unwrap();
        sink.write(&[result("3")]).await.unwrap();
        sink.finish().await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[\n1,\n2,\n3\n]\n");
        std::fs::write(&path, "").unwrap();
        let error = LineSink::open(&target, SinkFormat::Json, mark.as_ref()).err().unwrap();
        assert!(matches!(error, DriverError::Config(_)), "{error}");
    }

    #[tokio::test]
    async fn csv_has_its_columns_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        let target = SinkTarget::File { path: path.clone(), append: true };
        for row in ["1,a", "2,b"] {
            let format = SinkFormat::Csv { columns: "id,label".to_owned() };
            let mut sink = LineSink::open(&target, format, None).unwrap();
            sink.write(&[result(row)]).await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "id,label\n1,a\n2,b\n");
    }

    #[test]
    fn table_has_columns_of_fixed_width() {
        let line = br#"{"label":"positive","score":0.98765,"text":"a\nb"}"#;
        assert_eq!(table_head(line), "LABEL         SCORE     TEXT\n");
        assert_eq!(table_row(line), "positive      0.9877    a b");
    }
}
