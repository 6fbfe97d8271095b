//! What `tract-cuda` needs on a machine. It is checked before `tract-cuda` is called, which panics where a part is missing.

use std::ffi::{c_int, c_uint};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};
use tract_cuda::kernels::cubin_dir;
use tract_cuda::utils::REQUIRED_CUDA_API;

use crate::driver::{self, Driver};

/// The version of CUDA for whose interface `tract-cuda` is built.
const CUDA: i32 = REQUIRED_CUDA_API / 1000;
/// The compute capability of the instructions that its kernels have (`cp.async`): Ampere and later.
const CAPABILITY: [i32; 2] = [8, 0];
/// Its remedy of last resort.
const OTHER_ENGINE: &str = "set models.engine to \"onnxruntime\"";

/// A library that `tract-cuda` loads.
struct Part {
    /// Its file without `lib` and `.so`.
    name: &'static str,
    /// The product to which its version belongs, and that version.
    product: &'static str,
    version: i32,
    /// The function that says its version.
    version_of: fn(&Library) -> Result<i32, libloading::Error>,
}

const PARTS: [Part; 4] = [
    Part { name: "cudart", product: "CUDA", version: CUDA, version_of: cudart_version },
    Part { name: "nvrtc", product: "CUDA", version: CUDA, version_of: nvrtc_version },
    Part { name: "cublas", product: "CUDA", version: CUDA, version_of: cublas_version },
    Part { name: "cudnn", product: "cuDNN", version: 9, version_of: cudnn_version },
];

/// Where a machine has the parts of CUDA.
pub(super) struct Machine {
    /// The file of the driver.
    driver: String,
    /// The folder of the libraries; `None` for the search path of the system's loader.
    libraries: Option<PathBuf>,
    /// The folder of the toolkit of CUDA, and the variable that names it.
    toolkit: Option<(&'static str, PathBuf)>,
    /// The folder for compiled kernels.
    kernels: PathBuf,
}

impl Machine {
    /// This machine, as `tract-cuda` sees it.
    pub(super) fn current() -> Self {
        Self { driver: driver::FILE.to_owned(), libraries: None, toolkit: toolkit(), kernels: cubin_dir().to_owned() }
    }

    /// Checks that nothing is missing that `tract-cuda` needs.
    ///
    /// # Errors
    /// What is missing, and the remedy, in one clause.
    pub(super) fn check(&self) -> Result<(), String> {
        let driver = Driver::open_file(&self.driver)?;
        driver.check(0)?;
        check_driver(driver.version()?, driver.capability()?)?;
        for part in &PARTS {
            self.check_part(part)?;
        }
        self.check_headers()?;
        std::fs::create_dir_all(&self.kernels).map_err(|error| {
            let folder = self.kernels.display();
            format!("the engine tract cannot store its kernels in {folder} ({error}): set XDG_CACHE_HOME to a folder that it can write to")
        })
    }

    fn check_part(&self, part: &Part) -> Result<(), String> {
        let Part { name, product, version, .. } = part;
        let library = self.load(part)?;
        let unfit = |error: libloading::Error| {
            let reason = driver::reason(&error);
            format!("the lib{name} of this machine is not that of {product} ({reason}): {}", remedy(product, *version))
        };
        match (part.version_of)(&library).map_err(unfit)? {
            found if found == *version => Ok(()),
            // `tract-cuda` loads `lib{name}.so` first, wherever it is.
            found => Err(format!(
                "the engine tract needs {product} {version}, and lib{name} is that of {product} {found}: install {product} {version}, and \
                 name a folder with its lib{name}.so first in LD_LIBRARY_PATH, or {OTHER_ENGINE}"
            )),
        }
    }

    /// Loads a library by the names that `tract-cuda` tries, in their order. It stays loaded, as it does in `tract-cuda`.
    fn load(&self, part: &Part) -> Result<ManuallyDrop<Library>, String> {
        let Part { name, product, version, .. } = part;
        let mut broken = None;
        for file in cudarc::get_lib_name_candidates(name) {
            let path = self.libraries.as_ref().map_or_else(|| PathBuf::from(&file), |folder| folder.join(&file));
            // SAFETY: the code that runs when it is loaded is that of CUDA, which has no requirements.
            match unsafe { Library::new(&path) } {
                Ok(library) => return Ok(ManuallyDrop::new(library)),
                // A library that is found may be damaged, or need another one that is not found.
                Err(error) => {
                    let reason = driver::reason(&error);
                    let is_found = !reason.starts_with(&*path.to_string_lossy()) || !reason.ends_with(NO_FILE);
                    if is_found {
                        broken.get_or_insert(reason);
                    }
                }
            }
        }
        let reason = broken.map_or_else(String::new, |reason| format!(" ({reason})"));
        Err(format!("the engine tract cannot load lib{name}.so.{version}{reason}: {}", remedy(product, *version)))
    }

