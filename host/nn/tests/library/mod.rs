//! The ONNX Runtime of the tests: that of the Python that `WEIR_TEST_PYTHON` names.

use std::path::PathBuf;
use std::process::Command;

use weir_nn::RegistryConfig;

/// The folder with `libonnxruntime.so.*`.
pub(crate) fn folder() -> PathBuf {
    let python = std::env::var_os("WEIR_TEST_PYTHON").expect(
        "WEIR_TEST_PYTHON must name a Python that has onnxruntime and numpy: `cargo xtask test` makes one and sets it",
    );
    let script = "import importlib.util; print(importlib.util.find_spec('onnxruntime').submodule_search_locations[0])";
    let output =
        Command::new(python).args(["-c", script]).output().expect("WEIR_TEST_PYTHON names a program that runs");
    let package = String::from_utf8(output.stdout).expect("a path of UTF-8");
    assert!(output.status.success() && !package.is_empty(), "WEIR_TEST_PYTHON has no onnxruntime");
    PathBuf::from(package.trim()).join("capi")
}

/// A configuration with this library.
pub(crate) fn config() -> RegistryConfig {
    RegistryConfig { onnxruntime: Some(folder()), ..RegistryConfig::default() }
}
