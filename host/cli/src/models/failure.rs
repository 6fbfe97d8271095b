//! The line of a model that does not work.

use std::io::Write;
use std::path::Path;

use serde_json::json;

/// Writes why a model does not work.
pub(super) fn failed(out: &mut impl Write, dir: &Path, reason: &str, json: bool) -> std::io::Result<()> {
    let folder = dir.display().to_string();
    // The errors of a model name its folder too.
    let reason = reason.strip_prefix(&format!("{folder}: ")).unwrap_or(reason);
    match json {
        true => writeln!(out, "{}", json!({ "folder": folder, "works": false, "error": reason })),
        false => writeln!(out, "{folder}: {reason}"),
    }
}
