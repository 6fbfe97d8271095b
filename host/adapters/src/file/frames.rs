//! Splits the bytes of a file into records.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use weir_codec::adapter::csv::{RowScanner, without_end};
use weir_codec::adapter::decode::{CSV_COLUMNS_HEADER, PAYLOAD_BYTES_MAX, REFUSAL_HEADER};
use weir_codec::transcripts::captions::{self, Captions};
use weir_core::adapter::{Header, Position, SourceRecord};

use crate::RECORD_ID_HEADER;

/// Bytes of a read.
const READ_BYTES: usize = 1 << 16;
/// The bytes from which no more records are returned at once.
pub(super) const RECORDS_BYTES: usize = 16 << 20;
/// The longest captions file, in bytes: it is read into memory.
const CAPTIONS_BYTES_MAX: u64 = 64 << 20;
/// The byte order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// How the bytes of a file are split into records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A record is a line; blank lines are skipped.
    Lines,
    /// A record is a row of CSV after the row with the names of the columns.
    Rows,
    /// The whole file is one record.
    Whole,
    /// A record is a cue of SubRip or WebVTT, as JSON with `text`, `start`, `end` and `speaker_id`.
    Cues,
}

/// A record of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) payload: Vec<u8>,
    pub(super) headers: Vec<Header>,
    /// The position after the record, at which reading continues.
    pub(super) offset: u64,
}

impl Frame {
    /// The frame of a file as a record of a partition; `origin` is the path of the file.
    pub(super) fn into_record(self, origin: &str, partition: u32) -> SourceRecord {
        let Self { payload, mut headers, offset } = self;
        headers.push(Header::new(RECORD_ID_HEADER, format!("{origin}:{offset}")));
        SourceRecord {
            payload,
            key: None,
            headers,
            origin: origin.to_owned(),
            position: Position { partition, offset },
        }
    }
}

/// The content of a file, unpacked if its name ends in `.gz` or `.zst`.
pub(super) fn unpacked(path: &Path, file: Arc<File>) -> io::Result<Box<dyn Read + Send>> {
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Some("zst") => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(BufReader::new(file));
            Box::new(decoder.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?)
        }
        _ => Box::new(file),
    })
}

/// Whether the content of a file is packed, so that it cannot be sought in.
pub(super) fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz" || extension == "zst")
}

/// Splits the content of one file into records.
pub(super) struct Frames {
    framing: Framing,
    /// The file, unless the content is of another kind.
    file: Option<Arc<File>>,
    content: BufReader<Box<dyn Read + Send>>,
    /// Bytes of the content up to the end of the last complete line or row.
    offset: u64,
    /// The beginning of a line or row whose end has not been read yet.
    partial: Vec<u8>,
    /// The length of that line or row so far, which exceeds that of `partial` if it is too long.
    partial_bytes: u64,
    scanner: RowScanner,
    /// The row with the names of the columns.
    columns: Option<Vec<u8>>,
    /// Cues that were read and not returned yet.
    cues: Option<VecDeque<Frame>>,
}

impl Frames {
    /// Opens a file at a position at which a record ended.
    pub(super) fn open(path: &Path, file: File, framing: Framing, start: u64) -> io::Result<Self> {
        let file = Arc::new(file);
        let seeks = !is_packed(path) && framing == Framing::Lines && start > 0;
        if seeks {
            (&*file).seek(SeekFrom::Start(start))?;
        }
        let mut frames = Self { file: Some(file.clone()), ..Self::new(unpacked(path, file)?, framing) };
        if seeks {
            frames.offset = start;
        } else {
            frames.skip(start)?;
        }
        Ok(frames)
    }

