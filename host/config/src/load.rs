//! Loads the configuration: defaults, then the file, then the environment, then flags.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use weir_core::wording::json_types;

use crate::suggest::{is_key, suggest, suggest_key};
use crate::variables::{leaves, variable};
use crate::{AuthMode, Config, values};

/// Why a configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist or cannot be read.
    #[error("configuration file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason of the operating system.
        source: std::io::Error,
    },
    /// A key is unknown, or a value has the wrong type or is out of range.
    #[error("{0}")]
    Invalid(String),
    /// The environment names a key that does not exist.
    #[error("{name} in the environment is not a key of the configuration (`weir config` lists them){suggestion}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// A suggestion of another variable; empty when none is near.
        suggestion: String,
    },
}

/// Reads the configuration: defaults, `file` if any, `environment` (pairs of name and value), then `overrides` (pairs
/// of key and value, from flags).
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    overrides: &[(String, String)],
) -> Result<Config, ConfigError> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    if let Some(path) = file {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_path_buf(), source };
        // It is read twice, which a pipe does not allow.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(unreadable(std::io::Error::other("it is not a file")));
        }
        let contents = std::fs::read(path).map_err(unreadable)?;
        // The TOML parser accepts a byte order mark, but its error about UTF-16 does not name the cause.
        weir_core::text_file::text(&contents)
            .map_err(|error| ConfigError::Invalid(format!("configuration file {}: {error}", path.display())))?;
        figment = figment.merge(Toml::file_exact(path));
    }
    figment = figment.merge(Pairs::environment(environment)?);
    if let Some((key, _)) = overrides.iter().find(|(key, _)| !is_key(key)) {
        return Err(ConfigError::Invalid(format!("{key} is not a key of the configuration; {}", suggestion(key, &[]))));
    }
    figment = figment.merge(Pairs { source: "command line", pairs: overrides.to_vec() });
    let mut config: Config = figment.extract().map_err(|error| ConfigError::Invalid(one_line(error)))?;
    config.http.listen = values::listen(&config.http.listen).map_err(ConfigError::Invalid)?;
    values::check_log_level(&config.log.level).map_err(ConfigError::Invalid)?;
    check(&config)?;
    Ok(config)
}

/// The longest output that fits into an event, whose data has at most 262,144 bytes.
const OUTPUT_BYTES_MAX: u64 = 250_000;
/// Bounds of `events.lease_ms`: long enough to be renewed, and at most what the store accepts.
const LEASE_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;

/// Windows that compression may use (RFC 7692, section 7.1.2): zlib has none of 256 bytes.
const WINDOW_BITS: std::ops::RangeInclusive<u8> = 9..=15;

