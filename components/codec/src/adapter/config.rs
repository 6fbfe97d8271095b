//! The settings of an adapter component: a JSON object.

use serde::{Deserialize, Serialize};
use weir_core::{
    adapter::Ordering,
    inference::{
        retry::{RetryConfig, RetryPolicy},
        rewrite::SummaryMode,
    },
    wording::json_types,
};

use crate::{inference::task::Aggregation, transcripts::config::SessionRequest};

/// The settings of an adapter component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// What the model computes.
    pub task: TaskKind,
    /// The model's name.
    pub model: String,
    /// The format of payloads.
    pub format: Format,
    /// The fields of an item.
    pub fields: Fields,
    /// The separator of CSV, of records and of results: one ASCII character.
    pub delimiter: char,
    /// The format of results.
    pub output: OutputFormat,
    /// Whether results repeat the text.
    pub output_text: bool,
    /// Whether results have the order of the records in each partition.
    pub ordering: OrderingName,
    /// Maximum number of attempts of an item whose failure is retryable, the first one included.
    pub retry_max_attempts: u32,
    /// Base delay of retries, in milliseconds.
    pub retry_base_backoff_ms: u32,
    /// Of `classify`: the number of labels in a result; with 1 a result has `label` and `score`, otherwise `scores`.
    pub top_k: u32,
    /// Of `tokens`: how tokens are grouped into entities.
    pub aggregation: Aggregation,
    /// Whether a text that is too long is truncated; else it is an error.
    pub truncation: bool,
    /// Of `transcript`: its settings.
    pub transcript: TranscriptConfig,
}

/// The settings of the task `transcript`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TranscriptConfig {
    /// The parameters of `/v1/transcript`, as its query without the `?`.
    pub parameters: String,
    /// The model of the sentiment of a final segment.
    pub sentiment_model: String,
    /// The model of the entities of a final segment.
    pub entities_model: String,
    /// The model of summaries.
    pub summary_model: String,
}

impl Default for TranscriptConfig {
    fn default() -> Self {
        Self {
            parameters: String::new(),
            sentiment_model: "sentiment".to_owned(),
            entities_model: "entities".to_owned(),
            summary_model: "embeddings".to_owned(),
        }
    }
}

impl TranscriptConfig {
    /// The configuration of the sessions.
    ///
    /// # Errors
    ///
    /// The text names the parameter and the valid values.
    pub fn session(&self) -> Result<SessionRequest, String> {
        let request = SessionRequest::from_query(&self.parameters).map_err(|error| format!("transcript: {error}"))?;
        if request.summary_mode == Some(SummaryMode::Abstractive) {
            return Err("transcript: summary_mode `abstractive` needs a language model, which adapters do not use; use extractive".to_owned());
        }
        Ok(request)
    }

    /// The models that the parameters need.
    ///
    /// # Errors
    ///
    /// See [`TranscriptConfig::session`].
    pub fn models(&self) -> Result<Vec<String>, String> {
        let request = self.session()?;
        let summary = request.config.summary;
        let needed = [
            (request.sentiment, &self.sentiment_model),
            (request.entities, &self.entities_model),
            (summary.every_finals > 0 || summary.at_end, &self.summary_model),
        ];
        Ok(needed.into_iter().filter(|(is_needed, _)| *is_needed).map(|(_, model)| model.clone()).collect())
    }
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            task: TaskKind::Classify,
            model: "sentiment".to_owned(),
            format: Format::Json,
            fields: Fields::default(),
            delimiter: ',',
            output: OutputFormat::Json,
            output_text: false,
            ordering: OrderingName::BestEffort,
            retry_max_attempts: 3,
            retry_base_backoff_ms: 100,
            top_k: 1,
            aggregation: Aggregation::Average,
            truncation: true,
            transcript: TranscriptConfig::default(),
        }
    }
}

/// Where the fields of an item are: a JSON pointer (RFC 6901) such as `/review/text`, or the name of a member or of a column. An empty
/// string means that the field is not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: String,
    /// The id, a string or an integer; repeated in the result.
    pub id: String,
    /// The language; repeated in the result.
    pub language: String,
    /// The user; repeated in the result.
    pub user: String,
}

