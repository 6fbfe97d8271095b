//! `cargo xtask browser`: a headless Chromium for the tests.
//!
//! The one on the PATH, or else Debian's, unpacked under target, with a script that starts it with its libraries. It is not
//! installed; the test starts it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apt::{Apt, fetch_once, starter};
use crate::args::Args;
use crate::files::on_path;
use crate::house::House;
use crate::sh;
use crate::ui::Step;

pub(crate) const USAGE: &str = "\
Prints the path of a headless Chromium: the one on the PATH, or Debian's chromium-headless-shell, fetched once
(about 150 MB) and unpacked under target. The end-to-end tests with a browser find it in WEIR_TEST_BROWSER.";

/// The variable that tests read its path from.
pub(crate) const VARIABLE: &str = "WEIR_TEST_BROWSER";
/// The test of `cargo xtask test` that needs it.
pub(crate) const TEST: &str = "browser_with_cut_connections_gets_every_event_once_and_stops_at_the_end";

/// Its names on the PATH.
const ON_PATH: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
const PACKAGE: &str = "chromium-headless-shell";
/// The data that it reads at the start; the dependencies of this package are not needed.
const DATA_PACKAGE: &str = "chromium-common";
/// The C library is the machine's own; graphics drivers and the installer's libraries are not needed without a screen.
const EXCLUDED: [&str; 10] = [
    "libc6",
    "libc-",
    "libcrypt1",
    "libgl",
    "libllvm",
    "libz3",
    "libelf",
    "libdebian-installer",
    "libnewt",
    "libslang",
];
/// Version of this file's procedure: a change makes older results stale.
const RECIPE: &str = "1";

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    println!("{}", browser(house)?.display());
    Ok(())
}

/// Whether there is one, or the programs to fetch one.
pub(crate) fn is_available() -> bool {
    on_path(&ON_PATH).is_some() || on_path(&["apt-get"]).is_some() && on_path(&["dpkg-deb"]).is_some()
}

/// A Chromium; fetches it if there is none.
pub(crate) fn browser(house: &House) -> Result<PathBuf> {
    if let Some(program) = on_path(&ON_PATH) {
        return Ok(program);
    }
    let doing = "fetches Debian's Chromium and unpacks it under target";
    Ok(fetch_once(house, "browser", doing, RECIPE, PACKAGE, unpack)?.join(PACKAGE))
}

/// Fetches and unpacks it, and writes the script that starts it; returns its version.
fn unpack(apt: &Apt<'_>, folder: &Path, step: &mut Step) -> Result<String> {
    let mut names = vec![PACKAGE.to_owned(), DATA_PACKAGE.to_owned()];
    let needed = |name: &String| {
        (name.starts_with("lib") || name == "zlib1g") && !EXCLUDED.iter().any(|prefix| name.starts_with(prefix))
    };
    names.extend(apt.all_dependencies(PACKAGE)?.into_iter().filter(needed));
    apt.fetch(step, &names)?;
    let prefix = folder.join("prefix");
    apt.unpack(step, &prefix)?;
    let script = folder.join(PACKAGE);
    starter(&script, &prefix, &prefix.join("usr/lib/chromium").join(PACKAGE), None)?;
    sh::stdout_of(apt.program(script).arg("--version"))
}
