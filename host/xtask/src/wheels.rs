//! `cargo xtask python`: the wheels of the Python package, in `clients/python`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::build;
use crate::files::{Key, Stamp};
use crate::house::House;
use crate::typescript::{PROGRAM, run};
use crate::ui::{Step, finish};
use crate::{lm, python, sh};

pub(crate) const USAGE: &str = "\
Builds the wheels target/wheels/weir_stream-VERSION-….whl, with the engine and its components inside, and
target/wheels/weir_stream_models-VERSION-….whl, the models that ship. Needs Python 3.11 or later; the wheels run on 3.8 and later.

Options:
  --test      install them into target/python/venv, check the types, and run the tests of clients/python
  --measure   compare the texts per second of a stream in Python with those in Rust, in alternation; fails below 90 %";

const PACKAGE: &str = "clients/python";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Version of the installation procedure: a change makes older environments stale.
const RECIPE: &str = "1";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let (tests, measures) = (args.flag("--test"), args.flag("--measure"));
    args.finish()?;
    let program = build::program(house)?;
    if tests {
        test(house, &program)?;
    }
    if measures {
        measure(house)?;
    }
    if tests || measures {
        return Ok(());
    }
    for wheel in wheels(house)? {
        println!("{}", wheel.display());
    }
    Ok(())
}

/// Builds the wheels. The components and the models beside `weir` must have been built.
fn wheels(house: &House) -> Result<Vec<PathBuf>> {
    run("engine", "builds the Python extension", || {
        let mut cargo = build::host_cargo(house, "build");
        cargo.arg("--lib");
        cargo
    })?;
    let release = house.target.join("release");
    let (engine, models) = (release.join("lib_engine.so"), release.join("models"));
    let out = house.target.join("wheels");
    let package = house.root.join(PACKAGE);
    let key = Key::default()
        .text(RECIPE)
        .text(VERSION)
        .file(&engine)?
        .tree(&package.join("python"))?
        .file(&package.join("build_wheel.py"))?
        .file(&package.join("pyproject.toml"))?
        .file(&package.join("README.md"))?
        .tree(&models)?;
    let stamp = Stamp::new(house, "wheels", key);
    if !stamp.fresh() || listed(&out)?.len() != 2 {
        run("wheels", "packs target/wheels", || {
            let mut pack = sh::program(house, "python3");
            pack.arg(package.join("build_wheel.py")).args(["--version", VERSION, "--engine"]).arg(&engine);
            pack.arg("--models").arg(&models).arg("--out").arg(&out);
            pack
        })?;
        stamp.set()?;
    }
    let wheels = listed(&out)?;
    if wheels.len() != 2 {
        bail!("{} has {} wheels, not 2", out.display(), wheels.len());
    }
    Ok(wheels)
}

/// The wheels of a folder, which may be missing.
fn listed(out: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(Vec::new()) };
    let paths = entries.map(|entry| Ok(entry.with_context(|| format!("cannot read {}", out.display()))?.path()));
    let mut wheels = paths.collect::<Result<Vec<PathBuf>>>()?;
    wheels.retain(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheels.sort();
    Ok(wheels)
}

/// Builds and installs the wheels, checks the types, and runs the tests.
pub(crate) fn test(house: &House, program: &Path) -> Result<()> {
    let wheels = wheels(house)?;
    let python = venv(house, &wheels)?;
    let broker = python::broker(house)?;
    let package = house.root.join(PACKAGE);
    run("python", "checks the types", || {
        let mut types = sh::program(house, &python);
        types.current_dir(&package).args(["-m", "mypy", "--cache-dir"]).arg(house.target.join("python/mypy"));
        types
    })?;
    run("python", "tests clients/python", || {
        let mut tests = sh::program(house, &python);
        // In another folder, so that the installed package is tested and not its sources.
        tests.current_dir(house.target.join("python")).args(["-W", "error::ResourceWarning"]);
        tests.arg(package.join("tests/run.py")).env(PROGRAM, program).env("PYTHONDONTWRITEBYTECODE", "1");
        tests.env("WEIR_TEST_KAFKA", &broker);
        if let Ok(model) = lm::model(house) {
            tests.env(lm::VARIABLE, model);
        }
        if let Some(python) = transformers(house) {
            tests.env("WEIR_TEST_TRANSFORMERS", python);
        }
        tests
    })
}