impl Default for Fields {
    fn default() -> Self {
        let name = |name: &str| name.to_owned();
        Self {
            text: name("/text"),
            text_pair: String::new(),
            id: name("/id"),
            language: name("/language"),
            user: name("/user"),
        }
    }
}

/// What the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Labels with scores.
    Classify,
    /// Entities.
    Tokens,
    /// An embedding.
    Embed,
    /// The most central sentences.
    Summarize,
    /// Keywords, risks, actions and the intent, by rules and without a model.
    Annotate,
    /// Partial and final segments of a transcript, a chunk in each record.
    Transcript,
}

/// The format of payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON value: an object with the text, or a string.
    Json,
    /// Lines of JSON.
    Ndjson,
    /// A JSON array of objects or strings.
    JsonArray,
    /// The text itself.
    Text,
    /// Rows below a row with the names of the columns.
    Csv,
    /// Recognized and refused: it needs a schema.
    Avro,
    /// Recognized and refused: it needs a schema.
    Protobuf,
}

/// The format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputFormat {
    /// A JSON object.
    Json,
    /// The result on one line of text, fields separated by tabs.
    Text,
    /// A row of CSV.
    Csv,
}

/// Whether results have the order of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderingName {
    /// In the order of completion.
    BestEffort,
    /// In the order of the records of each partition.
    Strict,
}

