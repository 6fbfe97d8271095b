//! Runs the program, which prints a label for each of its texts.

use std::path::PathBuf;
use std::process::Command;

#[test]
fn texts_are_labelled() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let components = std::env::var_os("WEIR_COMPONENTS_DIR").map_or_else(|| target.join("components"), PathBuf::from);
    let output = Command::new(env!("CARGO_BIN_EXE_embed-example"))
        .arg(components.join("infer.wasm"))
        .arg(root.join("host/nn/models"))
        .output()
        .expect("the program starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    for part in ["text 0: positive", "text 1: negative", "text 2: neutral", "3 texts delivered"] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
}
