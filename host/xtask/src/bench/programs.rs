//! Builds the programs that are measured, and times `weir run`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::compare;
use crate::files::{Key, Stamp};
use crate::house::House;
use crate::ui::{Step, finish};
use crate::{build, python, setup, sh};

/// Version of the installation procedure: a change makes older environments stale.
const RECIPE: &str = "2";

/// Builds `weir`, unless it is measured as built.
pub(super) fn build_weir(house: &House, as_built: bool) -> Result<()> {
    if !as_built {
        setup::ensure(house)?;
        build::components(house, &[])?;
        build::weir(house)?;
    }
    Ok(())
}

/// [`build_weir`], and the load generator; returns the path of the load generator.
pub(super) fn build_programs(house: &House, as_built: bool) -> Result<PathBuf> {
    build_weir(house, as_built)?;
    compare::generator(house)
}

/// The time of `weir run` for the lines of an input, its start included.
pub(super) fn run_time(house: &House, input: String) -> Result<Duration> {
    Ok(run_times(house, input)?.0)
}

/// The time of `weir run` for the lines of an input, its start included, and its processor time.
pub(super) fn run_times(house: &House, input: String) -> Result<(Duration, Duration)> {
    let lines = input.lines().count();
    let started = Instant::now();
    let mut child = sh::program(house, house.weir())
        .args(["run", "--task", "sentiment", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start weir run")?;
    let mut stdin = child.stdin.take().ok_or_else(|| anyhow!("weir run has no standard input"))?;
    let mut stdout = child.stdout.take().ok_or_else(|| anyhow!("weir run has no standard output"))?;
    // On a thread of its own: both pipes may be full at the same time.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).context("cannot read the results of weir run")?;
    // Once it is waited for, its times are gone.
    let processor = sh::processor_time(child.id())?;
    let status = child.wait().context("cannot wait for weir run")?;
    let elapsed = started.elapsed();
    let written = writer.join().map_err(|_| anyhow!("the writer panicked"))?;
    written.context("cannot write to weir run")?;
    let answered = output.iter().filter(|byte| **byte == b'\n').count();
    if !status.success() || answered != lines {
        bail!("weir run answered {answered} of {lines} lines: {status}");
    }
    Ok((elapsed, processor))
}

/// The interpreter of an environment with the packages of peers, in a folder of target.
pub(super) fn environment(house: &House, name: &str, requirements: &str) -> Result<PathBuf> {
    let folder = house.target.join(name);
    let python = folder.join("bin/python");
    let file = house.root.join(requirements);
    let stamp = Stamp::new(house, name, Key::default().text(RECIPE).file(&file)?);
    if stamp.fresh() && python.exists() {
        return Ok(python);
    }
    let mut step = Step::begin("peers", &format!("installs {requirements} into target/{name}"));
    let mut install = || {
        python::install(house, &mut step, &folder, &file)?;
        stamp.set()?;
        Ok(format!("target/{name}"))
    };
    let installed = install();
    finish(step, installed)?;
    Ok(python)
}
