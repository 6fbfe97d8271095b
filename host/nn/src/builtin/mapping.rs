//! Numbers in the bytes of a file, read where they lie.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use weir_kernels::TableRows;

#[cfg(target_arch = "wasm32")]
pub(crate) use super::file_in_memory::Mapping;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use super::mapped_file::Mapping;
use super::safetensors::Dtype;

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
