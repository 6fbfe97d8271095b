//! Builds drivers and component settings from the configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weir_codec::adapter::config::{
    AdapterConfig, Fields, Format, OrderingName, OutputFormat, TaskKind, TranscriptConfig,
};
use weir_codec::adapter::encode::csv_columns;
use weir_config::{Adapter, AdapterSink, AdapterSource, KafkaSink};
use weir_core::adapter::ReconnectConfig;
use weir_core::wording::json_types;
use weir_events::Store;

use crate::driver::{BoxFuture, Connection, Driver, DriverError, Marks, Sink, SinkMark};
use crate::file::{self, FileSettings, Framing, LineSink, Progress, SinkFormat, SinkTarget};
#[cfg(feature = "kafka")]
use crate::kafka;
use crate::supervisor::Bounds;
use crate::{channel, http, nats, redis, websocket};

/// A checked adapter of the configuration.
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The component file; empty for the built-in one.
    pub component: PathBuf,
    /// The names of its models.
    pub models: Vec<String>,
    /// The settings of the component: a JSON object.
    pub settings: String,
    /// The pipeline that processes the records instead of the component.
    pub pipeline: Option<PipelinePlan>,
    /// Opens its source and sinks.
    pub driver: Arc<dyn Driver>,
    /// Its bounds.
    pub bounds: Bounds,
    /// The kind of its source.
    pub source: &'static str,
    /// The kind of its sink.
    pub sink: &'static str,
}

/// A pipeline whose executions process the records of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelinePlan {
    /// Its name.
    pub name: String,
    /// A file with a token; empty if there is none.
    pub token_file: PathBuf,
    /// Whether payloads are plain text and not JSON.
    pub is_text: bool,
    /// The JSON pointer of the id, which results repeat.
    pub id: String,
    /// The most requests for one execution.
    pub attempts_max: u32,
}

/// Checks that the results of a task, which are JSON values without columns, are written as JSON.
fn check_json_output(adapter: &Adapter, task: &str) -> Result<(), String> {
    let line_format = match &adapter.sink {
        AdapterSink::Stdout(sink) => sink.format.as_str(),
        AdapterSink::File(sink) => sink.format.as_str(),
        _ => "",
    };
    match adapter.output_format != "json" || matches!(line_format, "csv" | "text" | "table") {
        true => Err(format!("the results of the task `{task}` are JSON; use the format json or ndjson for results")),
        false => Ok(()),
    }
}

/// The models that an adapter needs.
///
/// # Errors
///
/// The text names the key and the valid values.
pub fn models(adapter: &Adapter) -> Result<Vec<String>, String> {
    if adapter.task == "pipeline" {
        return Ok(Vec::new());
    }
    models_of(&settings(adapter)?.0)
}

fn models_of(settings: &AdapterConfig) -> Result<Vec<String>, String> {
    match settings.task {
        TaskKind::Annotate => Ok(Vec::new()),
        TaskKind::Transcript => settings.transcript.models(),
        TaskKind::Classify | TaskKind::Tokens | TaskKind::Embed | TaskKind::Summarize => {
            Ok(vec![settings.model.clone()])
        }
    }
}

/// The pipeline of an adapter, if its task is one.
fn pipeline(adapter: &Adapter) -> Result<Option<PipelinePlan>, String> {
    if adapter.task != "pipeline" {
        return Ok(None);
    }
    if adapter.pipeline.is_empty() {
        return Err("pipeline is empty; give the name of a pipeline of the server".to_owned());
    }
    check_json_output(adapter, "pipeline")?;
    let is_text = match adapter.format.as_str() {
        "text" => true,
        "json" | "ndjson" | "auto" => false,
        other => return Err(format!("format `{other}` is not supported with a pipeline; use json, ndjson or text")),
    };
    Ok(Some(PipelinePlan {
        name: adapter.pipeline.clone(),
        token_file: adapter.token_file.clone(),
        is_text,
        id: adapter.id.clone(),
        attempts_max: adapter.retry_max_attempts,
    }))
}

impl Plan {
    /// Checks an adapter of the configuration.
    ///
    /// # Errors
    ///
    /// A sentence that names the adapter, the key and the valid values.
    pub fn new(adapter: &Adapter, seed: u64) -> Result<Self, String> {
        Self::with_store(adapter, seed, None)
    }

