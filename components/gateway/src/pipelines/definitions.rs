//! The operator's pipelines: a read-only folder with a file `NAME.json` for each. Looked at again once a second; a file that changes
//! is read again, and an execution goes on with the definition that it began with.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use weir_codec::pipeline::{
    definition::{self, DEFINITION_BYTES_MAX},
    route::is_name,
};
use weir_core::pipeline::Definition;

use crate::clock;

/// How long what was read is not looked at again.
const RELOAD_NS: u64 = 1_000_000_000;
/// Most pipelines; other files of the folder are passed over.
const PIPELINES_MAX: usize = 1000;

/// The pipelines as they were when they were last looked at.
pub(super) struct Definitions {
    dir: PathBuf,
    looked_ns: Cell<Option<u64>>,
    known: RefCell<BTreeMap<String, Known>>,
}

struct Known {
    stamp: (SystemTime, u64),
    definition: Result<Arc<Definition>, ()>,
}

impl Definitions {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), looked_ns: Cell::new(None), known: RefCell::default() }
    }

    /// A pipeline; an error when its file cannot be understood, which the log says more about.
    pub(super) fn find(&self, name: &str) -> Option<Result<Arc<Definition>, ()>> {
        self.look();
        self.known.borrow().get(name).map(|known| known.definition.clone())
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> Vec<(String, Option<Arc<Definition>>)> {
        self.look();
        let known = self.known.borrow();
        known.iter().map(|(name, known)| (name.clone(), known.definition.clone().ok())).collect()
    }

    fn look(&self) {
        let now_ns = clock::now().monotonic_ns;
        if self.looked_ns.get().is_some_and(|looked_ns| now_ns.saturating_sub(looked_ns) < RELOAD_NS) {
            return;
        }
        self.looked_ns.set(Some(now_ns));
        let mut before = self.known.take();
        let mut now = BTreeMap::new();
        // No folder is no pipelines.
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let (path, file) = (entry.path(), entry.file_name());
            let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".json")) else { continue };
            if !is_name(name) || now.len() == PIPELINES_MAX {
                continue;
            }
            let Some(stamp) = fs::metadata(&path).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len())))
            else {
                continue;
            };
            let known = before.remove(name).filter(|known| known.stamp == stamp);
            let known = known.unwrap_or_else(|| {
                let definition = read(&path, name, stamp.1).map(Arc::new);
                Known {
                    stamp,
                    definition: definition.map_err(|error| eprintln!("warn: the pipeline `{name}`: {error}")),
                }
            });
            now.insert(name.to_owned(), known);
        }
        self.known.replace(now);
    }
}

fn read(path: &Path, name: &str, bytes: u64) -> Result<Definition, String> {
    if bytes > DEFINITION_BYTES_MAX as u64 {
        return Err(format!("its file has {bytes} bytes, and may have {DEFINITION_BYTES_MAX}"));
    }
    let contents = fs::read(path).map_err(|error| error.to_string())?;
    let definition = definition::read(&contents).map_err(|error| error.to_string())?;
    match definition.name() == name {
        true => Ok(definition),
        false => Err(format!("its name in the file is `{}`", definition.name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_definition_of_its_name() {
        let path = std::env::temp_dir().join(format!("weir-definition-{}.json", std::process::id()));
        let check = |contents: &str, name: &str| {
            fs::write(&path, contents).unwrap();
            read(&path, name, contents.len() as u64).map(|definition| definition.name().to_owned())
        };
        let good = r#"{"name": "p", "steps": [{"id": "a", "kind": "map", "expression": "@"}]}"#;
        assert_eq!(check(good, "p"), Ok("p".to_owned()));
        assert!(check(good, "q").unwrap_err().contains("`p`"));
        assert!(check("{", "p").is_err());
        assert!(read(&path, "p", u64::MAX).unwrap_err().contains("bytes"));
        fs::remove_file(&path).unwrap();
    }
}
