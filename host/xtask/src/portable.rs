//! `cargo xtask build --portable`: the components composed into one, which imports only `wasi:*`, for WASI 0.3 hosts other than `weir`.
//!
//! | file | inside | for |
//! |---|---|---|
//! | `weir.wasm` | gateway, session, infer, nn, store | any host; models in the read-only folder `/models` |
//! | `weir-thin.wasm` | gateway, session, infer-remote, store | instances that use the models of another `weir`, `WEIR_REMOTE_URL` |
//! | `weir-open.wasm` | gateway, session, store | a host that composes one dependency, `weir:stream/infer`, as Spin does |
//!
//! The shipped models are beside them in target/components/models, as files without links, for hosts that mount folders.

use std::fs;

use anyhow::{Context, Result};

use crate::build::{component_cargo, copy_models, finish, plug};
use crate::files::{copy_if_changed, write_if_changed};
use crate::house::{COMPONENTS, Component, House, NN, NN_RUSTFLAGS, PORTABLE_PARTS};
use crate::sh;
use crate::ui::Step;

/// The composed components, by the names of their files.
pub(crate) const COMPOSED: [&str; 3] = ["weir", "weir-thin", "weir-open"];

/// Composes them from the components in target/components, after `nn` was built.
pub(crate) fn compose(house: &House) -> Result<()> {
    let mut step = Step::begin("nn", "builds nn for the vectors of wasm");
    let mut cargo = component_cargo(house, "build");
    cargo.args(["-p", NN.package]).env("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", NN_RUSTFLAGS);
    let built = sh::check(&mut step, &mut cargo).and_then(|_| copy_if_changed(&NN.built(house), &NN.delivered(house)));
    finish(step, built.map(|_| "target/components/nn.wasm".to_owned()))?;

    let step = Step::begin("portable", "composes the components for other hosts");
    let models = copy_models(house, &house.components().join("models"));
    let composed = models.and_then(|_| written(house)).map(|sizes| {
        let sizes = sizes.map(|(name, bytes)| format!("{name}.wasm {:.1} MB", bytes as f64 / 1e6));
        format!("{} in target/components", sizes.join(", "))
    });
    finish(step, composed)
}

/// Writes each file; returns the names with the sizes in bytes.
fn written(house: &House) -> Result<[(&'static str, usize); 3]> {
    let open = || Ok::<_, anyhow::Error>(vec![content(house, "store")?, content(house, "no_generate")?]);
    let with = |infer| {
        let mut plugs = open()?;
        plugs.push(infer);
        plug(content(house, "gateway")?, plugs)
    };
    let infer = plug(content(house, "infer")?, vec![content(house, "nn")?])?;
    let [weir, thin, bare] = COMPOSED;
    let files = [
        (weir, with(("infer_nn", infer))?),
        (thin, with(content(house, "infer_remote")?)?),
        (bare, plug(content(house, "gateway")?, open()?)?),
    ];
    for (name, bytes) in &files {
        write_if_changed(&house.components().join(format!("{name}.wasm")), bytes)?;
    }
    Ok(files.map(|(name, bytes)| (name, bytes.len())))
}

/// A component of target/components by its name.
fn content<'a>(house: &House, name: &'a str) -> Result<(&'a str, Vec<u8>)> {
    let known = COMPONENTS.iter().chain(PORTABLE_PARTS).chain([&NN]).find(|component| component.name == name);
    let path = known.map(|component: &Component| component.delivered(house)).context("no such component")?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((name, bytes))
}
