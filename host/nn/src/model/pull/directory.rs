//! A model from another directory: all of its files, symbolic links replaced by their targets.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::source::{FILES_MAX, ModelSource, Progress, PullError, copy_bounded, disk, provenance};

/// The most levels of subdirectories.
const DEPTH_MAX: usize = 3;

pub(super) struct Directory {
    path: PathBuf,
    files: BTreeSet<String>,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, PullError> {
        let mut source = Self { path: path.to_owned(), files: BTreeSet::new() };
        source.collect(path, "", DEPTH_MAX)?;
        Ok(source)
    }

    fn collect(&mut self, folder: &Path, prefix: &str, depth_left: usize) -> Result<(), PullError> {
        for entry in std::fs::read_dir(folder).map_err(disk(folder))? {
            let entry = entry.map_err(disk(folder))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let metadata = std::fs::metadata(entry.path()).map_err(disk(&entry.path()))?;
            if hidden {
                continue;
            } else if metadata.is_dir() && depth_left > 0 {
                self.collect(&entry.path(), &format!("{name}/"), depth_left - 1)?;
            } else if metadata.is_file() {
                self.files.insert(name);
            }
            if self.files.len() > FILES_MAX {
                let reason = format!("it has more than {FILES_MAX} files");
                return Err(PullError::Refused { origin: self.origin(), reason });
            }
        }
        Ok(())
    }
}

impl ModelSource for Directory {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn files(&self) -> &BTreeSet<String> {
        &self.files
    }

    fn fetch(
        &mut self,
        name: &str,
        to: &Path,
        bytes_max: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64, PullError> {
        let from = self.path.join(name);
        let file = File::open(&from).map_err(disk(&from))?;
        let bytes_total = file.metadata().ok().map(|metadata| metadata.len());
        let mut advance = |bytes| progress(Progress::File { name: name.to_owned(), bytes, bytes_total });
        copy_bounded(&|| self.origin(), name, file, to, bytes_max, &mut advance)
    }

    fn provenance(&self) -> serde_json::Value {
        provenance("directory", &[])
    }

    fn whole(&self) -> bool {
        true
    }
}
