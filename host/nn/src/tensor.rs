//! Tensors as they pass between guest and engine: dimensions, an element type, little-endian bytes in row-major order.

use std::fmt;

use crate::error::{ErrorCode, NnError};
use crate::wording::listed;

/// The element types of `wasi:nn/tensor.tensor-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// IEEE 754 half precision.
    Fp16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// The upper half of a single-precision number.
    Bf16,
    /// Unsigned byte.
    U8,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl TensorType {
    /// All of them, in the order of the WIT.
    pub const ALL: [TensorType; 7] = [Self::Fp16, Self::Fp32, Self::Fp64, Self::Bf16, Self::U8, Self::I32, Self::I64];

    /// Bytes per element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Fp16 | Self::Bf16 => 2,
            Self::Fp32 | Self::I32 => 4,
            Self::Fp64 | Self::I64 => 8,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp16 => "fp16",
            Self::Fp32 => "fp32",
            Self::Fp64 => "fp64",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        })
    }
}

/// Elements with their shape. The content is not checked at construction, because the WIT's constructor cannot fail: see
/// [`Tensor::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The size of each dimension; its length is the rank.
    pub dimensions: Vec<u32>,
    /// The type of the elements.
    pub ty: TensorType,
    /// Little-endian elements in row-major order.
    pub data: Vec<u8>,
}

impl Tensor {
    /// A tensor of `f32`.
    pub fn from_f32(dimensions: &[u32], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dimensions: dimensions.to_vec(), ty: TensorType::Fp32, data }
    }

    /// A tensor of `i64`.
    pub fn from_i64(dimensions: &[u32], values: &[i64]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dimensions: dimensions.to_vec(), ty: TensorType::I64, data }
    }

    /// The elements as `f32`; `None` when they are of another type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let element = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        (self.ty == TensorType::Fp32).then(|| self.data.chunks_exact(4).map(element).collect())
    }

    /// Checks that no dimension is zero, the size does not overflow and is within `bytes_max`, and the data has exactly the length that
    /// the dimensions give.
    ///
    /// # Errors
    /// `invalid-argument`, or `too-large` past `bytes_max`; the text begins with `what`.
    pub fn check(&self, what: &dyn fmt::Display, bytes_max: usize) -> Result<(), NnError> {
        let dimensions = &self.dimensions;
        if let Some(axis) = dimensions.iter().position(|d| *d == 0) {
            return Err(NnError::invalid(format!(
                "{what} is empty: dimension {axis} of {dimensions} is 0",
                dimensions = listed(dimensions)
            )));
        }
        let bytes = dimensions.iter().try_fold(self.ty.size_bytes(), |n, d| n.checked_mul(*d as usize));
        match bytes {
            Some(bytes) if bytes <= bytes_max => {
                if self.data.len() == bytes {
                    return Ok(());
                }
                Err(NnError::invalid(format!(
                    "{what} has {} bytes of data but its dimensions {dimensions} of {} take {bytes}",
                    self.data.len(),
                    self.ty,
                    dimensions = listed(dimensions)
                )))
            }
            Some(bytes) => Err(NnError::new(
                ErrorCode::TooLarge,
                format!("{what} takes {bytes} bytes, more than the {bytes_max} allowed"),
            )),
            None => Err(NnError::new(
                ErrorCode::TooLarge,
                format!("{what} has dimensions {dimensions}, whose product overflows", dimensions = listed(dimensions)),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(dimensions: &[u32], ty: TensorType, data_len: usize, expected: Expect) {
        let tensor = Tensor { dimensions: dimensions.to_vec(), ty, data: vec![0; data_len] };
        let shown = match tensor.check(&"input \"x\"", 1024) {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("{:?}: {error}", error.code),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn invalid_tensor_is_refused_with_the_reason() {
        check(&[2, 3], TensorType::Fp32, 24, expect!["ok"]);
        check(&[], TensorType::U8, 1, expect!["ok"]);
        check(
            &[],
            TensorType::U8,
            0,
            expect![[r#"InvalidArgument: input "x" has 0 bytes of data but its dimensions [] of u8 take 1"#]],
        );
        check(
            &[2, 0],
            TensorType::I64,
            0,
            expect![[r#"InvalidArgument: input "x" is empty: dimension 1 of [2, 0] is 0"#]],
        );
        check(
            &[2, 3],
            TensorType::Fp16,
            11,
            expect![[r#"InvalidArgument: input "x" has 11 bytes of data but its dimensions [2, 3] of fp16 take 12"#]],
        );
        check(
            &[1025],
            TensorType::U8,
            0,
            expect![[r#"TooLarge: input "x" takes 1025 bytes, more than the 1024 allowed"#]],
        );
        check(
            &[u32::MAX, u32::MAX, u32::MAX],
            TensorType::I64,
            0,
            expect![[
                r#"TooLarge: input "x" has dimensions [4294967295, 4294967295, 4294967295], whose product overflows"#
            ]],
        );
    }

    proptest! {
        #[test]
        fn accepted_tensor_has_exactly_its_length(
            dimensions in prop::collection::vec(0u32..=u32::MAX, 0..5),
            ty in prop::sample::select(TensorType::ALL.to_vec()),
            len in 0usize..64,
        ) {
            let tensor = Tensor { dimensions, ty, data: vec![0; len] };
            if tensor.check(&"x", 1 << 20).is_ok() {
                let elements: u128 = tensor.dimensions.iter().map(|d| u128::from(*d)).product();
                prop_assert_eq!(elements * ty.size_bytes() as u128, len as u128);
            }
        }
    }
}
