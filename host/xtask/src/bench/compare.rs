//! The second half of `cargo xtask bench`: the comparison with other servers, by `weir-bench run` (tests/bench).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::house::{House, SHIPPED_MODELS};
use crate::sh;
use crate::ui::{Step, finish};

/// The example of `weir-nn` that runs an engine in a loop; `weir-bench` sets `$BENCH_TEXTS`.
const TRACT_CEILING: &str = "release/examples/measure";

/// Builds the load generator and the loop over tract, and runs the comparison; `more` is passed to `weir-bench run`.
pub(super) fn run(house: &House, quick: bool, more: &[String]) -> Result<()> {
    let program = generator(house)?;
    let mut step = Step::begin("measure", "builds the loop over tract");
    let built = sh::check(&mut step, build::host_cargo(house, "build").args(["--example", "measure"]));
    finish(step, built.map(|_| format!("target/{TRACT_CEILING}")))?;
    let ceiling = format!(
        "'{}' {SHIPPED_MODELS}/sentiment/model_packed.onnx --engine tract --texts \"$BENCH_TEXTS\"",
        house.target.join(TRACT_CEILING).display()
    );
    let mut words = vec!["run".to_owned()];
    for (name, path) in [
        ("--root", house.root.clone()),
        ("--weir", house.weir()),
        ("--work", house.target.join("bench")),
        ("--venv", house.target.join("bench-venv")),
    ] {
        words.extend([name.to_owned(), path.display().to_string()]);
    }
    words.extend(["--tract-ceiling".to_owned(), ceiling]);
    let builtin = format!(
        "'{}' {SHIPPED_MODELS}/sentiment --engine builtin --precision \"$BENCH_PRECISION\" --texts \"$BENCH_TEXTS\"",
        house.target.join(TRACT_CEILING).display()
    );
    words.extend(["--builtin-ceiling".to_owned(), builtin]);
    if quick {
        words.push("--quick".to_owned());
    }
    words.extend_from_slice(more);
    start(house, &program, &words)
}

/// Runs the load generator, which shows its own progress.
pub(super) fn start(house: &House, program: &Path, words: &[String]) -> Result<()> {
    let mut command = sh::program(house, program);
    let status = command.args(words).stdout(Stdio::inherit()).stderr(Stdio::inherit()).status();
    let status = status.context("cannot start weir-bench")?;
    if !status.success() {
        bail!("weir-bench: {status}");
    }
    Ok(())
}

/// Builds the load generator; returns its path.
pub(super) fn generator(house: &House) -> Result<PathBuf> {
    let mut step = Step::begin("weir-bench", "builds the load generator");
    let built = sh::check(&mut step, sh::cargo(house).args(["build", "--release", "-p", "weir-bench"]));
    finish(step, built.map(|_| "target/release/weir-bench".to_owned()))?;
    Ok(house.target.join("release").join("weir-bench"))
}
