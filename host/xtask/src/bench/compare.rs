//! The second half of `cargo xtask bench`: Weir beside other servers, by `weir-bench run` (tests/bench).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::build::{self, finish};
use crate::house::{House, SHIPPED_MODELS};
use crate::sh;
use crate::ui::Step;

/// The bare loop over tract that `weir-nn` has as an example; `$BENCH_TEXTS` is set by `weir-bench`.
const TRACT_CEILING: &str = "release/examples/measure";

/// Builds the load generator and the bare loop, and runs the comparison; `more` goes to `weir-bench run`.
pub(super) fn run(house: &House, quick: bool, more: &[String]) -> Result<()> {
    let program = generator(house)?;
    let mut step = Step::begin("measure", "builds the bare loop over tract");
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
    if quick {
        words.push("--quick".to_owned());
    }
    words.extend_from_slice(more);
    start(house, &program, &words)
}

/// Runs the load generator; it says itself how far it is.
pub(super) fn start(house: &House, program: &Path, words: &[String]) -> Result<()> {
    let mut command = sh::program(house, program);
    let status = command.args(words).stdout(Stdio::inherit()).stderr(Stdio::inherit()).status();
    let status = status.context("cannot start weir-bench")?;
    if !status.success() {
        bail!("weir-bench: {status}");
    }
    Ok(())
}

/// Builds the load generator; answers where it is.
pub(super) fn generator(house: &House) -> Result<PathBuf> {
    let mut step = Step::begin("weir-bench", "builds the load generator");
    let built = sh::check(&mut step, sh::cargo(house).args(["build", "--release", "-p", "weir-bench"]));
    finish(step, built.map(|_| "target/release/weir-bench".to_owned()))?;
    Ok(house.target.join("release").join("weir-bench"))
}
