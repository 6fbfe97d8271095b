//! Conversion of inputs whose element type the WIT lacks: a guest passes a wider type, and every value must fit.

use crate::engine::TensorInfo;
use crate::error::NnError;
use crate::tensor::Tensor;
use crate::wording::quoted;

/// Checks that all values are 0 or 1.
pub(crate) fn check_truth_values(info: &TensorInfo, tensor: &Tensor) -> Result<(), NnError> {
    match tensor.data.iter().any(|byte| *byte > 1) {
        true => Err(NnError::invalid(format!("input {} is of truth values: 0 or 1 only", quoted(&info.name)))),
        false => Ok(()),
    }
}

/// An integer type of the WIT.
pub(crate) trait TensorInteger: Copy + std::fmt::Display {
    /// Reads all elements of a tensor's data.
    fn all(data: &[u8]) -> Vec<Self>;
}

impl TensorInteger for i32 {
    fn all(data: &[u8]) -> Vec<i32> {
        data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

impl TensorInteger for i64 {
    fn all(data: &[u8]) -> Vec<i64> {
        let element = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        data.chunks_exact(8).map(element).collect()
    }
}

/// Converts the values of a checked input to the integer type that the graph declares.
pub(crate) fn fitting<N: TryFrom<W>, W: TensorInteger>(info: &TensorInfo, tensor: &Tensor) -> Result<Vec<N>, NnError> {
    let fit = |wide: W| {
        let (name, element) = (&info.name, info.element);
        N::try_from(wide).map_err(|_| {
            NnError::invalid(format!("input {name} holds {wide}, which is no {element}", name = quoted(&name)))
        })
    };
    W::all(&tensor.data).into_iter().map(fit).collect()
}
