//! Language models in `weir models`: folders with a GGUF file.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indicatif::HumanBytes;
use serde_json::json;
use weir_lm::{Cancel, Engine, EngineConfig, Model, Row, Sample, Sampler};
use weir_nn::model::LANGUAGE_MODEL;

use super::failure::failed;

/// Whether a folder contains a language model.
pub(super) fn is_folder(dir: &Path) -> bool {
    dir.join(LANGUAGE_MODEL).is_file()
}

/// The folders of language models in a folder, by name.
pub(super) fn folders(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let is_hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_folder(path) && !is_hidden(path)).collect();
    folders.sort();
    folders
}

/// The names of the language models in a folder.
pub(super) fn names(root: &Path) -> Vec<String> {
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    folders(root).into_iter().filter_map(name).collect()
}

/// Lists the language models in a folder, without loading them.
pub(super) fn list(out: &mut impl Write, root: &Path, json: bool) -> std::io::Result<()> {
    for name in names(root) {
        let bytes = std::fs::metadata(root.join(&name).join(LANGUAGE_MODEL)).map_or(0, |file| file.len());
        match json {
            true => writeln!(out, "{}", json!({ "name": name, "task": "text-generation", "bytes": bytes }))?,
            false => writeln!(out, "{name}  text-generation, {}", HumanBytes(bytes))?,
        }
    }
    Ok(())
}

/// Loads a language model and computes a token; returns whether that succeeded.
pub(super) fn check(out: &mut impl Write, dir: &Path, json: bool) -> std::io::Result<bool> {
    match trial(dir) {
        Ok(lines) if json => {
            let folder = dir.display().to_string();
            writeln!(
                out,
                "{}",
                json!({ "folder": folder, "works": true, "task": "text-generation", "details": lines })
            )?;
            Ok(true)
        }
        Ok(lines) => {
            writeln!(out, "{}: works", dir.display())?;
            lines.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
            Ok(true)
        }
        Err(error) => {
            failed(out, dir, &error, json)?;
            Ok(false)
        }
    }
}

fn trial(dir: &Path) -> Result<Vec<String>, String> {
    let text = |error: &dyn std::fmt::Display| format!("{LANGUAGE_MODEL}: {error}");
    let start = Instant::now();
    let model = Model::load(&dir.join(LANGUAGE_MODEL)).map_err(|error| text(&error))?;
    let load_ms = start.elapsed().as_millis();
    let architecture = model.parameters().architecture.name();
    let lines = [
        format!(
            "text-generation, {architecture}, {} tokens of context, a vocabulary of {}, {}",
            model.context_tokens_max(),
            model.vocabulary_tokens(),
            if model.chat_template().is_some() { "with a chat template" } else { "without a chat template" },
        ),
        format!("weights {}", HumanBytes(model.weight_bytes() as u64)),
    ];
    let config = EngineConfig { pages_max: 1, sequences_max: 1, ..EngineConfig::default() };
    let engine = Engine::new(Arc::new(model), config).map_err(|error| text(&error))?;
    let start = Instant::now();
    let sequence = engine.create(Sampler::default()).map_err(|error| text(&error))?;
    let row = Row { sequence, tokens: vec![0], sample: Some(Sample::default()) };
    engine.step(&[row], &Cancel::default()).map_err(|error| text(&error))?;
    let trial_ms = start.elapsed().as_millis();
    Ok(lines.into_iter().chain([format!("loaded in {load_ms} ms, first token {trial_ms} ms")]).collect())
}
