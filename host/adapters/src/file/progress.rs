//! The committed position in every file, and the lengths of the output files that belong to it: in memory, and in a checkpoint file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weir_core::wording::json_types;

use super::file_error;
use crate::driver::{DriverError, Marks, Safe, SinkMark};

/// The least time between writes of the checkpoint file.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// The version of the checkpoint file.
const VERSION: u32 = 1;

/// A file by its path and its identity: a file that replaces another at its path has a different identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileKey {
    /// The path as configured.
    pub(super) path: String,
    /// The device and inode numbers.
    pub(super) identity: (u64, u64),
}

impl FileKey {
    pub(super) fn of(path: &Path, file: &File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { path: path.display().to_string(), identity: (meta.dev(), meta.ino()) })
    }

    pub(super) fn stdin() -> Self {
        Self { path: "-".to_owned(), identity: (0, 0) }
    }
}

/// The committed position. It is kept across connections.
#[derive(Debug)]
pub struct Progress {
    checkpoint: Option<PathBuf>,
    state: Mutex<State>,
    /// Held while the checkpoint file is written.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The partitions that can still be committed.
    partitions: BTreeMap<u32, Partition>,
    partition_next: u32,
    /// The committed offset in each file.
    offsets: BTreeMap<FileKey, u64>,
    marks: Marks,
    /// Watermarks that have advanced since the state was last exact.
    pending: BTreeMap<u32, u64>,
    is_dirty: bool,
    written: Option<Instant>,
}

/// A partition: one file from its opening to its end.
#[derive(Debug)]
struct Partition {
    key: FileKey,
    /// The offset of the last record, and whether the position in the file is needed after it is committed; `None`
    /// until the file is closed.
    end: Option<(u64, AfterEnd)>,
}

/// Whether the position in a file is needed after its last record is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterEnd {
    /// The file may be read again.
    Remembered,
    /// Another file has replaced it.
    Forgotten,
}

/// The checkpoint file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    version: u32,
    files: Vec<FileOffset>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<SinkMark>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    errors: Option<SinkMark>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOffset {
    path: String,
    device: u64,
    inode: u64,
    offset: u64,
}

impl State {
    /// Removes a closed partition whose last record is committed.
    fn remove_if_complete(&mut self, partition: u32) {
        let Some(Partition { key, end: Some((end, after_end)) }) = self.partitions.get(&partition) else { return };
        if self.offsets.get(key).copied().unwrap_or(0) < *end {
            return;
        }
        if *after_end == AfterEnd::Forgotten {
            self.offsets.remove(key);
        }
        self.partitions.remove(&partition);
    }
}

