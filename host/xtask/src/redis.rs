//! `cargo xtask redis`: a Redis server for the tests.
//!
//! The one on the PATH, or else Debian's, unpacked under target, with a script that starts it with its libraries. It is not
//! installed; each test starts its own.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apt::{Apt, fetch_once, starter};
use crate::args::Args;
use crate::files::on_path;
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
    if let Some(program) = on_path(&[SERVER]) {
        return Ok(program);
    }
    let doing = "fetches Debian's Redis and unpacks it under target";
    Ok(fetch_once(house, "redis", doing, RECIPE, SERVER, unpack)?.join(SERVER))
}

/// Fetches and unpacks it, and writes the script that starts it; returns the server's version.
fn unpack(apt: &Apt<'_>, folder: &Path, step: &mut Step) -> Result<String> {
    let mut names = vec![SERVER.to_owned(), TOOLS.to_owned()];
    names.extend(apt.dependencies(TOOLS)?.into_iter().filter(|name| name.starts_with("lib")));
    apt.fetch(step, &names)?;
    let prefix = folder.join("prefix");
    apt.unpack(step, &prefix)?;
    let script = folder.join(SERVER);
    starter(&script, &prefix, &prefix.join("usr/bin").join(SERVER), None)?;
    sh::stdout_of(apt.program(script).arg("--version"))
}
