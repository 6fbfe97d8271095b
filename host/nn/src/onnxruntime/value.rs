//! The unsafe code: values that lend their bytes to ONNX Runtime, runs, and values that it returns. It uses the C interface that `ort`
//! loads, because `ort` itself copies types that Rust lacks and allows one caller at a time.

use std::ffi::{CString, c_char};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::session::Session;
use ort::sys;
use ort::value::TensorElementType;

use super::element::element as element_type;
use crate::engine::ElementType;
use crate::error::one_line;
use crate::wording::{listed, quoted};

/// The greatest alignment of an element.
const ALIGNMENT_BYTES: usize = 8;

/// Converts the status of a call of the C interface to a result.
///
/// # Safety
/// The status comes from such a call and is used nowhere else.
unsafe fn check_status(status: sys::OrtStatusPtr) -> Result<(), String> {
    // SAFETY: as above.
    unsafe { ort::Error::result_from_status(status) }.map_err(|error| one_line(error.message()))
}

/// A value of the C interface; released when it is dropped.
struct OwnedValue(NonNull<sys::OrtValue>);

impl Drop for OwnedValue {
    fn drop(&mut self) {
        // SAFETY: ONNX Runtime created it for this owner, and it is not used afterwards.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// An input that borrows its bytes.
pub(super) struct Value<'a> {
    value: OwnedValue,
    /// A copy of the bytes, when the borrowed ones are not aligned.
    _copy: Vec<u64>,
    _bytes: PhantomData<&'a [u8]>,
}

impl<'a> Value<'a> {
    /// A value over these bytes.
    ///
    /// # Errors
    /// When the number of bytes does not agree with the dimensions.
    pub(super) fn borrowing(native: TensorElementType, dimensions: &[u32], bytes: &'a [u8]) -> Result<Self, String> {
        let mut copy = Vec::new();
        let mut data = bytes.as_ptr();
        if data.align_offset(ALIGNMENT_BYTES) != 0 {
            copy = vec![0u64; bytes.len().div_ceil(8)];
            // SAFETY: the copy has room for all bytes, and the two do not overlap.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), copy.as_mut_ptr().cast(), bytes.len()) };
            data = copy.as_ptr().cast();
        }
        let shape: Vec<i64> = dimensions.iter().map(|d| i64::from(*d)).collect();
        let memory = MemoryInfo::default();
        let mut value = ptr::null_mut();
        // SAFETY: the bytes outlive the value (the copy moves with it, on the heap; the borrowed ones outlive 'a). Inputs of a
        // run are only read, though the interface takes a mutable pointer. ONNX Runtime checks that the length suffices.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.cast_mut().cast(),
                bytes.len(),
                shape.as_ptr(),
                shape.len(),
                native.into(),
                &raw mut value,
            )
        };
        // SAFETY: the status is of this call.
        unsafe { check_status(status) }?;
        let value = NonNull::new(value).ok_or("no value was created")?;
        Ok(Self { value: OwnedValue(value), _copy: copy, _bytes: PhantomData })
    }
}

/// A session with the names that its runs need.
pub(super) struct Runner {
    session: Session,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
}

impl Runner {
    /// A runner for a session, with its names in the graph's order.
    pub(super) fn new(session: Session) -> Result<Self, String> {
        let name = |outlet: &ort::value::Outlet| CString::new(outlet.name()).map_err(|e| e.to_string());
        let inputs = session.inputs().iter().map(name).collect::<Result<_, _>>()?;
        let outputs = session.outputs().iter().map(name).collect::<Result<_, _>>()?;
        Ok(Self { session, inputs, outputs })
    }

