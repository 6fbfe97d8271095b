//! Writes files only when their content changes, and records the inputs of finished steps in stamps.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::house::House;

/// Writes `content` unless the file has it already; returns whether it was written. A newer date alone would make cargo rebuild
/// everything that depends on the file.
pub(crate) fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // A rename is atomic: a concurrent reader sees the old file or the new one.
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, content).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

/// Copies a file with [`write_if_changed`].
pub(crate) fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write_if_changed(to, &content)
}

/// Copies a folder recursively, each file with [`copy_if_changed`]. Links are followed: the copy has only files.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    // Writing through a link would change the source.
    if to.is_symlink() {
        fs::remove_file(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            if target.is_symlink() {
                fs::remove_file(&target).with_context(|| format!("cannot remove {}", target.display()))?;
            }
            copy_if_changed(&path, &target)?;
        }
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The first file on the PATH that has one of these names.
pub(crate) fn on_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let files = std::env::split_paths(&path).flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    files.into_iter().find(|file| file.is_file())
}

/// The hash of a set of strings and files, for a [`Stamp`].
#[derive(Clone, Default)]
pub(crate) struct Key(Sha256);

impl Key {
    pub(crate) fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
        self
    }

    pub(crate) fn file(mut self, path: &Path) -> Result<Self> {
        let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        self.0.update(hash.finalize());
        Ok(self)
    }

    /// Every file of a folder, with its path in it.
    pub(crate) fn tree(self, folder: &Path) -> Result<Self> {
        let (mut folders, mut files) = (vec![folder.to_path_buf()], Vec::new());
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))? {
                let path = entry?.path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files.iter().try_fold(self, |key, file| {
            let name = file.strip_prefix(folder).unwrap_or(file).to_string_lossy();
            key.text(&name).file(file)
        })
    }

    fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Records that a step was done for a given content.
pub(crate) struct Stamp {
    path: std::path::PathBuf,
    key: String,
}

impl Stamp {
    pub(crate) fn new(house: &House, step: &str, key: Key) -> Self {
        Self { path: house.keep().join(format!("{step}.stamp")), key: key.hex() }
    }

    /// Whether the step was done for this content.
    pub(crate) fn fresh(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|old| old == self.key)
    }

    /// Records that it was done.
    pub(crate) fn set(&self) -> Result<()> {
        write_if_changed(&self.path, self.key.as_bytes()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("weir-xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn file_is_written_only_when_its_content_changes() {
        let folder = scratch("write");
        let file = folder.join("deep").join("a.wasm");
        assert!(write_if_changed(&file, b"one").unwrap());
        let written = fs::metadata(&file).unwrap().modified().unwrap();
        assert!(!write_if_changed(&file, b"one").unwrap());
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);
        assert!(write_if_changed(&file, b"two").unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"two");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn copied_tree_has_files_in_place_of_links() {
        let folder = scratch("tree");
        let (from, to) = (folder.join("from"), folder.join("to"));
        fs::create_dir_all(from.join("deep")).unwrap();
        fs::write(folder.join("shared"), "weights").unwrap();
        std::os::unix::fs::symlink(folder.join("shared"), from.join("deep/link")).unwrap();
        // As an earlier build left it: a link to the whole folder.
        std::os::unix::fs::symlink(&from, &to).unwrap();
        copy_tree(&from, &to).unwrap();
        assert!(!to.is_symlink() && !to.join("deep/link").is_symlink());
        assert_eq!(fs::read_to_string(to.join("deep/link")).unwrap(), "weights");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn stamp_is_fresh_for_its_content_only() {
        let folder = scratch("stamp");
        let house = House { root: folder.clone(), target: folder.clone() };
        let input = folder.join("requirements.txt");
        fs::write(&input, "numpy").unwrap();
        let stamp = || Stamp::new(&house, "venv", Key::default().text("3.11").file(&input).unwrap());
        assert!(!stamp().fresh());
        stamp().set().unwrap();
        assert!(stamp().fresh());
        fs::write(&input, "numpy2").unwrap();
        assert!(!stamp().fresh());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn key_separates_its_parts() {
        let key = |a: &str, b: &str| Key::default().text(a).text(b).hex();
        assert_ne!(key("ab", "c"), key("a", "bc"));
    }
}
