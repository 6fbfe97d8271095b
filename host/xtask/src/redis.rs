//! `cargo xtask redis`: a Redis server for the tests.
//!
//! The one on the PATH, or else Debian's, unpacked under target, with a script that starts it with its libraries. It is not
//! installed; each test starts its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{Apt, starter};
use crate::args::Args;
use crate::build::finish;
use crate::files::{Key, Stamp};
use crate::house::House;
use crate::sh;
use crate::ui::Step;

pub(crate) const USAGE: &str = "\
Prints the path of a redis-server: the one on the PATH, or Debian's, fetched once and unpacked under target. The tests of
weir-events find it in WEIR_TEST_REDIS.";

/// The variable that tests read its path from.
pub(crate) const VARIABLE: &str = "WEIR_TEST_REDIS";

const SERVER: &str = "redis-server";
/// The server itself is in the package of the tools.
const TOOLS: &str = "redis-tools";
/// Version of this file's procedure: a change makes older results stale.
const RECIPE: &str = "1";

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    println!("{}", server(house)?.display());
    Ok(())
}

/// A redis-server; fetches it if there is none.
pub(crate) fn server(house: &House) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).map(|folder| folder.join(SERVER)).find(|file| file.is_file()) {
        return Ok(found);
    }
    let folder = house.keep().join("redis");
    let script = folder.join(SERVER);
    let made = Stamp::new(house, "redis", Key::default().text(RECIPE));
    if made.fresh() && script.exists() {
        return Ok(script);
    }
    let mut step = Step::begin("redis", "fetches Debian's Redis and unpacks it under target");
    let version = unpack(house, &folder, &script, &mut step);
    finish(step, version)?;
    made.set()?;
    Ok(script)
}

/// Fetches and unpacks it, and writes the script that starts it; returns the server's version.
fn unpack(house: &House, folder: &Path, script: &Path, step: &mut Step) -> Result<String> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let apt = Apt::new(house, &folder.join("packages"), None)?;
    apt.update(step)?;
    let mut names = vec![SERVER.to_owned(), TOOLS.to_owned()];
    names.extend(apt.dependencies(TOOLS)?.into_iter().filter(|name| name.starts_with("lib")));
    apt.fetch(step, &names)?;
    let prefix = folder.join("prefix");
    apt.unpack(step, &prefix)?;
    starter(script, &prefix, &prefix.join("usr/bin").join(SERVER))?;
    sh::answer(sh::program(house, script).arg("--version"))
}
