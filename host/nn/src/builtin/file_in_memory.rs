//! Files in memory where a host cannot map them: read once for each model, and kept once where several models have the same bytes.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::LoadError;
use crate::structure::read_file;

/// The content of a file.
#[derive(Debug)]
pub(crate) struct Mapping(Vec<u8>);

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapping {
    /// Reads a file. A file with the bytes of one that is in use is that one: WASI has no number by which files could be told apart.
    ///
    /// # Errors
    /// When it is missing, no file, empty, longer than `bytes_max`, or longer than there is memory for.
    pub(crate) fn open(path: &Path, bytes_max: u64) -> Result<Arc<Self>, LoadError> {
        static OPEN: Mutex<Vec<Weak<Mapping>>> = Mutex::new(Vec::new());
        let bytes = read_file(path, bytes_max)?;
        if bytes.is_empty() {
            return Err(LoadError::Broken { origin: path.display().to_string(), reason: "is empty".to_owned() });
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|mapping| mapping.strong_count() > 0);
        if let Some(mapping) = open.iter().filter_map(Weak::upgrade).find(|mapping| mapping.0 == bytes) {
            return Ok(mapping);
        }
        let mapping = Arc::new(Self(bytes));
        open.push(Arc::downgrade(&mapping));
        Ok(mapping)
    }

    /// Nothing can be let go of while the content is in use.
    pub(crate) fn release(&self) {}
}
