//! `weir pipelines check`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use weir_codec::pipelines::definition::DEFINITION_BYTES_MAX;
use weir_codec::pipelines::definition_file::{self, DefinitionFault};
use weir_codec::pipelines::route::is_name;
use weir_core::wording::counted;

pub(super) fn check(paths: &[PathBuf], json: bool) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let mut code = ExitCode::SUCCESS;
    for file in files(paths)? {
        let result = check_file(&file)?;
        if result.is_err() {
            code = ExitCode::FAILURE;
        }
        match json {
            true => writeln!(out, "{}", as_json(&file, &result))?,
            false => writeln!(out, "{}: {}", file.display(), as_text(&result))?,
        }
    }
    Ok(code)
}

/// The given files, and the `.json` files of the given folders, sorted by name.
fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = path.read_dir().with_context(|| format!("{} cannot be read", path.display()))?;
        let mut found = Vec::new();
        for entry in entries {
            let file = entry.with_context(|| format!("{} cannot be read", path.display()))?.path();
            if file.extension().is_some_and(|extension| extension == "json") {
                found.push(file);
            }
        }
        if found.is_empty() {
            bail!("{} has no `.json` files", path.display());
        }
        found.sort();
        files.append(&mut found);
    }
    Ok(files)
}

/// The number of steps of a definition, or why it is invalid.
fn check_file(file: &Path) -> anyhow::Result<Result<usize, DefinitionFault>> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    if !is_name(&name) {
        let fault = format!("`{name}` is not a name of a pipeline; use letters, digits, `_` and `-`");
        return Ok(Err(fault.into()));
    }
    let bytes = file.metadata().with_context(|| format!("{} cannot be read", file.display()))?.len();
    if bytes > DEFINITION_BYTES_MAX as u64 {
        return Ok(Err(definition_file::too_large(bytes)));
    }
    let contents = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(definition_file::read(&contents, &name).map(|definition| definition.steps().len()))
}

fn as_text(result: &Result<usize, DefinitionFault>) -> String {
    match result {
        Ok(steps) => format!("valid, {}", counted(*steps, "step")),
        Err(fault) => format!("invalid: {fault}"),
    }
}

fn as_json(file: &Path, result: &Result<usize, DefinitionFault>) -> Value {
    let file = file.display().to_string();
    match result {
        Ok(steps) => json!({ "file": file, "valid": true, "steps": steps }),
        Err(fault) => {
            let mut value = json!({ "file": file, "valid": false, "error": fault.detail });
            if !fault.errors.is_empty() {
                value["errors"] = json!(fault.errors);
            }
            if let Some((line, column)) = fault.position {
                (value["line"], value["column"]) = (json!(line), json!(column));
            }
            value
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_of_a_folder_are_checked_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let step = r#"{"id": "a", "kind": "map", "expression": "@"}"#;
        write("good.json", &format!(r#"{{"name": "good", "steps": [{step}]}}"#));
        write("bad.json", r#"{"name": "bad", "steps": [{"id": "a", "kind": "mop"}], "step": 1}"#);
        write("torn.json", "{\n  \"name\": ");
        write("no name.json", "{}");
        write("notes.txt", "");
        let files = files(&[folder.path().to_owned()]).unwrap();
        let results: Vec<_> = files.iter().map(|file| check_file(file).unwrap()).collect();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["bad.json", "good.json", "no name.json", "torn.json"]);
        assert_eq!(as_text(&results[1]), "valid, 1 step");
        assert!(as_text(&results[0]).contains("steps[0].kind"), "{}", as_text(&results[0]));
        let bad = as_json(&files[0], &results[0]);
        assert_eq!((bad["valid"].as_bool(), bad["errors"].as_array().unwrap().len()), (Some(false), 2));
        assert!(as_text(&results[2]).contains("`no name` is not a name"));
        assert_eq!(as_json(&files[3], &results[3])["line"], 2);
        assert!(super::files(&[tempfile::tempdir().unwrap().path().to_owned()]).is_err());
        assert!(check_file(Path::new("/nowhere/p.json")).is_err());
    }
}
