//! A drive with a page cache whose operations fail as configured.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use crate::error::lock;

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// One operation fails, and does nothing.
    Once,
    /// One operation fails, and a write does half of its work.
    OnceHalf,
    /// From this operation on all writes fail, until the drive is repaired: the disk is full.
    Full,
    /// From this operation on all operations fail, until the drive is repaired.
    Lost,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Drive {
    state: Arc<Mutex<State>>,
    /// The number of the process that uses the drive: after a crash, all operations of earlier processes fail.
    process: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The content that survives any crash.
    durable: Vec<u8>,
    /// The content that reads return.
    cached: Vec<u8>,
    /// The changes of `cached` since the last sync.
    unsynced: Vec<Write>,
    operations: usize,
    fault: Option<(usize, Fault)>,
    failed: usize,
    process: usize,
}

#[derive(Debug, Clone)]
enum Write {
    At(u64, Vec<u8>),
    Length(u64),
}

impl Write {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::At(offset, data) => {
                let end = *offset as usize + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset as usize..end].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(*length as usize, 0),
        }
    }
}

impl State {
    /// Counts an operation, and returns its fault, if it has one.
    fn operation(&mut self, writes: bool) -> Option<Fault> {
        let number = self.operations;
        self.operations += 1;
        let (at, fault) = self.fault?;
        let is_hit = match fault {
            Fault::Once | Fault::OnceHalf => number == at,
            Fault::Full => number >= at && writes,
            Fault::Lost => number >= at,
        };
        self.failed += usize::from(is_hit);
        is_hit.then_some(fault)
    }

    fn write(&mut self, write: Write) {
        write.apply(&mut self.cached);
        self.unsynced.push(write);
    }
}

impl Drive {
    /// Opens the file on it.
    pub(crate) fn backend(&self) -> Result<Box<dyn StorageBackend>, redb::Error> {
        self.operation(false, |_, fault| if fault.is_some() { Err(failure()) } else { Ok(()) })?;
        Ok(Box::new(Backend(self.clone())))
    }

    fn operation<T>(
        &self,
        writes: bool,
        operate: impl FnOnce(&mut State, Option<Fault>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = lock(&self.state);
        if state.process != self.process {
            return Err(failure());
        }
        match state.operation(writes) {
            Some(fault) => operate(&mut state, Some(fault)),
            None => operate(&mut state, None),
        }
    }

    /// Makes an operation fail after `after` more have succeeded.
    pub(crate) fn fail(&self, after: usize, fault: Fault) {
        let mut state = lock(&self.state);
        state.fault = Some((state.operations + after, fault));
        state.failed = 0;
    }

    /// Ends the fault. Returns how many operations failed.
    pub(crate) fn heal(&self) -> usize {
        let mut state = lock(&self.state);
        state.fault = None;
        state.failed
    }

    /// Simulates a power failure: each write that was not synced is retained or lost, depending on `seed`. Returns the
    /// drive for the next process.
    pub(crate) fn crash(&self, seed: u64) -> Self {
        let mut state = lock(&self.state);
        state.process += 1;
        state.fault = None;
        let mut random = seed | 1;
        for write in std::mem::take(&mut state.unsynced) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if random >> 63 == 0 || matches!(write, Write::Length(_)) {
                write.apply(&mut state.durable);
            }
        }
        state.cached = state.durable.clone();
        Self { state: Arc::clone(&self.state), process: state.process }
    }
}

#[derive(Debug)]
struct Backend(Drive);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.operation(false, |state, _| Ok(state.cached.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.operation(false, |state, fault| {
            let bytes = state.cached.get(offset as usize..offset as usize + out.len());
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            if fault.is_some() { Err(failure()) } else { Ok(()) }
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.operation(true, |state, fault| {
            if fault.is_some() {
                return Err(failure());
            }
            state.write(Write::Length(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.operation(true, |state, fault| {
            if fault.is_some() {
                // As on Linux: pages that could not be written are marked clean, and are read until the next start.
                state.unsynced.clear();
                return Err(failure());
            }
            let State { durable, unsynced, .. } = state;
            unsynced.drain(..).for_each(|write| write.apply(durable));
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.operation(true, |state, fault| {
            if fault.is_some() {
                let half = if fault == Some(Fault::OnceHalf) { data.len() / 2 } else { 0 };
                state.write(Write::At(offset, data[..half].to_vec()));
                return Err(failure());
            }
            state.write(Write::At(offset, data.to_vec()));
            Ok(())
        })
    }
}

fn failure() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on device")
}
