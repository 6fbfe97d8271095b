//! Conversion between tensors of the WIT and of tract. tract's types that the WIT lacks (bool, i8, TDim, …) are converted to the
//! nearest wider type; bf16, which tract lacks, is computed as f32.

use half::bf16;
use tract_onnx::prelude::*;

use crate::engine::{ElementType, TensorInfo};
use crate::error::NnError;
use crate::fit::{check_truth_values, fitting};
use crate::tensor::{Tensor, TensorType};
use crate::wording::{listed, quoted};

type TractTensor = tract_onnx::prelude::Tensor;

/// The element type of a tract type; `None` when a guest can neither pass nor get it.
pub(super) fn element_type(datum: DatumType) -> Option<ElementType> {
    use TensorType as T;
    Some(match datum {
        DatumType::F16 => ElementType::Wit(T::Fp16),
        DatumType::F32 => ElementType::Wit(T::Fp32),
        DatumType::F64 => ElementType::Wit(T::Fp64),
        DatumType::U8 => ElementType::Wit(T::U8),
        DatumType::I32 => ElementType::Wit(T::I32),
        DatumType::I64 | DatumType::TDim => ElementType::Wit(T::I64),
        DatumType::Bool => ElementType::Bool,
        DatumType::I8 => ElementType::I8,
        DatumType::I16 => ElementType::I16,
        DatumType::U16 => ElementType::U16,
        DatumType::U32 => ElementType::U32,
        DatumType::U64 => ElementType::U64,
        _ => return None,
    })
}

/// Converts a checked input to the engine's value.
pub(super) fn to_tract(info: &TensorInfo, tensor: &Tensor) -> Result<TValue, NnError> {
    let shape: Vec<usize> = tensor.dimensions.iter().map(|d| *d as usize).collect();
    let name = &info.name;
    let value = match info.element {
        ElementType::Wit(TensorType::Bf16) => from_values(&shape, pairs(&tensor.data).map(f32_of_bf16)),
        ElementType::Wit(ty) => from_bytes(datum_type(ty), &shape, &tensor.data),
        ElementType::Bool => {
            check_truth_values(info, tensor)?;
            from_values(&shape, tensor.data.iter().map(|byte| *byte == 1))
        }
        ElementType::I8 => from_values(&shape, fitting::<i8, i32>(info, tensor)?),
        ElementType::I16 => from_values(&shape, fitting::<i16, i32>(info, tensor)?),
        ElementType::U16 => from_values(&shape, fitting::<u16, i32>(info, tensor)?),
        ElementType::U32 => from_values(&shape, fitting::<u32, i64>(info, tensor)?),
        ElementType::U64 => from_values(&shape, fitting::<u64, i64>(info, tensor)?),
    };
    match value {
        Ok(value) => Ok(value.into_tvalue()),
        Err(error) => Err(NnError::runtime(format!("input {name} cannot be passed on: {error}", name = quoted(&name)))),
    }
}

/// Converts an engine's output to a tensor.
pub(super) fn from_tract(info: &TensorInfo, value: &TractTensor, bytes_max: usize) -> Result<Tensor, NnError> {
    let name = &info.name;
    let failed =
        |error: TractError| NnError::runtime(format!("output {name} cannot be read: {error}", name = quoted(&name)));
    let dimensions: Result<Vec<u32>, _> = value.shape().iter().map(|d| u32::try_from(*d)).collect();
    let ty = info.element.wit();
    let (Ok(dimensions), true) = (dimensions, value.len().saturating_mul(ty.size_bytes()) <= bytes_max) else {
        return Err(NnError::too_large(format!(
            "output {name} has dimensions {} of {ty}, more than the {bytes_max} bytes allowed",
            listed(value.shape()),
            name = quoted(&name)
        )));
    };
    if !value.is_plain_ram() {
        return Err(NnError::unsupported(format!("output {name} is in a form of tract's own", name = quoted(&name))));
    }
    let data = match (ty, value.datum_type()) {
        (TensorType::Bf16, DatumType::F32) => {
            let values = value.try_as_plain_ram().map_err(failed)?;
            let values = values.as_slice::<f32>().map_err(failed)?;
            values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
        }
        (TensorType::I64, DatumType::U64) => {
            let values = value.try_as_plain_ram().map_err(failed)?;
            let values = values.as_slice::<u64>().map_err(failed)?;
            let fits = |v: &u64| i64::try_from(*v).map(i64::to_le_bytes);
            let values: Result<Vec<[u8; 8]>, _> = values.iter().map(fits).collect();
            let values = values.map_err(|_| {
                NnError::unsupported(format!("output {name} is past the range of i64", name = quoted(&name)))
            })?;
            values.concat()
        }
        (ty, datum) if datum_type(ty) == datum => value.as_bytes().to_vec(),
        (ty, _) => value.cast_to_dt(datum_type(ty)).map_err(failed)?.as_bytes().to_vec(),
    };
    Ok(Tensor { dimensions, ty, data })
}

fn datum_type(ty: TensorType) -> DatumType {
    match ty {
        TensorType::Fp16 => DatumType::F16,
        TensorType::Fp32 | TensorType::Bf16 => DatumType::F32,
        TensorType::Fp64 => DatumType::F64,
        TensorType::U8 => DatumType::U8,
        TensorType::I32 => DatumType::I32,
        TensorType::I64 => DatumType::I64,
    }
}

fn from_bytes(datum: DatumType, shape: &[usize], bytes: &[u8]) -> TractResult<TractTensor> {
    let mut tensor = TractTensor::zero_dt(datum, shape)?;
    let target = tensor.as_bytes_mut();
    // `Tensor::check` has checked this; it is repeated because copy_from_slice would panic.
    if target.len() != bytes.len() {
        return Err(TractError::msg("the data is not as long as its dimensions say"));
    }
    target.copy_from_slice(bytes);
    Ok(tensor)
}

fn from_values<T: Datum + Copy>(shape: &[usize], values: impl IntoIterator<Item = T>) -> TractResult<TractTensor> {
    TractTensor::from_shape(shape, &values.into_iter().collect::<Vec<T>>())
}

fn pairs(data: &[u8]) -> impl Iterator<Item = [u8; 2]> + '_ {
    data.chunks_exact(2).map(|b| [b[0], b[1]])
}

fn f32_of_bf16(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}
