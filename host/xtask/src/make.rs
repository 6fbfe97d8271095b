//! `make`, which the build of the Kafka client's C library needs: the one on the PATH, or Debian's, unpacked under target.

use anyhow::{Context, Result};

use crate::apt::fetch_once;
use crate::files::on_path;
use crate::house::House;
use crate::sh::{self, MAKE, MAKE_PROGRAM};

/// Version of this file's procedure: a change makes older results stale.
const RECIPE: &str = "1";

/// Fetches `make` if there is none.
pub(crate) fn ensure(house: &House) -> Result<()> {
    if on_path(&[MAKE]).is_some() {
        return Ok(());
    }
    let doing = "fetches Debian's make and unpacks it under target";
    fetch_once(house, MAKE, doing, RECIPE, MAKE_PROGRAM, |apt, folder, step| {
        apt.fetch(step, &[MAKE.to_owned()])?;
        apt.unpack(step, &folder.join("prefix"))?;
        let version = sh::stdout_of(apt.program(folder.join(MAKE_PROGRAM)).arg("--version"))?;
        Ok(version.lines().next().unwrap_or_default().to_owned())
    })
    .context("there is no `make`, and Debian's cannot be fetched: install make")?;
    Ok(())
}
