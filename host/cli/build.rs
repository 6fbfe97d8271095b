//! Embeds the components that were compiled ahead of time, from the folder WEIR_EMBED_DIR, which `cargo xtask build`
//! sets.

use std::path::PathBuf;

const COMPONENTS: [&str; 5] = ["adapter", "gateway", "generate", "infer", "upstream"];

fn main() {
    println!("cargo::rerun-if-env-changed=WEIR_EMBED_DIR");
    let dir = std::env::var_os("WEIR_EMBED_DIR").map(PathBuf::from);
    let mut code = String::from("/// The components that this program was built with.\n");
    // Each codegen unit that uses a constant would have a copy of its bytes.
    code.push_str("static BUILTIN: weir_runtime::Builtin = weir_runtime::Builtin {\n");
    for name in COMPONENTS {
        let file = dir.as_ref().map(|dir| dir.join(format!("{name}.cwasm")));
        if let Some(file) = &file {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        match file.filter(|file| file.is_file()) {
            Some(file) => code.push_str(&format!("    {name}: Some(include_bytes!({file:?})),\n")),
            None => code.push_str(&format!("    {name}: None,\n")),
        }
    }
    code.push_str("};\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("builtin.rs");
    std::fs::write(out, code).expect("OUT_DIR can be written");
    println!("cargo::rerun-if-changed=build.rs");
}
