//! Memory-mapped files, each mapped once per process and shared by all models that use it.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use memmap2::Mmap;

use crate::error::LoadError;

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Mapping(Mmap);

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The identity of a file: device, inode, length, and modification time in seconds and nanoseconds.
type FileId = (u64, u64, u64, i64, i64);

impl Mapping {
    /// Maps a file, or returns its mapping while one is in use.
    ///
    /// # Errors
    /// When it is missing, not a regular file, empty, or longer than `bytes_max`.
    pub(crate) fn open(path: &Path, bytes_max: u64) -> Result<Arc<Self>, LoadError> {
        static OPEN: OnceLock<Mutex<HashMap<FileId, Weak<Mapping>>>> = OnceLock::new();
        let unreadable = |e: std::io::Error| match e.kind() {
            ErrorKind::NotFound => LoadError::Missing {
                dir: path.parent().unwrap_or(Path::new(".")).to_owned(),
                file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            },
            _ => LoadError::Unreadable { path: path.to_owned(), reason: e.to_string() },
        };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(LoadError::Unreadable { path: path.to_owned(), reason: "it is not a file".to_owned() });
        }
        if metadata.len() == 0 {
            return Err(LoadError::Broken { origin: path.display().to_string(), reason: "is empty".to_owned() });
        }
        if metadata.len() > bytes_max {
            let reason = format!("has {} bytes, more than the {bytes_max} allowed", metadata.len());
            return Err(LoadError::TooLarge { origin: path.display().to_string(), reason });
        }
        let id = (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        let mut open = OPEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, mapping| mapping.strong_count() > 0);
        if let Some(mapping) = open.get(&id).and_then(Weak::upgrade) {
            return Ok(mapping);
        }
        // SAFETY: The mapping is read-only and private. Rust requires that its bytes do not change while they are borrowed; they are
        // numbers of which every bit pattern is valid, and their lengths were checked, so writing to a file that is in use gives wrong
        // numbers at worst. Truncating it ends the process: models are replaced by renaming, as `pull` does.
        let mapping = Arc::new(Self(unsafe { Mmap::map(&file) }.map_err(unreadable)?));
        open.insert(id, Arc::downgrade(&mapping));
        Ok(mapping)
    }
}

impl Mapping {
    /// Releases the pages that were read; a later read loads them from the file again.
    pub(crate) fn release(&self) {
        // SAFETY: the mapping is of a file and never written to, so its pages have the same bytes when they are read again. On failure
        // they stay in memory.
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}
