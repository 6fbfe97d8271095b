//! Projects of npm in the repository: copied below target with what they refer to, where their pinned packages are installed. The
//! repository itself gets no `node_modules`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::files::{Key, Stamp, copy_if_changed};
use crate::house::House;
use crate::sh;
use crate::ui::{Step, finish};

/// Folders that npm and the projects' builds generate.
const GENERATED: [&str; 2] = ["node_modules", "dist"];

/// A copy of a project, with its packages.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) folder: PathBuf,
}

impl Project {
    /// Copies a project, by its path in the repository, and installs the packages of its `package-lock.json` unless they are there.
    pub(crate) fn ensure(house: &House, path: &str) -> Result<Self> {
        // Projects refer to each other by relative paths, so the copies lie as in the repository.
        let folder = house.keep().join("web").join(path);
        mirror(&house.root.join(path), &folder)?;
        let lock = folder.join("package-lock.json");
        let stamp = Stamp::new(house, &format!("npm-{}", path.replace('/', "-")), Key::default().file(&lock)?);
        if stamp.fresh() && folder.join("node_modules").is_dir() {
            return Ok(Self { folder });
        }
        let mut step = Step::begin("npm", &format!("installs the packages of {path} under target"));
        let mut npm = sh::program(house, "npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder);
        let installed = sh::check(&mut step, &mut npm).and_then(|_| stamp.set()).map(|()| path.to_owned());
        finish(step, installed)?;
        Ok(Self { folder })
    }

    /// `node` in the folder of the project.
    pub(crate) fn node(&self, house: &House) -> Command {
        let mut command = sh::program(house, "node");
        command.current_dir(&self.folder);
        command
    }

    /// A program of the project's packages.
    pub(crate) fn bin(&self, house: &House, name: &str) -> Command {
        let mut command = sh::program(house, self.folder.join("node_modules/.bin").join(name));
        command.current_dir(&self.folder);
        command
    }

    /// A script of `package.json`.
    pub(crate) fn script(&self, house: &House, name: &str) -> Command {
        let mut command = sh::program(house, "npm");
        command.args(["run", "--silent", name]).current_dir(&self.folder);
        command
    }
}

/// Makes a folder equal to another, except for generated folders.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let list = |folder: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        Ok(paths.into_iter().filter(|path| !GENERATED.iter().any(|name| path.ends_with(name))).collect())
    };
    for path in list(to)? {
        let original = path.file_name().map(|name| from.join(name));
        if original.is_some_and(|original| original.is_dir() == path.is_dir() && original.exists()) {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    for path in list(from)? {
        let Some(name) = path.file_name() else { continue };
        match path.is_dir() {
            true => mirror(&path, &to.join(name))?,
            false => drop(copy_if_changed(&path, &to.join(name))?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_copies_source_files_and_keeps_generated_folders() {
        let root = std::env::temp_dir().join(format!("weir-xtask-mirror-{}", std::process::id()));
        let (from, to) = (root.join("from"), root.join("to"));
        for (path, content) in [("a", "1"), ("src/b", "2"), ("node_modules/x", "not copied")] {
            fs::create_dir_all(from.join(path).parent().unwrap()).unwrap();
            fs::write(from.join(path), content).unwrap();
        }
        for (path, content) in [("old", "0"), ("src/old/c", "0"), ("node_modules/y", "kept")] {
            fs::create_dir_all(to.join(path).parent().unwrap()).unwrap();
            fs::write(to.join(path), content).unwrap();
        }
        mirror(&from, &to).unwrap();
        let has = |path: &str| to.join(path).exists();
        assert!(has("a") && has("src/b") && has("node_modules/y"));
        assert!(!has("old") && !has("src/old") && !has("node_modules/x"));
        fs::remove_dir_all(root).unwrap();
    }
}
