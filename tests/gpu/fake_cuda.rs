//! A library in the place of NVIDIA's driver and of the libraries of CUDA and cuDNN, as far as the engine tract asks for their versions. A test
//! compiles it with rustc; these variables of the compiler's environment set what it says.
//!
//! | variable | |
//! |---|---|
//! | `FAKE_CUDA_DRIVER` | the version of CUDA that the driver supports; 12000 by default |
//! | `FAKE_CUDA_CAPABILITY` | the compute capability of the GPU times ten; 80 by default |
//! | `FAKE_CUDA_VERSION` | the major version of CUDA; 12 by default |
//! | `FAKE_CUDNN_VERSION` | the version of cuDNN; 90100 by default |

use std::ffi::{c_int, c_uint};

const fn number(variable: Option<&str>, default: c_int) -> c_int {
    let Some(digits) = variable else { return default };
    let digits = digits.as_bytes();
    let (mut number, mut at) = (0, 0);
    while at < digits.len() {
        number = number * 10 + (digits[at] - b'0') as c_int;
        at += 1;
    }
    number
}

const DRIVER: c_int = number(option_env!("FAKE_CUDA_DRIVER"), 12000);
const CAPABILITY: c_int = number(option_env!("FAKE_CUDA_CAPABILITY"), 80);
const CUDA: c_int = number(option_env!("FAKE_CUDA_VERSION"), 12);
const CUDNN: c_int = number(option_env!("FAKE_CUDNN_VERSION"), 90100);

fn answer(to: *mut c_int, value: c_int) -> c_int {
    unsafe { *to = value };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    answer(count, 1)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    answer(version, DRIVER)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: *mut c_int, number: c_int) -> c_int {
    answer(device, number)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _: c_int) -> c_int {
    answer(value, if attribute == 75 { CAPABILITY / 10 } else { CAPABILITY % 10 })
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaRuntimeGetVersion(version: *mut c_int) -> c_int {
    answer(version, CUDA * 1000)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    answer(minor, 0);
    answer(major, CUDA)
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasGetProperty(_: c_uint, value: *mut c_int) -> c_int {
    answer(value, CUDA)
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnGetVersion() -> usize {
    CUDNN as usize
}