/// The interpreter of `cargo xtask bench`, if it has transformers and torch, which nothing else installs: they have 3 GB.
fn transformers(house: &House) -> Option<PathBuf> {
    let folder = house.target.join("bench-venv");
    let versions = std::fs::read_dir(folder.join("lib")).ok()?;
    let has_both = |version: PathBuf| {
        let packages = version.join("site-packages");
        packages.join("torch").is_dir() && packages.join("transformers").is_dir()
    };
    let found = versions.flatten().any(|version| has_both(version.path()));
    found.then(|| folder.join("bin").join("python"))
}

/// Rounds of the measurement.
const ROUNDS: usize = 5;
/// Texts of a round.
const TEXTS: &str = "8000";
/// The least share of the Rust API's texts per second.
const SHARE_MIN: f64 = 0.9;

/// Compares the texts per second of both interfaces, in alternation: the median of the rounds' ratios.
fn measure(house: &House) -> Result<()> {
    let python = venv(house, &wheels(house)?)?;
    run("measure", "builds the measurement in Rust", || {
        let mut cargo = build::host_cargo(house, "build");
        cargo.args(["--features", "embed-example/measure", "--bin", "throughput"]);
        cargo
    })?;
    let release = house.target.join("release");
    let rate = |command: &mut Command| -> Result<f64> {
        let answer = sh::stdout_of(command)?;
        answer.parse().with_context(|| format!("`{answer}` is not a rate"))
    };
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let mut rust = sh::program(house, release.join("throughput"));
        rust.arg(house.components().join("infer.cwasm.zst")).arg(release.join("models")).arg(TEXTS);
        let mut other = sh::program(house, &python);
        other.arg(house.root.join(PACKAGE).join("throughput.py")).arg(TEXTS);
        let (rust, python) = (rate(&mut rust)?, rate(&mut other)?);
        println!("{rust:9.1} texts/s in Rust {python:9.1} in Python {:6.1} %", python / rust * 100.0);
        ratios.push(python / rust);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ROUNDS / 2];
    println!("{:.1} % in the median", median * 100.0);
    if median < SHARE_MIN {
        bail!("a stream in Python has {:.1} % of the texts per second of one in Rust", median * 100.0);
    }
    Ok(())
}

/// Creates target/python/venv with the requirements and the wheels; returns its interpreter.
fn venv(house: &House, wheels: &[PathBuf]) -> Result<PathBuf> {
    let folder = house.target.join("python").join("venv");
    let python = folder.join("bin").join("python");
    let requirements = house.root.join(PACKAGE).join("requirements.txt");
    let version = sh::stdout_of(sh::program(house, "python3").arg("--version"))?;
    let mut key = Key::default().text(RECIPE).text(&version).file(&requirements)?;
    for wheel in wheels {
        key = key.file(wheel)?;
    }
    let stamp = Stamp::new(house, "python-venv", key);
    if stamp.fresh() && python.exists() {
        return Ok(python);
    }
    let mut step = Step::begin("python", "installs the wheels into target/python/venv");
    let pip = |arguments: &[&str]| {
        let mut pip = sh::program(house, &python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]).args(arguments);
        pip
    };
    let mut install = || {
        if !python.exists() {
            sh::check(&mut step, sh::program(house, "python3").args(["-m", "venv"]).arg(&folder))?;
        }
        let fetched = ["--require-hashes", "--only-binary", ":all:", "--requirement"];
        sh::check(&mut step, pip(&fetched).arg(&requirements))?;
        sh::check(&mut step, pip(&["--no-index", "--no-deps", "--force-reinstall"]).args(wheels))?;
        stamp.set()?;
        Ok(version.clone())
    };
    let installed = install();
    finish(step, installed)?;
    Ok(python)
}
