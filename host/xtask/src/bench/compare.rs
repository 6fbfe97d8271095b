//! The second half of `cargo xtask bench`: Weir beside other servers, by `weir-bench run` (tests/bench).

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
    let step = Step::begin("weir-bench", "builds the load generator and the bare loop over tract");
    let built = build(house, step);
    let program = built?;
    let ceiling = format!(
        "'{}' {SHIPPED_MODELS}/sentiment/model_packed.onnx --engine tract --texts \"$BENCH_TEXTS\"",
        house.target.join(TRACT_CEILING).display()
    );
    let mut command = sh::program(house, program);
    command.arg("run").arg("--root").arg(&house.root).arg("--weir").arg(house.weir());
    command.arg("--work").arg(house.target.join("bench")).arg("--venv").arg(house.target.join("bench-venv"));
    command.args(["--tract-ceiling", &ceiling]);
    if quick {
        command.arg("--quick");
    }
    // It says itself how far it is.
    let status = command.args(more).stdout(Stdio::inherit()).stderr(Stdio::inherit()).status();
    let status = status.context("cannot start weir-bench")?;
    if !status.success() {
        bail!("weir-bench: {status}");
    }
    Ok(())
}

fn build(house: &House, mut step: Step) -> Result<std::path::PathBuf> {
    let mut generator = sh::cargo(house);
    generator.args(["build", "--release", "-p", "weir-bench"]);
    let built = sh::check(&mut step, &mut generator)
        .and_then(|_| sh::check(&mut step, build::host_cargo(house, "build").args(["--example", "measure"])));
    finish(step, built.map(|_| "target/release/weir-bench".to_owned()))?;
    Ok(house.target.join("release").join("weir-bench"))
}