    /// Checks the headers with which kernels are compiled.
    fn check_headers(&self) -> Result<(), String> {
        let packages = format!("install the packages cuda-cudart-dev and cuda-cccl of CUDA {CUDA}");
        let needs = "the engine tract compiles its kernels with the headers of CUDA's toolkit";
        let Some((origin, root)) = &self.toolkit else {
            return Err(format!(
                "{needs}, which this machine does not have: {packages}, or name their folder in CUDA_HOME"
            ));
        };
        let missing = |header: &str| Err(format!("{needs}, and {origin} has no {header}: {packages}"));
        let targets = std::fs::read_dir(root.join("targets")).into_iter().flatten().flatten();
        let folders = std::iter::once(root.clone()).chain(targets.map(|entry| entry.path()));
        let Some(include) = folders.map(|folder| folder.join("include")).find(|include| include.join(FP16).exists())
        else {
            return missing(FP16);
        };
        if let Some(header) = HEADERS.into_iter().find(|header| !include.join(header).exists()) {
            return missing(header);
        }
        let cccl = [include.join("cccl"), include.join("libcudacxx/include"), include];
        if cccl.iter().any(|folder| folder.join(CSTDINT).exists()) { Ok(()) } else { missing(CSTDINT) }
    }
}

/// How the message of the system's loader ends if there is no such file.
const NO_FILE: &str = "No such file or directory";

const FP16: &str = "cuda_fp16.h";
const HEADERS: [&str; 2] = ["math_constants.h", "cuda_runtime.h"];
/// A header of CUDA's C++ library (CCCL).
const CSTDINT: &str = "cuda/std/cstdint";

fn check_driver(version: i32, capability: [i32; 2]) -> Result<(), String> {
    if version < REQUIRED_CUDA_API {
        return Err(format!(
            "the NVIDIA driver supports CUDA {}, and the engine tract needs {}: update the driver",
            dotted(version),
            dotted(REQUIRED_CUDA_API)
        ));
    }
    if capability < CAPABILITY {
        let [[major, minor], [needed_major, needed_minor]] = [capability, CAPABILITY];
        return Err(format!(
            "the GPU has compute capability {major}.{minor}, and the engine tract needs {needed_major}.{needed_minor} (Ampere) or later: \
             {OTHER_ENGINE}"
        ));
    }
    Ok(())
}

fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn remedy(product: &str, version: i32) -> String {
    format!("install {product} {version}, and name its folder in LD_LIBRARY_PATH, or {OTHER_ENGINE}")
}

/// The folder of CUDA's toolkit in which `tract-cuda` looks for headers.
fn toolkit() -> Option<(&'static str, PathBuf)> {
    let variables = ["CUDA_HOME", "CUDA_PATH"];
    if let Some(named) = variables.into_iter().find_map(|name| Some((name, PathBuf::from(std::env::var_os(name)?)))) {
        return Some(named);
    }
    let default = Path::new("/usr/local/cuda");
    if default.exists() {
        return Some(("/usr/local/cuda", default.to_owned()));
    }
    let path = std::env::var_os("PATH")?;
    let compiler = std::env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|file| file.is_file())?;
    Some(("the toolkit of nvcc", compiler.parent()?.parent()?.to_owned()))
}

fn cudart_version(library: &Library) -> Result<i32, libloading::Error> {
    let mut version: c_int = 0;
    // SAFETY: it has this type in the documentation of CUDA, and writes to the number alone.
    unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("cudaRuntimeGetVersion")?(&raw mut version) };
    Ok(version / 1000)
}

fn nvrtc_version(library: &Library) -> Result<i32, libloading::Error> {
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: it has this type in the documentation of CUDA, and writes to the two numbers alone.
    unsafe {
        let version_of: Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> =
            library.get("nvrtcVersion")?;
        version_of(&raw mut major, &raw mut minor);
    }
    Ok(major)
}

