//! Embeds the components from the folder WEIR_EMBED_DIR, which `cargo xtask python` sets. The package has no adapters.

include!("../../host/runtime/embed_components.rs");

fn main() {
    println!("cargo::rerun-if-changed=../../host/runtime/embed_components.rs");
    embed_components(&["gateway", "generate", "infer", "upstream"]);
}
