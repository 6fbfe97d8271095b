//! The events file: every event is written to it as a line of JSON, and it is rotated by size.
//!
//! A line is `{"type","id","channel","time","data"}`, with the time in milliseconds since 1970, or
//! `{"type":"gap","missed":N}` where events are missing. `FILE` is the newest file; when it is full it is renamed to
//! `FILE.1`, `FILE.1` to `FILE.2`, and so on.
//!
//! The file has complete lines only: after a failed write, for instance on a full disk, it is truncated to the last
//! complete line, and the next line that can be written states how many events are missing. A line that a crash left
//! incomplete is cut off when the file is opened, and counts as one missing event.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::tap::{Tap, TapItem};

/// The time after a failed write until the next attempt, if no event comes before.
const RETRY: Duration = Duration::from_millis(200);
/// The size of the waiting lines at which they are written, even if more events wait.
const WRITE_BYTES: usize = 64 * 1024;
/// Bytes read at a time to find the last complete line.
const READ_BYTES: u64 = 64 * 1024;

/// The location of the events file, and how much of it is retained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// The newest file; its folder must exist.
    pub path: PathBuf,
    /// The size at which a file is rotated.
    pub bytes_max: u64,
    /// The number of files, the newest included; at least 1.
    pub files_max: u32,
}

/// Opens the file and writes the events of a tap to it, on a thread of its own, until the store is closed. Events that
/// cannot be written are logged and counted, and delay no publisher.
///
/// # Errors
///
/// The file cannot be opened, or the thread cannot be started.
pub fn write_events(config: FileConfig, tap: Tap) -> io::Result<()> {
    let lines = Lines::open(RotatedFile::open(config)?)?;
    std::thread::Builder::new().name("weir-events-file".into()).spawn(move || run(lines, tap)).map(drop)
}

fn run(mut lines: Lines<RotatedFile>, mut tap: Tap) {
    let mut failing = false;
    while let Some(item) = next(&mut tap, lines.missed > 0) {
        let mut written = Ok(());
        // All waiting events share one write.
        let mut more = Some(item);
        while let Some(item) = more {
            if let Wake::Item(item) = item {
                written = lines.add(&item).and(written);
            }
            more = tap.try_next().map(Wake::Item);
        }
        match lines.flush().and(written) {
            Ok(()) if failing => {
                tracing::info!(file = %lines.files.config.path.display(), "events are written to events.file again");
                failing = false;
            }
            Ok(()) => {}
            Err(error) if !failing => {
                let file = lines.files.config.path.display();
                tracing::error!(%file, %error, "events cannot be written to events.file and are counted until they can");
                failing = true;
            }
            Err(_) => {}
        }
    }
    // The last opportunity to record that events are missing.
    if let Err(error) = lines.flush() {
        tracing::error!(%error, missed = lines.missed, "events are missing at the end of events.file");
    }
}

/// Why the writing thread wakes up.
enum Wake {
    Item(TapItem),
    /// A failed write is due for another attempt.
    Retry,
}

/// The next reason to wake up; none when the store is closed. While missing events are not recorded in the file, it
/// returns [`Wake::Retry`] after [`RETRY`] instead of waiting for the next event.
fn next(tap: &mut Tap, missing: bool) -> Option<Wake> {
    if !missing {
        return tap.blocking_next().map(Wake::Item);
    }
    match tap.try_next() {
        Some(item) => Some(Wake::Item(item)),
        None if tap.is_closed() => None,
        None => {
            std::thread::sleep(RETRY);
            Some(tap.try_next().map_or(Wake::Retry, Wake::Item))
        }
    }
}

fn line(channel: &str, entry: &weir_core::channels::Entry) -> String {
    // A name and a channel have no character that JSON escapes; ends of line in data are white space.
    format!(
        "{{\"type\":\"{}\",\"id\":\"{}\",\"channel\":\"{channel}\",\"time\":{},\"data\":{}}}\n",
        entry.name,
        entry.cursor,
        entry.time_ms,
        entry.data.replace(['\n', '\r'], " "),
    )
}

/// Rotated files of lines; lines are appended to the newest.
trait Files {
    /// The maximum size of a file, unless a single line is larger.
    fn bytes_max(&self) -> u64;
    /// Starts a new file, and removes the oldest where there are too many.
    fn rotate(&mut self) -> io::Result<()>;
    /// Appends bytes to the newest file; returns how many were written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Truncates the newest file.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// The length of the complete lines of the newest file, and its size, in bytes.
    fn lengths(&mut self) -> io::Result<(u64, u64)>;
}

