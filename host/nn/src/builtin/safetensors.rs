//! The header of a file in the safetensors format: its tensors and their offsets.
//!
//! A file is the length of the header (8 bytes, little-endian), the header (a JSON object), and the bytes of the tensors without a gap
//! (<https://github.com/huggingface/safetensors>, "Format"). A file is not trusted: the header is bounded, and every tensor lies within
//! the file and overlaps no other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::wording::{json_types, listed, quoted};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The longest header, in bytes.
const HEADER_BYTES_MAX: u64 = 32 << 20;
/// The most tensors of a model.
pub(super) const TENSORS_MAX: usize = 100_000;
/// The most dimensions of a tensor.
const RANK_MAX: usize = 8;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single-precision number.
    Bf16,
    /// Another type, which no weights of encoders have, by its size in bytes.
    Other(usize),
}

impl Dtype {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "I64" | "U64" => Self::Other(8),
            "I32" | "U32" => Self::Other(4),
            "I16" | "U16" => Self::Other(2),
            "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Self::Other(1),
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(bytes) => bytes,
        }
    }
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// The tensors of a file, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Each tensor.
    pub tensors: BTreeMap<String, Entry>,
}

impl Header {
    /// Reads the header of a file's content.
    ///
    /// # Errors
    /// What is wrong with it, in one clause.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        let Some((length, rest)) = file.split_first_chunk() else {
            return Err(format!("a header begins with 8 bytes of length, and the file has {}", file.len()));
        };
        let length = u64::from_le_bytes(*length);
        if length > HEADER_BYTES_MAX {
            return Err(format!("the header has {length} bytes, more than {HEADER_BYTES_MAX}"));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let header = rest.get(..length);
        let header = header
            .ok_or_else(|| format!("the header has {length} bytes, and the file {} after its length", rest.len()))?;
        let Raw(raw) = serde_json::from_slice(header)
            .map_err(|error| format!("the header is not as it must be: {}", json_types(&error.to_string())))?;
        let begin = size_of::<u64>() + length;
        let data = file.len() - begin;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in raw {
            let entry = tensor.entry(begin, data).map_err(|reason| format!("tensor {}: {reason}", quoted(&name)))?;
            tensors.insert(name, entry);
        }
        check_layout(&tensors, begin, data)?;
        Ok(Self { tensors })
    }
}