fn cublas_version(library: &Library) -> Result<i32, libloading::Error> {
    /// `MAJOR_VERSION`
    const MAJOR: c_uint = 0;
    let mut major: c_int = 0;
    // SAFETY: it has this type in the documentation of cuBLAS, and writes to the number alone.
    unsafe {
        let property_of: Symbol<'_, unsafe extern "C" fn(c_uint, *mut c_int) -> c_int> =
            library.get("cublasGetProperty")?;
        property_of(MAJOR, &raw mut major);
    }
    Ok(major)
}

fn cudnn_version(library: &Library) -> Result<i32, libloading::Error> {
    // SAFETY: it has this type in the documentation of cuDNN.
    let version = unsafe { library.get::<unsafe extern "C" fn() -> usize>("cudnnGetVersion")?() };
    // 8.9.7 is 8907, 9.1.0 is 90100.
    let major = if version < 10_000 { version / 1000 } else { version / 10_000 };
    Ok(i32::try_from(major).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use expect_test::{Expect, expect};
    use tempfile::TempDir;

    use super::*;

    /// A folder with all that `tract-cuda` needs; the libraries are `tests/gpu/fake_cuda.rs`.
    struct Fake(TempDir);

    impl Fake {
        fn new() -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            fake.compile("libcuda.so.1", &[]);
            for file in ["libcudart.so.12", "libnvrtc.so.12", "libcublas.so.12", "libcudnn.so.9"] {
                std::fs::copy(fake.path("libcuda.so.1"), fake.path(file)).unwrap();
            }
            for header in [FP16, HEADERS[0], HEADERS[1], CSTDINT] {
                let file = fake.path("toolkit/include").join(header);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, "").unwrap();
            }
            fake
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Replaces a library by one that says something else.
        fn compile(&self, name: &str, variables: &[(&str, &str)]) {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/gpu/fake_cuda.rs");
            let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            let mut compile = Command::new(compiler);
            compile.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(self.path(name)).arg(source);
            let output = compile.envs(variables.iter().copied()).current_dir(self.0.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }

        fn machine(&self) -> Machine {
            Machine {
                driver: self.path("libcuda.so.1").display().to_string(),
                libraries: Some(self.0.path().to_owned()),
                toolkit: Some(("CUDA_HOME", self.path("toolkit"))),
                kernels: self.path("cache/kernels"),
            }
        }

        fn check(&self, expected: &Expect) {
            let error = self.machine().check().unwrap_err();
            expected.assert_eq(&error.replace(&self.0.path().display().to_string(), "DIR"));
        }
    }

    #[test]
    fn machine_with_all_parts_is_accepted() {
        let fake = Fake::new();
        assert_eq!(fake.machine().check(), Ok(()));
        assert!(fake.path("cache/kernels").is_dir());
        // The layout of a toolkit for several targets, and of CUDA 13.
        std::fs::create_dir_all(fake.path("toolkit/targets/x86_64-linux")).unwrap();
        std::fs::rename(fake.path("toolkit/include"), fake.path("toolkit/targets/x86_64-linux/include")).unwrap();
        let include = fake.path("toolkit/targets/x86_64-linux/include");
        std::fs::create_dir(include.join("cccl")).unwrap();
        std::fs::rename(include.join("cuda"), include.join("cccl/cuda")).unwrap();
        assert_eq!(fake.machine().check(), Ok(()));
    }

    #[test]
    fn driver_and_gpu_that_are_too_old_are_named() {
        let fake = Fake::new();
        fake.compile("libcuda.so.1", &[("FAKE_CUDA_DRIVER", "11080")]);
        fake.check(&expect![
            "the NVIDIA driver supports CUDA 11.8, and the engine tract needs 12.0: update the driver"
        ]);
        let fake = Fake::new();
        fake.compile("libcuda.so.1", &[("FAKE_CUDA_CAPABILITY", "75")]);
        fake.check(&expect![[
            r#"the GPU has compute capability 7.5, and the engine tract needs 8.0 (Ampere) or later: set models.engine to "onnxruntime""#
        ]]);
    }

    #[test]
    fn each_missing_library_is_named() {
        for (file, expected) in [
            (
                "libcudart.so.12",
                expect![[
                    r#"the engine tract cannot load libcudart.so.12: install CUDA 12, and name its folder in LD_LIBRARY_PATH, or set models.engine to "onnxruntime""#
                ]],
            ),
            (
                "libnvrtc.so.12",
                expect![[
                    r#"the engine tract cannot load libnvrtc.so.12: install CUDA 12, and name its folder in LD_LIBRARY_PATH, or set models.engine to "onnxruntime""#
                ]],
            ),
            (
                "libcublas.so.12",
                expect![[
                    r#"the engine tract cannot load libcublas.so.12: install CUDA 12, and name its folder in LD_LIBRARY_PATH, or set models.engine to "onnxruntime""#
                ]],
            ),
            (
                "libcudnn.so.9",
                expect![[
                    r#"the engine tract cannot load libcudnn.so.9: install cuDNN 9, and name its folder in LD_LIBRARY_PATH, or set models.engine to "onnxruntime""#
                ]],
            ),
        ] {
            let fake = Fake::new();
            std::fs::remove_file(fake.path(file)).unwrap();
            fake.check(&expected);
        }
    }

    #[test]
    fn library_of_another_version_or_damaged_is_named() {
        let fake = Fake::new();
        fake.compile("libnvrtc.so", &[("FAKE_CUDA_VERSION", "13")]);
        fake.check(&expect![[
            r#"the engine tract needs CUDA 12, and libnvrtc is that of CUDA 13: install CUDA 12, and name a folder with its libnvrtc.so first in LD_LIBRARY_PATH, or set models.engine to "onnxruntime""#
        ]]);
        let fake = Fake::new();
        fake.compile("libcudnn.so.9", &[("FAKE_CUDNN_VERSION", "8907")]);
        fake.check(&expect![[
            r#"the engine tract needs cuDNN 9, and libcudnn is that of cuDNN 8: install cuDNN 9, and name a folder with its libcudnn.so first in LD_LIBRARY_PATH, or set models.engine to "onnxruntime""#
        ]]);
        let fake = Fake::new();
        std::fs::write(fake.path("libcublas.so.12"), "").unwrap();
        fake.check(&expect![[
            r#"the engine tract cannot load libcublas.so.12 (DIR/libcublas.so.12: file too short): install CUDA 12, and name its folder in LD_LIBRARY_PATH, or set models.engine to "onnxruntime""#
        ]]);
    }

    #[test]
    fn missing_headers_are_named() {
        let fake = Fake::new();
        let machine = Machine { toolkit: None, ..fake.machine() };
        expect![[r#"the engine tract compiles its kernels with the headers of CUDA's toolkit, which this machine does not have: install the packages cuda-cudart-dev and cuda-cccl of CUDA 12, or name their folder in CUDA_HOME"#]]
            .assert_eq(&machine.check().unwrap_err());
        for (header, expected) in [
            (
                CSTDINT,
                expect![
                    "the engine tract compiles its kernels with the headers of CUDA's toolkit, and CUDA_HOME has no cuda/std/cstdint: install the packages cuda-cudart-dev and cuda-cccl of CUDA 12"
                ],
            ),
            (
                HEADERS[0],
                expect![
                    "the engine tract compiles its kernels with the headers of CUDA's toolkit, and CUDA_HOME has no math_constants.h: install the packages cuda-cudart-dev and cuda-cccl of CUDA 12"
                ],
            ),
            (
                FP16,
                expect![
                    "the engine tract compiles its kernels with the headers of CUDA's toolkit, and CUDA_HOME has no cuda_fp16.h: install the packages cuda-cudart-dev and cuda-cccl of CUDA 12"
                ],
            ),
        ] {
            let fake = Fake::new();
            std::fs::remove_file(fake.path("toolkit/include").join(header)).unwrap();
            fake.check(&expected);
        }
    }

    #[test]
    fn folder_that_cannot_be_written_is_named() {
        let fake = Fake::new();
        std::fs::write(fake.path("cache"), "").unwrap();
        fake.check(&expect![
            "the engine tract cannot store its kernels in DIR/cache/kernels (Not a directory (os error 20)): set XDG_CACHE_HOME to a folder that it can write to"
        ]);
    }

    #[test]
    fn names_of_the_parts_are_those_that_tract_cuda_loads() {
        for part in &PARTS {
            let file = format!("lib{}.so.{}", part.name, part.version);
            assert!(cudarc::get_lib_name_candidates(part.name).contains(&file), "{file}");
        }
    }
}
