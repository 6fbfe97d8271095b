//! Files and the standard streams as sources and sinks.
//!
//! - `frames`: splits the bytes of a file into records.
//! - `follow`: files that grow, are rotated and truncated.
//! - `source`: the files of a configuration, one after another or followed.
//! - `progress`: the committed position in memory and in a checkpoint file.
//! - `sink`: results as NDJSON, JSON, CSV, text or a table.
//!
//! With a checkpoint, each result is in the output file exactly once, even if the process is killed: the checkpoint has the position in
//! every source file together with the length of the output file with exactly the results up to these positions. Opening the sink
//! truncates the output file to that length.

mod follow;
mod frames;
mod progress;
mod sink;
mod source;

use std::sync::Arc;

pub use frames::Framing;
pub use progress::Progress;
pub use sink::{LineSink, SinkFormat, SinkTarget};
pub use source::FileSource;

use crate::driver::{BoxFuture, Committer, DriverError, Safe};

/// The settings of a file source.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// Paths and patterns; `-` is the standard input.
    pub paths: Vec<String>,
    /// How bytes are split into records.
    pub framing: Framing,
    /// Whether to wait for more records at the end of a file.
    pub follow: bool,
}

/// Opens a file source and its committer.
pub fn open(settings: &FileSettings, progress: &Arc<Progress>) -> Result<(FileSource, FileCommitter), DriverError> {
    let source = FileSource::open(settings, progress.clone())?;
    Ok((source, FileCommitter { progress: progress.clone() }))
}

/// Commits positions in files.
pub struct FileCommitter {
    progress: Arc<Progress>,
}

impl Committer for FileCommitter {
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>> {
        let write = self.progress.handle_safe(safe);
        let progress = self.progress.clone();
        Box::pin(async move { if write { progress.write().await } else { Ok(()) } })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        let progress = self.progress.clone();
        Box::pin(async move { progress.write().await })
    }
}

/// Converts an IO error of a file.
pub(crate) fn file_error(path: &std::path::Path, error: &std::io::Error) -> DriverError {
    let reason = format!("{}: {error}", path.display());
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::IsADirectory => {
            DriverError::Config(reason)
        }
        _ => DriverError::transport(reason),
    }
}
