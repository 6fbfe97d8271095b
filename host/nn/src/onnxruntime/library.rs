//! Finds and loads ONNX Runtime's shared library, once per process, when a graph first needs it.
//!
//! The first library in this order is used; if it is unusable, that is an error, and the search does not continue:
//!
//! 1. the path of the registry's configuration, else of `WEIR_ONNXRUNTIME`, else of `ORT_DYLIB_PATH`: a file, or a folder with it,
//! 2. [`library_folders`], into the first of which `weir models engine onnxruntime` installs it,
//! 3. the search path of the system's loader.

use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::environment::{Environment, EnvironmentBuilder};
use ort::logging::LogLevel;

use crate::error::{LoadError, one_line};

const FILE: &str = "libonnxruntime.so";

/// The environment variables that name the library.
const VARIABLES: [&str; 2] = ["WEIR_ONNXRUNTIME", "ORT_DYLIB_PATH"];

const SYSTEM: &[&str] = &[FILE, "libonnxruntime.so.1"];

const REMEDY: &str = "`weir models engine onnxruntime` fetches it, or WEIR_ONNXRUNTIME names it";

/// The folders that are searched for the library: the user's own (`$XDG_DATA_HOME/weir/onnxruntime`, by default
/// `~/.local/share/weir/onnxruntime`), then `onnxruntime` beside the program.
pub fn library_folders() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join("onnxruntime")));
    data.map(|data| data.join("weir/onnxruntime")).into_iter().chain(beside).collect()
}

/// The environment of this process, created at the first call.
pub(super) fn environment(configured: Option<&Path>) -> Result<Environment, LoadError> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
    let mut cached = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*cached {
        return Ok(environment.clone());
    }
    let failed = |reason: String| LoadError::NoEngine { engine: "onnxruntime", reason };
    let (builder, path) = SearchPath::of_process(configured).open().map_err(failed)?;
    let built = catch_unwind(AssertUnwindSafe(|| builder.with_telemetry(false).with_logger(Arc::new(log)).build()));
    let unfit = |what: &str| failed(format!("{}: {what}", path.display()));
    let environment = built.map_err(|_| unfit("it cannot be started"))?.map_err(|e| unfit(&one_line(e.message())))?;
    environment.set_log_level(LogLevel::Warning);
    tracing::info!(library = %path.display(), build = one_line(ort::info()), "ONNX Runtime loaded");
    *cached = Some(environment.clone());
    Ok(environment)
}

/// Whether there is a library where it is searched for, usable or not.
#[cfg(feature = "cuda")]
pub(crate) fn is_present(configured: Option<&Path>) -> bool {
    SearchPath::of_process(configured).is_found()
}

/// Checks that a file is a usable library. The process uses this library from then on.
pub(crate) fn probe(path: &Path) -> Result<(), String> {
    open(path).map(|_| ())
}

/// Forwards ONNX Runtime's log. Its errors are logged as debug because they are also returned to the caller.
fn log(level: LogLevel, category: &str, _id: &str, place: &str, message: &str) {
    match level {
        LogLevel::Fatal => tracing::error!(target: "onnxruntime", category, place, message),
        LogLevel::Error | LogLevel::Warning => tracing::debug!(target: "onnxruntime", category, place, message),
        LogLevel::Info | LogLevel::Verbose => tracing::trace!(target: "onnxruntime", category, place, message),
    }
}

/// The locations that are searched for the library.
struct SearchPath {
    /// The configured path, and the setting or variable that has it.
    named: Option<(&'static str, PathBuf)>,
    folders: Vec<PathBuf>,
    /// File names for the system's loader.
    system: &'static [&'static str],
}

impl SearchPath {
    fn of_process(configured: Option<&Path>) -> Self {
        let variable = |name: &'static str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
            Some((name, PathBuf::from(value)))
        };
        let named = configured.map(|path| ("the configuration", path.to_owned()));
        let named = named.or_else(|| VARIABLES.into_iter().find_map(variable));
        Self { named, folders: library_folders(), system: SYSTEM }
    }

    /// Whether a library is named, or found.
    #[cfg(any(test, feature = "cuda"))]
    fn is_found(&self) -> bool {
        let is_in_system = |name: &&str| {
            // SAFETY: the code that runs when it is loaded is that of ONNX Runtime, which has no requirements. It stays loaded for `open`.
            unsafe { libloading::Library::new(*name) }.map(std::mem::ManuallyDrop::new).is_ok()
        };
        self.named.is_some()
            || self.folders.iter().any(|folder| best_in(folder).is_some())
            || self.system.iter().any(is_in_system)
    }

    /// Loads the library; the text of an error has the remedy.
    fn open(&self) -> Result<(EnvironmentBuilder, PathBuf), String> {
        if let Some((name, path)) = &self.named {
            let found = if path.is_dir() { best_in(path) } else { Some(path.clone()).filter(|path| path.is_file()) };
            let found = found.ok_or_else(|| format!("{name} names {}, where there is no {FILE}", path.display()))?;
            return Ok((open(&found)?, found));
        }
        if let Some(found) = self.folders.iter().find_map(|folder| best_in(folder)) {
            return Ok((open(&found)?, found));
        }
        for name in self.system {
            match dlopen(Path::new(name)) {
                Ok(builder) => return Ok((builder, PathBuf::from(name))),
                Err(LibraryFault::NotLoaded(_)) => {}
                Err(LibraryFault::Other(reason)) => return Err(format!("{name} of this system {reason}; {REMEDY}")),
            }
        }
        Err(format!("there is no {FILE} on this machine: {REMEDY}"))
    }
}