/// Writes complete lines to files.
struct Lines<F> {
    files: F,
    /// Bytes of the newest file that are complete lines.
    length: u64,
    /// True when the newest file ends with an incomplete line, which is cut off first.
    torn: bool,
    waiting: Vec<String>,
    waiting_bytes: usize,
    /// Events that are missing before the waiting lines.
    missed: u64,
}

impl<F: Files> Lines<F> {
    fn open(mut files: F) -> io::Result<Self> {
        let (length, all) = files.lengths()?;
        let torn = all > length;
        let mut lines = Self { files, length, torn, waiting: Vec::new(), waiting_bytes: 0, missed: u64::from(torn) };
        if torn {
            tracing::warn!(bytes = all - length, "events.file ends with an incomplete line, which is removed");
            // If it cannot be recorded now, it is recorded with the first event.
            let _ = lines.flush();
        }
        Ok(lines)
    }

    /// Adds an event of a tap, and writes the waiting lines when they are large.
    fn add(&mut self, item: &TapItem) -> io::Result<()> {
        match item {
            TapItem::Event { channel, entry } => {
                let line = line(channel.as_str(), entry);
                self.waiting_bytes += line.len();
                self.waiting.push(line);
                if self.waiting_bytes >= WRITE_BYTES { self.flush() } else { Ok(()) }
            }
            TapItem::Missed(missed) => {
                // The waiting lines came before.
                let written = self.flush();
                self.missed = self.missed.saturating_add(*missed);
                written
            }
        }
    }

    /// Writes the number of missing events and then the waiting lines. Lines that cannot be written are counted and
    /// dropped.
    fn flush(&mut self) -> io::Result<()> {
        self.waiting_bytes = 0;
        let mut lines: VecDeque<String> = std::mem::take(&mut self.waiting).into();
        let gap = self.missed > 0;
        if gap {
            lines.push_front(format!("{{\"type\":\"gap\",\"missed\":{}}}\n", self.missed));
        }
        let before = lines.len();
        while !lines.is_empty() {
            let (written, outcome) = self.write_some(lines.make_contiguous());
            lines.drain(..written);
            if let Err(error) = outcome {
                let gap_waits = gap && lines.len() == before;
                let missed = (lines.len() - usize::from(gap_waits)) as u64;
                self.missed = if gap_waits { self.missed.saturating_add(missed) } else { missed };
                return Err(error);
            }
        }
        self.missed = 0;
        Ok(())
    }

    /// Writes as many lines as fit into the newest file, and at least one. Returns how many were written, and the
    /// outcome.
    fn write_some(&mut self, lines: &[String]) -> (usize, io::Result<()>) {
        let bytes_max = self.files.bytes_max();
        let first = lines.first().map_or(0, |line| line.len() as u64);
        let ready = self.repair().and_then(|()| {
            if self.length > 0 && self.length + first > bytes_max {
                self.files.rotate()?;
                self.length = 0;
            }
            Ok(())
        });
        if ready.is_err() {
            return (0, ready);
        }
        let mut batch = Vec::new();
        let mut ends = Vec::new();
        for line in lines {
            if !batch.is_empty() && self.length + (batch.len() + line.len()) as u64 > bytes_max {
                break;
            }
            batch.extend(line.as_bytes());
            ends.push(batch.len());
        }
        let mut written = 0;
        let outcome = loop {
            match self.files.append(&batch[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            if written >= batch.len() {
                break Ok(());
            }
        };
        let whole = ends.iter().take_while(|end| **end <= written).count();
        let bytes = if whole == 0 { 0 } else { ends[whole - 1] };
        self.length += bytes as u64;
        if outcome.is_err() {
            // A write that failed may have written a part.
            self.torn = true;
            let _ = self.repair();
        }
        (whole, outcome)
    }

    /// Cuts off an incomplete line.
    fn repair(&mut self) -> io::Result<()> {
        if self.torn {
            self.files.truncate(self.length)?;
            self.torn = false;
        }
        Ok(())
    }
}

struct RotatedFile {
    config: FileConfig,
    /// None after the newest file was renamed, until a new one is opened.
    file: Option<File>,
    /// The number of the next file to create by renaming, in a rotation that has failed.
    to_rename: Option<u32>,
    /// Renames a file; replaced in tests.
    rename: Rename,
}

type Rename = Box<dyn FnMut(&Path, &Path) -> io::Result<()> + Send>;

impl RotatedFile {
    fn open(config: FileConfig) -> io::Result<Self> {
        let file = Some(append_to(&config.path)?);
        Ok(Self { config, file, to_rename: None, rename: Box::new(|from, to| fs::rename(from, to)) })
    }

    fn file(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => append_to(&self.config.path)?,
        };
        Ok(self.file.insert(file))
    }
}

impl Files for RotatedFile {
    fn bytes_max(&self) -> u64 {
        self.config.bytes_max
    }

