//! Conversion between tensors of the WIT and of ONNX Runtime. Most types have the same bytes on both sides and are borrowed; bf16 is
//! computed as f32, and integer types that the WIT lacks are passed as wider ones.

use std::borrow::Cow;

use half::bf16;

use super::element::native;
use super::value::{Output, Values};
use crate::engine::{ElementType, TensorInfo};
use crate::error::NnError;
use crate::fit::{check_truth_values, fitting};
use crate::tensor::{Tensor, TensorType};
use crate::wording::{listed, quoted};

/// The bytes of a checked input in the native type: the guest's own where the types agree.
pub(super) fn to_native<'a>(info: &TensorInfo, tensor: &'a Tensor) -> Result<Cow<'a, [u8]>, NnError> {
    Ok(match info.element {
        ElementType::Wit(TensorType::Bf16) => Cow::Owned(bf16_to_f32(&tensor.data)),
        ElementType::Wit(_) => Cow::Borrowed(tensor.data.as_slice()),
        ElementType::Bool => {
            check_truth_values(info, tensor)?;
            Cow::Borrowed(tensor.data.as_slice())
        }
        ElementType::I8 => to_bytes(fitting::<i8, i32>(info, tensor)?, i8::to_le_bytes),
        ElementType::I16 => to_bytes(fitting::<i16, i32>(info, tensor)?, i16::to_le_bytes),
        ElementType::U16 => to_bytes(fitting::<u16, i32>(info, tensor)?, u16::to_le_bytes),
        ElementType::U32 => to_bytes(fitting::<u32, i64>(info, tensor)?, u32::to_le_bytes),
        ElementType::U64 => to_bytes(fitting::<u64, i64>(info, tensor)?, u64::to_le_bytes),
    })
}

/// Converts an engine's output to a tensor.
pub(super) fn from_native(info: &TensorInfo, output: &Output, bytes_max: usize) -> Result<Tensor, NnError> {
    let name = &info.name;
    let failed =
        |reason: String| NnError::runtime(format!("output {name} cannot be read: {reason}", name = quoted(&name)));
    let values = output.values().map_err(failed)?;
    let ty = info.element.wit();
    let Values { element, dimensions, data } = values;
    if element.map(native) != Some(native(info.element)) {
        let element = element.map_or("of another type".to_owned(), |element| element.to_string());
        return Err(failed(format!("it is {element} but the graph declares {}", info.element)));
    }
    let declared: Result<Vec<u32>, _> = dimensions.iter().map(|d| u32::try_from(*d)).collect();
    let count = dimensions.iter().try_fold(ty.size_bytes(), |n, d| n.checked_mul(usize::try_from(*d).ok()?));
    let (Ok(dimensions), true) = (declared, count.is_some_and(|bytes| bytes <= bytes_max)) else {
        return Err(NnError::too_large(format!(
            "output {name} has dimensions {dimensions} of {ty}, more than the {bytes_max} bytes allowed",
            name = quoted(&name),
            dimensions = listed(&dimensions)
        )));
    };
    let data = match info.element {
        ElementType::Wit(TensorType::Bf16) => {
            let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()
        }
        ElementType::Wit(_) | ElementType::Bool => data.to_vec(),
        ElementType::I8 => data.iter().flat_map(|b| i32::from(*b as i8).to_le_bytes()).collect(),
        ElementType::I16 => pairs(data).flat_map(|b| i32::from(i16::from_le_bytes(b)).to_le_bytes()).collect(),
        ElementType::U16 => pairs(data).flat_map(|b| i32::from(u16::from_le_bytes(b)).to_le_bytes()).collect(),
        ElementType::U32 => {
            let values = data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            values.flat_map(|v| i64::from(v).to_le_bytes()).collect()
        }
        // The same bytes, unless the highest bit is set, which would make the number negative.
        ElementType::U64 if data.chunks_exact(8).all(|b| b[7] < 0x80) => data.to_vec(),
        ElementType::U64 => {
            return Err(NnError::unsupported(format!("output {name} is past the range of i64", name = quoted(&name))));
        }
    };
    Ok(Tensor { dimensions, ty, data })
}

fn to_bytes<N, const SIZE: usize>(values: Vec<N>, bytes: fn(N) -> [u8; SIZE]) -> Cow<'static, [u8]> {
    Cow::Owned(values.into_iter().flat_map(bytes).collect())
}

fn pairs(data: &[u8]) -> impl Iterator<Item = [u8; 2]> + '_ {
    data.chunks_exact(2).map(|b| [b[0], b[1]])
}

/// Converts bytes of bf16 to bytes of f32.
fn bf16_to_f32(data: &[u8]) -> Vec<u8> {
    pairs(data).flat_map(|b| bf16::from_le_bytes(b).to_f32().to_le_bytes()).collect()
}
