//! Packages of Debian that are fetched and unpacked under target, without being installed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::files::{Key, Stamp, write_if_changed};
use crate::house::House;
use crate::sh;
use crate::ui::{Step, finish};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Unpacks a package without the compiler's own sources, 40,000 files that are not needed.
const UNPACK: &str = "\
set -e; mkdir -p \"$2\"
dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --anchored --no-wildcards-match-slash \\
    --exclude='./usr/src/*/compiler' --exclude='./usr/src/*/src' --exclude='./usr/src/*/debian' --exclude='./usr/share'";

/// Fetches a program into its folder under target, unless that has been done with this recipe and the folder has `result`. `unpack`
/// gets the empty folder and apt, and returns what is shown as the result. Returns the folder.
pub(crate) fn fetch_once(
    house: &House,
    name: &'static str,
    description: &str,
    recipe: &str,
    result: &str,
    unpack: impl FnOnce(&Apt<'_>, &Path, &mut Step) -> Result<String>,
) -> Result<PathBuf> {
    let folder = house.keep().join(name);
    let stamp = Stamp::new(house, name, Key::default().text(recipe));
    if stamp.fresh() && folder.join(result).exists() {
        return Ok(folder);
    }
    let mut step = Step::begin(name, description);
    let unpacked = with_apt(house, &folder, &mut step, unpack);
    finish(step, unpacked)?;
    stamp.set()?;
    Ok(folder)
}

fn with_apt(
    house: &House,
    folder: &Path,
    step: &mut Step,
    unpack: impl FnOnce(&Apt<'_>, &Path, &mut Step) -> Result<String>,
) -> Result<String> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let apt = Apt::new(house, &folder.join("packages"), None)?;
    apt.update(step)?;
    unpack(&apt, folder, step)
}

/// Writes a script that starts an unpacked program with its libraries and with an argument before those of the caller, which has no
/// quotes. It uses `exec`, so that the process id is that of the program.
pub(crate) fn starter(script: &Path, prefix: &Path, program: &Path, argument: Option<&str>) -> Result<()> {
    let folders = [prefix.join("usr/lib"), prefix.join("lib")];
    let mut libraries: Vec<String> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-linux-gnu")))
        .map(|path| path.display().to_string())
        .collect();
    // The sound server's library searches its private part only at the installed path.
    let private: Vec<String> = libraries.iter().map(|folder| format!("{folder}/pulseaudio")).collect();
    libraries.extend(private.into_iter().filter(|folder| Path::new(folder).is_dir()));
    if libraries.is_empty() {
        bail!("the packages of {} have no libraries", program.display());
    }
    let text = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH=\"{}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\" exec \"{}\"{} \"$@\"\n",
        libraries.join(":"),
        program.display(),
        argument.map_or_else(String::new, |argument| format!(" \"{argument}\""))
    );
    write_if_changed(script, text.as_bytes())?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).context("cannot make the script executable")
}

/// apt with lists and a cache of its own.
pub(crate) struct Apt<'a> {
    house: &'a House,
    folder: PathBuf,
    options: Vec<String>,
}

impl<'a> Apt<'a> {
    /// `source` (mirror, suite, component) replaces the machine's own sources.
    pub(crate) fn new(house: &'a House, folder: &Path, source: Option<&str>) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let mut options = vec![
            format!("Dir::State::Lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
            // As root, apt would switch to a user without write permission here.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        if let Some(source) = source {
            let list = folder.join("sources.list");
            let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
            write_if_changed(&list, format!("deb {signed}{source}\n").as_bytes())?;
            options.push(format!("Dir::Etc::SourceList={}", list.display()));
            options.push("Dir::Etc::SourceParts=-".to_owned());
        }
        Ok(Self { house, folder: folder.to_path_buf(), options })
    }

    /// A program of this machine, in the folder of the workspace.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        sh::program(self.house, program)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = sh::program(self.house, name);
        command.current_dir(&self.folder);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    pub(crate) fn update(&self, step: &mut Step) -> Result<()> {
        sh::check(step, self.command("apt-get").arg("update")).map(drop)
    }

    pub(crate) fn fetch(&self, step: &mut Step, names: &[String]) -> Result<()> {
        sh::check(step, self.command("apt-get").arg("download").args(names)).map(drop)
    }

    /// The versions of the fetched packages.
    pub(crate) fn versions(&self) -> Result<Vec<(String, String)>> {
        let entries = fs::read_dir(&self.folder).with_context(|| format!("cannot read {}", self.folder.display()))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let packages = names.filter_map(|name| Some(name.strip_suffix(".deb")?.to_owned()));
        let parts = packages.filter_map(|name| {
            let mut parts = name.split('_');
            Some((parts.next()?.to_owned(), parts.next()?.replace("%3a", ":")))
        });
        Ok(parts.collect())
    }

    /// Unpacks the fetched packages, and removes them.
    pub(crate) fn unpack(&self, step: &mut Step, prefix: &Path) -> Result<()> {
        for entry in fs::read_dir(&self.folder).with_context(|| format!("cannot read {}", self.folder.display()))? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                step.show_progress(&format!("unpacks {}", package.file_name().unwrap_or_default().to_string_lossy()));
                sh::check(
                    step,
                    sh::program(self.house, "sh").args(["-c", UNPACK, "unpack"]).arg(&package).arg(prefix),
                )?;
            }
        }
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    /// The dependencies of a package, without the C library.
    pub(crate) fn dependencies(&self, of: &str) -> Result<Vec<String>> {
        let output = sh::stdout_of(self.command("apt-cache").args(["depends", of]))?;
        let named = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(named.filter(|name| !name.starts_with('<') && *name != "libc6").map(str::to_owned).collect())
    }

    /// The dependencies of a package, recursively.
    pub(crate) fn all_dependencies(&self, of: &str) -> Result<Vec<String>> {
        let only = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
        let mut list = self.command("apt-cache");
        list.args(["depends", "--recurse"]).args(only.map(|kind| format!("--no-{kind}"))).arg(of);
        let output = sh::stdout_of(&mut list)?;
        let names = output.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()));
        Ok(names.filter(|name| *name != of && !name.contains(':')).map(str::to_owned).collect())
    }

    /// The libraries that packages depend on and that this machine does not have.
    pub(crate) fn missing_libraries(&self, of: &[&str]) -> Result<Vec<String>> {
        let strong =
            ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"];
        let output =
            sh::stdout_of(self.command("apt-cache").arg("depends").args(strong).arg("--no-enhances").args(of))?;
        let status = ["--show", "--showformat", "${Package} ${db:Status-Status}\\n"];
        let installed = sh::stdout_of(sh::program(self.house, "dpkg-query").args(status).arg("lib*"))?;
        let installed: BTreeSet<&str> = installed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
        // The replacement of systemd is another name for a library that is listed anyway.
        let is_missing =
            |name: &&str| name.starts_with("lib") && !name.starts_with("libelogind") && !installed.contains(name);
        let names: BTreeSet<&str> = output.lines().filter(is_missing).collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    /// The dependency of `of` whose name begins with `prefix`.
    pub(crate) fn dependency(&self, of: &str, prefix: &str) -> Result<String> {
        let output = sh::stdout_of(self.command("apt-cache").args(["depends", of]))?;
        output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("Debian's {of} depends on no {prefix}* here"))
    }
}
