//! Builds drivers and component settings from the configuration.

use std::path::PathBuf;
use std::sync::Arc;

use weir_codec::adapter::config::{AdapterConfig, Format, OrderingName, OutputFormat, TaskKind};
use weir_codec::adapter::decode::Fields;
use weir_codec::adapter::encode::csv_columns;
use weir_config::{Adapter, AdapterSink, AdapterSource};
use weir_core::adapter::ReconnectConfig;

use crate::driver::{BoxFuture, Connection, Driver, DriverError, Marks, Sink, SinkMark};
use crate::file::{self, FileSettings, Framing, LineSink, Progress, SinkFormat, SinkTarget};
use crate::redis;
use crate::supervisor::Bounds;

/// An adapter of the configuration, ready to run.
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The component file; empty for the built-in one.
    pub component: PathBuf,
    /// The model that it needs.
    pub model: String,
    /// The settings of the component: a JSON object.
    pub settings: String,
    /// Opens its source and sinks.
    pub driver: Arc<dyn Driver>,
    /// Its bounds.
    pub bounds: Bounds,
    /// The kind of its source.
    pub source: &'static str,
    /// The kind of its sink.
    pub sink: &'static str,
}

impl Plan {
    /// Checks an adapter of the configuration.
    ///
    /// # Errors
    ///
    /// A sentence that names the adapter, the key and the valid values.
    pub fn new(adapter: &Adapter, seed: u64) -> Result<Self, String> {
        let wrong = |reason: String| format!("adapter `{}`: {reason}", adapter.name);
        let (settings, framing) = settings(adapter).map_err(wrong)?;
        let progress = match &adapter.source {
            AdapterSource::File(file) => {
                let checkpoint = (!file.checkpoint.as_os_str().is_empty()).then(|| file.checkpoint.clone());
                Progress::load(checkpoint)
            }
            _ => Progress::load(None),
        };
        let progress = Arc::new(progress.map_err(|error| wrong(error.to_string()))?);
        let format = |sink: &AdapterSink| sink_format(sink, &settings).map_err(wrong);
        let driver = ConfiguredDriver {
            source: adapter.source.clone(),
            framing,
            sink: (adapter.sink.clone(), format(&adapter.sink)?),
            // Errors are lines of JSON, whatever the format of results.
            errors: adapter.errors.as_ref().map(|errors| (errors.clone(), SinkFormat::Ndjson)),
            progress,
        };
        Ok(Self {
            name: adapter.name.clone(),
            component: adapter.component.clone(),
            model: settings.model.clone(),
            settings: settings.to_json(),
            driver: Arc::new(driver),
            bounds: Bounds {
                in_flight_max: adapter.in_flight_max as usize,
                reconnect: ReconnectConfig {
                    attempts_max: adapter.reconnect_attempts_max,
                    delay_ms: adapter.reconnect_delay_ms,
                    delay_ms_max: adapter.reconnect_delay_ms_max,
                    ..ReconnectConfig::default()
                },
                seed,
            },
            source: source_kind(&adapter.source),
            sink: sink_kind(&adapter.sink),
        })
    }
}

fn source_kind(source: &AdapterSource) -> &'static str {
    match source {
        AdapterSource::File(_) => "file",
        AdapterSource::Redis(_) => "redis",
    }
}

fn sink_kind(sink: &AdapterSink) -> &'static str {
    match sink {
        AdapterSink::Stdout(_) => "stdout",
        AdapterSink::File(_) => "file",
        AdapterSink::Redis(_) => "redis",
    }
}

/// Parses the name of a value of the component's settings.
fn parse_name<T: serde::de::DeserializeOwned>(key: &str, name: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(name)).map_err(|error| format!("{key}: {error}"))
}

/// The component's settings, and how files are split into records.
fn settings(adapter: &Adapter) -> Result<(AdapterConfig, Framing), String> {
    let task: TaskKind = parse_name("task", &adapter.task)?;
    let model = match (adapter.model.as_str(), task) {
        ("", TaskKind::Classify) => "sentiment",
        ("", TaskKind::Tokens) => "entities",
        ("", TaskKind::Embed | TaskKind::Summarize) => "embeddings",
        (model, _) => model,
    };
    let (format, framing) = formats(adapter)?;
    let (mut ordering, mut output) = (adapter.ordering.as_str(), adapter.output_format.as_str());
    if let AdapterSource::File(file) = &adapter.source
        && !file.checkpoint.as_os_str().is_empty()
    {
        ordering = "strict";
    }
    let line_format = match &adapter.sink {
        AdapterSink::Stdout(sink) => sink.format.as_str(),
        AdapterSink::File(sink) => sink.format.as_str(),
        AdapterSink::Redis(_) => "",
    };
    let is_table = line_format == "table";
    match line_format {
        "csv" | "text" => output = line_format,
        "" => {}
        _ => output = "json",
    }
    let settings = AdapterConfig {
        task,
        model: model.to_owned(),
        format,
        fields: Fields {
            text: adapter.text.clone(),
            text_pair: adapter.text_pair.clone(),
            id: adapter.id.clone(),
            language: adapter.language.clone(),
            user: adapter.user.clone(),
        },
        delimiter: adapter.delimiter,
        output: parse_name::<OutputFormat>("output_format", output)?,
        output_text: adapter.output_text || is_table,
        ordering: parse_name::<OrderingName>("ordering", ordering)?,
        retry_max_attempts: adapter.retry_max_attempts,
        retry_base_backoff_ms: adapter.retry_base_backoff_ms,
        top_k: adapter.top_k,
        aggregation: parse_name("aggregation", &adapter.aggregation)?,
        truncation: adapter.truncation,
    };
    settings.check()?;
    Ok((settings, framing))
}

