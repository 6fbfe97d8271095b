//! Element types of the WIT and of ONNX Runtime.

use ort::value::TensorElementType as Native;

use crate::engine::ElementType;
use crate::tensor::TensorType;

/// The element type of a native type; `None` when a guest can neither pass nor get it.
pub(super) fn element(native: Native) -> Option<ElementType> {
    use TensorType as T;
    Some(match native {
        Native::Float16 => ElementType::Wit(T::Fp16),
        Native::Float32 => ElementType::Wit(T::Fp32),
        Native::Float64 => ElementType::Wit(T::Fp64),
        Native::Bfloat16 => ElementType::Wit(T::Bf16),
        Native::Uint8 => ElementType::Wit(T::U8),
        Native::Int32 => ElementType::Wit(T::I32),
        Native::Int64 => ElementType::Wit(T::I64),
        Native::Bool => ElementType::Bool,
        Native::Int8 => ElementType::I8,
        Native::Int16 => ElementType::I16,
        Native::Uint16 => ElementType::U16,
        Native::Uint32 => ElementType::U32,
        Native::Uint64 => ElementType::U64,
        _ => return None,
    })
}

/// The native type in which an input or output is computed.
pub(super) fn native(element: ElementType) -> Native {
    match element {
        ElementType::Wit(TensorType::Fp16) => Native::Float16,
        ElementType::Wit(TensorType::Fp32 | TensorType::Bf16) => Native::Float32,
        ElementType::Wit(TensorType::Fp64) => Native::Float64,
        ElementType::Wit(TensorType::U8) => Native::Uint8,
        ElementType::Wit(TensorType::I32) => Native::Int32,
        ElementType::Wit(TensorType::I64) => Native::Int64,
        ElementType::Bool => Native::Bool,
        ElementType::I8 => Native::Int8,
        ElementType::I16 => Native::Int16,
        ElementType::U16 => Native::Uint16,
        ElementType::U32 => Native::Uint32,
        ElementType::U64 => Native::Uint64,
    }
}
