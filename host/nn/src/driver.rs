//! NVIDIA's driver. It is asked before a library of CUDA is loaded, because those report its absence in many ways, some by a panic.

use std::ffi::{c_int, c_uint};
use std::mem::ManuallyDrop;

use libloading::Library;

/// The driver's library; no other part of CUDA belongs to the driver.
const FILE: &str = "libcuda.so.1";

/// Statuses of the interface of the driver (`CUresult`).
const SUCCESS: c_int = 0;
const NO_DEVICE: c_int = 100;
const SYSTEM_DRIVER_MISMATCH: c_int = 803;

/// Checks that the driver has a GPU of this number.
///
/// # Errors
/// What is missing, and the remedy, in one clause.
pub(crate) fn check(number: u16) -> Result<(), String> {
    check_in(FILE, number)
}

fn check_in(file: &str, number: u16) -> Result<(), String> {
    // SAFETY: the code that runs when this library is loaded is that of the driver, which has no requirements.
    let library = unsafe { Library::new(file) }.map_err(|error| {
        format!(
            "the NVIDIA driver cannot be loaded ({}): install it, or give the container access to the GPU",
            reason(&error)
        )
    })?;
    // It stays loaded, because it may have started threads.
    let library = ManuallyDrop::new(library);
    let count = count(&library)?;
    match count {
        0 => Err(explain(NO_DEVICE)),
        _ if number < count => Ok(()),
        1 => Err("the machine has one GPU, cuda:0".to_owned()),
        _ => Err(format!("the machine has {count} GPUs, cuda:0 to cuda:{}", count - 1)),
    }
}

/// Starts the driver; returns the number of its GPUs.
fn count(library: &Library) -> Result<u16, String> {
    let incomplete = |error: libloading::Error| format!("{FILE} is not the driver of NVIDIA: {}", reason(&error));
    let check = |status: c_int| if status == SUCCESS { Ok(()) } else { Err(explain(status)) };
    let mut count: c_int = 0;
    // SAFETY: both functions have these types in the documentation of the driver's interface, and the library outlives the calls. The
    // second one writes to the number alone.
    unsafe {
        let start = library.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit").map_err(incomplete)?;
        check(start(0))?;
        let count_devices =
            library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount").map_err(incomplete)?;
        check(count_devices(&raw mut count))?;
    }
    Ok(u16::try_from(count).unwrap_or(0))
}

/// The message of the system's loader, which is the source of an error.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn explain(status: c_int) -> String {
    match status {
        NO_DEVICE => "the NVIDIA driver finds no GPU: attach one, or check CUDA_VISIBLE_DEVICES".to_owned(),
        SYSTEM_DRIVER_MISMATCH => {
            "the NVIDIA driver and its library have different versions: restart the machine, or install both from one package"
                .to_owned()
        }
        status => format!("the NVIDIA driver cannot be started (error {status}): `nvidia-smi` shows its state"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_or_other_library_is_refused_with_the_remedy() {
        let missing = check_in("libweir-is-nowhere.so", 0).unwrap_err();
        assert!(missing.starts_with("the NVIDIA driver cannot be loaded (libweir-is-nowhere.so"), "{missing}");
        assert!(missing.ends_with(": install it, or give the container access to the GPU"), "{missing}");
        // Every system has the C library.
        let other = check_in("libc.so.6", 0).unwrap_err();
        assert!(other.contains("is not the driver of NVIDIA") && other.contains("cuInit"), "{other}");
        assert!(explain(999).contains("error 999"));
    }
}
