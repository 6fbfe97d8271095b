//! Embeds the components from the folder WEIR_EMBED_DIR, which `cargo xtask build` sets, and selects an option of the linker.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

include!("../runtime/embed_components.rs");

/// Functions with the same code become one, 4 % of the program. Nothing here compares the addresses of functions.
const FOLD_FUNCTIONS: &str = "-Wl,--icf=all";

fn main() {
    println!("cargo::rerun-if-changed=../runtime/embed_components.rs");
    embed_components(&COMPONENTS);
    if linker_has(FOLD_FUNCTIONS).unwrap_or(false) {
        println!("cargo::rustc-link-arg-bins={FOLD_FUNCTIONS}");
    }
}

/// Whether an empty program can be linked with an option. LLD, which rustc brings for x86-64, gold and mold fold functions; GNU's ld does
/// not.
fn linker_has(option: &str) -> std::io::Result<bool> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--crate-type=bin", "--crate-name=probe", "--target", &variable("TARGET"), "-o"]);
    rustc.arg(PathBuf::from(variable("OUT_DIR")).join("probe"));
    rustc.args(variable("CARGO_ENCODED_RUSTFLAGS").split('\x1f').filter(|flag| !flag.is_empty()));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    rustc
        .arg(format!("-Clink-arg={option}"))
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = rustc.spawn()?;
    // Dropped after it was written, which ends the program's text.
    child.stdin.take().map(|mut stdin| stdin.write_all(b"fn main() {}")).transpose()?;
    Ok(child.wait()?.success())
}
