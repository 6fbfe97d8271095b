//! The errors of reading a file.

use weir_core::wording::{listed, quoted};

/// Why the header of a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The bytes end within the header.
    #[error("the file ends within {what}, at byte {position}")]
    Truncated {
        /// The part of the header.
        what: String,
        /// The offset at which it begins, in bytes.
        position: usize,
    },
    /// The first four bytes are not the magic number.
    #[error("not a GGUF file: it does not begin with \"GGUF\"")]
    Magic,
    /// A version that is not supported.
    #[error("GGUF version {version} is not supported; use version 2 or 3, in little-endian order{}",
        if *.is_big_endian { " (the file is in big-endian order)" } else { "" })]
    Version {
        /// As in the file.
        version: u32,
        /// Whether it is a known version in big-endian order.
        is_big_endian: bool,
    },
    /// More of something than the bound.
    #[error("the file declares {count} {what}; at most {count_max} are read")]
    TooMany {
        /// The part of the file.
        what: String,
        /// As declared.
        count: u64,
        /// The bound.
        count_max: u64,
    },
    /// A text longer than the bound.
    #[error("{what} has {bytes} bytes; at most {bytes_max} are read")]
    TooLong {
        /// The part of the file.
        what: String,
        /// As declared.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// The part of the file.
        what: String,
    },
    /// A type of metadata that does not exist.
    #[error("the value of {} has the type {id}, which does not exist", quoted(.key))]
    ValueType {
        /// The key.
        key: String,
        /// The number of the type.
        id: u32,
    },
    /// An array of arrays.
    #[error("the value of {} is an array of arrays, which is not supported", quoted(.key))]
    Nested {
        /// The key.
        key: String,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("the value of {} has a boolean that is neither 0 nor 1", quoted(.key))]
    NotBoolean {
        /// The key.
        key: String,
    },
    /// A key that occurs twice.
    #[error("the key {} occurs twice", quoted(.key))]
    RepeatedKey {
        /// The key.
        key: String,
    },
    /// A tensor that occurs twice.
    #[error("the tensor {} occurs twice", quoted(.name))]
    RepeatedTensor {
        /// Its name.
        name: String,
    },
    /// A type of tensor that does not exist.
    #[error("the tensor {} has the type {id}, which is not known", quoted(.name))]
    TensorType {
        /// Its name.
        name: String,
        /// The number of the type.
        id: u32,
    },
    /// Dimensions that a tensor cannot have.
    #[error("the tensor {} has the dimensions {}: {reason}", quoted(.name), listed(.dimensions))]
    Dimensions {
        /// Its name.
        name: String,
        /// As declared.
        dimensions: Vec<u64>,
        /// Why they are invalid.
        reason: &'static str,
    },
    /// `general.alignment` is invalid.
    #[error("general.alignment is not a power of two from 8 to {bytes_max}")]
    Alignment {
        /// The bound.
        bytes_max: u64,
    },
    /// The header is longer than the bound.
    #[error("the header is longer than {bytes_max} bytes")]
    HeaderTooLong {
        /// The bound.
        bytes_max: u64,
    },
    /// An offset that is not aligned.
    #[error("the tensor {} begins at offset {offset}, which is not a multiple of {alignment}", quoted(.name))]
    Unaligned {
        /// Its name.
        name: String,
        /// Within the data.
        offset: u64,
        /// As declared.
        alignment: u64,
    },
    /// A tensor that ends past the end of the file.
    #[error("the tensor {} ends past the end of the file, which has {file_bytes} bytes", quoted(.name))]
    OutOfFile {
        /// Its name.
        name: String,
        /// The bytes of the file.
        file_bytes: u64,
    },
    /// Two tensors that overlap.
    #[error("the tensors {} and {} overlap", quoted(.first), quoted(.second))]
    Overlap {
        /// The name of the one that begins first.
        first: String,
        /// The name of the other.
        second: String,
    },
}
