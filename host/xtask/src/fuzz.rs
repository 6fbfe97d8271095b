//! `cargo xtask fuzz`: runs the targets of `fuzz/targets` with many inputs.
//!
//! Under cargo-fuzz, guided by coverage, where cargo-fuzz and a nightly compiler are installed; else by the program `weir-fuzz`, whose
//! inputs are made by a seeded generator. Both count their executions.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::house::House;
use crate::sh;

pub(crate) const USAGE: &str = "\
Executes the fuzz targets (requests, lines, captions, events, channels, definitions, expressions, keys, tokens, GRIP,
checkpoints, files of language models; with --nn the tensors of wasi:nn and files of weights) and prints the number of
executions. It uses cargo-fuzz where it is installed with a nightly compiler, and a seeded generator of inputs elsewhere. The
input of a failure is kept under target/fuzz-failures (fuzz/artifacts with cargo-fuzz). A short run is part of
`cargo xtask test`.

Options:
  --target NAME      one target only
  --executions N     of each target (default: 1000000)
  --seed N           of the generator (default: 1)
  --nn               the tensors too: builds the engine and wasmtime
  --no-cargo-fuzz    the seeded generator in any case";

/// Executions of each target without `--executions`.
const EXECUTIONS_DEFAULT: u64 = 1_000_000;
/// Longest input, as in `weir_fuzz::mutate`.
const INPUT_BYTES_MAX: u64 = 4096;

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let target = args.value("--target")?;
    let number = |value: Option<String>, flag: &str, default: u64| match value {
        None => Ok(default),
        Some(text) => text.parse().with_context(|| format!("{flag} takes a whole number, not `{text}`")),
    };
    let executions = number(args.value("--executions")?, "--executions", EXECUTIONS_DEFAULT)?;
    let seed = number(args.value("--seed")?, "--seed", 1)?;
    let nn = args.flag("--nn");
    let generator = args.flag("--no-cargo-fuzz");
    args.finish()?;
    if !generator && has_cargo_fuzz(house) {
        return with_cargo_fuzz(house, target.as_deref(), executions, seed, nn);
    }
    println!(
        "the inputs come from a seeded generator; `cargo install cargo-fuzz` and a nightly compiler guide them by coverage"
    );
    let mut command = sh::cargo(house);
    // Fast, with the checks of the development profile, and in a folder of its own: other builds keep what they have compiled.
    command.args(["run", "--quiet", "--release", "-p", "weir-fuzz", "--target-dir"]).arg(house.target.join("fuzz"));
    for check in ["debug-assertions", "overflow-checks"] {
        command.args(["--config", &format!("profile.release.{check}=true")]);
    }
    if nn {
        command.args(["--features", "nn"]);
    }
    command.args(["--", target.as_deref().unwrap_or("all"), &executions.to_string(), &seed.to_string()]);
    finish(command.arg(house.target.join("fuzz-failures")))
}

/// The targets, one after the other.
fn with_cargo_fuzz(house: &House, target: Option<&str>, executions: u64, seed: u64, nn: bool) -> Result<()> {
    let folder = house.root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(".rs"));
        names.extend(name.filter(|name| nn || !["tensors", "safetensors"].contains(name)).map(str::to_owned));
    }
    names.sort();
    if let Some(target) = target {
        if !names.iter().any(|name| name == target) {
            bail!("there is no target `{target}`; there are {}", names.join(", "));
        }
        names.retain(|name| name == target);
    }
    let mut total = 0;
    for name in &names {
        let mut command = sh::nightly_cargo(house);
        command.args(["fuzz", "run", name]);
        if nn {
            command.args(["--features", "nn"]);
        }
        command.arg("--").args([
            format!("-runs={executions}"),
            format!("-seed={seed}"),
            format!("-max_len={INPUT_BYTES_MAX}"),
            "-timeout=10".to_owned(),
        ]);
        finish(command.current_dir(&house.root))?;
        total += executions;
        println!("{name}: {executions} executions");
    }
    println!("{total} executions");
    Ok(())
}

fn has_cargo_fuzz(house: &House) -> bool {
    let mut command = sh::nightly_cargo(house);
    command.args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a program with its own output.
fn finish(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?} cannot be run"))?;
    if status.success() { Ok(()) } else { bail!("a target failed: its input is named above") }
}