    /// [`Plan::new`] with the channel store of a server, for sources and sinks that are channels.
    ///
    /// # Errors
    ///
    /// A sentence that names the adapter, the key and the valid values.
    pub fn with_store(adapter: &Adapter, seed: u64, store: Option<Store>) -> Result<Self, String> {
        let wrong = |reason: String| format!("adapter `{}`: {reason}", adapter.name);
        let pipeline = pipeline(adapter).map_err(wrong)?;
        if pipeline.is_some() && store.is_none() {
            return Err(wrong(
                "pipelines exist only in a server; put the adapter into the configuration of `weir serve`".to_owned(),
            ));
        }
        // A pipeline needs only the settings of files and sinks, which are the same for each task.
        let task = if pipeline.is_some() { "classify" } else { adapter.task.as_str() }.to_owned();
        let (settings, framing) = settings(&Adapter { task, ..adapter.clone() }).map_err(wrong)?;
        check_channels(adapter, store.is_some()).map_err(wrong)?;
        check_kafka(adapter).map_err(wrong)?;
        nats::check_settings(adapter).map_err(wrong)?;
        let progress = match &adapter.source {
            AdapterSource::File(file) => {
                let checkpoint = (!file.checkpoint.as_os_str().is_empty()).then(|| file.checkpoint.clone());
                Progress::load(checkpoint)
            }
            _ => Progress::load(None),
        };
        let progress = Arc::new(progress.map_err(|error| wrong(error.to_string()))?);
        let reconnect = ReconnectConfig {
            attempts_max: adapter.reconnect_attempts_max,
            delay_ms: adapter.reconnect_delay_ms,
            delay_ms_max: adapter.reconnect_delay_ms_max,
            ..ReconnectConfig::default()
        };
        let format = |sink: &AdapterSink| sink_format(sink, &settings).map_err(wrong);
        let driver = ConfiguredDriver {
            name: adapter.name.clone(),
            store,
            source: adapter.source.clone(),
            framing,
            sink: (adapter.sink.clone(), format(&adapter.sink)?),
            // Errors are lines of JSON, whatever the format of results.
            errors: adapter.errors.as_ref().map(|errors| (errors.clone(), SinkFormat::Ndjson)),
            progress,
            http: Arc::default(),
            reconnect,
            seed,
        };
        Ok(Self {
            name: adapter.name.clone(),
            component: adapter.component.clone(),
            models: if pipeline.is_some() { Vec::new() } else { models_of(&settings).map_err(wrong)? },
            settings: settings.to_json(),
            pipeline,
            driver: Arc::new(driver),
            bounds: Bounds {
                in_flight_max: adapter.in_flight_max as usize,
                reconnect,
                stall_timeout: (adapter.stall_timeout_ms > 0).then(|| Duration::from_millis(adapter.stall_timeout_ms)),
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
        AdapterSource::Http(_) => "http",
        AdapterSource::WebSocket(_) => "websocket",
        AdapterSource::Channel(_) => "channel",
        AdapterSource::Kafka(_) => "kafka",
        AdapterSource::Nats(_) => "nats",
    }
}

fn sink_kind(sink: &AdapterSink) -> &'static str {
    match sink {
        AdapterSink::Stdout(_) => "stdout",
        AdapterSink::File(_) => "file",
        AdapterSink::Redis(_) => "redis",
        AdapterSink::Http(_) => "http",
        AdapterSink::Channel(_) => "channel",
        AdapterSink::Kafka(_) => "kafka",
        AdapterSink::Nats(_) => "nats",
    }
}

/// Checks the parts of an adapter that are Kafka.
fn check_kafka(adapter: &Adapter) -> Result<(), String> {
    let kafka = |sink: &AdapterSink| match sink {
        AdapterSink::Kafka(sink) => Some(sink.clone()),
        _ => None,
    };
    let sinks = [Some(&adapter.sink), adapter.errors.as_ref()].into_iter().flatten();
    let sinks: Vec<_> = sinks.map(kafka).collect();
    let source = match &adapter.source {
        AdapterSource::Kafka(source) => Some(source),
        _ => None,
    };
    if !cfg!(feature = "kafka") && (source.is_some() || sinks.iter().any(Option::is_some)) {
        return Err("this program was built without Kafka; build it with the feature `kafka`".to_owned());
    }
    #[cfg(feature = "kafka")]
    {
        source.map_or(Ok(()), |source| kafka::check_properties(&source.properties))?;
        sinks.iter().flatten().try_for_each(|sink| kafka::check_properties(&sink.properties))?;
    }
    let Some(source) = source else { return Ok(()) };
    if source.topics.is_empty() {
        return Err("source.topics is empty; name a topic".to_owned());
    }
    let is_source = |sink: &&KafkaSink| sink.brokers == source.brokers && source.topics.contains(&sink.topic);
    if let Some(sink) = sinks.iter().flatten().find(is_source) {
        return Err(format!("the topic `{}` is source and sink: each result would be a record again", sink.topic));
    }
    match source.guarantee.as_str() {
        "at_least_once" => Ok(()),
        "transactional" if adapter.task == "pipeline" => {
            Err("source.guarantee `transactional` is not possible with a pipeline; use at_least_once".to_owned())
        }
        "transactional" => {
            match sinks.iter().all(|sink| sink.as_ref().is_some_and(|sink| sink.brokers == source.brokers)) {
                true => Ok(()),
                false => Err(format!(
                    "source.guarantee `transactional` needs topics of `{}` as the sink and as the error destination",
                    source.brokers
                )),
            }
        }
        other => Err(format!("source.guarantee `{other}` is not a guarantee; use at_least_once or transactional")),
    }
}

/// Checks the channels of an adapter.
fn check_channels(adapter: &Adapter, has_store: bool) -> Result<(), String> {
    let source = match &adapter.source {
        AdapterSource::Channel(source) => Some(channel::channel_name("source.channel", &source.channel)?),
        _ => None,
    };
    let errors = adapter.errors.as_ref().map(|errors| ("errors.channel", errors));
    let sinks =
        [Some(("sink.channel", &adapter.sink)), errors].into_iter().flatten().filter_map(|(key, sink)| match sink {
            AdapterSink::Channel(sink) => Some((key, sink)),
            _ => None,
        });
    let mut has_channel = source.is_some();
    for (key, sink) in sinks {
        has_channel = true;
        if Some(channel::channel_name(key, &sink.channel)?) == source {
            return Err(format!("{key} `{}` is also the source, so each result would become a record", sink.channel));
        }
    }
    match has_channel && !has_store {
        true => {
            Err("channels exist only in a server; put the adapter into the configuration of `weir serve`".to_owned())
        }
        false => Ok(()),
    }
}

/// Parses the name of a value of the component's settings.
fn parse_name<T: serde::de::DeserializeOwned>(key: &str, name: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(name))
        .map_err(|error| format!("{key}: {}", json_types(&error.to_string())))
}

/// The component's settings, and how files are split into records.
fn settings(adapter: &Adapter) -> Result<(AdapterConfig, Framing), String> {
    let task: TaskKind = parse_name("task", &adapter.task)?;
    let model = match (adapter.model.as_str(), task) {
        ("", TaskKind::Classify) => "sentiment",
        ("", TaskKind::Tokens) => "entities",
        ("", TaskKind::Embed | TaskKind::Summarize) => "embeddings",
        (_, TaskKind::Annotate | TaskKind::Transcript) => "rules",
        (model, _) => model,
    };
    let (format, framing) = formats(adapter)?;
    let (mut ordering, mut output) = (adapter.ordering.as_str(), adapter.output_format.as_str());
    if let AdapterSource::File(file) = &adapter.source
        && !file.checkpoint.as_os_str().is_empty()
    {
        ordering = "strict";
    }
    if matches!(&adapter.source, AdapterSource::Kafka(source) if source.guarantee == "transactional") {
        // A transaction commits a position with exactly the results up to it.
        ordering = "strict";
    }
    let line_format = match &adapter.sink {
        AdapterSink::Stdout(sink) => sink.format.as_str(),
        AdapterSink::File(sink) => sink.format.as_str(),
        // The data of an event is JSON.
        AdapterSink::Channel(_) => "json",
        AdapterSink::Redis(_) | AdapterSink::Http(_) | AdapterSink::Kafka(_) | AdapterSink::Nats(_) => "",
    };
    if task == TaskKind::Transcript {
        check_json_output(adapter, "transcript")?;
    }
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
        transcript: TranscriptConfig {
            parameters: adapter.transcript.clone(),
            sentiment_model: adapter.sentiment_model.clone(),
            entities_model: adapter.entities_model.clone(),
            summary_model: adapter.summary_model.clone(),
        },
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
        AdapterSink::Redis(_)
        | AdapterSink::Http(_)
        | AdapterSink::Channel(_)
        | AdapterSink::Kafka(_)
        | AdapterSink::Nats(_) => "",
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
        other => {
            return Err(format!(
                "sink.format `{other}` is not a format of results; use ndjson, json, csv, text or table"
            ));
        }
    })
}

