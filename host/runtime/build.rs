//! Passes the target triple to the crate: the engine compiles components for the baseline processor of the target.

fn main() {
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=WEIR_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
}
