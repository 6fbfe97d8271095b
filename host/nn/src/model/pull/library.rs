//! ONNX Runtime's shared library, extracted from its wheel: nothing else of the wheel is unpacked, and none of its code is run.

use std::path::{Path, PathBuf};

use super::source::{MODEL_BYTES_MAX, Progress, PullError, copy_bounded, disk, is_inside};
use super::wheel;
use crate::onnxruntime::{best_in, probe};

/// The version that [`pull_onnxruntime`] fetches; the tests run with the same one.
pub const ONNXRUNTIME_VERSION: &str = "1.31.1";

/// pip's requirement, with the hashes of the wheels for CPython 3.11 to 3.14 on x86_64 and aarch64 Linux; the same lines are in
/// `tests/python-requirements.txt`.
const REQUIREMENT: &str = include_str!("onnxruntime.txt");

/// The folder of the library in the wheel.
const FOLDER: &str = "onnxruntime/capi/";

/// Installs ONNX Runtime's shared library in `folder` (see [`library_folders`](crate::library_folders)) and returns its path. A file
/// of the same name is replaced.
///
/// Without `from` pip fetches the wheel of [`ONNXRUNTIME_VERSION`] and checks its hash. `from` is a library, a wheel, or a folder with
/// either.
///
/// The library is loaded to check that it is usable; in a process that has loaded another one already, it is not checked.
///
/// # Errors
/// When there is no such wheel or library, it is unusable, or the disk fails. The folder is unchanged then.
pub fn pull_onnxruntime(
    from: Option<&Path>,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, PullError> {
    std::fs::create_dir_all(folder).map_err(disk(folder))?;
    let work = tempfile::Builder::new().prefix(".pull-").tempdir_in(folder).map_err(disk(folder))?;
    let origin = match from {
        Some(path) => path.display().to_string(),
        None => format!("pypi:onnxruntime=={ONNXRUNTIME_VERSION}"),
    };
    let source = match from {
        Some(path) => find(path).ok_or_else(|| PullError::NotFound {
            origin: origin.clone(),
            reason: "there is no libonnxruntime.so and no wheel of onnxruntime".to_owned(),
        })?,
        None => {
            progress(Progress::Step(format!("asking pip for {origin}")));
            let requirement = work.path().join("requirement.txt");
            std::fs::write(&requirement, REQUIREMENT).map_err(disk(&requirement))?;
            let arguments = ["--require-hashes".as_ref(), "--requirement".as_ref(), requirement.as_os_str()];
            wheel::download(&origin, &arguments, None, &work.path().join("wheel"))?
        }
    };
    let is_wheel = source.extension().is_some_and(|extension| extension == "whl");
    let entry = if is_wheel { library_of(&origin, &source)? } else { file_name(&source) };
    let name = entry.strip_prefix(FOLDER).unwrap_or(&entry);
    let fetched = work.path().join(name);
    let mut advance = |bytes| progress(Progress::File { name: name.to_owned(), bytes, bytes_total: None });
    if is_wheel {
        wheel::copy_entry(&origin, &source, &entry, &fetched, MODEL_BYTES_MAX, &mut advance)?;
    } else {
        let file = std::fs::File::open(&source).map_err(disk(&source))?;
        copy_bounded(&|| origin.clone(), &entry, file, &fetched, MODEL_BYTES_MAX, &mut advance)?;
    }
    probe(&fetched).map_err(|reason| {
        let reason = reason.replace(&fetched.display().to_string(), name);
        PullError::Refused { origin: origin.clone(), reason }
    })?;
    let dest = folder.join(name);
    std::fs::rename(&fetched, &dest).map_err(disk(&dest))?;
    Ok(dest)
}

/// The library or wheel at a path, or in the folder at that path.
fn find(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    let entries = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    let is_wheel = |path: &PathBuf| {
        let name = file_name(path);
        name.starts_with("onnxruntime-") && name.ends_with(".whl") && path.is_file()
    };
    best_in(path).or_else(|| entries.filter(is_wheel).max())
}

/// The entry of a wheel that is the library.
fn library_of(origin: &str, file: &Path) -> Result<String, PullError> {
    let entries = wheel::entries(origin, file)?;
    let is_library = |entry: &&String| {
        let name = entry.strip_prefix(FOLDER).unwrap_or_default();
        name.starts_with("libonnxruntime.so") && !name.contains('/') && is_inside(name)
    };
    entries.iter().find(is_library).cloned().ok_or_else(|| PullError::NotFound {
        origin: origin.to_owned(),
        reason: format!("the wheel has no {FOLDER}libonnxruntime.so"),
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn wheel_version_equals_that_of_the_tests() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let requirements = std::fs::read_to_string(root.join("tests/python-requirements.txt")).unwrap();
        assert!(requirements.contains(REQUIREMENT), "copy the lines of onnxruntime from there into onnxruntime.txt");
        assert!(REQUIREMENT.starts_with(&format!("onnxruntime=={ONNXRUNTIME_VERSION} ")));
    }

    #[test]
    fn invalid_library_leaves_no_files() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("to");
        let check = |from: PathBuf, expected: Expect| {
            let error = pull_onnxruntime(Some(&from), &folder, &mut |_| {}).unwrap_err().to_string();
            let error = error.replace(&root.path().display().to_string(), "DIR");
            // The messages of the system's loader and of Python are not compared.
            let shown =
                error.split_once("cannot be ").map_or(error.clone(), |(start, _)| format!("{start}cannot be …"));
            expected.assert_eq(&shown);
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        };
        let from = root.path().join("from");
        check(from.clone(), expect!["DIR/from: there is no libonnxruntime.so and no wheel of onnxruntime"]);
        std::fs::create_dir(&from).unwrap();
        check(from.clone(), expect!["DIR/from: there is no libonnxruntime.so and no wheel of onnxruntime"]);
        std::fs::write(from.join("onnxruntime-1.0-py3-none-any.whl"), b"not a zip").unwrap();
        check(from.clone(), expect!["DIR/from: the wheel cannot be …"]);
        std::fs::write(from.join("libonnxruntime.so.1"), b"").unwrap();
        check(from.clone(), expect!["DIR/from: libonnxruntime.so.1 cannot be …"]);
    }
}
