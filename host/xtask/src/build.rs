//! Builds components, their precompiled forms, and `weir` with both inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions};

use crate::files::{Key, Stamp, copy_if_changed, copy_tree, write_if_changed};
use crate::house::{
    COMPONENT_CONFIG, COMPONENTS, Component, HOST_PACKAGES, House, PLUGS, Profile, SEPARATE_PACKAGES, SHIPPED_MODELS,
    WASM_TARGET,
};
use crate::sh;
use crate::ui::{Step, finish};
use crate::{debian, first_build, setup};

/// Builds the components and those of other tables (guests, parts for other hosts) for wasm32-wasip2, into target/components. Those of
/// [`PLUGS`] are also plugged into their socket component.
pub(crate) fn components(house: &House, others: &[&'static [Component]]) -> Result<()> {
    first_build::announce(house);
    let plugs = PLUGS.iter().map(|(plug, _)| plug);
    let others = others.iter().flat_map(|table| table.iter());
    let what: Vec<&Component> = COMPONENTS.iter().chain(plugs).chain(others).collect();
    let names: Vec<&str> = what.iter().map(|component| component.name).collect();
    let mut step = Step::begin("components", &format!("builds {} for {WASM_TARGET}", names.join(", ")));
    let names = what.iter().map(|component| component.package);
    let (separate, together): (Vec<_>, Vec<_>) = names.partition(|package| SEPARATE_PACKAGES.contains(package));
    let mut built = sh::check(&mut step, packages(&mut component_cargo(house, "build"), together.into_iter()));
    for package in separate {
        built = built.and_then(|_| sh::check(&mut step, component_cargo(house, "build").args(["-p", package])));
    }
    let result = built.and_then(|_| {
        let mut changed = Vec::new();
        for component in &what {
            let plugs: Vec<&Component> =
                PLUGS.iter().filter(|(_, socket)| *socket == component.name).map(|(plug, _)| plug).collect();
            let (from, to) = (component.built(house), component.delivered(house));
            let is_new = match plugs.as_slice() {
                [] => copy_if_changed(&from, &to)?,
                plugs => write_if_changed(&to, &compose(house, component, plugs)?)?,
            };
            if is_new {
                changed.push(component.name);
            }
        }
        Ok(changed)
    });
    finish(step, result.map(|changed| changed_names(&changed, "in target/components")))
}

/// A component with others plugged into it, which satisfy its imports.
fn compose(house: &House, socket: &Component, plugs: &[&Component]) -> Result<Vec<u8>> {
    let content = |component: &Component| {
        let path = component.built(house);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok::<_, anyhow::Error>((component.name, bytes))
    };
    let plugs = plugs.iter().map(|plug| content(plug)).collect::<Result<Vec<_>>>()?;
    plug(content(socket)?, plugs)
}

/// Components plugged into another, by their names and contents.
pub(crate) fn plug(socket: (&str, Vec<u8>), plugs: Vec<(&str, Vec<u8>)>) -> Result<Vec<u8>> {
    let mut graph = CompositionGraph::new();
    let mut package = |(name, bytes): (&str, Vec<u8>)| {
        let package = Package::from_bytes(&format!("weir:{}", name.replace('_', "-")), None, bytes, graph.types_mut())?;
        Ok::<_, anyhow::Error>(graph.register_package(package)?)
    };
    let name = socket.0;
    let plugs: Vec<_> = plugs.into_iter().map(&mut package).collect::<Result<_>>()?;
    let package = package(socket)?;
    let composed = wac_graph::plug(&mut graph, plugs, package).map_err(anyhow::Error::from);
    composed
        .and_then(|()| Ok(graph.encode(EncodeOptions::default())?))
        .with_context(|| format!("cannot plug components into {name}"))
}

/// Builds `weir` with the components of target/components inside.
pub(crate) fn weir(house: &House) -> Result<()> {
    precompiled(house)?;
    let mut step = Step::begin("weir", "builds target/release/weir with the components inside");
    // The default folder of `weir` is `models` beside the program.
    let models = house.target.join("release").join("models");
    let built = sh::check(&mut step, host_cargo(house, "build").args(["--bin", "weir"]))
        .and_then(|_| copy_models(house, &models));
    finish(step, built.map(|models| format!("target/release/weir, models/{{{}}} beside it", models.join(","))))
}

/// Builds `weir` as [`weir`] does, for an archive.
pub(crate) fn weir_of(house: &House, profile: Profile) -> Result<()> {
    if profile == Profile::Release {
        return weir(house);
    }
    precompiled(house)?;
    let name = profile.name();
    let doing = format!("builds target/{name}/weir, and optimizes all crates together, which takes minutes");
    let mut step = Step::begin("weir", &doing);
    let mut cargo = sh::cargo(house);
    cargo.args(["build", "--profile", name, "-p", "weir"]).env("WEIR_EMBED_DIR", house.components());
    sh::show_progress(&mut cargo);
    let built = sh::check(&mut step, &mut cargo);
    finish(step, built.map(|_| format!("target/{name}/weir")))
}

/// Compiles the components of target/components to machine code.
fn precompiled(house: &House) -> Result<()> {
    let mut step = Step::begin("precompiler", "builds weir-precompile");
    let built = sh::check(&mut step, host_cargo(house, "build").args(["--bin", "weir-precompile"]));
    finish(step, built.map(|_| "target/release/weir-precompile".to_owned()))?;

    let mut step = Step::begin("precompile", "compiles the components to machine code");
    let precompiled = precompile(house, &mut step);
    finish(step, precompiled.map(|changed| changed_names(&changed, "in target/components")))
}

/// Builds the components and `weir`; returns the program.
pub(crate) fn program(house: &House) -> Result<PathBuf> {
    setup::ensure(house)?;
    components(house, &[])?;
    weir(house)?;
    Ok(house.weir())
}

/// Copies the bundled models to a folder. Copies, so that the folder can be moved and `weir models pull` does not write into the sources.
pub(crate) fn copy_models(house: &House, folder: &Path) -> Result<Vec<String>> {
    let names = shipped_models(house)?;
    for name in &names {
        copy_tree(&house.root.join(SHIPPED_MODELS).join(name), &folder.join(name))?;
    }
    Ok(names)
}

/// The names of the bundled models.
pub(crate) fn shipped_models(house: &House) -> Result<Vec<String>> {
    let shipped = house.root.join(SHIPPED_MODELS);
    let mut names = Vec::new();
    for entry in fs::read_dir(&shipped).with_context(|| format!("cannot read {}", shipped.display()))? {
        let entry = entry?;
        if entry.path().join("config.json").exists() {
            names.extend(entry.file_name().to_str().map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// `cargo COMMAND` for the host's packages in the release profile: one set, so that nothing compiles twice.
pub(crate) fn host_cargo(house: &House, subcommand: &str) -> Command {
    let mut command = sh::cargo(house);
    command.args(subcommand.split(' ')).arg("--release");
    if subcommand == "build" {
        sh::show_progress(&mut command);
    }
    command.env("WEIR_EMBED_DIR", house.components());
    packages(&mut command, HOST_PACKAGES.iter().copied());
    command
}

/// `cargo COMMAND` for the components, with the toolchain that `setup` has selected.
pub(crate) fn component_cargo(house: &House, subcommand: &str) -> Command {
    let mut command = sh::cargo(house);
    command.arg(subcommand).args(["--release", "--target", WASM_TARGET]);
    for setting in COMPONENT_CONFIG {
        command.args(["--config", setting]);
    }
    if subcommand == "build" {
        sh::show_progress(&mut command);
    }
    if let Some(rustc) = debian::selected_compiler(house) {
        command.env("RUSTC", rustc);
    }
    command
}

fn packages(command: &mut Command, names: impl Iterator<Item = &'static str>) -> &mut Command {
    for name in names {
        command.args(["-p", name]);
    }
    command
}

fn precompile(house: &House, step: &mut Step) -> Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    let compiler = Key::default().file(&house.precompiler())?;
    for component in COMPONENTS {
        let (from, to) = (component.delivered(house), component.precompiled(house));
        let key = compiler.clone().file(&from)?;
        let stamp = Stamp::new(house, &format!("precompile-{}", component.name), key);
        if stamp.fresh() && to.exists() {
            continue;
        }
        step.show_progress(component.name);
        // In another file, so that the output is only replaced by a complete one.
        let scratch = house.keep().join(format!("{}.cwasm.zst", component.name));
        fs::create_dir_all(house.keep()).with_context(|| format!("cannot create {}", house.keep().display()))?;
        sh::check(step, sh::program(house, house.precompiler()).arg(&from).arg(&scratch))?;
        let code = fs::read(&scratch).with_context(|| format!("cannot read {}", scratch.display()))?;
        if code.is_empty() {
            bail!("weir-precompile left {} empty", scratch.display());
        }
        if write_if_changed(&to, &code)? {
            changed.push(component.name);
        }
        fs::remove_file(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        stamp.set()?;
    }
    Ok(changed)
}

fn changed_names(changed: &[&str], place: &str) -> String {
    if changed.is_empty() { format!("nothing new {place}") } else { format!("{} {place}", changed.join(", ")) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::house::GUESTS;

    /// Every guest has a line in [`GUESTS`] (so it is built) and a test that names its file (so it is run).
    #[test]
    fn each_guest_is_built_and_tested() {
        let house = House::find();
        let mut folders: BTreeSet<String> = fs::read_dir(house.root.join("tests").join("guests"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        folders.insert("step-example".to_owned());
        let built: BTreeSet<String> = GUESTS.iter().map(|guest| guest.package.to_owned()).collect();
        assert_eq!(folders, built, "folders of tests/guests against GUESTS of host/xtask/src/house.rs");

        let mut tests = String::new();
        for root in ["tests", "host"] {
            read_tests(&house.root.join(root), &mut tests);
        }
        for guest in GUESTS {
            assert!(
                tests.contains(guest.name),
                "no test under tests/ or host/*/tests names the guest `{}`",
                guest.name
            );
        }
    }

    /// Appends every `tests/**/*.rs` below `folder`, the guests' own code and this crate's apart.
    fn read_tests(folder: &std::path::Path, into: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("guests") && !path.ends_with("xtask") && !path.ends_with("models") {
                    read_tests(&path, into);
                }
            } else if path.extension().is_some_and(|e| e == "rs") && path.components().any(|c| c.as_os_str() == "tests")
            {
                into.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
}