    /// Computes all outputs, from values in the order of the inputs.
    ///
    /// Many threads may call this at once. ONNX Runtime documents `Run` as thread-safe and its kernels as stateless; for providers that
    /// cannot run concurrently it takes a lock itself. `ort` does not rely on that: its `run` takes `&mut self`. The outputs are in the
    /// memory of the processor, also those of a GPU.
    pub(super) fn run(&self, values: &[Value<'_>]) -> Result<Vec<Output>, String> {
        if values.len() != self.inputs.len() {
            return Err(format!("{} values for {} inputs", values.len(), self.inputs.len()));
        }
        let pointers = |names: &[CString]| -> Vec<*const c_char> { names.iter().map(|name| name.as_ptr()).collect() };
        let (input_names, output_names) = (pointers(&self.inputs), pointers(&self.outputs));
        let values: Vec<*const sys::OrtValue> = values.iter().map(|v| v.value.0.as_ptr().cast_const()).collect();
        let mut outputs = vec![ptr::null_mut(); output_names.len()];
        // SAFETY: the session is alive; the lengths of all arrays are correct; names end in NUL; the borrows keep the values alive
        // during the call. ONNX Runtime creates the outputs, which are null before, and this function releases them.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                input_names.as_ptr(),
                values.as_ptr(),
                values.len(),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            )
        };
        let outputs: Vec<Option<OwnedValue>> =
            outputs.into_iter().map(|value| NonNull::new(value).map(OwnedValue)).collect();
        // SAFETY: the status is of this call.
        unsafe { check_status(status) }?;
        let output = |(ix, value): (usize, Option<OwnedValue>)| {
            value
                .map(Output)
                .ok_or_else(|| format!("output {} was not computed", quoted(&self.outputs[ix].to_string_lossy())))
        };
        outputs.into_iter().enumerate().map(output).collect()
    }
}

/// A value that a run returned.
pub(super) struct Output(OwnedValue);

/// The content of an output.
pub(super) struct Values<'a> {
    /// `None` for a type that no guest can get.
    pub(super) element: Option<ElementType>,
    pub(super) dimensions: Vec<i64>,
    /// The elements, in the number that the dimensions give.
    pub(super) data: &'a [u8],
}

impl Output {
    /// Reads the content.
    ///
    /// # Errors
    /// When it is not a tensor, or its size overflows.
    pub(super) fn values(&self) -> Result<Values<'_>, String> {
        let api = ort::api();
        let value = self.0.0.as_ptr();
        let mut is_tensor = 0;
        // SAFETY: the value lives as long as `self`, here and below; so do the data that are read from it.
        unsafe { check_status((api.IsTensor)(value, &raw mut is_tensor)) }?;
        if is_tensor == 0 {
            return Err("it is no tensor".to_owned());
        }
        let (native, dimensions) = self.shape()?;
        let element = element_type(native);
        let count = dimensions.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?));
        let bytes = count.and_then(|n| n.checked_mul(element.map_or(0, ElementType::size_bytes)));
        let bytes = bytes
            .ok_or_else(|| format!("its dimensions {dimensions} are no size", dimensions = listed(&dimensions)))?;
        let mut data = ptr::null_mut();
        // SAFETY: as above.
        unsafe { check_status((api.GetTensorMutableData)(value, &raw mut data)) }?;
        let data = match NonNull::new(data.cast::<u8>()) {
            // SAFETY: a tensor of this type and these dimensions has that many bytes, and they are not written any more.
            Some(data) if bytes > 0 => unsafe { std::slice::from_raw_parts(data.as_ptr(), bytes) },
            None if bytes > 0 => return Err("it has no data".to_owned()),
            _ => &[],
        };
        Ok(Values { element, dimensions, data })
    }

    fn shape(&self) -> Result<(TensorElementType, Vec<i64>), String> {
        struct Info(*mut sys::OrtTensorTypeAndShapeInfo);
        impl Drop for Info {
            fn drop(&mut self) {
                // SAFETY: ONNX Runtime created it for this owner; a null pointer is allowed.
                unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(self.0) }
            }
        }
        let api = ort::api();
        let mut info = Info(ptr::null_mut());
        let mut native = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let mut rank = 0;
        // SAFETY: the value is alive; each call writes only to its out parameter, and `dimensions` has room for `rank` numbers. The
        // element type is one of the enumeration: outputs of other types were refused when the graph was loaded.
        unsafe {
            check_status((api.GetTensorTypeAndShape)(self.0.0.as_ptr(), &raw mut info.0))?;
            check_status((api.GetTensorElementType)(info.0, &raw mut native))?;
            check_status((api.GetDimensionsCount)(info.0, &raw mut rank))?;
            let mut dimensions = vec![0i64; rank];
            check_status((api.GetDimensions)(info.0, dimensions.as_mut_ptr(), rank))?;
            Ok((native.into(), dimensions))
        }
    }
}
