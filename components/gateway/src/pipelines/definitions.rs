//! The operator's pipelines: a read-only folder with a file `NAME.json` for each. The folder is inspected once a
//! second; a file that has changed is read again; an execution keeps the definition that it started with. An error in a
//! file is logged once, when the file is read, and is part of every response about the pipeline.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use weir_codec::pipelines::{
    definition::DEFINITION_BYTES_MAX,
    definition_file::{self, DefinitionFault},
    route::is_name,
    upload,
};
use weir_core::pipelines::{Definition, NAME_BYTES_MAX};

use crate::platform::clock;

/// The folder is inspected again after this time.
const RELOAD_NS: u64 = 1_000_000_000;
/// Maximum number of pipelines; further files of the folder are ignored.
const PIPELINES_MAX: usize = 1000;

/// The pipelines, as of the last inspection of the folder.
pub(super) struct Definitions {
    dir: PathBuf,
    reloaded_ns: Cell<Option<u64>>,
    known: RefCell<BTreeMap<String, CachedDefinition>>,
    /// The files whose names are not pipeline names.
    ignored: RefCell<BTreeSet<String>>,
}

struct CachedDefinition {
    stamp: (SystemTime, u64),
    definition: LoadResult,
}

/// A definition, or why its file cannot be used.
pub(super) type LoadResult = Result<Arc<Definition>, Rc<DefinitionFault>>;

/// The built-in pipeline, which runs uploads that name none.
pub(super) fn built_in(name: &str) -> Option<LoadResult> {
    let read = || definition_file::read(upload::DEFINITION.as_bytes(), upload::PIPELINE);
    (name == upload::PIPELINE).then(|| read().map(Arc::new).map_err(Rc::new))
}

impl Definitions {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            reloaded_ns: Cell::new(None),
            known: RefCell::default(),
            ignored: RefCell::default(),
        }
    }

    /// A pipeline, or why its file cannot be used.
    pub(super) fn find(&self, name: &str) -> Option<LoadResult> {
        self.reload();
        self.known.borrow().get(name).map(|known| known.definition.clone())
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> Vec<(String, LoadResult)> {
        self.reload();
        let known = self.known.borrow();
        known.iter().map(|(name, known)| (name.clone(), known.definition.clone())).collect()
    }

    /// Reads changed files, if the last inspection is long enough ago.
    pub(super) fn reload(&self) {
        let now_ns = clock::monotonic_ns();
        if self.reloaded_ns.get().is_some_and(|reloaded_ns| now_ns.saturating_sub(reloaded_ns) < RELOAD_NS) {
            return;
        }
        self.reloaded_ns.set(Some(now_ns));
        let mut before = self.known.take();
        let mut now = BTreeMap::new();
        // Without a folder there are no pipelines.
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let (path, file) = (entry.path(), entry.file_name());
            let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".json")) else { continue };
            if !is_name(name) || now.len() == PIPELINES_MAX {
                self.ignore(name);
                continue;
            }
            let Some(stamp) = fs::metadata(&path).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len())))
            else {
                continue;
            };
            let known = before.remove(name).filter(|known| known.stamp == stamp);
            let known = known.unwrap_or_else(|| {
                let definition = read(&path, name, stamp.1).map(Arc::new);
                let definition = definition.map_err(|fault| {
                    eprintln!("warn: pipelines.dir: {name}.json is not a pipeline that can be started: {fault}");
                    Rc::new(fault)
                });
                CachedDefinition { stamp, definition }
            });
            now.insert(name.to_owned(), known);
        }
        self.known.replace(now);
    }

    /// Logs once that a file is not read.
    fn ignore(&self, name: &str) {
        let mut ignored = self.ignored.borrow_mut();
        if ignored.len() < PIPELINES_MAX && ignored.insert(name.to_owned()) {
            let reason = if is_name(name) {
                format!("there are more than {PIPELINES_MAX} pipelines")
            } else {
                format!("a name has 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 _ - and, except at its start, `.`")
            };
            eprintln!("warn: pipelines.dir: `{}.json` is not read: {reason}", name.escape_debug());
        }
    }
}

fn read(path: &Path, name: &str, bytes: u64) -> Result<Definition, DefinitionFault> {
    if bytes > DEFINITION_BYTES_MAX as u64 {
        return Err(definition_file::too_large(bytes));
    }
    let contents = fs::read(path).map_err(|error| format!("the file cannot be read: {error}"))?;
    definition_file::read(&contents, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_with_another_name_or_no_definition_is_a_fault() {
        let path = std::env::temp_dir().join(format!("weir-definition-{}.json", std::process::id()));
        let check = |contents: &str, name: &str| {
            fs::write(&path, contents).unwrap();
            read(&path, name, contents.len() as u64)
                .map(|definition| definition.name().to_owned())
                .map_err(|fault| fault.to_string())
        };
        let good = r#"{"name": "p", "steps": [{"id": "a", "kind": "map", "expression": "@"}]}"#;
        assert_eq!(check(good, "p"), Ok("p".to_owned()));
        assert!(check(good, "q").unwrap_err().contains("`p`"));
        assert!(check("{", "p").is_err());
        assert!(read(&path, "p", u64::MAX).unwrap_err().detail.contains("bytes"));
        fs::remove_file(&path).unwrap();
    }
}
