//! `cargo xtask pushpin`: Pushpin, a proxy that holds connections by GRIP, for the tests.
//!
//! Debian's, with its dependencies, unpacked under target; scripts start it with its libraries. It is not installed; the tests
//! start it with their own folders and ports.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apt::{Apt, fetch_once};
use crate::args::Args;
use crate::files::write_if_changed;
use crate::house::House;
use crate::sh;
use crate::ui::Step;

pub(crate) const USAGE: &str = "\
Prints the path of a folder with Debian's Pushpin and its zurl, fetched once and unpacked under target. The test of the
gateway behind Pushpin finds it in WEIR_TEST_PUSHPIN.";

/// The variable that tests read its folder from.
pub(crate) const VARIABLE: &str = "WEIR_TEST_PUSHPIN";

/// The proxy, its HTTP client, and its listener.
const PACKAGES: [&str; 3] = ["pushpin", "zurl", "condure"];
/// The programs that tests start.
const PROGRAMS: [&str; 2] = ["pushpin", "zurl"];
/// Version of this file's procedure: a change makes older results stale.
const RECIPE: &str = "1";

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    println!("{}", folder(house)?.display());
    Ok(())
}

/// The folder: `pushpin` and `zurl`, and under `prefix` their configuration as Debian ships it. Fetches it if there is none.
pub(crate) fn folder(house: &House) -> Result<PathBuf> {
    let doing = "fetches Debian's Pushpin and unpacks it under target";
    fetch_once(house, PROGRAMS[0], doing, RECIPE, PROGRAMS[0], unpack)
}

/// Fetches and unpacks, and writes the scripts; returns the version.
fn unpack(apt: &Apt<'_>, folder: &Path, step: &mut Step) -> Result<String> {
    let mut names: Vec<String> = PACKAGES.iter().map(|&name| name.to_owned()).collect();
    names.extend(apt.missing_libraries(&PACKAGES)?);
    apt.fetch(step, &names)?;
    let prefix = folder.join("prefix");
    apt.unpack(step, &prefix)?;
    let mut libraries = String::new();
    for lib in ["usr/lib", "lib"] {
        // Either folder may be missing.
        for entry in fs::read_dir(prefix.join(lib)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with("-linux-gnu") {
                libraries += &format!("{}:", entry.path().display());
            }
        }
    }
    let bin = prefix.join("usr/bin");
    for program in PROGRAMS {
        // `exec` keeps the process id. The program starts others by name.
        let text = format!(
            "#!/bin/sh\nexport PATH=\"{bin}:$PATH\" LD_LIBRARY_PATH=\"{libraries}$LD_LIBRARY_PATH\"\nexec \"{bin}/{program}\" \"$@\"\n",
            bin = bin.display(),
        );
        let script = folder.join(program);
        write_if_changed(&script, text.as_bytes())?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    sh::stdout_of(apt.program(folder.join(PROGRAMS[0])).arg("--version"))
}
