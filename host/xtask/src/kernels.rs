//! `cargo xtask kernels`: the tests of `weir-kernels` for instruction sets that this machine may not have, emulated.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::house::{House, WASM_TARGET};
use crate::{python, sh};

pub(crate) const USAGE: &str = "\
Runs the tests of the kernels (components/kernels), each instruction set against the scalar one and against f64.

Options:
  --isa NAME   one of
                 native    every instruction set of this machine (the default)
                 avx2      x86-64 without AVX-512, as a Haswell: needs qemu-x86_64
                 portable  x86-64 without AVX: needs qemu-x86_64
                 neon      64-bit Arm: needs qemu-aarch64, aarch64-linux-gnu-gcc and rustup's aarch64-unknown-linux-gnu
                 simd128   WebAssembly's vectors: needs rustup's wasm32-wasip2; uses the wasmtime of the tests
                 miri      the scalar code and the pointers of products, in Rust's interpreter: needs nightly with miri
                 all       all of them
  -- OPTIONS   of the test programs

Debian has the emulators as qemu-user and the linker as gcc-aarch64-linux-gnu (with libc6-dev-arm64-cross).";

const PACKAGE: &str = "weir-kernels";
const ARM_TARGET: &str = "aarch64-unknown-linux-gnu";
const ARM_LINKER: &str = "aarch64-linux-gnu-gcc";
const ARM_LIBRARIES: &str = "/usr/aarch64-linux-gnu";
/// Too slow where every instruction is emulated; the other tests of batch invariance stay.
const SKIP_IF_EMULATED: &str = "1300_mixtures";
const ISAS: [&str; 6] = ["native", "avx2", "portable", "neon", "simd128", "miri"];

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    let (mut args, more) = args.split();
    let isa = args.value("--isa")?.unwrap_or_else(|| "native".to_owned());
    args.finish()?;
    let selected: Vec<&str> = ISAS.into_iter().filter(|name| isa == "all" || *name == isa).collect();
    if selected.is_empty() {
        bail!("`--isa` is `{isa}`, and takes {} or all", ISAS.join(", "));
    }
    for isa in selected {
        println!("{isa}:");
        let status =
            command(house, isa, &more)?.status().with_context(|| format!("cannot start the tests of {isa}"))?;
        if !status.success() {
            bail!("the kernels' tests fail for {isa}");
        }
    }
    Ok(())
}

/// The tests of one instruction set. `WEIR_TEST_KERNELS_BEST` is the one that the tests must find to be the best.
fn command(house: &House, isa: &str, more: &[String]) -> Result<Command> {
    let mut command = if isa == "miri" { sh::nightly_cargo(house) } else { sh::cargo(house) };
    if isa == "miri" {
        // Not the encoders: their code is safe, and would take hours.
        command.args(["miri", "test", "-p", PACKAGE, "--lib", "--test", "products", "--target-dir"]);
        command.arg(house.target.join("miri")).env("MIRIFLAGS", "-Zmiri-disable-isolation");
        command.arg("--").args(more);
        return Ok(command);
    }
    command.args(["test", "--release", "-p", PACKAGE, "--lib", "--tests"]);
    let mut emulated = true;
    match isa {
        "avx2" | "portable" => {
            require_program("qemu-x86_64")?;
            let model = if isa == "avx2" { "Haswell" } else { "Nehalem" };
            command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", format!("qemu-x86_64 -cpu {model}"));
            command.env("WEIR_TEST_KERNELS_BEST", isa);
        }
        "neon" => {
            require_program("qemu-aarch64")?;
            require_program(ARM_LINKER)?;
            command.args(["--target", ARM_TARGET]);
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", ARM_LINKER);
            let runner = format!("qemu-aarch64 -L {ARM_LIBRARIES}");
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner);
            command.env("WEIR_TEST_KERNELS_BEST", "neoni8mm");
        }
        "simd128" => {
            let wasmtime = match std::env::var_os("WEIR_TEST_WASMTIME") {
                Some(program) => program,
                None => python::ensure(house)?.wasmtime.into_os_string(),
            };
            command.args(["--target", WASM_TARGET]).env("RUSTFLAGS", "-C target-feature=+simd128");
            let runner = format!("{} run --env WEIR_TEST_KERNELS_BEST=simd128", Path::new(&wasmtime).display());
            command.env("CARGO_TARGET_WASM32_WASIP2_RUNNER", runner);
        }
        _ => emulated = false,
    }
    command.arg("--");
    if emulated {
        command.args(["--skip", SKIP_IF_EMULATED]);
    }
    command.args(more);
    Ok(command)
}

pub(crate) fn require_program(program: &str) -> Result<()> {
    let output = Command::new(program).arg("--version").output();
    if output.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    bail!(
        "`{program}` cannot be run; Debian has it in qemu-user, gcc-aarch64-linux-gnu, g++-aarch64-linux-gnu or musl-tools"
    )
}