/// Checks the ranges of values, and combinations of values.
fn check(config: &Config) -> Result<(), ConfigError> {
    let positive = [
        ("http.connections_max", u64::from(config.http.connections_max)),
        ("http.requests_max", u64::from(config.http.requests_max)),
        ("http.client_share_percent", u64::from(config.http.client_share_percent)),
        ("http.shed_window_ms", config.http.shed_window_ms),
        ("http.shed_probe_percent", u64::from(config.http.shed_probe_percent)),
        ("http.body_bytes_max", config.http.body_bytes_max),
        ("http.header_timeout_ms", config.http.header_timeout_ms),
        ("http.idle_timeout_ms", config.http.idle_timeout_ms),
        ("http.body_timeout_ms", config.http.body_timeout_ms),
        ("http.write_timeout_ms", config.http.write_timeout_ms),
        ("http.request_timeout_ms", config.http.request_timeout_ms),
        ("models.plans_max", u64::from(config.models.plans_max)),
        ("models.tensor_bytes_max", config.models.tensor_bytes_max),
        ("gateway.instance_requests_max", u64::from(config.gateway.instance_requests_max)),
        ("gateway.memory_bytes_max", config.gateway.memory_bytes_max),
        ("gateway.body_bytes_max", config.gateway.body_bytes_max),
        ("gateway.keeper_memory_bytes_max", config.gateway.keeper_memory_bytes_max),
        ("gateway.keeper_body_bytes_max", config.gateway.keeper_body_bytes_max),
        ("infer.memory_bytes_max", config.infer.memory_bytes_max),
        ("infer.queue_items_max", u64::from(config.infer.queue_items_max)),
        ("infer.queue_tokens_max", u64::from(config.infer.queue_tokens_max)),
        ("infer.caller_items_max", u64::from(config.infer.caller_items_max)),
        ("infer.call_items_max", u64::from(config.infer.call_items_max)),
        ("infer.batch_size", u64::from(config.infer.batch_size)),
        ("infer.window_ms", u64::from(config.infer.window_ms)),
        ("infer.max_batch_size", u64::from(config.infer.max_batch_size)),
        ("infer.hang_timeout_ms", config.infer.hang_timeout_ms),
        ("infer.retry_max_attempts", u64::from(config.infer.retry_max_attempts)),
        ("infer.circuit_failures", u64::from(config.infer.circuit_failures)),
        ("infer.circuit_successes", u64::from(config.infer.circuit_successes)),
        ("generate.memory_bytes_max", config.generate.memory_bytes_max),
        ("generate.step_ms", u64::from(config.generate.step_ms)),
        ("generate.running_max", u64::from(config.generate.running_max)),
        ("generate.queue_requests_max", u64::from(config.generate.queue_requests_max)),
        ("generate.tokens_max", u64::from(config.generate.tokens_max)),
        ("generate.cache_tokens_max", u64::from(config.generate.cache_tokens_max)),
        ("generate.prompt_bytes_max", u64::from(config.generate.prompt_bytes_max)),
        ("generate.choices_max", u64::from(config.generate.choices_max)),
        ("generate.hang_timeout_ms", config.generate.hang_timeout_ms),
        ("log.otlp_metrics_interval_ms", config.log.otlp_metrics_interval_ms),
        ("events.redis_block_ms", config.events.redis_block_ms),
        ("events.redis_timeout_ms", config.events.redis_timeout_ms),
        ("events.events_max", u64::from(config.events.events_max)),
        ("events.bytes_max", config.events.bytes_max),
        ("events.age_ms_max", config.events.age_ms_max),
        ("events.channels_max", u64::from(config.events.channels_max)),
        ("events.subscribers_max", u64::from(config.events.subscribers_max)),
        ("events.outbox_bytes_max", config.events.outbox_bytes_max),
        ("events.state_bytes_max", config.events.state_bytes_max),
        ("events.user_percent_max", u64::from(config.events.user_percent_max)),
        ("events.file_bytes_max", config.events.file_bytes_max),
        ("events.file_count_max", u64::from(config.events.file_count_max)),
        ("events.heartbeat_ms", config.events.heartbeat_ms),
        ("sessions.live_max", u64::from(config.sessions.live_max)),
        ("sessions.user_live_max", u64::from(config.sessions.user_live_max)),
        ("sessions.memory_bytes_max", config.sessions.memory_bytes_max),
        ("sessions.checkpoint_ms", config.sessions.checkpoint_ms),
        ("sessions.ended_ttl_ms", config.sessions.ended_ttl_ms),
        ("pipelines.executions_max", u64::from(config.pipelines.executions_max)),
        ("pipelines.user_executions_max", u64::from(config.pipelines.user_executions_max)),
        ("pipelines.input_bytes_max", config.pipelines.input_bytes_max),
        ("pipelines.output_bytes_max", config.pipelines.output_bytes_max),
        ("pipelines.outputs_bytes_max", config.pipelines.outputs_bytes_max),
        ("pipelines.ttl_ms", config.pipelines.ttl_ms),
        ("pipelines.step_memory_bytes_max", config.pipelines.step_memory_bytes_max),
        ("pipelines.step_deadline_ms_max", config.pipelines.step_deadline_ms_max),
        ("pipelines.step_calls_max", u64::from(config.pipelines.step_calls_max)),
        ("auth.ticket_ttl_s", u64::from(config.auth.ticket_ttl_s)),
        ("auth.requests_per_s", u64::from(config.auth.requests_per_s)),
        ("auth.requests_burst", u64::from(config.auth.requests_burst)),
        ("auth.publishes_per_s", u64::from(config.auth.publishes_per_s)),
        ("auth.publishes_burst", u64::from(config.auth.publishes_burst)),
        ("auth.connections_max", u64::from(config.auth.connections_max)),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(ConfigError::Invalid(format!("{key} must be at least 1")));
    }
    let lease_ms = config.events.lease_ms;
    if !LEASE_MS.contains(&lease_ms) {
        let (least, most) = (LEASE_MS.start(), LEASE_MS.end());
        return Err(ConfigError::Invalid(format!("events.lease_ms is {lease_ms}, and must be {least} to {most}")));
    }
    if !WINDOW_BITS.contains(&config.http.websocket_window_bits) {
        let (bits, least, most) = (config.http.websocket_window_bits, WINDOW_BITS.start(), WINDOW_BITS.end());
        let message = format!("http.websocket_window_bits is {bits}, and must be {least} to {most}");
        return Err(ConfigError::Invalid(message));
    }
    if config.http.client_share_percent > 100 {
        let share = config.http.client_share_percent;
        return Err(ConfigError::Invalid(format!("http.client_share_percent {share} is not a share; use 1 to 100")));
    }
    if config.log.otlp_sample_percent > 100 {
        let share = config.log.otlp_sample_percent;
        return Err(ConfigError::Invalid(format!("log.otlp_sample_percent {share} is not a share; use 0 to 100")));
    }
    if config.events.user_percent_max > 100 {
        let share = config.events.user_percent_max;
        return Err(ConfigError::Invalid(format!("events.user_percent_max {share} is not a share; use 1 to 100")));
    }
    if config.auth.mode == AuthMode::Required && config.auth.dir.as_os_str().is_empty() {
        let missing = "auth.dir must name the folder of keys when auth.mode is `required`";
        return Err(ConfigError::Invalid(missing.into()));
    }
    if config.pipelines.output_bytes_max > OUTPUT_BYTES_MAX {
        let large = format!(
            "pipelines.output_bytes_max must be at most {OUTPUT_BYTES_MAX}: longer outputs do not fit into an event"
        );
        return Err(ConfigError::Invalid(large));
    }
    config.pipelines.named_steps().map_err(ConfigError::Invalid)?;
    crate::adapters::check(&config.adapter).map_err(ConfigError::Invalid)?;
    crate::upstreams::check(&config.upstream).map_err(ConfigError::Invalid)?;
    // They reach the gateway in one variable, separated by spaces.
    let lists = [
        ("auth.issuers", &config.auth.issuers),
        ("auth.audiences", &config.auth.audiences),
        ("auth.cors_origins", &config.auth.cors_origins),
        ("pipelines.http_allow", &config.pipelines.http_allow),
    ];
    let broken = |items: &[String]| items.iter().any(|item| item.is_empty() || item.contains(char::is_whitespace));
    match lists.iter().find(|(_, items)| broken(items)) {
        Some((key, _)) => Err(ConfigError::Invalid(format!("{key} must not have empty items or white space"))),
        None => Ok(()),
    }
}

