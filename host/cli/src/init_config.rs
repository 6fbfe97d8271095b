//! `weir init-config`: writes a configuration file with every key, its meaning, and its default or the value of a preset.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;

/// `weir init-config`.
#[derive(Debug, Args)]
pub(crate) struct InitConfig {
    /// File to write; `-` is standard output
    #[arg(value_name = "FILE", default_value = "weir.toml")]
    file: PathBuf,
    /// Values for a purpose [default: the defaults]
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
    /// Print a JSON object with the path of the file; for `-` with its text
    #[arg(long)]
    json: bool,
}

/// The presets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// At most 4 texts in a run of a model, and windows of 100 ms where windows are used
    LowLatency,
    /// Windows of 64 texts or 500 ms, and a queue of 2048 texts
    HighThroughput,
}

impl Preset {
    /// The keys that it sets, with their values in TOML.
    fn values(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::LowLatency => &[("infer.batch_size", "4"), ("infer.window_ms", "100"), ("infer.max_batch_size", "4")],
            Self::HighThroughput => &[
                ("infer.batching", "\"windowed\""),
                ("infer.batch_size", "64"),
                ("infer.window_ms", "500"),
                ("infer.queue_items_max", "2048"),
            ],
        }
    }
}

pub(crate) fn main(arguments: &InitConfig) -> anyhow::Result<ExitCode> {
    let text = weir_config::template_with(arguments.preset.map_or(&[], Preset::values));
    let mut out = std::io::stdout().lock();
    if arguments.file == Path::new("-") {
        match arguments.json {
            true => writeln!(out, "{}", json!({ "text": text }))?,
            false => out.write_all(text.as_bytes())?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = OpenOptions::new();
    options.write(true);
    match arguments.force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let mut file = options.open(&arguments.file).with_context(|| {
        let hint = if arguments.file.exists() { "; --force replaces it" } else { "" };
        format!("{} cannot be written{hint}", arguments.file.display())
    })?;
    file.write_all(text.as_bytes())?;
    let shown = arguments.file.display().to_string();
    match arguments.json {
        true => writeln!(out, "{}", json!({ "path": shown }))?,
        false => writeln!(out, "{shown} is written; `weir serve --config {shown}` uses it")?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use weir_config::{AdapterSink, AdapterSource, KafkaSink, KafkaSource};

    use super::*;

    #[test]
    fn preset_is_a_file_that_loads_and_is_not_overwritten() {
        for (preset, values) in [
            (None, (32, 250, 128, 1024)),
            (Some(Preset::LowLatency), (4, 100, 4, 1024)),
            (Some(Preset::HighThroughput), (64, 500, 128, 2048)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("weir.toml");
            main(&InitConfig { preset, file: file.clone(), force: false, json: false }).unwrap();
            let infer = weir_config::load(Some(&file), [], &[]).unwrap().infer;
            assert_eq!((infer.batch_size, infer.window_ms, infer.max_batch_size, infer.queue_items_max), values);
            let error = main(&InitConfig { preset, file: file.clone(), force: false, json: false }).unwrap_err();
            assert!(format!("{error:#}").contains("--force"), "{error:#}");
            main(&InitConfig { preset, file: file.clone(), force: true, json: false }).unwrap();
            // The keys of Kafka, with their defaults, without the comment signs.
            std::fs::write(&file, with_kafka(&std::fs::read_to_string(&file).unwrap())).unwrap();
            let adapters = weir_config::load(Some(&file), [], &[]).unwrap().adapter;
            assert_eq!(adapters.len(), 1);
            assert_eq!(adapters[0].source, AdapterSource::Kafka(KafkaSource::default()));
            assert_eq!(adapters[0].sink, AdapterSink::Kafka(KafkaSink::default()));
        }
    }

    /// A template with an adapter from Kafka to Kafka.
    fn with_kafka(template: &str) -> String {
        let (mut text, mut is_key) = (String::new(), false);
        for line in template.lines() {
            let content = line.trim_start_matches("# ");
            let is_title = matches!(content, "[[adapter]]" | "[adapter.source]" | "[adapter.sink]");
            let more = match content {
                "[[adapter]]" => "name = 'k'\n",
                "[adapter.source]" | "[adapter.sink]" => "kind = 'kafka'\n",
                _ => "",
            };
            let line = if is_title || is_key { content } else { line };
            is_key = content.starts_with("Of `kafka`");
            text += &format!("{line}\n{more}");
        }
        text
    }
}