/// The format of payloads, and how files are split into them.
fn formats(adapter: &Adapter) -> Result<(Format, Framing), String> {
    let AdapterSource::File(file) = &adapter.source else {
        return match adapter.format.as_str() {
            "auto" => Ok((Format::Json, Framing::Lines)),
            name => Ok((parse_name("format", name)?, Framing::Lines)),
        };
    };
    let name = match adapter.format.as_str() {
        "auto" => {
            let kinds: std::collections::BTreeSet<&str> =
                file.paths.iter().map(|path| extension_format(path)).collect();
            let mut kinds = kinds.into_iter();
            match (kinds.next(), kinds.next()) {
                (Some(one), None) => one,
                (None, _) => "ndjson",
                (Some(one), Some(other)) => {
                    return Err(format!(
                        "the files have the formats {one} and {other}; give one format, or an adapter for each"
                    ));
                }
            }
        }
        name => name,
    };
    Ok(match name {
        "captions" => (Format::Json, Framing::Cues),
        "ndjson" => (Format::Json, Framing::Lines),
        name => match parse_name::<Format>("format", name)? {
            Format::Csv => (Format::Csv, Framing::Rows),
            Format::Text => (Format::Text, Framing::Lines),
            format => (format, Framing::Whole),
        },
    })
}

/// The format of a file by its name; NDJSON for an unknown extension.
fn extension_format(path: &str) -> &'static str {
    let path = path.strip_suffix(".gz").or_else(|| path.strip_suffix(".zst")).unwrap_or(path);
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv") => "csv",
        Some("txt" | "text" | "log") => "text",
        Some("srt" | "vtt") => "captions",
        Some("json") => "json_array",
        _ => "ndjson",
    }
}

fn sink_format(sink: &AdapterSink, settings: &AdapterConfig) -> Result<SinkFormat, String> {
    let name = match sink {
        AdapterSink::Stdout(sink) => sink.format.as_str(),
        AdapterSink::File(sink) => sink.format.as_str(),
        AdapterSink::Redis(_) => "",
    };
    Ok(match name {
        "json" => SinkFormat::Json,
        "csv" => SinkFormat::Csv { columns: csv_columns(settings) },
        "text" => SinkFormat::Text,
        "table" => SinkFormat::Table,
        "ndjson" => SinkFormat::Ndjson,
        "" => match settings.output {
            OutputFormat::Json => SinkFormat::Ndjson,
            OutputFormat::Csv => SinkFormat::Csv { columns: csv_columns(settings) },
            OutputFormat::Text => SinkFormat::Text,
        },
        other => return Err(format!("sink.format `{other}` is none of ndjson, json, csv, text and table")),
    })
}

struct ConfiguredDriver {
    source: AdapterSource,
    framing: Framing,
    sink: (AdapterSink, SinkFormat),
    errors: Option<(AdapterSink, SinkFormat)>,
    progress: Arc<Progress>,
}

impl ConfiguredDriver {
    async fn connect(&self) -> Result<Connection, DriverError> {
        // The source is opened first, so that its errors are found before an output file is truncated.
        let mut is_file = false;
        let (source, committer): (Box<dyn crate::driver::Source>, Box<dyn crate::driver::Committer>) =
            match &self.source {
                AdapterSource::File(config) => {
                    is_file = true;
                    let settings =
                        FileSettings { paths: config.paths.clone(), framing: self.framing, follow: config.follow };
                    let (source, committer) = file::open(&settings, &self.progress)?;
                    (Box::new(source), Box::new(committer))
                }
                AdapterSource::Redis(config) => {
                    let (source, committer) = redis::open(config).await?;
                    (Box::new(source), Box::new(committer))
                }
            };
        let marks = self.progress.marks();
        let sink = open_sink(&self.sink, marks.output.as_ref()).await?;
        let errors = match &self.errors {
            Some(errors) => Some(open_sink(errors, marks.errors.as_ref()).await?),
            None => None,
        };
        if is_file {
            let marks = Marks { output: sink.mark(), errors: errors.as_ref().and_then(|errors| errors.mark()) };
            self.progress.begin(marks).await?;
        }
        Ok(Connection { source, committer, sink, errors })
    }
}

async fn open_sink(sink: &(AdapterSink, SinkFormat), mark: Option<&SinkMark>) -> Result<Box<dyn Sink>, DriverError> {
    let (config, format) = sink;
    Ok(match config {
        AdapterSink::Stdout(_) => Box::new(LineSink::open(&SinkTarget::Stdout, format.clone(), None)?),
        AdapterSink::File(file) => {
            let target = SinkTarget::File { path: file.path.clone(), append: file.append };
            Box::new(LineSink::open(&target, format.clone(), mark)?)
        }
        AdapterSink::Redis(config) => Box::new(redis::RedisSink::open(config).await?),
    })
}

impl Driver for ConfiguredDriver {
    fn open(&self) -> BoxFuture<'_, Result<Connection, DriverError>> {
        Box::pin(self.connect())
    }
}