impl AdapterConfig {
    /// Reads and checks the settings.
    ///
    /// # Errors
    ///
    /// The text names the field and the valid values.
    pub fn from_json(json: &str) -> Result<Self, String> {
        let config: Self = serde_json::from_str(json).map_err(|error| json_types(&error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The settings as JSON.
    pub fn to_json(&self) -> String {
        String::from_utf8(crate::json::to_vec(self)).expect("JSON is UTF-8")
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// The text names the field and the valid values.
    pub fn check(&self) -> Result<(), String> {
        match self.format {
            Format::Avro | Format::Protobuf => {
                let name = if self.format == Format::Avro { "avro" } else { "protobuf" };
                return Err(format!(
                    "format `{name}` is not decoded here, since it needs a schema; use json, ndjson, json_array, text or csv, or give \
                     a component that decodes it with --adapter NAME=FILE.wasm"
                ));
            }
            _ => {}
        }
        let is_csv = self.format == Format::Csv || self.output == OutputFormat::Csv;
        if is_csv && (!self.delimiter.is_ascii() || matches!(self.delimiter, '"' | '\n' | '\r')) {
            return Err(format!(
                "delimiter `{}` must be one ASCII character, and not a quote",
                self.delimiter.escape_default()
            ));
        }
        if self.model.is_empty() {
            return Err("model is empty; name a model that is served".to_owned());
        }
        if self.fields.text.is_empty() && self.format != Format::Text {
            return Err("fields.text is empty; give a JSON pointer such as /text, or the name of a column".to_owned());
        }
        if self.retry_max_attempts == 0 {
            return Err("retry_max_attempts is 0, and must be at least 1".to_owned());
        }
        if self.top_k == 0 {
            return Err("top_k is 0, and must be at least 1".to_owned());
        }
        if self.task == TaskKind::Transcript {
            self.check_transcript()?;
        }
        Ok(())
    }

    fn check_transcript(&self) -> Result<(), String> {
        if !matches!(self.format, Format::Json | Format::Ndjson | Format::JsonArray) {
            return Err(
                "a chunk of `transcript` is a JSON object; use the format json, ndjson or json_array".to_owned()
            );
        }
        if self.output != OutputFormat::Json {
            return Err("the results of `transcript` are JSON; use the format json or ndjson for results".to_owned());
        }
        self.transcript.session().map(drop)
    }

    /// The retry policy of an item.
    pub fn retry(&self) -> RetryConfig {
        RetryConfig {
            max_attempts: self.retry_max_attempts,
            base_backoff_ms: self.retry_base_backoff_ms,
            policy: RetryPolicy::ExponentialJitter,
            ..RetryConfig::default()
        }
    }

    /// The order of results.
    pub fn order(&self) -> Ordering {
        match self.ordering {
            // The events of a session have an order.
            _ if self.task == TaskKind::Transcript => Ordering::Strict,
            OrderingName::BestEffort => Ordering::BestEffort,
            OrderingName::Strict => Ordering::Strict,
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(json: &str, expect: Expect) {
        expect.assert_eq(&match AdapterConfig::from_json(json) {
            Ok(config) => format!("{:?} {} {:?}", config.task, config.model, config.format),
            Err(error) => error,
        });
    }

    #[test]
    fn settings_are_read_and_checked() {
        check("{}", expect!["Classify sentiment Json"]);
        check(r#"{"task":"embed","model":"m","format":"csv","delimiter":";"}"#, expect!["Embed m Csv"]);
        check(
            r#"{"format":"avro"}"#,
            expect![
                "format `avro` is not decoded here, since it needs a schema; use json, ndjson, json_array, text or csv, or give a component that decodes it with --adapter NAME=FILE.wasm"
            ],
        );
        check(
            r#"{"format":"protobuf"}"#,
            expect![
                "format `protobuf` is not decoded here, since it needs a schema; use json, ndjson, json_array, text or csv, or give a component that decodes it with --adapter NAME=FILE.wasm"
            ],
        );
        check(
            r#"{"format":"csv","delimiter":"\""}"#,
            expect![[r#"delimiter `\"` must be one ASCII character, and not a quote"#]],
        );
        check(
            r#"{"model":"m","output":"csv","delimiter":"\u00e9"}"#,
            expect![[r#"delimiter `\u{e9}` must be one ASCII character, and not a quote"#]],
        );
        check(r#"{"model":""}"#, expect!["model is empty; name a model that is served"]);
        check(
            r#"{"fields":{"text":""}}"#,
            expect!["fields.text is empty; give a JSON pointer such as /text, or the name of a column"],
        );
        check(
            r#"{"task":"transcript","format":"text"}"#,
            expect!["a chunk of `transcript` is a JSON object; use the format json, ndjson or json_array"],
        );
        check(
            r#"{"task":"transcript","output":"csv"}"#,
            expect!["the results of `transcript` are JSON; use the format json or ndjson for results"],
        );
        check(
            r#"{"task":"transcript","transcript":{"parameters":"summary_at_end=true&summary_mode=abstractive"}}"#,
            expect![
                "transcript: summary_mode `abstractive` needs a language model, which adapters do not use; use extractive"
            ],
        );
        check(
            r#"{"task":"transcript","transcript":{"parameters":"gap=1"}}"#,
            expect![
                "transcript: `gap` is not known here; there are max_gap_sec, overlap, annotate, max_segments, max_time_sec, summary_every, summary_at_end, summary_mode"
            ],
        );
        check(r#"{"top_k":0}"#, expect!["top_k is 0, and must be at least 1"]);
        check(r#"{"retry_max_attempts":0}"#, expect!["retry_max_attempts is 0, and must be at least 1"]);
        check(
            r#"{"modl":"x"}"#,
            expect![
                "unknown field `modl`, expected one of `task`, `model`, `format`, `fields`, `delimiter`, `output`, `output_text`, `ordering`, `retry_max_attempts`, `retry_base_backoff_ms`, `top_k`, `aggregation`, `truncation`, `transcript` at line 1 column 7"
            ],
        );
    }

    #[test]
    fn transcript_needs_the_models_of_its_parameters() {
        let models = |parameters: &str| {
            TranscriptConfig { parameters: parameters.to_owned(), ..TranscriptConfig::default() }.models().unwrap()
        };
        assert_eq!(models("annotate=keywords,intent"), Vec::<String>::new());
        assert_eq!(models("annotate=sentiment&summary_every=2"), ["sentiment", "embeddings"]);
        assert_eq!(models("annotate=entities"), ["entities"]);
    }

    #[test]
    fn settings_written_as_json_read_back() {
        let config = AdapterConfig { format: Format::Text, top_k: 3, ..AdapterConfig::default() };
        assert_eq!(AdapterConfig::from_json(&config.to_json()), Ok(config));
    }
}
