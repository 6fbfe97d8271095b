//! The storage below the database.
//!
//! After a failed fsync the system may mark unwritten pages as clean: reads return their data and the next fsync
//! succeeds, but after a crash the data is lost. So the store tracks which blocks were written since the last
//! successful fsync, and after a failed one writes their content again before the next fsync.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::{BackendError, StorageBackend};

use crate::error::lock;

type Backend = Box<dyn StorageBackend>;

/// Bytes of a block.
const BLOCK_BYTES: u64 = 4096;

/// Opens or creates the file. Tests use an opener whose storage fails.
#[derive(Clone)]
pub(crate) struct Opener {
    open: Arc<dyn Fn() -> Result<Backend, redb::Error> + Send + Sync>,
    unsynced: Arc<Mutex<Unsynced>>,
}

/// The blocks that were written since the last fsync that succeeded.
#[derive(Debug, Default)]
struct Unsynced {
    /// The numbers of the blocks: offset divided by [`BLOCK_BYTES`].
    blocks: BTreeSet<u64>,
    /// True when an fsync has failed since.
    failed: bool,
}

impl Opener {
    pub(crate) fn new(open: impl Fn() -> Result<Backend, redb::Error> + Send + Sync + 'static) -> Self {
        Self { open: Arc::new(open), unsynced: Arc::default() }
    }

    /// An opener of the file at a path.
    pub(crate) fn path(path: &Path) -> Self {
        let path = path.to_owned();
        Self::new(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            Ok(Box::new(redb::backends::FileBackend::new(file)?))
        })
    }

    pub(crate) fn open(&self) -> Result<redb::Database, redb::Error> {
        let storage = Storage { inner: (self.open)()?, unsynced: Arc::clone(&self.unsynced) };
        Ok(redb::Builder::new().create_with_backend(storage)?)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Opener")
    }
}

#[derive(Debug)]
struct Storage {
    inner: Backend,
    unsynced: Arc<Mutex<Unsynced>>,
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut unsynced = lock(&self.unsynced);
        if unsynced.failed {
            self.write_again(&unsynced.blocks)?;
        }
        unsynced.failed = true;
        self.inner.sync_data()?;
        *unsynced = Unsynced::default();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let last = (offset + data.len() as u64).saturating_sub(1) / BLOCK_BYTES;
        lock(&self.unsynced).blocks.extend(offset / BLOCK_BYTES..=last);
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

impl Storage {
    fn write_again(&self, blocks: &BTreeSet<u64>) -> io::Result<()> {
        let end = self.inner.len()?;
        let mut block = [0; BLOCK_BYTES as usize];
        for offset in blocks.iter().map(|number| number * BLOCK_BYTES).take_while(|offset| *offset < end) {
            let bytes = &mut block[..BLOCK_BYTES.min(end - offset) as usize];
            self.inner.read(offset, bytes)?;
            self.inner.write(offset, bytes)?;
        }
        Ok(())
    }
}