impl Progress {
    /// Reads the checkpoint file, if it exists.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is not a checkpoint of this version.
    pub fn load(checkpoint: Option<PathBuf>) -> Result<Self, DriverError> {
        let mut state = State::default();
        if let Some(path) = &checkpoint {
            match std::fs::read(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(DriverError::Config(format!("checkpoint {}: {error}", path.display()))),
                Ok(bytes) => {
                    let invalid = |reason: String| {
                        DriverError::Config(format!(
                            "checkpoint {} is not one of this version: {reason}; remove it to begin again",
                            path.display()
                        ))
                    };
                    let stored: Checkpoint =
                        serde_json::from_slice(&bytes).map_err(|error| invalid(json_types(&error.to_string())))?;
                    if stored.version != VERSION {
                        return Err(invalid(format!("version {}", stored.version)));
                    }
                    state.marks = Marks { output: stored.output, errors: stored.errors };
                    state.offsets = stored
                        .files
                        .into_iter()
                        .map(|file| (FileKey { path: file.path, identity: (file.device, file.inode) }, file.offset))
                        .collect();
                }
            }
        }
        Ok(Self { checkpoint, state: Mutex::new(state), writing: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The marks of the sinks at the committed position.
    pub fn marks(&self) -> Marks {
        self.lock().marks.clone()
    }

    /// Records the positions of the sinks before anything is committed, so that a later start removes the output of a killed process.
    ///
    /// # Errors
    ///
    /// The checkpoint file cannot be written.
    pub async fn begin(self: &Arc<Self>, marks: Marks) -> Result<(), DriverError> {
        {
            let mut state = self.lock();
            if state.marks == marks {
                return Ok(());
            }
            state.marks = marks;
            state.is_dirty = true;
        }
        self.write().await
    }

    /// Drops what an earlier connection has not committed: its records are read again.
    pub(super) fn begin_connection(&self) {
        let mut state = self.lock();
        state.partitions.clear();
        state.pending.clear();
    }

    /// The numbers of partitions and of files with a committed offset.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        let state = self.lock();
        (state.partitions.len(), state.offsets.len())
    }

    /// Creates a partition for a file. Returns its number, and the offset at which reading begins.
    pub(super) fn open(&self, key: &FileKey) -> (u32, u64) {
        let mut state = self.lock();
        let partition = state.partition_next;
        state.partition_next += 1;
        state.partitions.insert(partition, Partition { key: key.clone(), end: None });
        (partition, state.offsets.get(key).copied().unwrap_or(0))
    }

    /// Records that a file was read to its end, after a record at `offset`.
    pub(super) fn close(&self, partition: u32, offset: u64, after_end: AfterEnd) {
        let mut state = self.lock();
        if let Some(closed) = state.partitions.get_mut(&partition) {
            closed.end = Some((offset, after_end));
            state.remove_if_complete(partition);
        }
    }

    /// Drops the position in a file that was truncated: what was read of it before is not committed.
    pub(super) fn reset(&self, key: &FileKey) {
        let mut state = self.lock();
        state.offsets.remove(key);
        state.partitions.retain(|_, partition| partition.key != *key);
    }

    /// The committed files of a path that another file has replaced.
    pub(super) fn replaced(&self, key: &FileKey) -> Vec<FileKey> {
        let state = self.lock();
        state.offsets.keys().filter(|other| other.path == key.path && other.identity != key.identity).cloned().collect()
    }

    /// Records the safe results. Returns whether the checkpoint file is due.
    pub(super) fn handle_safe(&self, safe: &Safe) -> bool {
        let mut state = self.lock();
        state.pending.extend(safe.commits.iter().map(|commit| (commit.partition, commit.offset)));
        if !safe.is_exact {
            return false;
        }
        for (partition, offset) in std::mem::take(&mut state.pending) {
            if let Some(key) = state.partitions.get(&partition).map(|partition| partition.key.clone()) {
                state.offsets.insert(key, offset);
                state.remove_if_complete(partition);
            }
        }
        state.marks = safe.marks.clone();
        state.is_dirty = true;
        self.checkpoint.is_some() && state.written.is_none_or(|written| written.elapsed() >= WRITE_INTERVAL)
    }

    /// Syncs the output files, then writes the checkpoint file.
    pub(super) async fn write(self: &Arc<Self>) -> Result<(), DriverError> {
        if self.checkpoint.is_none() {
            return Ok(());
        }
        let progress = self.clone();
        // The write continues when its connection is dropped; the next write waits for it.
        tokio::task::spawn_blocking(move || progress.write_blocking()).await.map_err(DriverError::transport)?
    }

    fn write_blocking(&self) -> Result<(), DriverError> {
        let Some(path) = &self.checkpoint else { return Ok(()) };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let checkpoint = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.is_dirty) {
                return Ok(());
            }
            state.written = Some(Instant::now());
            let file = |(key, offset): (&FileKey, &u64)| FileOffset {
                path: key.path.clone(),
                device: key.identity.0,
                inode: key.identity.1,
                offset: *offset,
            };
            Checkpoint {
                version: VERSION,
                files: state.offsets.iter().map(file).collect(),
                output: state.marks.output.clone(),
                errors: state.marks.errors.clone(),
            }
        };
        write(path, &checkpoint).map_err(|error| file_error(path, &error))
    }
}

fn write(path: &Path, checkpoint: &Checkpoint) -> std::io::Result<()> {
    for mark in checkpoint.output.iter().chain(&checkpoint.errors) {
        File::open(&mark.path)?.sync_data()?;
    }
    let next = path.with_added_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(&serde_json::to_vec(checkpoint)?)?;
    file.sync_data()?;
    std::fs::rename(&next, path)
}
