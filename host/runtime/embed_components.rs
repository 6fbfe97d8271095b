// Part of the build scripts of programs that embed components, which include this file.

/// The fields of `weir_runtime::Builtin`.
const COMPONENTS: [&str; 5] = ["adapter", "gateway", "generate", "infer", "upstream"];

/// Writes `builtin.rs` in OUT_DIR: the static `BUILTIN` with the named components, which `weir-precompile` has written, from the folder
/// WEIR_EMBED_DIR. A component without a file is `None`.
fn embed_components(names: &[&str]) {
    println!("cargo::rerun-if-env-changed=WEIR_EMBED_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let dir = std::env::var_os("WEIR_EMBED_DIR").map(std::path::PathBuf::from);
    let mut code = String::from("/// The components that this program was built with.\n");
    // Each codegen unit that uses a constant would have a copy of its bytes.
    code.push_str("pub(crate) static BUILTIN: weir_runtime::Builtin = weir_runtime::Builtin {\n");
    for name in COMPONENTS {
        let file = dir.as_ref().filter(|_| names.contains(&name)).map(|dir| dir.join(format!("{name}.cwasm.zst")));
        if let Some(file) = &file {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        match file.filter(|file| file.is_file()) {
            Some(file) => code.push_str(&format!("    {name}: Some(include_bytes!({file:?})),\n")),
            None => code.push_str(&format!("    {name}: None,\n")),
        }
    }
    code.push_str("};\n");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("builtin.rs");
    std::fs::write(out, code).expect("OUT_DIR can be written");
}
