//! The flags that the sources of `weir stream` share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use weir_config::{Adapter, AdapterSink, FileSink, StdoutSink};

use crate::numbers::{seconds, whole};
use crate::setup::Setup;

/// The flags of every source.
#[derive(Debug, Args)]
pub(crate) struct StreamCommon {
    /// Task to run on each text
    #[arg(long, value_enum, default_value = "classify")]
    task: StreamTask,
    /// Name of a model [default: the bundled model of the task]
    #[arg(long, value_name = "NAME", env = "STREAMING_MODEL")]
    model: Option<String>,
    /// Transcript: the parameters of `/v1/transcript`, as in `annotate=keywords,sentiment&max_gap_sec=0.8`
    #[arg(long, value_name = "PARAMETERS", default_value = "")]
    transcript: String,
    /// Format of records [default: for files by the extension, otherwise json]
    #[arg(long, visible_alias = "message-format", value_enum)]
    format: Option<RecordFormat>,
    /// Where the text is: a JSON pointer (`/review/text`), or the name of a member or a column
    #[arg(long, value_name = "FIELD", default_value = "/text")]
    text: String,
    /// Where the id is, which the result repeats
    #[arg(long, value_name = "FIELD", default_value = "/id")]
    id: String,
    /// Repeat the text in results
    #[arg(long)]
    with_text: bool,
    /// Classify: the number of labels in a result
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<1, u32>)]
    top_k: u32,
    /// Write results in the order of the records
    #[arg(long)]
    strict: bool,
    /// Most texts in one run of the model
    #[arg(long, value_name = "N", value_parser = whole::<1, u32>)]
    pub(crate) batch_size: Option<u32>,
    /// Most records that were read and not written yet; more than 256 only if they are written within half a second
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = whole::<1, u32>)]
    in_flight: u32,
    /// Time without a first connection after which the command fails, seconds; 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    pub(crate) connect_timeout: f64,
    /// Attempts to reconnect before the command fails; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<0, u32>)]
    max_reconnect_attempts: u32,
    /// Delay before the first of these attempts, seconds; it doubles with each one
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    reconnect_delay: f64,
    /// A component file that decodes and encodes in place of the built-in one
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// File for records that have no result because of an error [default: with the results]
    #[arg(long, value_name = "FILE")]
    errors_file: Option<PathBuf>,
    /// Do not show progress on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Show progress and totals as JSON objects, one a line on standard error
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) setup: Setup,
}

/// The flags of sources whose results are written to a file or the standard output.
#[derive(Debug, Args)]
pub(super) struct LineOutput {
    /// Format of results
    #[arg(long, value_enum, default_value = "ndjson")]
    output_format: LineFormat,
    /// File for the results [default: the standard output]
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Append to the file instead of replacing it
    #[arg(long, requires = "output_file")]
    append: bool,
}

/// The tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamTask {
    /// Labels with scores
    #[value(alias = "sentiment")]
    Classify,
    /// Named entities
    #[value(alias = "entities")]
    Tokens,
    /// An embedding
    Embed,
    /// The most central sentences
    #[value(alias = "summary")]
    Summarize,
    /// Keywords, risks, actions and the intent, by rules and without a model
    Annotate,
    /// Partial and final segments of transcripts whose chunks are the records
    Transcript,
}

/// The formats of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum RecordFormat {
    /// One JSON value for each record; a file is one record
    Json,
    /// Lines of JSON
    Ndjson,
    /// JSON arrays
    JsonArray,
    /// Plain text; in a file, each line
    Text,
    /// Rows below a row with the names of the columns
    Csv,
    /// SubRip or WebVTT
    Captions,
}

/// The formats of lines of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LineFormat {
    /// A JSON object on each line
    Ndjson,
    /// One JSON array
    Json,
    /// Rows below a row with the names of the columns
    Csv,
    /// Plain lines of text
    Text,
    /// A table
    Table,
}

/// The name of a value on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl LineOutput {
    pub(super) fn sink(&self) -> AdapterSink {
        let format = name(self.output_format);
        match &self.output_file {
            None => AdapterSink::Stdout(StdoutSink { format }),
            Some(path) => AdapterSink::File(FileSink { path: path.clone(), format, append: self.append }),
        }
    }
}

pub(crate) fn milliseconds(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1000.0).round() as u64
}

impl StreamCommon {
    /// An adapter without its source and sink.
    pub(super) fn adapter(&self, name_of: &str, default_format: &str) -> Adapter {
        let errors = self
            .errors_file
            .as_ref()
            .map(|path| AdapterSink::File(FileSink { path: path.clone(), format: "ndjson".into(), append: true }));
        Adapter {
            name: name_of.to_owned(),
            component: self.adapter.clone().unwrap_or_default(),
            task: name(self.task),
            transcript: self.transcript.clone(),
            model: self.model.clone().unwrap_or_default(),
            format: self.format.map_or_else(|| default_format.to_owned(), name),
            text: self.text.clone(),
            id: self.id.clone(),
            output_text: self.with_text,
            ordering: if self.strict { "strict" } else { "best_effort" }.to_owned(),
            top_k: self.top_k,
            in_flight_max: self.in_flight,
            reconnect_attempts_max: self.max_reconnect_attempts,
            reconnect_delay_ms: milliseconds(self.reconnect_delay),
            errors,
            ..Adapter::default()
        }
    }
}
