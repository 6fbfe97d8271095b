//! Embeds the components from the folder WEIR_EMBED_DIR, which `cargo xtask build` sets.

include!("../runtime/embed_components.rs");

fn main() {
    println!("cargo::rerun-if-changed=../runtime/embed_components.rs");
    embed_components(&COMPONENTS);
}
