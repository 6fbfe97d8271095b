//! The files of a configuration, one after another or followed.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use weir_core::adapter::SourceRecord;

use super::follow::{Follower, matches};
use super::frames::{Frames, Framing, RECORDS_BYTES, is_packed};
use super::progress::{AfterEnd, FileKey, Progress};
use super::{FileSettings, file_error};
use crate::driver::{BoxFuture, DriverError, Read, Source};

/// The interval at which followed files are checked while nothing is new.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Files as a source.
pub struct FileSource {
    /// Absent while a thread for blocking work has it.
    reader: Option<Reader>,
    is_following: bool,
    remaining: Option<u64>,
}

enum Reader {
    Sequence(Sequence),
    Follow(Follower),
}

/// Files one after another.
struct Sequence {
    framing: Framing,
    progress: Arc<Progress>,
    /// The files that are not opened yet, and their lengths, if known and not packed.
    files: VecDeque<(PathBuf, Option<u64>)>,
    current: Option<Current>,
}

struct Current {
    path: PathBuf,
    partition: u32,
    frames: Frames,
    offset: u64,
    length: Option<u64>,
}

impl FileSource {
    /// Finds the files and checks that they can be read.
    pub(super) fn open(settings: &FileSettings, progress: Arc<Progress>) -> Result<Self, DriverError> {
        let FileSettings { paths, framing, follow, .. } = settings;
        progress.begin_connection();
        if paths.is_empty() {
            return Err(DriverError::Config("there is no path; give files or patterns".to_owned()));
        }
        if *follow {
            let unsupported = paths.iter().find(|path| path.as_str() == "-" || is_packed(Path::new(path)));
            if let Some(path) = unsupported {
                return Err(DriverError::Config(format!(
                    "{path} cannot be followed; follow files that are not packed"
                )));
            }
            if matches!(framing, Framing::Whole | Framing::Cues) {
                return Err(DriverError::Config("only lines and rows can be followed".to_owned()));
            }
            let follower = Follower::new(paths.clone(), *framing, progress);
            return Ok(Self { reader: Some(Reader::Follow(follower)), is_following: true, remaining: None });
        }
        let matched = matches(paths).map_err(|error| DriverError::Config(error.to_string()))?;
        if matched.is_empty() {
            return Err(DriverError::Config(format!("no file matches {}", paths.join(", "))));
        }
        let mut files = VecDeque::new();
        for path in matched {
            if path.as_os_str() == "-" {
                files.push_back((path, None));
                continue;
            }
            let meta = std::fs::metadata(&path).map_err(|error| file_error(&path, &error))?;
            if meta.is_dir() {
                return Err(DriverError::Config(format!(
                    "{} is a folder; give a pattern such as {0}/*",
                    path.display()
                )));
            }
            // Only regular files are opened: opening and closing a pipe would end its writer.
            if meta.is_file() {
                File::open(&path).map_err(|error| file_error(&path, &error))?;
            }
            let length = (meta.is_file() && !is_packed(&path)).then_some(meta.len());
            files.push_back((path, length));
        }
        let sequence = Sequence { framing: *framing, progress, files, current: None };
        let remaining = sequence.remaining();
        Ok(Self { reader: Some(Reader::Sequence(sequence)), is_following: false, remaining })
    }
}

impl Sequence {
    fn remaining(&self) -> Option<u64> {
        let current = match &self.current {
            Some(current) => current.length?.saturating_sub(current.offset),
            None => 0,
        };
        self.files.iter().try_fold(current, |sum, (_, length)| Some(sum + (*length)?))
    }

    /// Reads at most `max` records; returns none at the end of the last file.
    fn read(&mut self, max: usize) -> Result<Vec<SourceRecord>, DriverError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while records.len() < max && bytes < RECORDS_BYTES {
            let Some(current) = &mut self.current else {
                let Some((path, length)) = self.files.pop_front() else { break };
                let opened = self.open(&path, length);
                self.current = Some(opened.map_err(|error| file_error(&path, &error))?);
                continue;
            };
            match current.frames.next(true) {
                Ok(Some(frame)) => {
                    current.offset = frame.offset;
                    bytes += frame.payload.len();
                    records.push(frame.into_record(&current.path.display().to_string(), current.partition));
                }
                Ok(None) => {
                    self.progress.close(current.partition, current.offset, AfterEnd::Remembered);
                    self.current = None;
                }
                // The records before the error are returned first; the next read returns the error.
                Err(_) if !records.is_empty() => break,
                Err(error) => {
                    let path = current.path.display();
                    return Err(DriverError::Config(format!("{path} cannot be read: {error}")));
                }
            }
        }
        Ok(records)
    }

    fn open(&self, path: &Path, length: Option<u64>) -> io::Result<Current> {
        if path.as_os_str() == "-" {
            let (partition, _) = self.progress.open(&FileKey::stdin());
            let frames = Frames::new(Box::new(io::stdin()), self.framing);
            return Ok(Current { path: path.to_owned(), partition, frames, offset: 0, length });
        }
        let file = File::open(path)?;
        let key = FileKey::of(path, &file)?;
        let (mut partition, mut offset) = self.progress.open(&key);
        // A shorter file has new content.
        if length.is_some_and(|length| offset > length) && self.framing != Framing::Cues {
            self.progress.reset(&key);
            (partition, offset) = self.progress.open(&key);
        }
        let frames = Frames::open(path, file, self.framing, offset)?;
        Ok(Current { path: path.to_owned(), partition, frames, offset, length })
    }
}

impl Source for FileSource {
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
        Box::pin(async move {
            loop {
                let Some(mut reader) = self.reader.take() else {
                    return Err(DriverError::transport("an earlier read was lost"));
                };
                let read = move || {
                    let records = match &mut reader {
                        Reader::Sequence(sequence) => sequence.read(max),
                        Reader::Follow(follower) => follower.read(max).map_err(DriverError::transport),
                    };
                    (reader, records)
                };
                let (reader, records) = tokio::task::spawn_blocking(read).await.map_err(DriverError::transport)?;
                if let Reader::Sequence(sequence) = &reader {
                    self.remaining = sequence.remaining();
                }
                self.reader = Some(reader);
                let records = records?;
                if !records.is_empty() {
                    return Ok(Read::Records(records));
                }
                if !self.is_following {
                    return Ok(Read::End);
                }
                tokio::time::sleep(FOLLOW_INTERVAL).await;
            }
        })
    }

    fn sets_control_headers(&self) -> bool {
        true
    }

    fn remaining(&self) -> Option<u64> {
        self.remaining
    }
}
