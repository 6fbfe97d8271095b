//! The program for 64-bit Arm, built on another machine: cargo links it with Debian's cross compiler, and its precompiler and the finished
//! program run under an emulator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::finish;
use crate::files::{Key, Stamp, write_if_changed};
use crate::house::{COMPONENTS, House};
use crate::kernels::require_program;
use crate::sh;
use crate::ui::Step;

/// The one platform that can be built elsewhere.
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const COMPILER_CPP: &str = "aarch64-linux-gnu-g++";
const EMULATOR: &str = "qemu-aarch64";
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// The built program.
pub(crate) fn weir(house: &House) -> PathBuf {
    release(house).join("weir")
}

/// A program for the platform, under the emulator.
pub(crate) fn emulated(program: &Path) -> Command {
    let mut command = Command::new(EMULATOR);
    command.args(["-L", LIBRARIES]).arg(program);
    command
}

fn release(house: &House) -> PathBuf {
    house.target.join(TARGET).join("release")
}

/// Builds the program. The components in target/components must have been built.
pub(crate) fn build(house: &House) -> Result<()> {
    for program in [LINKER, COMPILER_CPP, EMULATOR] {
        require_program(program)?;
    }
    let targets = sh::stdout_of(sh::program(house, "rustup").args(["target", "list", "--installed"]))?;
    if !targets.lines().any(|line| line == TARGET) {
        bail!("rustup has no {TARGET}: `rustup target add {TARGET}`");
    }
    let mut step = Step::begin("precompiler", &format!("builds weir-precompile for {TARGET}"));
    let built = sh::check(&mut step, cargo(house).args(["--bin", "weir-precompile"]));
    finish(step, built.map(|_| format!("target/{TARGET}/release/weir-precompile")))?;

    let mut step = Step::begin("precompile", &format!("compiles the components for {TARGET}, emulated"));
    let precompiled = precompile(house, &mut step);
    finish(step, precompiled.map(|()| format!("target/{TARGET}/components")))?;

    let mut step = Step::begin("weir", &format!("builds weir for {TARGET} with the components inside"));
    let mut cargo = cargo(house);
    cargo.args(["--bin", "weir"]).env("WEIR_EMBED_DIR", components(house));
    let built = sh::check(&mut step, &mut cargo);
    finish(step, built.map(|_| format!("target/{TARGET}/release/weir")))
}

fn components(house: &House) -> PathBuf {
    house.target.join(TARGET).join("components")
}

/// `cargo build` for the platform: the same packages each time, so that nothing compiles twice.
fn cargo(house: &House) -> Command {
    let mut command = sh::cargo(house);
    command.args(["build", "--release", "--target", TARGET, "-p", "weir", "-p", "weir-runtime"]);
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    command.env("CC_aarch64_unknown_linux_gnu", LINKER).env("CXX_aarch64_unknown_linux_gnu", COMPILER_CPP);
    command.env_remove("WEIR_EMBED_DIR");
    sh::show_progress(&mut command);
    command
}

fn precompile(house: &House, step: &mut Step) -> Result<()> {
    let precompiler = release(house).join("weir-precompile");
    let compiler = Key::default().file(&precompiler)?;
    let folder = components(house);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for component in COMPONENTS {
        let (from, to) = (component.delivered(house), folder.join(format!("{}.cwasm", component.name)));
        let key = compiler.clone().file(&from)?;
        let stamp = Stamp::new(house, &format!("precompile-{TARGET}-{}", component.name), key);
        if stamp.fresh() && to.exists() {
            continue;
        }
        step.show_progress(component.name);
        let scratch = folder.join(format!("{}.new", component.name));
        sh::check(step, emulated(&precompiler).arg(&from).arg(&scratch))?;
        let code = fs::read(&scratch).with_context(|| format!("cannot read {}", scratch.display()))?;
        write_if_changed(&to, &code)?;
        fs::remove_file(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        stamp.set()?;
    }
    Ok(())
}
