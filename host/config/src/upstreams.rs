//! The keys of upstreams: `[[upstream]]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One upstream: `[[upstream]]`. Another server that generates text. A request goes to the local model of its name, then to the upstreams
/// that have the model, in their order, until one of them returns text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Its name in logs and metrics: letters, digits, `-` and `_`.
    pub name: String,
    /// Its API: `openai` (also that of many other servers), `anthropic` or `gemini`.
    pub kind: UpstreamKind,
    /// Its base URL: `https://api.openai.com/v1`, `https://api.anthropic.com`,
    /// `https://generativelanguage.googleapis.com`, `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// A component file that replaces the built-in one for this upstream.
    pub component: PathBuf,
    /// A file with the key. It is read for each request, so that it can be replaced.
    pub key_file: PathBuf,
    /// The environment variable with the key, instead of a file.
    pub key_env: String,
    /// Its models: names; one that ends in `*` stands for all names with the same beginning.
    pub models: Vec<String>,
    /// Other names for its models, each `NAME=MODEL`. With the name of a local model, it is the fallback of that model.
    pub aliases: Vec<String>,
    /// Timeout of a connection attempt, ms.
    pub connect_timeout_ms: u64,
    /// Timeout of the next data of its response, ms. The whole response has no timeout.
    pub idle_timeout_ms: u64,
    /// Attempts for a request that fails before its first token, the first one included.
    pub retry_max_attempts: u32,
    /// Base delay between these attempts, ms. A `Retry-After` of the upstream is respected; over 10 s, there is no other attempt.
    pub retry_base_backoff_ms: u32,
    /// Number of failures that opens the circuit: requests then go to the next upstream, or are answered 503.
    pub circuit_failures: u32,
    /// The time within which failures count, ms.
    pub circuit_window_ms: u32,
    /// Time for which an open circuit refuses requests before it admits one, ms.
    pub circuit_open_ms: u32,
    /// Most concurrent requests.
    pub running_max: u32,
    /// Most concurrent requests of one user; without authentication, of one client address.
    pub user_running_max: u32,
    /// Tokens of one user per minute, those of prompts included; 0 for no bound. A request is admitted while a token is left, and its tokens are subtracted at its end.
    pub user_tokens_per_minute: u32,
}

/// The API of an upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamKind {
    /// OpenAI's chat completions and completions.
    #[default]
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Gemini's `streamGenerateContent`.
    Gemini,
}

impl UpstreamKind {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: UpstreamKind::OpenAi,
            url: String::new(),
            component: PathBuf::new(),
            key_file: PathBuf::new(),
            key_env: String::new(),
            models: Vec::new(),
            aliases: Vec::new(),
            connect_timeout_ms: 10_000,
            idle_timeout_ms: 60_000,
            retry_max_attempts: 3,
            retry_base_backoff_ms: 250,
            circuit_failures: 5,
            circuit_window_ms: 60_000,
            circuit_open_ms: 30_000,
            running_max: 64,
            user_running_max: 16,
            user_tokens_per_minute: 0,
        }
    }
}

impl Upstream {
    /// The names of `aliases`.
    pub fn alias_names(&self) -> impl Iterator<Item = &str> {
        self.aliases.iter().filter_map(|pair| pair.split_once('=')).map(|(name, _)| name)
    }
}

/// Checks the upstreams of a configuration.
pub(crate) fn check(upstreams: &[Upstream]) -> Result<(), String> {
    let mut names = std::collections::BTreeSet::new();
    for upstream in upstreams {
        let name = &upstream.name;
        let is_name = !name.is_empty() && name.len() <= 64;
        if !is_name || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            return Err(format!("upstream.name `{name}` must be 1 to 64 letters, digits, `-` or `_`"));
        }
        if !names.insert(name) {
            return Err(format!("upstream.name `{name}` is used twice"));
        }
        check_one(upstream).map_err(|what| format!("upstream `{name}`: {what}"))?;
    }
    Ok(())
}

