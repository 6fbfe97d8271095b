//! Memory-mapped files, each mapped once per process and shared by all models that use it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::{Deref, Range};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use half::{bf16, f16};
use memmap2::Mmap;
use weir_kernels::TableRows;

use super::safetensors::Dtype;
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

/// Bytes of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorBytes<'a> {
    pub(super) dtype: Dtype,
    pub(super) bytes: &'a [u8],
}

impl<'a> TensorBytes<'a> {
    /// The numbers in f32; borrowed when they are stored as aligned little-endian f32.
    pub(super) fn f32(self) -> Result<Cow<'a, [f32]>, String> {
        let bytes = self.bytes;
        Ok(match self.dtype {
            Dtype::F32 => {
                // SAFETY: every bit pattern is an f32.
                let (before, values, after) = unsafe { bytes.align_to::<f32>() };
                if cfg!(target_endian = "little") && before.is_empty() && after.is_empty() {
                    return Ok(Cow::Borrowed(values));
                }
                bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
            }
            Dtype::F64 => bytes.as_chunks().0.iter().map(|word| f64::from_le_bytes(*word) as f32).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|word| f16::from_le_bytes(*word).to_f32()).collect(),
            Dtype::Bf16 => bytes.as_chunks().0.iter().map(|word| bf16::from_le_bytes(*word).to_f32()).collect(),
            Dtype::Other(_) => return Err("it is not of f32, f16, bf16 or f64".to_owned()),
        })
    }
}

/// A table of embeddings in a mapped file.
#[derive(Debug)]
pub(super) struct MappedTable {
    mapping: Arc<Mapping>,
    range: Range<usize>,
    dtype: Dtype,
    width: usize,
}

impl MappedTable {
    /// A table over a range of the mapping.
    ///
    /// # Errors
    /// When the range is outside of the mapping or not whole rows, or the type is not a float.
    pub(super) fn new(mapping: Arc<Mapping>, range: Range<usize>, dtype: Dtype, width: usize) -> Result<Self, String> {
        let row_bytes = width * dtype.size_bytes();
        if matches!(dtype, Dtype::Other(_))
            || mapping.get(range.clone()).is_none_or(|bytes| !bytes.len().is_multiple_of(row_bytes))
        {
            return Err("it is no table of floats".to_owned());
        }
        Ok(Self { mapping, range, dtype, width })
    }
}

impl TableRows for MappedTable {
    fn rows(&self) -> usize {
        self.range.len() / (self.width * self.dtype.size_bytes())
    }

    fn width(&self) -> usize {
        self.width
    }

    fn read(&self, row: usize, to: &mut [f32]) {
        let row_bytes = self.width * self.dtype.size_bytes();
        let bytes = &self.mapping[self.range.clone()][row * row_bytes..][..row_bytes];
        // The constructor accepts only floats, so the conversion succeeds.
        if let Ok(values) = (TensorBytes { dtype: self.dtype, bytes }).f32() {
            to.copy_from_slice(&values);
        }
    }
}

/// A table of i8 in a mapped file, and the factor of each row.
#[derive(Debug)]
pub(super) struct MappedIntegers {
    mapping: Arc<Mapping>,
    range: Range<usize>,
    scales: Vec<f32>,
    width: usize,
}

impl MappedIntegers {
    /// A table over a range of the mapping.
    ///
    /// # Errors
    /// When the range is outside of the mapping, or has not one row for each factor.
    pub(super) fn new(
        mapping: Arc<Mapping>,
        range: Range<usize>,
        scales: Vec<f32>,
        width: usize,
    ) -> Result<Self, String> {
        let bytes = mapping.get(range.clone()).map(<[u8]>::len);
        if bytes != scales.len().checked_mul(width) {
            let bytes = bytes.unwrap_or_default();
            return Err(format!("it has {bytes} bytes, not {} rows of {width}", scales.len()));
        }
        Ok(Self { mapping, range, scales, width })
    }
}

impl TableRows for MappedIntegers {
    fn rows(&self) -> usize {
        self.scales.len()
    }

    fn width(&self) -> usize {
        self.width
    }

    fn read(&self, row: usize, to: &mut [f32]) {
        let bytes = &self.mapping[self.range.clone()][row * self.width..][..self.width];
        let scale = self.scales[row];
        to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = f32::from(*byte as i8) * scale);
    }
}
