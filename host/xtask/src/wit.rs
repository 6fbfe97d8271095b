//! `cargo xtask wit`: the WIT packages in wit/deps are those of the crates in Cargo.lock, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::args::Args;
use crate::files::{Key, Stamp, write_if_changed};
use crate::house::House;
use crate::sh;
use crate::ui::Step;

pub(crate) const USAGE: &str = "\
Copies the WIT packages that ours import into wit/deps: `wasi:*` 0.3 from the crate wasip3 (what the components are
built with) and `wasi:nn` from wasmtime-wasi-nn of wasmtime's version, both at the versions of Cargo.lock.

Options:
  --check   change nothing; fail where wit/deps differs";

/// The crate whose wit/deps are the `wasi:*` packages.
const WASI_CRATE: &str = "wasip3";
/// The crate that contains `wasi:nn`. Weir implements the interface itself and does not depend on it.
const NN_CRATE: &str = "wasmtime-wasi-nn";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let only_check = args.flag("--check");
    args.finish()?;
    if only_check {
        return check(house);
    }
    let step = Step::begin("wit", "copies the WIT packages into wit/deps");
    let packages = match Sources::find(house).and_then(|sources| sources.packages(house)) {
        Ok(packages) => packages,
        Err(error) => {
            step.failed("");
            return Err(error);
        }
    };
    let mut changed = Vec::new();
    for (file, content) in &packages {
        if write_if_changed(&folder(house).join(file), content)? {
            changed.push(file.as_str());
        }
    }
    for file in present(house)?.into_keys().filter(|file| !packages.contains_key(file)) {
        fs::remove_file(folder(house).join(&file)).with_context(|| format!("cannot remove {file}"))?;
        changed.push("(one removed)");
    }
    step.done(&if changed.is_empty() { "nothing new".to_owned() } else { changed.join(", ") });
    Ok(())
}

/// Fails if wit/deps differs from the crates.
pub(crate) fn check(house: &House) -> Result<()> {
    let step = Step::begin("wit", "compares wit/deps with the crates of Cargo.lock");
    let compare = || {
        let sources = Sources::find(house)?;
        let mut key = Key::default().text(&sources.wasi.to_string_lossy()).text(&sources.wasmtime_version);
        for file in present(house)?.keys() {
            key = key.text(file).file(&folder(house).join(file))?;
        }
        let stamp = Stamp::new(house, "wit", key);
        if stamp.fresh() {
            return Ok(());
        }
        let differing = differing(&present(house)?, &sources.packages(house)?);
        if !differing.is_empty() {
            bail!("wit/deps differs from the crates in {}: `cargo xtask wit` refreshes it", differing.join(", "));
        }
        stamp.set()
    };
    match compare() {
        Ok(()) => {
            step.done("the same");
            Ok(())
        }
        Err(error) => {
            step.failed("");
            Err(error)
        }
    }
}

type Packages = BTreeMap<String, Vec<u8>>;

fn differing(ours: &Packages, theirs: &Packages) -> Vec<String> {
    let all = ours.keys().chain(theirs.keys().filter(|file| !ours.contains_key(*file)));
    all.filter(|file| ours.get(*file) != theirs.get(*file)).cloned().collect()
}

fn folder(house: &House) -> PathBuf {
    house.root.join("wit").join("deps")
}

fn present(house: &House) -> Result<Packages> {
    read(&folder(house))
}

fn read(folder: &Path) -> Result<Packages> {
    let mut packages = Packages::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wit") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            packages.insert(name, fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    Ok(packages)
}

/// The sources of the packages.
struct Sources {
    /// The folder of wasip3.
    wasi: PathBuf,
    wasmtime_version: String,
}

impl Sources {
    fn find(house: &House) -> Result<Self> {
        let metadata = metadata(house, &house.root.join("Cargo.toml"))?;
        let wasi = crate_folder(&metadata, WASI_CRATE)?;
        let wasmtime_version = package(&metadata, "wasmtime")?["version"].as_str().unwrap_or_default().to_owned();
        Ok(Self { wasi, wasmtime_version })
    }

    fn packages(&self, house: &House) -> Result<Packages> {
        let mut packages = read(&self.wasi.join("wit").join("deps"))?;
        // A manifest with the crate makes cargo fetch it; the lock file of this workspace pins everything else.
        let scratch = house.keep().join("wit");
        let version = &self.wasmtime_version;
        let manifest = format!(
            "[package]\nname = \"wit\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[lib]\npath = \"lib.rs\"\n[workspace]\n\
             [dependencies]\n{NN_CRATE} = {{ version = \"={version}\", default-features = false }}\n"
        );
        write_if_changed(&scratch.join("Cargo.toml"), manifest.as_bytes())?;
        write_if_changed(&scratch.join("lib.rs"), b"")?;
        let lock = house.root.join("Cargo.lock");
        fs::copy(&lock, scratch.join("Cargo.lock")).with_context(|| format!("cannot read {}", lock.display()))?;
        let nn = crate_folder(&metadata(house, &scratch.join("Cargo.toml"))?, NN_CRATE)?.join("wit/wasi-nn.wit");
        packages.insert("nn.wit".to_owned(), fs::read(&nn).with_context(|| format!("cannot read {}", nn.display()))?);
        Ok(packages)
    }
}

/// The metadata of a workspace and its dependencies.
fn metadata(house: &House, manifest: &Path) -> Result<Value> {
    let mut command = sh::cargo(house);
    command.args(["metadata", "--format-version", "1", "--manifest-path"]).arg(manifest);
    serde_json::from_str(&sh::stdout_of(&mut command)?).context("cargo metadata is not JSON")
}

fn package<'a>(metadata: &'a Value, name: &str) -> Result<&'a Value> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    packages.iter().find(|package| package["name"] == name).ok_or_else(|| anyhow!("Cargo.lock has no {name}"))
}

fn crate_folder(metadata: &Value, name: &str) -> Result<PathBuf> {
    let manifest = package(metadata, name)?["manifest_path"].as_str().unwrap_or_default();
    Path::new(manifest).parent().map(Path::to_path_buf).ok_or_else(|| anyhow!("{name} has no folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_named() {
        let packages = |files: &[(&str, &str)]| -> Packages {
            files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
        };
        let ours = packages(&[("same", "1"), ("changed", "1"), ("ours", "1")]);
        let theirs = packages(&[("same", "1"), ("changed", "2"), ("theirs", "1")]);
        assert_eq!(differing(&ours, &theirs), ["changed", "ours", "theirs"]);
    }
}
