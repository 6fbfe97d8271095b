//! Removes the files of a failed start.

use std::path::{Path, PathBuf};

use weir_config::{Events, EventsStore};

/// The files of the channel store that did not exist before the start, and their missing parent folders.
#[derive(Debug)]
pub(crate) struct NewFiles {
    /// Files first, then folders from the innermost.
    paths: Vec<PathBuf>,
}

impl NewFiles {
    /// Records which files and folders do not exist yet.
    pub(crate) fn of(events: &Events) -> Self {
        let store = (events.store == EventsStore::Disk).then_some(&events.path);
        let files = store.into_iter().chain([&events.file]).filter(|path| !path.as_os_str().is_empty());
        let mut paths = Vec::new();
        let mut folders = Vec::new();
        for file in files.filter(|file| !file.exists()) {
            paths.push(file.clone());
            let around = file.ancestors().skip(1).take_while(|folder| !folder.as_os_str().is_empty());
            folders.extend(around.take_while(|folder| !folder.exists()).map(Path::to_path_buf));
        }
        paths.extend(folders);
        Self { paths }
    }

    /// Removes the files and folders that were created since. A folder with other files stays.
    pub(crate) fn remove(self) {
        for path in self.paths {
            let removed = if path.is_dir() { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a file of the failed start cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_files_are_removed_and_others_stay() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (old, new) = (dir.path().join("old"), dir.path().join("a/b/new"));
        std::fs::write(&old, "kept")?;
        let events = Events { store: EventsStore::Disk, path: new.clone(), file: old.clone(), ..Events::default() };
        let files = NewFiles::of(&events);
        std::fs::create_dir_all(dir.path().join("a/b"))?;
        std::fs::write(&new, "made")?;
        files.remove();
        assert!(old.exists() && !dir.path().join("a").exists());

        let files = NewFiles::of(&events);
        std::fs::create_dir_all(dir.path().join("a/b"))?;
        std::fs::write(dir.path().join("a/other"), "other")?;
        files.remove();
        assert!(dir.path().join("a/other").exists() && !dir.path().join("a/b").exists());
        Ok(())
    }

    #[test]
    fn store_in_memory_has_no_file() {
        assert!(NewFiles::of(&Events::default()).paths.is_empty());
    }
}