/// The library of the highest version in a folder: `libonnxruntime.so.1.31.1` before `libonnxruntime.so`.
pub(crate) fn best_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let version = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_prefix(FILE)?;
        let numbers: Result<Vec<u32>, _> = version.split('.').skip(1).map(str::parse).collect();
        let is_one = version.is_empty() || version.starts_with('.');
        (is_one && entry.path().is_file()).then_some((numbers.ok()?, entry.path()))
    };
    entries.filter_map(version).max().map(|(_, path)| path)
}

fn open(path: &Path) -> Result<EnvironmentBuilder, String> {
    // A relative path would be resolved against the program's folder.
    let path = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    dlopen(&path).map_err(|unfit| {
        let (LibraryFault::NotLoaded(reason) | LibraryFault::Other(reason)) = unfit;
        format!("{} {reason}; {REMEDY}", path.display())
    })
}

enum LibraryFault {
    /// The system's loader found no file, or the file is not a library.
    NotLoaded(String),
    Other(String),
}

fn dlopen(path: &Path) -> Result<EnvironmentBuilder, LibraryFault> {
    // `init_from` panics on libraries that are malformed in unusual ways.
    let opened = catch_unwind(AssertUnwindSafe(|| ort::init_from(path)));
    let opened = opened.map_err(|_| LibraryFault::Other("is not fit to be ONNX Runtime".to_owned()))?;
    opened.map_err(|error| match error {
        LoadDynamicError::Dlopen { error, .. } => {
            // The reason is in its source.
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            LibraryFault::NotLoaded(format!("cannot be loaded: {}", one_line(&reason)))
        }
        LoadDynamicError::MissingApi { .. } | LoadDynamicError::InvalidVersionString => {
            LibraryFault::Other("is not ONNX Runtime".to_owned())
        }
        LoadDynamicError::BadVersion { version_str, .. } => LibraryFault::Other(format!(
            "is ONNX Runtime {version_str}, but 1.{} or later is needed",
            ort::MINOR_VERSION
        )),
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(search_path: &SearchPath, folder: &Path, expected: &Expect) {
        let error = search_path.open().map(|(_, path)| path).unwrap_err();
        // The message of the system's loader is not compared.
        let error = error.replace(&folder.display().to_string(), "DIR");
        let shown = match error.split_once("cannot be loaded: ") {
            Some((start, end)) => format!("{start}cannot be loaded: …{}", &end[end.rfind(';').unwrap()..]),
            None => error,
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn missing_or_invalid_library_is_an_error_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let named =
            |path: PathBuf| SearchPath { named: Some(("WEIR_ONNXRUNTIME", path)), folders: vec![], system: &[] };
        let in_folder =
            || SearchPath { named: None, folders: vec![folder.join("none"), folder.to_owned()], system: &[] };
        check(
            &SearchPath { system: &["libweir-is-nowhere.so"], ..in_folder() },
            folder,
            &expect![
                "there is no libonnxruntime.so on this machine: `weir models engine onnxruntime` fetches it, or WEIR_ONNXRUNTIME names it"
            ],
        );
        check(
            &named(folder.join("absent.so")),
            folder,
            &expect!["WEIR_ONNXRUNTIME names DIR/absent.so, where there is no libonnxruntime.so"],
        );
        check(
            &named(folder.to_owned()),
            folder,
            &expect!["WEIR_ONNXRUNTIME names DIR, where there is no libonnxruntime.so"],
        );
        assert!(named(folder.to_owned()).is_found() && !in_folder().is_found());
        assert!(SearchPath { system: &["libc.so.6"], ..in_folder() }.is_found());
        // Another library: every system has the C library.
        check(
            &SearchPath { system: &["libc.so.6"], ..in_folder() },
            folder,
            &expect![
                "libc.so.6 of this system is not ONNX Runtime; `weir models engine onnxruntime` fetches it, or WEIR_ONNXRUNTIME names it"
            ],
        );
        let empty = folder.join("libonnxruntime.so.1.31.1");
        let expected = expect![
            "DIR/libonnxruntime.so.1.31.1 cannot be loaded: …; `weir models engine onnxruntime` fetches it, or WEIR_ONNXRUNTIME names it"
        ];
        std::fs::write(&empty, b"").unwrap();
        check(&named(empty.clone()), folder, &expected);
        check(&named(folder.to_owned()), folder, &expected);
        std::fs::write(&empty, [b"\x7fELF".as_slice(), &[2; 4096]].concat()).unwrap();
        check(&in_folder(), folder, &expected);
        assert!(in_folder().is_found());
    }

    #[test]
    fn highest_version_is_selected() {
        let dir = tempfile::tempdir().unwrap();
        let check = |expected: Option<&str>| {
            assert_eq!(best_in(dir.path()), expected.map(|name| dir.path().join(name)));
        };
        check(None);
        for (name, best) in [
            ("libonnxruntime.so.old", None),
            ("libonnxruntime_providers_shared.so", None),
            ("libonnxruntime.so", Some("libonnxruntime.so")),
            ("libonnxruntime.so.1.9.2", Some("libonnxruntime.so.1.9.2")),
            ("libonnxruntime.so.1.31.1", Some("libonnxruntime.so.1.31.1")),
            ("libonnxruntime.so.1.4", Some("libonnxruntime.so.1.31.1")),
        ] {
            std::fs::write(dir.path().join(name), b"").unwrap();
            check(best);
        }
    }
}
