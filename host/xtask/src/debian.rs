//! The wasm32-wasip2 target from Debian's packages.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::house::House;

/// The compiler that `setup --toolchain debian` chose for the components.
pub(crate) fn chosen(_house: &House) -> Option<PathBuf> {
    None
}

pub(crate) fn install(_house: &House) -> Result<()> {
    bail!("not yet")
}

pub(crate) fn forget(_house: &House) -> Result<()> {
    Ok(())
}
