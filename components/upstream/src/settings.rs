//! The settings, which the host passes as environment variables: the keys of one `[[upstream]]` table, `url` as `WEIR_UPSTREAM_URL`.

use weir_codec::generation::upstream::UpstreamKind;
use weir_core::{
    generation::upstream::UpstreamConfig,
    inference::{
        breaker::BreakerConfig,
        retry::{RetryBudgetConfig, RetryConfig},
    },
};

use crate::models::ModelNames;

const NS_PER_MS: u64 = 1_000_000;

/// The settings of the server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its API.
    pub kind: UpstreamKind,
    /// Its address.
    pub address: Address,
    /// Its models.
    pub models: ModelNames,
    /// Timeout between two parts of a response, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Timeout of a connection attempt, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Bounds and retries.
    pub config: UpstreamConfig,
}

/// The parts of a base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whether the scheme is `https` and not `http`.
    pub is_tls: bool,
    /// Host, and port if it has one.
    pub authority: String,
    /// The prefix of every path, without a slash at the end.
    pub path: String,
}

impl Settings {
    /// Reads the settings with `variable`. A number that is missing or invalid has its default.
    ///
    /// # Errors
    ///
    /// The kind or the URL is missing or invalid; the text names the variable.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let text = |name: &str| variable(&format!("WEIR_UPSTREAM_{name}")).unwrap_or_default();
        let number = |name: &str, default: u32| text(name).parse().unwrap_or(default);
        let kind = match text("KIND").as_str() {
            "openai" => UpstreamKind::OpenAi,
            "anthropic" => UpstreamKind::Anthropic,
            "gemini" => UpstreamKind::Gemini,
            other => return Err(format!("WEIR_UPSTREAM_KIND `{other}` is not openai, anthropic or gemini")),
        };
        let url = text("URL");
        let address = Address::read(&url).ok_or_else(|| {
            format!("WEIR_UPSTREAM_URL `{url}` is not http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]")
        })?;
        let config = UpstreamConfig {
            running_max: number("RUNNING_MAX", 64),
            user_running_max: number("USER_RUNNING_MAX", 16),
            user_tokens_per_minute: number("USER_TOKENS_PER_MINUTE", 0),
            retry: RetryConfig {
                max_attempts: number("RETRY_MAX_ATTEMPTS", 3),
                base_backoff_ms: number("RETRY_BASE_BACKOFF_MS", 250),
                ..RetryConfig::default()
            },
            retry_budget: RetryBudgetConfig::default(),
            breaker: BreakerConfig {
                failures_to_open: number("CIRCUIT_FAILURES", 5),
                window_ns: u64::from(number("CIRCUIT_WINDOW_MS", 60_000)) * NS_PER_MS,
                open_ns: u64::from(number("CIRCUIT_OPEN_MS", 30_000)) * NS_PER_MS,
                ..BreakerConfig::default()
            },
        };
        Ok(Self {
            kind,
            address,
            models: ModelNames::read(&text("MODELS"), &text("ALIASES")),
            idle_timeout_ms: number("IDLE_TIMEOUT_MS", 60_000).into(),
            connect_timeout_ms: number("CONNECT_TIMEOUT_MS", 10_000).into(),
            config,
        })
    }
}

impl Address {
    fn read(url: &str) -> Option<Self> {
        let (is_tls, rest) = match url.split_once("://")? {
            ("https", rest) => (true, rest),
            ("http", rest) => (false, rest),
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_plain = !authority.is_empty() && !url.contains(['?', '#', '@']);
        let path = path.trim_end_matches('/').to_owned();
        is_plain.then(|| Self { is_tls, authority: authority.to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn settings_are_read_from_the_environment() {
        let settings = read(&[
            ("WEIR_UPSTREAM_KIND", "anthropic"),
            ("WEIR_UPSTREAM_URL", "https://api.example.org:8443/base/"),
            ("WEIR_UPSTREAM_MODELS", "claude-* small"),
            ("WEIR_UPSTREAM_IDLE_TIMEOUT_MS", "250"),
        ])
        .unwrap();
        let address = Address { is_tls: true, authority: "api.example.org:8443".to_owned(), path: "/base".to_owned() };
        assert_eq!((settings.kind, settings.address), (UpstreamKind::Anthropic, address));
        assert_eq!((settings.idle_timeout_ms, settings.connect_timeout_ms), (250, 10_000));
    }

    #[test]
    fn kind_and_url_are_checked() {
        assert!(read(&[]).unwrap_err().contains("WEIR_UPSTREAM_KIND"));
        for url in ["", "ftp://a", "http://", "http:///x", "http://u@a/", "http://a/?q", "a.example"] {
            let error = read(&[("WEIR_UPSTREAM_KIND", "openai"), ("WEIR_UPSTREAM_URL", url)]).unwrap_err();
            assert!(error.contains("WEIR_UPSTREAM_URL"), "{url}: {error}");
        }
    }
}
