//! Values of metadata.

use super::cursor::Cursor;
use super::error::GgufError;
use weir_core::wording::quoted;

/// The longest text, in bytes.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// The most elements of an array.
const ELEMENTS_MAX: u64 = 4 << 20;

/// A value of metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A floating point number, of any width.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array of signed or unsigned integers; a number past `i64::MAX` becomes `i64::MAX`.
    Integers(Vec<i64>),
    /// An array of floating point numbers.
    Floats(Vec<f32>),
    /// An array of booleans.
    Bools(Vec<bool>),
    /// An array of texts.
    Texts(Vec<String>),
}

impl Value {
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        let what = format!("the value of {}", quoted(key));
        match cursor.u32(&what)? {
            ARRAY => Self::read_array(cursor, key, &what),
            id => Self::read_scalar(cursor, id, key, &what),
        }
    }

    fn read_scalar(cursor: &mut Cursor<'_>, id: u32, key: &str, what: &str) -> Result<Self, GgufError> {
        Ok(match id {
            0 => Self::Unsigned(u64::from(u8::from_le_bytes(cursor.array(what)?))),
            1 => Self::Signed(i64::from(i8::from_le_bytes(cursor.array(what)?))),
            2 => Self::Unsigned(u64::from(u16::from_le_bytes(cursor.array(what)?))),
            3 => Self::Signed(i64::from(i16::from_le_bytes(cursor.array(what)?))),
            4 => Self::Unsigned(u64::from(cursor.u32(what)?)),
            5 => Self::Signed(i64::from(i32::from_le_bytes(cursor.array(what)?))),
            6 => Self::Float(f64::from(f32::from_le_bytes(cursor.array(what)?))),
            7 => match cursor.array::<1>(what)? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                _ => return Err(GgufError::NotBoolean { key: key.to_owned() }),
            },
            8 => Self::Text(cursor.string(what, TEXT_BYTES_MAX)?),
            10 => Self::Unsigned(cursor.u64(what)?),
            11 => Self::Signed(i64::from_le_bytes(cursor.array(what)?)),
            12 => Self::Float(f64::from_le_bytes(cursor.array(what)?)),
            id => return Err(GgufError::ValueType { key: key.to_owned(), id }),
        })
    }

    fn read_array(cursor: &mut Cursor<'_>, key: &str, what: &str) -> Result<Self, GgufError> {
        let id = cursor.u32(what)?;
        let bytes = match id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            // A text has at least its length.
            8 | 10..=12 => 8,
            ARRAY => return Err(GgufError::Nested { key: key.to_owned() }),
            id => return Err(GgufError::ValueType { key: key.to_owned(), id }),
        };
        let count = cursor.count(&format!("elements in {what}"), ELEMENTS_MAX)? as usize;
        // Checked before memory is allocated.
        if count > cursor.remaining() / bytes {
            return Err(cursor.truncated(what));
        }
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(Self::read_scalar(cursor, id, key, what)?);
        }
        let elements = elements.into_iter();
        Ok(match id {
            6 | 12 => Self::Floats(elements.map(|value| value.as_f64().unwrap_or(0.0) as f32).collect()),
            7 => Self::Bools(elements.map(|value| value == Self::Bool(true)).collect()),
            8 => Self::Texts(
                elements
                    .filter_map(|value| match value {
                        Self::Text(text) => Some(text),
                        _ => None,
                    })
                    .collect(),
            ),
            _ => Self::Integers(
                elements
                    .map(|value| match value {
                        Self::Signed(value) => value,
                        Self::Unsigned(value) => i64::try_from(value).unwrap_or(i64::MAX),
                        _ => 0,
                    })
                    .collect(),
            ),
        })
    }

    /// The value of a non-negative integer.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value of a floating point number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The value of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The value of a text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The type number of arrays.
const ARRAY: u32 = 9;
