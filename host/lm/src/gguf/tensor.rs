//! Descriptions of tensors.

use super::cursor::Cursor;
use super::error::GgufError;
use weir_core::wording::quoted;

/// The most dimensions of a tensor.
const RANK_MAX: u32 = 4;

/// The storage format of a tensor's elements, in blocks of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Its number in files.
    pub id: u32,
    /// Its name in GGML, as `Q4_1`.
    pub name: &'static str,
    /// Elements of a block.
    pub block_elements: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

macro_rules! types {
    ($($id:literal $name:ident $elements:literal $bytes:literal,)*) => {
        impl TensorType {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                pub const $name: Self =
                    Self { id: $id, name: stringify!($name), block_elements: $elements, block_bytes: $bytes };
            )*

            /// All types of GGML, including those that this crate cannot compute with.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

types! {
    0 F32 1 4,
    1 F16 1 2,
    2 Q4_0 32 18,
    3 Q4_1 32 20,
    6 Q5_0 32 22,
    7 Q5_1 32 24,
    8 Q8_0 32 34,
    9 Q8_1 32 36,
    10 Q2_K 256 84,
    11 Q3_K 256 110,
    12 Q4_K 256 144,
    13 Q5_K 256 176,
    14 Q6_K 256 210,
    15 Q8_K 256 292,
    16 IQ2_XXS 256 66,
    17 IQ2_XS 256 74,
    18 IQ3_XXS 256 98,
    19 IQ1_S 256 50,
    20 IQ4_NL 32 18,
    21 IQ3_S 256 110,
    22 IQ2_S 256 82,
    23 IQ4_XS 256 136,
    24 I8 1 1,
    25 I16 1 2,
    26 I32 1 4,
    27 I64 1 8,
    28 F64 1 8,
    29 IQ1_M 256 56,
    30 BF16 1 2,
    34 TQ1_0 256 54,
    35 TQ2_0 256 66,
    39 MXFP4 32 17,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// The storage format of its elements.
    pub ty: TensorType,
    /// Its dimensions, the innermost first.
    pub dimensions: Vec<u64>,
    /// Its offset in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl TensorEntry {
    pub(super) fn read(cursor: &mut Cursor<'_>, name: &str) -> Result<Self, GgufError> {
        let what = format!("the tensor {}", quoted(name));
        let rank = cursor.u32(&what)?;
        if rank > RANK_MAX {
            let (count, count_max) = (u64::from(rank), u64::from(RANK_MAX));
            return Err(GgufError::TooMany { what: format!("dimensions of {what}"), count, count_max });
        }
        let mut dimensions = Vec::new();
        for _ in 0..rank {
            dimensions.push(cursor.u64(&what)?);
        }
        let id = cursor.u32(&what)?;
        let known = TensorType::ALL.iter().find(|ty| ty.id == id);
        let ty = *known.ok_or_else(|| GgufError::TensorType { name: name.to_owned(), id })?;
        let offset = cursor.u64(&what)?;
        let bytes = bytes(ty, &dimensions);
        match bytes {
            Ok(bytes) => Ok(Self { ty, dimensions, offset, bytes }),
            Err(reason) => Err(GgufError::Dimensions { name: name.to_owned(), dimensions, reason }),
        }
    }
}

fn bytes(ty: TensorType, dimensions: &[u64]) -> Result<u64, &'static str> {
    if dimensions.contains(&0) {
        return Err("a dimension is 0");
    }
    let elements = dimensions.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
    let elements = elements.ok_or("the number of elements overflows")?;
    let row = dimensions.first().copied().unwrap_or(1);
    if !row.is_multiple_of(ty.block_elements) {
        return Err("rows are not whole blocks of the type");
    }
    (elements / ty.block_elements).checked_mul(ty.block_bytes).ok_or("the number of bytes overflows")
}
