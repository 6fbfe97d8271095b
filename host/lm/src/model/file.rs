//! Reads a model file: its header, then its tensors one by one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::blocks;
use super::error::LoadError;
use crate::gguf::{GgufError, HEADER_BYTES_MAX, Header, TensorEntry, TensorType};

/// Bytes of a file that are read first to find the header: most headers are shorter.
const FRONT_BYTES: u64 = 8 << 20;

/// An open model file. It is read rather than mapped, because truncating a mapped file ends the process.
#[derive(Debug)]
pub(super) struct ModelFile {
    file: File,
    header: Header,
    /// The names of the tensors that were read.
    used: BTreeSet<String>,
    buffer: Vec<u8>,
}

/// The bytes of a tensor.
#[derive(Debug)]
pub(super) struct TensorBytes<'a> {
    pub(super) ty: TensorType,
    pub(super) bytes: &'a [u8],
}

impl ModelFile {
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let mut file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut front = Vec::new();
        let mut limit = FRONT_BYTES;
        let header = loop {
            (&file).take(limit - front.len() as u64).read_to_end(&mut front)?;
            match Header::parse(&front, file_bytes) {
                Err(GgufError::Truncated { .. }) if (front.len() as u64) < file_bytes => {
                    if limit >= HEADER_BYTES_MAX {
                        return Err(GgufError::HeaderTooLong { bytes_max: HEADER_BYTES_MAX }.into());
                    }
                    limit = (2 * limit).min(HEADER_BYTES_MAX);
                }
                parsed => break parsed?,
            }
        };
        file.rewind()?;
        Ok(Self { file, header, used: BTreeSet::new(), buffer: Vec::new() })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry, LoadError> {
        self.header.tensors.get(name).ok_or_else(|| LoadError::MissingTensor { name: name.to_owned() })
    }

    /// Reads a tensor of the dimensions `expected`, the innermost first.
    pub(super) fn read(&mut self, name: &str, expected: &[u64]) -> Result<TensorBytes<'_>, LoadError> {
        let entry = self.entry(name)?;
        if entry.dimensions != expected {
            let (found, expected) = (entry.dimensions.clone(), expected.to_vec());
            return Err(LoadError::Shape { name: name.to_owned(), found, expected });
        }
        let (ty, offset, bytes) = (entry.ty, entry.offset, entry.bytes);
        if !blocks::is_supported(ty) {
            let supported = blocks::supported_types();
            return Err(LoadError::Type { name: name.to_owned(), found: ty.name, supported });
        }
        self.file.seek(SeekFrom::Start(offset))?;
        self.buffer.clear();
        // The header was checked against the length of the file, but the file may have been truncated since.
        let read = (&self.file).take(bytes).read_to_end(&mut self.buffer)?;
        if read as u64 != bytes {
            return Err(GgufError::OutOfFile { name: name.to_owned(), file_bytes: offset + read as u64 }.into());
        }
        self.used.insert(name.to_owned());
        Ok(TensorBytes { ty, bytes: &self.buffer })
    }

    /// Fails if there is a tensor that was not read.
    pub(super) fn finish(&self) -> Result<(), LoadError> {
        match self.header.tensors.keys().find(|name| !self.used.contains(*name)) {
            Some(name) => Err(LoadError::UnknownTensor { name: name.clone() }),
            None => Ok(()),
        }
    }
}
