//! nginx for the test of the proxy guide, and with nchan for the fan-out measurement: Debian's, unpacked under target. It is not
//! installed; the test and the measurement start it with their own configurations.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::apt::{Apt, fetch_once, starter};
use crate::args::Args;
use crate::files::write_if_changed;
use crate::house::House;
use crate::ui::Step;

pub(crate) const USAGE: &str = "\
Prints the path of a folder with Debian's nginx, fetched once and unpacked under target. The test of docs/guides/proxy.md finds it in
WEIR_TEST_NGINX.";

/// The variable in which tests find the folder.
pub(crate) const VARIABLE: &str = "WEIR_TEST_NGINX";

const SERVER: &str = "nginx";
const MODULE: &str = "libnginx-mod-nchan";
/// The folder that the module needs at the start, and its replacement, which is relative to nginx's prefix. The module refuses its
/// own directive for it (`nchan_message_temp_path`) as a duplicate.
const FOLDER: &[u8] = b"/var/lib/nginx/body\0";
const FOLDER_HERE: &[u8] = b"nchan-messages/////\0";
/// Version of this file's procedure: a change makes older results stale.
const RECIPE: &str = "1";

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    println!("{}", folder(house)?.display());
    Ok(())
}

/// The folder with `nginx`, `module.so` and `versions`; fetched if it does not exist.
pub(crate) fn folder(house: &House) -> Result<PathBuf> {
    let doing = "fetches Debian's nginx and nchan and unpacks them under target";
    fetch_once(house, SERVER, doing, RECIPE, "module.so", unpack)
}

/// Fetches and unpacks; returns the versions.
fn unpack(apt: &Apt<'_>, folder: &Path, step: &mut Step) -> Result<String> {
    let mut names = vec![SERVER.to_owned(), MODULE.to_owned()];
    let library = |name: &String| name.starts_with("lib") || name == "zlib1g";
    names.extend(apt.dependencies(SERVER)?.into_iter().filter(library));
    apt.fetch(step, &names)?;
    let mut versions = apt.versions()?;
    versions.retain(|(name, _)| name == SERVER || name == MODULE);
    versions.sort();
    let lines: Vec<String> = versions.into_iter().map(|(name, version)| format!("{name} {version}")).collect();
    let prefix = folder.join("prefix");
    apt.unpack(step, &prefix)?;
    let module = prefix.join("usr/lib/nginx/modules/ngx_nchan_module.so");
    let mut code = fs::read(&module).with_context(|| format!("{MODULE} has no {}", module.display()))?;
    let offsets: Vec<usize> = (0..code.len()).filter(|offset| code[*offset..].starts_with(FOLDER)).collect();
    ensure!(offsets.len() == 1, "{MODULE} names its folder {} times", offsets.len());
    code[offsets[0]..offsets[0] + FOLDER_HERE.len()].copy_from_slice(FOLDER_HERE);
    write_if_changed(&folder.join("module.so"), &code)?;
    write_if_changed(&folder.join("versions"), lines.join("\n").as_bytes())?;
    starter(&folder.join(SERVER), &prefix, &prefix.join("usr/sbin/nginx"), None)?;
    Ok(lines.join(", "))
}
