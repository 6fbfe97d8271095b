//! `cargo xtask build --portable`: the components composed into one, which imports only `wasi:*`, for WASI 0.3 hosts other than `weir`.
//!
//! | file | inside | for |
//! |---|---|---|
//! | `weir.wasm` | gateway, session, infer, nn, store | any host; models in the read-only folder `/models` |
//! | `weir-thin.wasm` | gateway, session, infer-remote, store | instances that use the models of another `weir`, `WEIR_REMOTE_URL` |
//! | `weir-open.wasm` | gateway, session, store | a host that composes one dependency, `weir:stream/infer`, as Spin does |
//! | `weir-keyvalue.wasm` | as `weir.wasm`, with the store in `wasi:keyvalue@0.2.0-draft` | wasmCloud |
//! | `weir-keyvalue-draft2.wasm` | as `weir.wasm`, with the store in `wasi:keyvalue@0.2.0-draft2` | Spin |
//! | `weir-with-models.wasm` | as `weir.wasm`, and models | hosts without folders, and short starts; only with `--with-models` |
//!
//! A component with models is made by `wasmtime wizer`, from the wheel of the tests: it runs `wizer-initialize`, which reads the models, and
//! stores the memory of the instance in a new component. It takes no composed components, so infer and nn are stored each by itself.
//!
//! The shipped models are beside them in target/components/models, as files without links, for hosts that mount folders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::build::{component_cargo, copy_models, plug, shipped_models};
use crate::files::{Key, Stamp, copy_if_changed, copy_tree, write_if_changed};
use crate::house::{COMPONENTS, Component, House, NN, NN_RUSTFLAGS, PORTABLE_PARTS, SHIPPED_MODELS};
use crate::python;
use crate::sh;
use crate::ui::{Step, finish};

/// The composed components, by the names of their files.
pub(crate) const COMPOSED: [&str; 5] = ["weir", "weir-thin", "weir-open", "weir-keyvalue", "weir-keyvalue-draft2"];
/// The composed component with models inside.
const WITH_MODELS: &str = "weir-with-models";
/// The model of that component in the tests.
pub(crate) const MODEL_INSIDE: &str = "sentiment";
/// The parts with state that is stored, and what the tool's host gives to each. `nn` needs no imports but WASI.
const STORED: [(&str, &str); 2] = [("infer", ",nn"), ("nn", "")];
/// Version of the procedure: a change makes older files stale.
const RECIPE: &str = "1";

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
fn written(house: &House) -> Result<[(&'static str, usize); COMPOSED.len()]> {
    let with = |store, infer: Option<(&str, Vec<u8>)>| {
        let plugs = [content(house, store)?, content(house, "no_generate")?].into_iter().chain(infer);
        plug(content(house, "gateway")?, plugs.collect())
    };
    let models = plug(content(house, "infer")?, vec![content(house, "nn")?])?;
    let models = || Some(("infer_nn", models.clone()));
    let [weir, thin, open, keyvalue, draft2] = COMPOSED;
    let files = [
        (weir, with("store", models())?),
        (thin, with("store", Some(content(house, "infer_remote")?))?),
        (open, with("store", None)?),
        (keyvalue, with("store_keyvalue", models())?),
        (draft2, with("store_keyvalue_draft2", models())?),
    ];
    for (name, bytes) in &files {
        write_if_changed(&house.components().join(format!("{name}.wasm")), bytes)?;
    }
    Ok(files.map(|(name, bytes)| (name, bytes.len())))
}

/// Makes the component with these models of the shipped ones, after [`compose`].
pub(crate) fn store_models(house: &House, names: &[String]) -> Result<()> {
    let shipped = shipped_models(house)?;
    for name in names {
        ensure!(shipped.contains(name), "there is no model `{name}`; these ship: {}", shipped.join(", "));
    }
    let wasmtime = python::ensure(house)?.wasmtime;
    let requirements = house.root.join(python::REQUIREMENTS);
    let mut key = Key::default().text(RECIPE).file(&requirements)?;
    for part in ["gateway", "store", "no_generate", "infer", "nn"] {
        key = key.file(&delivered(house, part)?)?;
    }
    for name in names {
        key = key.text(name).tree(&house.root.join(SHIPPED_MODELS).join(name))?;
    }
    let (stamp, output) = (Stamp::new(house, WITH_MODELS, key), house.components().join(format!("{WITH_MODELS}.wasm")));
    if stamp.fresh() && output.exists() {
        return Ok(());
    }
    let mut step = Step::begin("models", &format!("stores {} in infer and nn", names.join(", ")));
    let stored = store_in_parts(house, &mut step, &wasmtime, names).and_then(|[infer, nn]| {
        let infer = plug(("infer", infer), vec![("nn", nn)])?;
        let plugs = vec![content(house, "store")?, content(house, "no_generate")?, ("infer_nn", infer)];
        let composed = plug(content(house, "gateway")?, plugs)?;
        write_if_changed(&output, &composed)?;
        stamp.set()?;
        Ok(format!("{WITH_MODELS}.wasm {:.1} MB in target/components", composed.len() as f64 / 1e6))
    });
    finish(step, stored)
}

/// Each part of [`STORED`] with the models in its memory.
fn store_in_parts(house: &House, step: &mut Step, wasmtime: &Path, names: &[String]) -> Result<[Vec<u8>; 2]> {
    let folder = house.keep().join("stored");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let models = folder.join("models");
    for name in names {
        copy_tree(&house.root.join(SHIPPED_MODELS).join(name), &models.join(name))?;
    }
    let mut store = |(part, imports): (&str, &str)| {
        step.show_progress(part);
        let output = folder.join(format!("{part}.wasm"));
        let mut wizer = sh::program(house, wasmtime);
        // The export stays, because the component's type has it. The fuel is for weights, which the instance reads in large calls.
        wizer.args(["wizer", "--keep-init-func=true", "-Wcomponent-model-async"]);
        wizer.arg(format!("-Scli,hostcall-fuel=100000000000{imports}"));
        wizer.arg("--dir").arg(format!("{}::/models", models.display()));
        sh::check(step, wizer.arg(delivered(house, part)?).arg("-o").arg(&output))?;
        fs::read(&output).with_context(|| format!("cannot read {}", output.display()))
    };
    let [infer, nn] = STORED;
    let stored = [store(infer)?, store(nn)?];
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(stored)
}

/// A component of target/components by its name.
fn content<'a>(house: &House, name: &'a str) -> Result<(&'a str, Vec<u8>)> {
    let path = delivered(house, name)?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((name, bytes))
}

fn delivered(house: &House, name: &str) -> Result<PathBuf> {
    let known = COMPONENTS.iter().chain(PORTABLE_PARTS).chain([&NN]).find(|component| component.name == name);
    known.map(|component: &Component| component.delivered(house)).context("no such component")
}