/// The message of an error, in one line, with the key and the source of its value.
fn one_line(error: figment::Error) -> String {
    let Some(first) = error.into_iter().next() else { return "invalid configuration".into() };
    let key = first.path.join(".");
    if let figment::error::Kind::UnknownField(field, siblings) = &first.kind {
        // The path of a table whose `kind` decides its keys ends before the key.
        let key = if key.ends_with(field.as_str()) { key } else { format!("{key}.{field}") };
        return format!("{key} is not a key of the configuration{}; {}", source_of(&first), suggestion(&key, siblings));
    }
    // "found `x`, expected `one of `a`, `b```": the inner quotes are removed.
    let message = json_types(&first.kind.to_string()).replace("`one of ", "one of ").replace("``", "`");
    let suggestion = match &first.kind {
        figment::error::Kind::UnknownVariant(value, known) => suggest(value, known.iter().copied())
            .map(|suggestion| format!("; did you mean `{suggestion}`?"))
            .unwrap_or_default(),
        _ => String::new(),
    };
    let source = source_of(&first);
    // The message of the TOML parser has several lines.
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if key.is_empty() {
        format!("{message}{source}{suggestion}")
    } else {
        format!("{key}: {message}{source}{suggestion}")
    }
}

/// A suggestion in place of an unknown key. `siblings` are the keys of its section.
fn suggestion(key: &str, siblings: &[&str]) -> String {
    match suggest_key(key) {
        Some(suggestion) => format!("did you mean `{suggestion}`?"),
        None if siblings.is_empty() => "`weir config` lists the keys".to_owned(),
        None => format!("there are `{}`", siblings.join("`, `")),
    }
}

