//! The header of a GGUF file: metadata, and the types, dimensions and offsets of the tensors.
//!
//! A file is the magic number, the version, both counts, the metadata (keys with typed values), the descriptions of the tensors,
//! padding, and the bytes of the tensors (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Versions 2 and 3 are read, in
//! little-endian order. A file is not trusted: every count and length is bounded before memory is allocated for it, and every tensor
//! lies within the file and overlaps no other.

mod cursor;
mod error;
mod tensor;
mod value;

use std::collections::BTreeMap;

use cursor::Cursor;
pub use error::GgufError;
pub use tensor::{TensorEntry, TensorType};
pub use value::Value;

/// The longest header, in bytes: the metadata with the vocabulary, and the descriptions of the tensors.
pub const HEADER_BYTES_MAX: u64 = 64 << 20;
/// The most keys of metadata.
const KEYS_MAX: u64 = 4096;
/// The most tensors of a file.
const TENSORS_MAX: u64 = 65_536;
/// The longest key, in bytes.
const KEY_BYTES_MAX: u64 = 256;
/// The longest name of a tensor, in bytes.
const NAME_BYTES_MAX: u64 = 128;
/// The default alignment of tensors, in bytes.
const ALIGNMENT_BYTES: u64 = 32;
/// The largest alignment, in bytes.
const ALIGNMENT_BYTES_MAX: u64 = 1 << 16;

/// The header of a file.
#[derive(Clone, Debug)]
pub struct Header {
    /// The metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
}

impl Header {
    /// Reads the header from `bytes`, the beginning of a file of `file_bytes`.
    ///
    /// # Errors
    /// [`GgufError::Truncated`] if the header is longer than `bytes`, and another error if the file breaks the format or a bound.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes);
        if cursor.bytes(4, "the magic number")? != b"GGUF" {
            return Err(GgufError::Magic);
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            version => {
                return Err(GgufError::Version { version, is_big_endian: matches!(version.swap_bytes(), 1..=3) });
            }
        }
        let tensors = cursor.count("tensors", TENSORS_MAX)?;
        let keys = cursor.count("keys of metadata", KEYS_MAX)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = cursor.string("a key of metadata", KEY_BYTES_MAX)?;
            let value = Value::read(&mut cursor, &key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::RepeatedKey { key });
            }
        }
        let alignment = alignment(&metadata)?;
        let mut entries = BTreeMap::new();
        for _ in 0..tensors {
            let name = cursor.string("the name of a tensor", NAME_BYTES_MAX)?;
            let entry = TensorEntry::read(&mut cursor, &name)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(GgufError::RepeatedTensor { name });
            }
        }
        let data = (cursor.position() as u64).next_multiple_of(alignment);
        if data > HEADER_BYTES_MAX {
            return Err(GgufError::HeaderTooLong { bytes_max: HEADER_BYTES_MAX });
        }
        resolve_offsets(&mut entries, data, alignment, file_bytes)?;
        Ok(Self { metadata, tensors: entries })
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT_BYTES) };
    let alignment = value.as_u64().unwrap_or(0);
    if alignment.is_power_of_two() && (8..=ALIGNMENT_BYTES_MAX).contains(&alignment) {
        Ok(alignment)
    } else {
        Err(GgufError::Alignment { bytes_max: ALIGNMENT_BYTES_MAX })
    }
}

/// Converts offsets within the data to offsets within the file, and checks them.
fn resolve_offsets(
    entries: &mut BTreeMap<String, TensorEntry>,
    data: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), GgufError> {
    let mut ranges = Vec::with_capacity(entries.len());
    for (name, entry) in entries.iter_mut() {
        if !entry.offset.is_multiple_of(alignment) {
            return Err(GgufError::Unaligned { name: name.clone(), offset: entry.offset, alignment });
        }
        let start = data.checked_add(entry.offset);
        let end = start.and_then(|start| start.checked_add(entry.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => {
                entry.offset = start;
                ranges.push((start, end, name.as_str()));
            }
            _ => return Err(GgufError::OutOfFile { name: name.clone(), file_bytes }),
        }
    }
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(GgufError::Overlap { first: pair[0].2.to_owned(), second: pair[1].2.to_owned() }),
        None => Ok(()),
    }
}