/// The error of a build without Kafka, which [`Plan::new`] has reported before.
fn without_kafka() -> DriverError {
    DriverError::Config("this program was built without Kafka".to_owned())
}

struct ConfiguredDriver {
    name: String,
    store: Option<Store>,
    source: AdapterSource,
    framing: Framing,
    sink: (AdapterSink, SinkFormat),
    errors: Option<(AdapterSink, SinkFormat)>,
    progress: Arc<Progress>,
    http: Arc<http::HttpProgress>,
    reconnect: ReconnectConfig,
    seed: u64,
}

impl ConfiguredDriver {
    async fn connect(&self) -> Result<Connection, DriverError> {
        // The source is opened first, so that its errors are found before an output file is truncated.
        let mut is_file = false;
        #[cfg(feature = "kafka")]
        let transaction = self.transaction().await?;
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
                AdapterSource::Http(config) => {
                    let (source, committer) = http::open(config, self.reconnect, self.seed, &self.http).await?;
                    (Box::new(source), Box::new(committer))
                }
                AdapterSource::Channel(config) => {
                    let (source, committer) = channel::open(self.store()?, &self.name, config).await?;
                    (Box::new(source), Box::new(committer))
                }
                #[cfg(feature = "kafka")]
                AdapterSource::Kafka(config) => {
                    let (source, committer) = kafka::open(&self.name, config, transaction.clone()).await?;
                    (Box::new(source), Box::new(committer))
                }
                #[cfg(not(feature = "kafka"))]
                AdapterSource::Kafka(_) => return Err(without_kafka()),
                AdapterSource::Nats(config) => {
                    let (source, committer) = nats::open(config, &self.nats_subjects(&config.url)).await?;
                    (Box::new(source), Box::new(committer))
                }
                AdapterSource::WebSocket(config) => {
                    let delay_ms_max = self.reconnect.delay_ms_max;
                    let (source, committer) = websocket::open(config, delay_ms_max, self.seed).await?;
                    (Box::new(source), Box::new(committer))
                }
            };
        let marks = self.progress.marks();
        let open_sink = async |sink: &(AdapterSink, SinkFormat), mark: Option<&SinkMark>| match &sink.0 {
            #[cfg(feature = "kafka")]
            AdapterSink::Kafka(config) => {
                let sink = kafka::KafkaSink::open(config, transaction.clone()).await?;
                Ok(Box::new(sink) as Box<dyn Sink>)
            }
            _ => self.open_sink(sink, mark).await,
        };
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