/// Checks that the tensors fill the file without gaps or overlaps.
fn check_layout(tensors: &BTreeMap<String, Entry>, begin: usize, data: usize) -> Result<(), String> {
    let mut order: Vec<(&String, &Entry)> = tensors.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut end = begin;
    for (name, entry) in order {
        if entry.range.start != end {
            return Err(format!(
                "tensor {} begins at byte {} of the data, where {} is expected",
                quoted(&name),
                entry.range.start - begin,
                end - begin
            ));
        }
        end = entry.range.end;
    }
    match end - begin {
        used if used == data => Ok(()),
        used => Err(format!("the tensors have {used} bytes, and the file {data}")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl RawTensor {
    fn entry(self, begin: usize, data: usize) -> Result<Entry, String> {
        let dtype = Dtype::parse(&self.dtype).ok_or_else(|| format!("{} is no known type", quoted(&self.dtype)))?;
        let (from, to) = self.data_offsets;
        if from > to || to > data as u64 {
            return Err(format!("bytes {from} to {to} are not within the {data} of the file"));
        }
        let Shape(shape) = self.shape;
        let bytes = shape.iter().try_fold(dtype.size_bytes() as u64, |bytes, size| bytes.checked_mul(*size));
        if bytes != Some(to - from) {
            return Err(format!(
                "shape {shape} of {} does not take {} bytes",
                self.dtype,
                to - from,
                shape = listed(&shape)
            ));
        }
        // The product was checked, so a dimension past `usize` occurs only beside a dimension of 0.
        let sizes = shape.iter().map(|size| {
            usize::try_from(*size).map_err(|_| format!("shape {shape} is too large", shape = listed(&shape)))
        });
        let shape = sizes.collect::<Result<_, _>>()?;
        Ok(Entry { dtype, shape, range: begin + from as usize..begin + to as usize })
    }
}

/// At most [`RANK_MAX`] dimensions.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {RANK_MAX} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(size) = sequence.next_element()? {
                    if shape.len() == RANK_MAX {
                        return Err(A::Error::invalid_length(RANK_MAX + 1, &self));
                    }
                    shape.push(size);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// The JSON object; a name that occurs twice is an error.
struct Raw(BTreeMap<String, RawTensor>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if tensors.len() == TENSORS_MAX {
                        return Err(A::Error::custom(format_args!("more than {TENSORS_MAX} tensors")));
                    }
                    let tensor = map.next_value()?;
                    if tensors.insert(name.clone(), tensor).is_some() {
                        return Err(A::Error::custom(format_args!("tensor {} is there twice", quoted(&name))));
                    }
                }
                Ok(Raw(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 7);
        file
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[3],"data_offsets":[8,14]},
        "a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"n":{"dtype":"I64","shape":[0,5],"data_offsets":[8,8]}}"#;

    #[test]
    fn valid_header_gives_the_offsets_of_its_tensors() {
        let header = Header::parse(&file(GOOD, 14)).unwrap();
        let start = 8 + GOOD.len();
        let entry = |dtype, shape: &[usize], range: Range<usize>| Entry {
            dtype,
            shape: shape.to_vec(),
            range: start + range.start..start + range.end,
        };
        assert_eq!(header.tensors["a"], entry(Dtype::F32, &[2, 1], 0..8));
        assert_eq!(header.tensors["b"], entry(Dtype::F16, &[3], 8..14));
        assert_eq!(header.tensors["n"], entry(Dtype::Other(8), &[0, 5], 8..8));
    }

    #[test]
    fn malformed_headers_are_refused_with_the_reason() {
        let check = |file: &[u8], expected: Expect| expected.assert_eq(&Header::parse(file).unwrap_err());
        check(&[1, 2, 3], expect!["a header begins with 8 bytes of length, and the file has 3"]);
        check(&u64::MAX.to_le_bytes(), expect!["the header has 18446744073709551615 bytes, more than 33554432"]);
        check(&9u64.to_le_bytes(), expect!["the header has 9 bytes, and the file 0 after its length"]);
        check(&file(GOOD, 13), expect![[r#"tensor "b": bytes 8 to 14 are not within the 13 of the file"#]]);
        check(&file(GOOD, 15), expect!["the tensors have 14 bytes, and the file 15"]);
        let one = |dtype: &str, shape: &str, offsets: &str| {
            file(&format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), 8)
        };
        check(&one("F32", "[3]", "[0,8]"), expect![[r#"tensor "t": shape [3] of F32 does not take 8 bytes"#]]);
        check(&one("F32", "[2]", "[8,0]"), expect![[r#"tensor "t": bytes 8 to 0 are not within the 8 of the file"#]]);
        check(&one("F33", "[2]", "[0,8]"), expect![[r#"tensor "t": "F33" is no known type"#]]);
        check(
            &one("F32", "[1]", "[4,8]"),
            expect![[r#"tensor "t" begins at byte 4 of the data, where 0 is expected"#]],
        );
        check(
            &one("F32", "[4294967296,4294967296,4]", "[0,8]"),
            expect![[r#"tensor "t": shape [4294967296, 4294967296, 4] of F32 does not take 8 bytes"#]],
        );
        check(
            &one("F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]"),
            expect![
                "the header is not as it must be: invalid length 9, expected at most 8 dimensions at line 1 column 47"
            ],
        );
        check(
            &file("[]", 0),
            expect![
                "the header is not as it must be: invalid type: an array, expected an object of tensors at line 1 column 0"
            ],
        );
        check(
            &file(
                r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            expect![[r#"the header is not as it must be: tensor "t" is there twice at line 1 column 107"#]],
        );
        check(
            &file(
                r#"{"s":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            expect![[r#"tensor "t" begins at byte 4 of the data, where 8 is expected"#]],
        );
    }

    proptest! {
        #[test]
        fn changed_bytes_never_give_offsets_outside_the_file(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in 0usize..40) {
            let mut file = file(GOOD, 14);
            for (index, byte) in changes {
                let index = index.index(file.len());
                file[index] = byte;
            }
            file.truncate(file.len() - cut.min(file.len()));
            if let Ok(header) = Header::parse(&file) {
                for entry in header.tensors.values() {
                    let bytes = &file[entry.range.clone()];
                    prop_assert_eq!(bytes.len(), entry.shape.iter().product::<usize>() * entry.dtype.size_bytes());
                }
            }
        }
    }
}
