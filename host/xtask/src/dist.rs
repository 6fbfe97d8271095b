//! `cargo xtask dist`: an archive that runs in any folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::build::{self, finish};
use crate::files::copy_tree;
use crate::house::{House, SHIPPED_MODELS};
use crate::ui::Step;
use crate::{setup, sh};

pub(crate) const USAGE: &str = "\
Builds target/dist/weir-VERSION-TARGET.tar.gz: the program, the bundled models, completions for bash, zsh and fish, manual pages, README.md,
CHANGELOG.md, LICENSE and docs, without links. Then unpacks it into another folder and runs it there; an archive that does not run
is removed.";

/// The shells with completions, and the file names that they search for.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "weir.bash"), ("zsh", "_weir"), ("fish", "weir.fish")];
/// Files of the repository that are included.
const DOCUMENTS: [&str; 3] = ["README.md", "CHANGELOG.md", "LICENSE"];

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    setup::ensure(house)?;
    build::components(house, &[])?;
    build::weir(house)?;
    let archive = check(house)?;
    println!("{}", archive.display());
    Ok(())
}

/// Packs the built files, and runs the result.
pub(crate) fn check(house: &House) -> Result<PathBuf> {
    let mut step = Step::begin("dist", "packs the program and its models");
    let packed = pack(house, &mut step);
    let archive = match packed {
        Ok(archive) => {
            let megabytes = fs::metadata(&archive).map_or(0, |file| file.len() / 1_000_000);
            step.done(&format!("{} ({megabytes} MB)", archive.display()));
            archive
        }
        Err(error) => {
            step.failed("");
            return Err(error);
        }
    };
    let mut step = Step::begin("dist", "unpacks it elsewhere and runs it");
    let result = try_out(house, &mut step, &archive);
    if result.is_err() {
        // An archive that does not run must not be mistaken for one that does.
        let _ = fs::remove_file(&archive);
    }
    finish(step, result.map(|()| "it runs".to_owned()))?;
    Ok(archive)
}

/// `weir-VERSION-TARGET`: the folder in the archive, and the archive's name.
fn name(house: &House) -> Result<String> {
    let version = sh::stdout_of(sh::program(house, house.weir()).arg("--version"))?;
    let version = version.strip_prefix("weir ").with_context(|| format!("`weir --version` says `{version}`"))?;
    let rustc = sh::stdout_of(sh::program(house, "rustc").arg("-vV"))?;
    let target = rustc.lines().find_map(|line| line.strip_prefix("host: ")).context("`rustc -vV` names no host")?;
    Ok(format!("weir-{version}-{target}"))
}

/// Gathers the files in a folder, and packs it.
fn pack(house: &House, step: &mut Step) -> Result<PathBuf> {
    let name = name(house)?;
    let dist = house.target.join("dist");
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    step.show_progress("the models");
    gather(house, &folder)?;
    for (shell, file) in COMPLETIONS {
        step.show_progress(&format!("completions for {shell}"));
        let script = sh::stdout_of(sh::program(house, house.weir()).args(["completions", shell]))?;
        let path = folder.join("completions").join(file);
        fs::create_dir_all(folder.join("completions"))?;
        fs::write(&path, format!("{script}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    step.show_progress("manual pages");
    sh::check(step, sh::program(house, house.weir()).arg("man").arg(folder.join("man/man1")))?;
    step.show_progress("compresses");
    let archive = dist.join(format!("{name}.tar.gz"));
    let mut tar = sh::program(house, "tar");
    tar.arg("-czf").arg(&archive).arg("-C").arg(&dist).args(["--owner=0", "--group=0", "--numeric-owner"]).arg(&name);
    sh::check(step, &mut tar)?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(archive)
}

/// The program, the models and the documents, as files.
fn gather(house: &House, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    copy(&house.weir(), &folder.join("weir"))?;
    for document in DOCUMENTS {
        copy(&house.root.join(document), &folder.join(document))?;
    }
    copy_tree(&house.root.join("docs"), &folder.join("docs"))?;
    for model in build::shipped_models(house)? {
        copy_tree(&house.root.join(SHIPPED_MODELS).join(&model), &folder.join("models").join(&model))?;
    }
    Ok(())
}

/// Unpacks an archive into a folder of its own, looks for links, and runs the program that is there.
fn try_out(house: &House, step: &mut Step, archive: &Path) -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("weir-dist-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let result = try_in(house, step, archive, &scratch);
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    result
}

fn try_in(house: &House, step: &mut Step, archive: &Path, scratch: &Path) -> Result<()> {
    sh::check(step, sh::program(house, "tar").arg("-xzf").arg(archive).arg("-C").arg(scratch))?;
    let folder = scratch.join(name(house)?);
    no_links(&folder)?;
    let weir = folder.join("weir");
    // Nothing of this workspace may help: neither the folder it runs in nor a variable.
    let isolated = |arguments: &[&str]| {
        let mut command = Command::new(&weir);
        command.current_dir(scratch).env_clear().args(arguments).stdin(Stdio::null());
        command
    };
    sh::check(step, &mut isolated(&["models", "check"]))?;
    let text = scratch.join("text.txt");
    fs::write(&text, "What a wonderful, generous evening!\n")?;
    let output = sh::stdout_of(&mut isolated(&["run", "--quiet", "--task", "sentiment", "text.txt"]))?;
    if !output.contains(r#""label":"positive""#) {
        bail!("the unpacked program answers `{output}`");
    }
    // Without its models it says what is missing, and how to give it.
    let copy_folder = scratch.join("alone");
    fs::create_dir_all(&copy_folder)?;
    fs::copy(&weir, copy_folder.join("weir"))?;
    let mut command = Command::new(copy_folder.join("weir"));
    command.current_dir(scratch).env_clear().args(["run", "--quiet", "--task", "sentiment", "text.txt"]);
    match sh::stdout_of(&mut command) {
        Err(error) if format!("{error:#}").contains("--models-dir") => Ok(()),
        Err(error) => Err(error.context("copied without its models, the program does not say what is missing")),
        Ok(output) => bail!("copied without its models, the program answers `{output}`"),
    }
}

/// Fails at the first link below a folder.
fn no_links(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_symlink() {
            bail!("{} is a link", path.display());
        }
        if path.is_dir() {
            no_links(&path)?;
        }
    }
    Ok(())
}