    /// The transactions of a source with that guarantee, new for each connection.
    #[cfg(feature = "kafka")]
    async fn transaction(&self) -> Result<Option<kafka::Transaction>, DriverError> {
        let (AdapterSource::Kafka(source), AdapterSink::Kafka(sink)) = (&self.source, &self.sink.0) else {
            return Ok(None);
        };
        if source.guarantee != "transactional" {
            return Ok(None);
        }
        let id = match source.transactional_id.as_str() {
            "" => format!("weir-{}-{}-{}", source.group, self.name, redis::host_name()),
            id => id.to_owned(),
        };
        Ok(Some(kafka::Transaction::open(sink, &id).await?))
    }

    /// The subjects of sinks at the same servers.
    fn nats_subjects(&self, url: &str) -> Vec<&str> {
        let sinks = [Some(&self.sink), self.errors.as_ref()].into_iter().flatten();
        let subjects = sinks.filter_map(|(sink, _)| match sink {
            AdapterSink::Nats(sink) if sink.url == url => Some(sink.subject.as_str()),
            _ => None,
        });
        subjects.collect()
    }

    fn store(&self) -> Result<&Store, DriverError> {
        self.store.as_ref().ok_or_else(|| DriverError::Config("channels exist only in a server".to_owned()))
    }

    async fn open_sink(
        &self,
        sink: &(AdapterSink, SinkFormat),
        mark: Option<&SinkMark>,
    ) -> Result<Box<dyn Sink>, DriverError> {
        let (config, format) = sink;
        Ok(match config {
            AdapterSink::Stdout(_) => Box::new(LineSink::open(&SinkTarget::Stdout, format.clone(), None)?),
            AdapterSink::File(file) => {
                let target = SinkTarget::File { path: file.path.clone(), append: file.append };
                Box::new(LineSink::open(&target, format.clone(), mark)?)
            }
            AdapterSink::Redis(config) => Box::new(redis::RedisSink::open(config).await?),
            AdapterSink::Nats(config) => Box::new(nats::NatsSink::open(config).await?),
            AdapterSink::Http(config) => Box::new(http::HttpSink::open(config, self.seed)?),
            AdapterSink::Channel(config) => Box::new(channel::ChannelSink::open(self.store()?, config)?),
            // With the feature, `connect` opens it.
            AdapterSink::Kafka(_) => return Err(without_kafka()),
        })
    }
}

impl Driver for ConfiguredDriver {
    fn open(&self) -> BoxFuture<'_, Result<Connection, DriverError>> {
        Box::pin(self.connect())
    }
}