fn check_one(upstream: &Upstream) -> Result<(), String> {
    let Upstream { url, key_file, key_env, models, aliases, .. } = upstream;
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let has_host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':']));
    if !has_host || url.contains(['?', '#', '@']) || url.contains(char::is_whitespace) {
        // The URL may have a password in the wrong place.
        return Err(
            "url must be `https://HOST` or `http://HOST`, optionally with a port and a path, without user, query or \
                    fragment; put the key into a file or an environment variable"
                .to_owned(),
        );
    }
    if !key_file.as_os_str().is_empty() && !key_env.is_empty() {
        return Err("key_file and key_env are both set; use one".to_owned());
    }
    if models.is_empty() && aliases.is_empty() {
        return Err("models and aliases are empty; name a model, or `*` for all".to_owned());
    }
    let is_name = |name: &str| !name.is_empty() && name.len() <= 128 && !name.contains(char::is_whitespace);
    let is_model = |name: &String| is_name(name) && !name[..name.len() - 1].contains('*');
    // The last character may be longer than a byte.
    if let Some(model) = models.iter().find(|model| !model.is_ascii() || !is_model(model)) {
        return Err(format!(
            "models has `{model}`, which is not a name of ASCII letters with at most one `*`, at its end"
        ));
    }
    let is_alias = |pair: &String| {
        pair.is_ascii()
            && pair.split_once('=').is_some_and(|(name, model)| is_name(name) && is_name(model) && !pair.contains('*'))
    };
    if let Some(alias) = aliases.iter().find(|alias| !is_alias(alias)) {
        return Err(format!("aliases has `{alias}`, which is not `NAME=MODEL`"));
    }
    let positive = [
        ("connect_timeout_ms", upstream.connect_timeout_ms),
        ("idle_timeout_ms", upstream.idle_timeout_ms),
        ("retry_max_attempts", upstream.retry_max_attempts.into()),
        ("circuit_failures", upstream.circuit_failures.into()),
        ("running_max", upstream.running_max.into()),
        ("user_running_max", upstream.user_running_max.into()),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(format!("{key} must be at least 1"));
    }
    // The component reads them as 32-bit numbers.
    for (key, value) in
        [("connect_timeout_ms", upstream.connect_timeout_ms), ("idle_timeout_ms", upstream.idle_timeout_ms)]
    {
        if value > u64::from(u32::MAX) {
            return Err(format!("{key} is {value}, and may be at most {}", u32::MAX));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream() -> Upstream {
        Upstream {
            name: "a".into(),
            url: "https://api.example.org/v1".into(),
            models: vec!["m-*".into()],
            ..Upstream::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Upstream)) -> String {
        let mut changed = upstream();
        change(&mut changed);
        check(&[changed]).unwrap_err()
    }

    #[test]
    fn upstreams_are_checked() {
        assert_eq!(check(&[upstream()]), Ok(()));
        assert!(check(&[upstream(), upstream()]).unwrap_err().contains("twice"));
        for url in ["", "api.example.org", "https://", "https://:80", "ftp://a", "https://a/?key=1", "https://a b"] {
            assert!(refused(|upstream| upstream.url = url.into()).contains("url must be"), "{url}");
        }
        let secret = refused(|upstream| upstream.url = "https://user:secret@api.example.org".into());
        assert!(!secret.contains("secret"), "{secret}");
        assert!(refused(|upstream| upstream.models.clear()).contains("models and aliases"));
        for model in ["", "a b", "*a", "a**"] {
            assert!(refused(|upstream| upstream.models = vec![model.into()]).contains("models has"), "{model}");
        }
        for alias in ["a", "=b", "a=", "a*=b", "a=b c"] {
            assert!(refused(|upstream| upstream.aliases = vec![alias.into()]).contains("aliases has"), "{alias}");
        }
        let both = refused(|upstream| (upstream.key_file, upstream.key_env) = ("k".into(), "K".into()));
        assert!(both.contains("both set"));
        assert!(refused(|upstream| upstream.idle_timeout_ms = 0).contains("idle_timeout_ms"));
    }
}