/// The source of a value.
fn source_of(error: &figment::Error) -> String {
    let Some(metadata) = &error.metadata else { return String::new() };
    match &metadata.source {
        Some(source) => format!(" (in {source})"),
        None => format!(" (in the {})", metadata.name),
    }
}

/// Keys and values from outside of a file. Values are parsed as the type of the key's default if possible.
struct Pairs {
    source: &'static str,
    pairs: Vec<(String, String)>,
}

impl Pairs {
    fn environment(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let known = leaves();
        let sections: Vec<String> = known
            .iter()
            .filter_map(|key| key.split('.').next())
            .map(|s| format!("WEIR_{}_", s.to_uppercase()))
            .collect();
        let alias_of = |name: &str| ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, key)| (*key).to_owned());
        // A variable overrides its alias.
        let (aliases, variables): (Vec<_>, Vec<_>) =
            variables.into_iter().partition(|(name, _)| alias_of(name).is_some());
        let mut pairs: Vec<(String, String)> = aliases
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(name, value)| Some((alias_of(&name)?, value)))
            .collect();
        for (name, value) in variables {
            let key = known.iter().find(|key| variable(key) == name);
            match key {
                Some(key) => pairs.push((key.clone(), value)),
                // Only names with the prefix of a section: others may belong to other programs.
                None if sections.iter().any(|s| name.starts_with(s.as_str())) => {
                    let variables: Vec<String> = known.iter().map(|key| variable(key)).collect();
                    let lowercase = name.to_lowercase();
                    let lower: Vec<String> = variables.iter().map(|variable| variable.to_lowercase()).collect();
                    let suggestion = suggest(&lowercase, lower.iter().map(String::as_str)).map(str::to_uppercase);
                    let suggestion =
                        suggestion.map(|suggestion| format!("; did you mean {suggestion}?")).unwrap_or_default();
                    return Err(ConfigError::UnknownVariable { name, suggestion });
                }
                None => {}
            }
        }
        Ok(Self { source: "environment", pairs })
    }
}

/// Other variables that set a key.
const ALIASES: [(&str, &str); 4] = [
    ("STREAM_MAX_ENTRIES", "events.events_max"),
    ("STREAM_BLOCK_TIME", "events.redis_block_ms"),
    ("STREAMING_LOG_LEVEL", "log.level"),
    ("STREAMING_CACHE_DIR", "models.dir"),
];

impl Provider for Pairs {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut root = Dict::new();
        let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
        for (key, text) in &self.pairs {
            let value: Value = match text.parse() {
                Ok(value) => value,
                Err(never) => match never {},
            };
            // A key whose default is a text takes any value as text: a folder may be called `7`.
            let is_text = match default_of(&defaults, key) {
                Some(default) => default.is_string(),
                None => {
                    const TEXTS: [&str; 4] = [".path", ".engine", ".device", ".precision"];
                    key.starts_with("model.") && TEXTS.iter().any(|end| key.ends_with(end))
                }
            };
            let value = if is_text { Value::from(text.clone()) } else { value };
            insert(&mut root, key, value);
        }
        Ok(Profile::Default.collect(root))
    }
}

fn default_of<'a>(defaults: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    key.split('.').try_fold(defaults, |value, part| value.get(part))
}

