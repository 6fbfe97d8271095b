//! NVIDIA's driver. It is asked before a library of CUDA is loaded, because those report its absence in many ways, some by a panic.

use std::ffi::{c_int, c_uint};
use std::mem::ManuallyDrop;

use libloading::{Library, Symbol};

/// The driver's library; no other part of CUDA belongs to the driver.
pub(crate) const FILE: &str = "libcuda.so.1";

/// Statuses of the interface of the driver (`CUresult`).
const SUCCESS: c_int = 0;
const NO_DEVICE: c_int = 100;
const SYSTEM_DRIVER_MISMATCH: c_int = 803;

/// The driver, loaded.
///
/// The errors of its functions say what is missing, and the remedy, in one clause. It stays loaded when this is dropped, because it may have
/// started threads.
pub(crate) struct Driver(ManuallyDrop<Library>);

impl Driver {
    /// Loads the driver of this machine.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn open() -> Result<Self, String> {
        Self::open_file(FILE)
    }

    /// Loads a library as the driver.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub(crate) fn open_file(file: &str) -> Result<Self, String> {
        // SAFETY: the code that runs when this library is loaded is that of the driver, which has no requirements.
        let library = unsafe { Library::new(file) }.map_err(|error| {
            format!(
                "the NVIDIA driver cannot be loaded ({}): install it, or give the container access to the GPU",
                reason(&error)
            )
        })?;
        Ok(Self(ManuallyDrop::new(library)))
    }

    /// Starts the driver, and checks that it has a GPU of this number.
    ///
    /// # Errors
    /// When it cannot be started, or has no such GPU.
    pub(crate) fn check(&self, number: u16) -> Result<(), String> {
        let count = self.count()?;
        match count {
            0 => Err(explain(NO_DEVICE)),
            _ if number < count => Ok(()),
            1 => Err("the machine has one GPU, cuda:0".to_owned()),
            _ => Err(format!("the machine has {count} GPUs, cuda:0 to cuda:{}", count - 1)),
        }
    }

    /// Starts the driver; returns the number of its GPUs.
    fn count(&self) -> Result<u16, String> {
        let mut count: c_int = 0;
        // SAFETY: both functions have these types in the documentation of the driver's interface. The second one writes to the number alone.
        unsafe {
            let start = self.function::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit")?;
            check(start(0))?;
            let count_devices = self.function::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDeviceGetCount")?;
            check(count_devices(&raw mut count))?;
        }
        Ok(u16::try_from(count).unwrap_or(0))
    }

    /// The newest version of CUDA that it supports: 12040 is 12.4.
    ///
    /// # Errors
    /// When it does not say so.
    #[cfg(feature = "cuda")]
    pub(crate) fn version(&self) -> Result<i32, String> {
        let mut version: c_int = 0;
        // SAFETY: it has this type in the documentation of the driver's interface, and writes to the number alone.
        check(unsafe {
            self.function::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDriverGetVersion")?(&raw mut version)
        })?;
        Ok(version)
    }

    /// The compute capability of the first GPU, major and minor. The driver has been started.
    ///
    /// # Errors
    /// When the driver does not say so.
    #[cfg(feature = "cuda")]
    pub(crate) fn capability(&self) -> Result<[i32; 2], String> {
        /// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`, and minor.
        const ATTRIBUTES: [c_int; 2] = [75, 76];
        let (mut device, mut capability): (c_int, [c_int; 2]) = (0, [0; 2]);
        // SAFETY: both functions have these types in the documentation of the driver's interface, and write to one number each.
        unsafe {
            let device_of = self.function::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>("cuDeviceGet")?;
            check(device_of(&raw mut device, 0))?;
            let attribute_of =
                self.function::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>("cuDeviceGetAttribute")?;
            for (value, attribute) in capability.iter_mut().zip(ATTRIBUTES) {
                check(attribute_of(value, attribute, device))?;
            }
        }
        Ok(capability)
    }

    /// A function of the driver.
    ///
    /// # Safety
    /// Its type must be `T`.
    unsafe fn function<T>(&self, name: &str) -> Result<Symbol<'_, T>, String> {
        // SAFETY: the caller's promise.
        let function = unsafe { self.0.get::<T>(name) };
        function.map_err(|error| format!("{FILE} is not the driver of NVIDIA: {}", reason(&error)))
    }
}

fn check(status: c_int) -> Result<(), String> {
    if status == SUCCESS { Ok(()) } else { Err(explain(status)) }
}

/// The message of the system's loader, which is the source of an error.
pub(crate) fn reason(error: &libloading::Error) -> String {
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
        let error = |file: &str| Driver::open_file(file).and_then(|driver| driver.check(0)).unwrap_err();
        let missing = error("libweir-is-nowhere.so");
        assert!(missing.starts_with("the NVIDIA driver cannot be loaded (libweir-is-nowhere.so"), "{missing}");
        assert!(missing.ends_with(": install it, or give the container access to the GPU"), "{missing}");
        // Every system has the C library.
        let other = error("libc.so.6");
        assert!(other.contains("is not the driver of NVIDIA") && other.contains("cuInit"), "{other}");
        assert!(explain(999).contains("error 999"));
    }
}