    fn rotate(&mut self) -> io::Result<()> {
        // If only opening the new file failed, the files were renamed already.
        if self.file.is_some() {
            let path = &self.config.path;
            // From the oldest on. A rotation that failed continues where it stopped: files that were renamed are not
            // renamed again.
            let first = self.to_rename.take().unwrap_or(self.config.files_max.saturating_sub(1));
            for number in (1..=first).rev() {
                let from = if number == 1 { path.clone() } else { numbered(path, number - 1) };
                match (self.rename)(&from, &numbered(path, number)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        self.to_rename = Some(number);
                        return Err(error);
                    }
                    _ => {}
                }
            }
            if self.config.files_max <= 1 {
                fs::remove_file(path)?;
            }
            self.file = None;
        }
        self.file().map(drop)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file()?.set_len(length)
    }

    fn lengths(&mut self) -> io::Result<(u64, u64)> {
        let mut file = File::open(&self.config.path)?;
        let all = file.metadata()?.len();
        let mut end = all;
        let mut bytes = Vec::new();
        while end > 0 {
            let start = end.saturating_sub(READ_BYTES);
            file.seek(SeekFrom::Start(start))?;
            bytes.clear();
            (&mut file).take(end - start).read_to_end(&mut bytes)?;
            if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
                return Ok((start + at as u64 + 1, all));
            }
            end = start;
        }
        Ok((0, all))
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weir_core::channels::{Cursor, Draft};

    /// Files in memory whose operations fail as configured.
    #[derive(Default)]
    struct FailingFiles {
        files: Vec<Vec<u8>>,
        bytes_max: u64,
        operations: usize,
        /// The operations that fail.
        failing: std::ops::Range<usize>,
        /// True when a failed write writes a part.
        halves: bool,
    }

    impl FailingFiles {
        fn fails(&mut self) -> bool {
            self.operations += 1;
            self.failing.contains(&(self.operations - 1))
        }
    }

    impl Files for FailingFiles {
        fn bytes_max(&self) -> u64 {
            self.bytes_max
        }

        fn rotate(&mut self) -> io::Result<()> {
            if self.fails() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.files.push(Vec::new());
            Ok(())
        }

        fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fails = self.fails();
            let newest = self.files.last_mut().expect("there is a file");
            let count = if fails && !self.halves { 0 } else { bytes.len().div_ceil(2) };
            newest.extend(&bytes[..count]);
            if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(count) }
        }

        fn truncate(&mut self, length: u64) -> io::Result<()> {
            if self.fails() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.files.last_mut().expect("there is a file").truncate(length as usize);
            Ok(())
        }

        fn lengths(&mut self) -> io::Result<(u64, u64)> {
            Ok((0, 0))
        }
    }

    fn event(number: u64) -> TapItem {
        let entry = Draft::new("e", number.to_string()).at(Cursor::new(1, number), 0);
        TapItem::Event { channel: "user:u".parse().unwrap(), entry: Arc::new(entry) }
    }

    /// The numbers in the lines of files, with one zero for each event that a gap reports as missing.
    fn numbers(files: &[Vec<u8>]) -> Vec<u64> {
        let mut numbers = Vec::new();
        for file in files {
            let text = std::str::from_utf8(file).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'), "an incomplete line: {text:?}");
            for line in text.lines() {
                if let Some(missed) = line.strip_prefix("{\"type\":\"gap\",\"missed\":") {
                    let missed: usize = missed.strip_suffix('}').unwrap().parse().unwrap();
                    numbers.extend(std::iter::repeat_n(0, missed));
                } else {
                    assert!(line.starts_with("{\"type\":\"e\",") && line.ends_with('}'), "{line}");
                    let data = line.rsplit_once("\"data\":").unwrap().1;
                    numbers.push(data.strip_suffix('}').unwrap().parse().unwrap());
                }
            }
        }
        numbers
    }

    #[test]
    fn rotation_that_fails_midway_continues_where_it_stopped() {
        for failing in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let config = FileConfig { path: path.clone(), bytes_max: 10, files_max: 4 };
            let mut files = RotatedFile::open(config).unwrap();
            files.append(b"new").unwrap();
            for (number, text) in [(1, "one"), (2, "two"), (3, "three")] {
                fs::write(numbered(&path, number), text).unwrap();
            }
            let mut attempts = 0;
            files.rename = Box::new(move |from, to| {
                attempts += 1;
                if (failing..failing + 3).contains(&(attempts - 1)) {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                fs::rename(from, to)
            });
            for _ in 0..3 {
                files.rotate().unwrap_err();
            }
            files.rotate().unwrap();
            let texts = [1, 2, 3].map(|number| fs::read_to_string(numbered(&path, number)).unwrap());
            assert_eq!(texts, ["new", "one", "two"], "after a failure of rename {failing}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "");
        }
    }

    #[test]
    fn failed_writes_leave_complete_lines_and_record_how_many_events_are_missing() {
        const EVENTS: u64 = 40;
        for (bytes_max, halves, group) in [(1_000, true, 1), (1_000, false, 3), (u64::MAX, true, 7), (300, true, 5)] {
            for first in 0..60 {
                for count in [1, 2, 3, 7, 20] {
                    let failing = first..first + count;
                    let files = FailingFiles { files: vec![Vec::new()], bytes_max, halves, failing, operations: 0 };
                    let mut lines = Lines::open(files).unwrap();
                    for number in 1..=EVENTS {
                        let _ = lines.add(&event(number));
                        if number % group == 0 {
                            let _ = lines.flush();
                        }
                    }
                    while lines.flush().is_err() {}
                    let written = numbers(&lines.files.files);
                    // Each event is there, or is counted as missing at its position.
                    assert_eq!(written.len(), EVENTS as usize, "{written:?}");
                    assert!(
                        written.iter().zip(1..).all(|(actual, number)| *actual == number || *actual == 0),
                        "{written:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn events_that_the_tap_missed_are_added_to_those_that_were_not_written() {
        let files =
            FailingFiles { files: vec![Vec::new()], bytes_max: 1_000, failing: 0..4, ..FailingFiles::default() };
        let mut lines = Lines::open(files).unwrap();
        assert!(lines.add(&event(1)).is_ok() && lines.flush().is_err());
        assert!(lines.add(&TapItem::Missed(5)).is_err());
        while lines.flush().is_err() {}
        lines.add(&event(7)).unwrap();
        lines.flush().unwrap();
        assert_eq!(numbers(&lines.files.files), [0, 0, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn incomplete_line_is_cut_off_when_the_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.ndjson");
        let long = "x".repeat(READ_BYTES as usize * 2);
        for (before, torn, lines) in [("", "{\"ty", 1), ("{}\n", "{\"type", 2), ("{}\n", &*long, 2), ("{}\n", "", 1)] {
            fs::write(&path, format!("{before}{torn}")).unwrap();
            let config = FileConfig { path: path.clone(), bytes_max: 1_000_000, files_max: 2 };
            let mut opened = Lines::open(RotatedFile::open(config).unwrap()).unwrap();
            opened.add(&event(1)).unwrap();
            opened.flush().unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), lines + 1, "{text}");
            assert!(text.starts_with(before) && text.ends_with("\"data\":1}\n"));
            assert_eq!(text.contains("{\"type\":\"gap\",\"missed\":1}\n"), !torn.is_empty());
        }
    }

    #[test]
    fn failing_to_open_a_new_file_removes_no_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.ndjson");
        for (name, text) in
            [("events.ndjson", "newest\n"), ("events.ndjson.1", "older\n"), ("events.ndjson.2", "oldest\n")]
        {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let config = FileConfig { path: path.clone(), bytes_max: 10, files_max: 4 };
        let mut lines = Lines::open(RotatedFile::open(config).unwrap()).unwrap();
        // The name of the new file is a dangling link.
        let target = folder.path().join("missing/target");
        lines.add(&event(1)).unwrap();
        lines.files.rotate().unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        lines.files.file = None;
        for _ in 0..5 {
            assert!(lines.files.rotate().is_err());
        }
        for (number, text) in [(1, "newest\n"), (2, "older\n"), (3, "oldest\n")] {
            assert_eq!(fs::read_to_string(numbered(&path, number)).unwrap(), text);
        }
        fs::create_dir(folder.path().join("missing")).unwrap();
        lines.length = 0;
        lines.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}