fn insert(dict: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            dict.insert(key.to_string(), value);
        }
        Some((head, rest)) => {
            let entry = dict.entry(head.to_string()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use expect_test::{Expect, expect};

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn error(text: &str, variables: &[(&str, &str)], expect: Expect) {
        let file = file(text);
        let message = load(Some(file.path()), env(variables), &[]).unwrap_err().to_string();
        expect.assert_eq(&message.replace(&file.path().display().to_string(), "FILE"));
    }

    #[test]
    fn alias_sets_its_key() {
        let config = load(None, env(&[("STREAM_MAX_ENTRIES", "7"), ("STREAM_BLOCK_TIME", "50")]), &[]).unwrap();
        assert_eq!((config.events.events_max, config.events.redis_block_ms), (7, 50));
        let aliases = [("STREAMING_LOG_LEVEL", "debug"), ("STREAMING_CACHE_DIR", "/models")];
        let config = load(None, env(&aliases), &[]).unwrap();
        assert_eq!((config.log.level.as_str(), config.models.dir.to_str()), ("debug", Some("/models")));
        // In any order, the variable of the key overrides its alias.
        let both = [("WEIR_LOG_LEVEL", "error"), ("STREAMING_LOG_LEVEL", "debug"), ("STREAMING_CACHE_DIR", "")];
        assert_eq!(load(None, env(&both), &[]).unwrap().log.level, "error");
    }

    #[test]
    fn required_authentication_without_a_folder_of_keys_is_refused() {
        error(
            "[auth]\nmode = 'required'\n",
            &[],
            expect!["auth.dir must name the folder of keys when auth.mode is `required`"],
        );
        error("[auth]\nissuers = ['a b']\n", &[], expect!["auth.issuers must not have empty items or white space"]);
    }

    #[test]
    fn later_source_overrides_earlier_ones() {
        let file = file("[http]\nlisten = '127.0.0.1:1'\nrequests_max = 5\n[model.mine]\npath = '/m'\n");
        let config = load(
            Some(file.path()),
            env(&[("WEIR_HTTP_LISTEN", "127.0.0.1:2"), ("WEIR_MODELS_NAMES", "[a, b]"), ("PATH", "x")]),
            &[("http.listen".into(), "127.0.0.1:3".into())],
        )
        .unwrap();
        assert_eq!(config.http.listen, "127.0.0.1:3");
        assert_eq!(config.http.requests_max, 5);
        assert_eq!(config.http.body_bytes_max, 1 << 20);
        assert_eq!(config.models.names, ["a", "b"]);
        assert_eq!(config.model["mine"].path, PathBuf::from("/m"));
    }

    #[test]
    fn mistyped_key_is_refused_with_a_suggestion() {
        let set = |key: &str, value: &str| load(None, [], &[(key.into(), value.into())]).map_err(|e| e.to_string());
        expect!["requests_max is not a key of the configuration; did you mean `http.requests_max`?"]
            .assert_eq(&set("requests_max", "1").unwrap_err());
        expect!["htp.requests_max is not a key of the configuration; did you mean `http.requests_max`?"]
            .assert_eq(&set("htp.requests_max", "1").unwrap_err());
        assert!(set("log.level", "loud").unwrap_err().starts_with("log.level `loud` is not a level"));
        assert_eq!(set("http.listen", "8081").unwrap().http.listen, "127.0.0.1:8081");
    }

    #[test]
    fn number_is_accepted_for_a_text_key() {
        for key in ["events.file", "auth.dir", "events.path", "models.dir", "pipelines.dir", "events.redis_prefix"] {
            load(None, [], &[(key.into(), "7".into())]).unwrap();
        }
        let config = load(None, [], &[("model.x.path".into(), "7".into())]).unwrap();
        assert_eq!(config.model["x"].path, PathBuf::from("7"));
    }

    #[test]
    fn template_is_a_configuration_file_with_the_defaults() {
        let file = file(&crate::template());
        assert_eq!(load(Some(file.path()), [], &[]).unwrap(), Config::default());
    }

    #[test]
    fn invalid_toml_is_refused_in_one_line() {
        let file = file("[http\nlisten = 1");
        let message = load(Some(file.path()), [], &[]).unwrap_err().to_string();
        assert!(!message.contains('\n') && message.contains("line 1"), "{message}");
    }

    #[test]
    fn file_with_byte_order_mark_and_crlf_is_read() {
        let file = file("\u{feff}[http]\r\nlisten = '127.0.0.1:1'\r\n\r\n# a comment\r\nrequests_max = 5\r\n");
        let config = load(Some(file.path()), [], &[]).unwrap();
        assert_eq!((config.http.listen.as_str(), config.http.requests_max), ("127.0.0.1:1", 5));
        let utf16: String = "[http]\n".chars().flat_map(|character| [character, '\0']).collect();
        error(&utf16, &[], expect!["configuration file FILE: the file is UTF-16 or binary; save it as UTF-8 text"]);
    }

    #[test]
    fn invalid_values_are_named_with_their_source() {
        error(
            "[http]\nlistn = 'x'\n",
            &[],
            expect!["http.listn is not a key of the configuration (in FILE); did you mean `http.listen`?"],
        );
        error(
            "[log]\ncolour = 'x'\n",
            &[],
            expect![
                "log.colour is not a key of the configuration (in FILE); there are `format`, `level`, `otlp_endpoint`, `otlp_metrics_interval_ms`, `otlp_sample_percent`"
            ],
        );
        error(
            "[model.mine]\npth = 'x'\n",
            &[],
            expect!["model.mine.pth is not a key of the configuration (in FILE); did you mean `model.mine.path`?"],
        );
        error(
            "[http]\nrequests_max = 'many'\n",
            &[],
            expect![[
                r#"http.requests_max: invalid type: found the string "many", expected a whole number from 0 to 4294967295 (in FILE)"#
            ]],
        );
        let file = file("[[adapter]]\nname = 'a'\n[adapter.source]\nkind = 'redis'\nurll = ''\n");
        let message = load(Some(file.path()), [], &[]).unwrap_err().to_string();
        assert!(message.contains(".source.urll is not a key of the configuration"), "{message}");
        error("[http]\nrequests_max = 0\n", &[], expect!["http.requests_max must be at least 1"]);
        error("[events]\nlease_ms = 999\n", &[], expect!["events.lease_ms is 999, and must be 1000 to 3600000"]);
        error(
            "",
            &[("WEIR_HTTP_LISTN", "x")],
            expect![
                "WEIR_HTTP_LISTN in the environment is not a key of the configuration (`weir config` lists them); did you mean WEIR_HTTP_LISTEN?"
            ],
        );
        error(
            "[log]\nformat = 'xml'\n",
            &[],
            expect!["log.format: unknown variant: found `xml`, expected `text` or `json` (in FILE)"],
        );
        error(
            "[events]\nstore = 'dsk'\n",
            &[],
            expect![
                "events.store: unknown variant: found `dsk`, expected one of `memory`, `disk`, `redis` (in FILE); did you mean `disk`?"
            ],
        );
    }

    #[test]
    fn unreadable_file_is_an_error_with_its_reason() {
        let message = |path: &Path| load(Some(path), [], &[]).unwrap_err().to_string();
        expect!["configuration file /nowhere.toml cannot be read: No such file or directory (os error 2)"]
            .assert_eq(&message(Path::new("/nowhere.toml")));
        expect!["configuration file / cannot be read: it is not a file"].assert_eq(&message(Path::new("/")));
    }

    #[test]
    fn bound_of_zero_is_refused() {
        for key in [
            "http.write_timeout_ms",
            "gateway.memory_bytes_max",
            "gateway.keeper_memory_bytes_max",
            "infer.memory_bytes_max",
            "generate.memory_bytes_max",
            "events.file_bytes_max",
            "events.file_count_max",
        ] {
            let error = load(None, [], &[(key.into(), "0".into())]).expect_err(key).to_string();
            assert_eq!(error, format!("{key} must be at least 1"));
        }
    }
}