    /// The position up to which content was read; after the last record, unless a line or row is incomplete.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.partial_bytes
    }

    /// The length of the file if it has no name any more.
    pub(super) fn length_if_deleted(&self) -> io::Result<Option<u64>> {
        let Some(file) = &self.file else { return Ok(None) };
        let metadata = file.metadata()?;
        Ok((metadata.nlink() == 0).then_some(metadata.len()))
    }

    /// Splits content from its beginning.
    pub(super) fn new(content: Box<dyn Read + Send>, framing: Framing) -> Self {
        Self {
            framing,
            file: None,
            content: BufReader::with_capacity(READ_BYTES, content),
            offset: 0,
            partial: Vec::new(),
            partial_bytes: 0,
            scanner: RowScanner::default(),
            columns: None,
            cues: None,
        }
    }

    /// Skips to a position at which a record ended.
    fn skip(&mut self, start: u64) -> io::Result<()> {
        match self.framing {
            Framing::Lines => {
                let skipped = io::copy(&mut (&mut self.content).take(start), &mut io::sink())?;
                self.offset = skipped;
            }
            Framing::Rows => {
                if start > 0 {
                    // The names of the columns are needed for every row.
                    self.read_columns()?;
                    let rest = start.saturating_sub(self.offset);
                    self.offset += io::copy(&mut (&mut self.content).take(rest), &mut io::sink())?;
                }
            }
            Framing::Whole | Framing::Cues => self.offset = start,
        }
        Ok(())
    }

    /// The next record; `None` while there is no complete one. With `is_final` a partial record at the end counts as complete.
    pub(super) fn next(&mut self, is_final: bool) -> io::Result<Option<Frame>> {
        match self.framing {
            Framing::Lines => self.next_line(is_final),
            Framing::Rows => self.next_row(is_final),
            Framing::Whole => self.whole(),
            Framing::Cues => self.next_cue(),
        }
    }

    fn next_line(&mut self, is_final: bool) -> io::Result<Option<Frame>> {
        while let Some(line) = self.next_piece(is_final, false)? {
            let is_first = self.offset == line.len() as u64;
            let content = without_end(&line);
            let content = if is_first { content.strip_prefix(MARK).unwrap_or(content) } else { content };
            if content.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
                continue;
            }
            return Ok(Some(Frame { payload: content.to_vec(), headers: Vec::new(), offset: self.offset }));
        }
        Ok(None)
    }

    fn read_columns(&mut self) -> io::Result<bool> {
        if self.columns.is_none() {
            self.columns = self.next_piece(false, true)?.map(|row| without_end(&row).to_vec());
        }
        Ok(self.columns.is_some())
    }

    fn next_row(&mut self, is_final: bool) -> io::Result<Option<Frame>> {
        if !self.read_columns()? {
            return Ok(None);
        }
        while let Some(row) = self.next_piece(is_final, true)? {
            let payload = without_end(&row).to_vec();
            if payload.is_empty() {
                continue;
            }
            let columns = self.columns.clone().unwrap_or_default();
            let headers = vec![Header { name: CSV_COLUMNS_HEADER.to_owned(), value: columns }];
            return Ok(Some(Frame { payload, headers, offset: self.offset }));
        }
        Ok(None)
    }

    /// The next line or row with its end. One that is too long is cut to a length that is still refused as a record.
    fn next_piece(&mut self, is_final: bool, is_row: bool) -> io::Result<Option<Vec<u8>>> {
        loop {
            let bytes = match self.content.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                bytes => bytes?,
            };
            if bytes.is_empty() {
                if !is_final || self.partial_bytes == 0 {
                    return Ok(None);
                }
                self.scanner = RowScanner::default();
                return Ok(Some(self.take_partial()));
            }
            let end = match is_row {
                true => self.scanner.row_bytes(bytes),
                false => bytes.iter().position(|byte| *byte == b'\n').map(|index| index + 1),
            };
            let length = end.unwrap_or(bytes.len());
            let room = (PAYLOAD_BYTES_MAX + 1).saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&bytes[..length.min(room)]);
            self.partial_bytes += length as u64;
            self.content.consume(length);
            if end.is_some() {
                return Ok(Some(self.take_partial()));
            }
        }
    }

    fn take_partial(&mut self) -> Vec<u8> {
        self.offset += std::mem::take(&mut self.partial_bytes);
        std::mem::take(&mut self.partial)
    }

    fn whole(&mut self) -> io::Result<Option<Frame>> {
        if self.offset > 0 {
            return Ok(None);
        }
        let mut payload = Vec::new();
        (&mut self.content).take(PAYLOAD_BYTES_MAX as u64 + 1).read_to_end(&mut payload)?;
        self.offset = payload.len() as u64;
        Ok((!payload.is_empty()).then_some(Frame { payload, headers: Vec::new(), offset: self.offset }))
    }

    fn next_cue(&mut self) -> io::Result<Option<Frame>> {
        if self.cues.is_none() {
            let mut bytes = Vec::new();
            (&mut self.content).take(CAPTIONS_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > CAPTIONS_BYTES_MAX {
                let message = format!("captions have more than {CAPTIONS_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            self.cues = Some(cues(&bytes).into_iter().filter(|frame| frame.offset > self.offset).collect());
        }
        Ok(self.cues.as_mut().and_then(VecDeque::pop_front))
    }
}

/// The cues of a captions file. A cue that cannot be read becomes a record with a refusal.
fn cues(bytes: &[u8]) -> Vec<Frame> {
    let refused = |number: u64, payload: Vec<u8>, reason: String| Frame {
        payload,
        headers: vec![Header::new(REFUSAL_HEADER, reason)],
        offset: number,
    };
    let text = match captions::decode(bytes) {
        Ok(text) => text,
        Err(error) => return vec![refused(1, bytes.to_vec(), error.to_string())],
    };
    let lines: Vec<&str> = text.lines().collect();
    let read = captions::read(&text, Captions::of_text(&text));
    let frames = read.into_iter().zip(1..).map(|(cue, number)| match cue {
        Ok(cue) => {
            let chunk = cue.chunk;
            let value = serde_json::json!({
                "text": chunk.text, "start": chunk.start, "end": chunk.end, "speaker_id": chunk.speaker_id,
            });
            Frame { payload: value.to_string().into_bytes(), headers: Vec::new(), offset: number }
        }
        Err(error) => {
            let line = usize::try_from(error.line).ok().and_then(|line| lines.get(line.saturating_sub(1)));
            refused(number, line.unwrap_or(&"").as_bytes().to_vec(), error.to_string())
        }
    });
    frames.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(content: &[u8], framing: Framing) -> Vec<(String, u64)> {
        let mut frames = Frames::new(Box::new(io::Cursor::new(content.to_vec())), framing);
        let mut records = Vec::new();
        while let Some(frame) = frames.next(true).unwrap() {
            records.push((String::from_utf8_lossy(&frame.payload).into_owned(), frame.offset));
        }
        records
    }

    fn owned(frames: &[(&str, u64)]) -> Vec<(String, u64)> {
        frames.iter().map(|(text, offset)| ((*text).to_owned(), *offset)).collect()
    }

    #[test]
    fn files_of_lines_rows_and_whole_files_are_split_into_records() {
        assert_eq!(all(b"\xef\xbb\xbfa\r\n\n \nb", Framing::Lines), owned(&[("a", 6), ("b", 10)]));
        assert_eq!(all(b"id,text\n1,\"a\nb\"\n\n2,c", Framing::Rows), owned(&[("1,\"a\nb\"", 16), ("2,c", 20)]));
        assert_eq!(all(b"[1]\n", Framing::Whole), owned(&[("[1]\n", 4)]));
        assert_eq!(all(b"", Framing::Whole), owned(&[]));
        let long = vec![b'x'; PAYLOAD_BYTES_MAX + 5];
        let records = all(&[&long[..], b"\ny\n"].concat(), Framing::Lines);
        assert_eq!((records[0].0.len(), records[0].1), (PAYLOAD_BYTES_MAX + 1, long.len() as u64 + 1));
        assert_eq!(records[1].0, "y");
    }

    #[test]
    fn cues_are_records_and_broken_ones_are_refused() {
        let file = b"stray\n\n1\n00:00:01,000 --> 00:00:02,000\nHello there\n\n3\n00:00:05,000 --> 00:00:06,000\nBye\n";
        let mut frames = Frames::new(Box::new(io::Cursor::new(file.to_vec())), Framing::Cues);
        let mut records = Vec::new();
        while let Some(frame) = frames.next(true).unwrap() {
            records.push(frame);
        }
        let texts: Vec<serde_json::Value> =
            records.iter().filter_map(|frame| serde_json::from_slice(&frame.payload).ok()).collect();
        assert_eq!(texts[0]["text"], "Hello there");
        assert_eq!(texts[1]["text"], "Bye");
        assert_eq!(records.iter().filter(|frame| !frame.headers.is_empty()).count(), 1);
        assert_eq!(records.iter().map(|frame| frame.offset).collect::<Vec<_>>(), [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn reading_continues_at_every_position(
            content in "[a,\n\"\r]{0,60}", framing in prop::sample::select(vec![Framing::Lines, Framing::Rows, Framing::Whole]),
        ) {
            let whole = all(content.as_bytes(), framing);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            std::fs::write(&path, &content).unwrap();
            for (index, (_, offset)) in whole.iter().enumerate() {
                let mut frames = Frames::open(&path, File::open(&path).unwrap(), framing, *offset).unwrap();
                let mut rest = Vec::new();
                while let Some(frame) = frames.next(true).unwrap() {
                    rest.push((String::from_utf8_lossy(&frame.payload).into_owned(), frame.offset));
                }
                prop_assert_eq!(&rest[..], &whole[index + 1..]);
            }
        }
    }
}
