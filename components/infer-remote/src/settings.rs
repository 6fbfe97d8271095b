//! The settings of the server, from the environment.

use std::env::var;

/// The longest time without data of the server while a result is outstanding.
const TIMEOUT_MS: u64 = 30_000;
const NS_PER_MS: u64 = 1_000_000;

/// The server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// True for https.
    pub(crate) is_tls: bool,
    /// `HOST:PORT`
    pub(crate) authority: String,
    /// The prefix of the paths; empty, or it begins with a slash.
    pub(crate) prefix: String,
    /// The value of `Authorization`.
    pub(crate) authorization: Option<String>,
    /// The longest time without data of the server while a result is outstanding.
    pub(crate) timeout_ns: u64,
}

impl Settings {
    /// The settings of this instance.
    ///
    /// # Errors
    /// A variable is missing or invalid; the text names it and the valid form.
    pub(crate) fn read() -> Result<Self, String> {
        let url = var("WEIR_REMOTE_URL").unwrap_or_default();
        if url.is_empty() {
            return Err(
                "WEIR_REMOTE_URL is not set; it is the address of a server with models, http://HOST:PORT".to_owned()
            );
        }
        let (is_tls, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err("WEIR_REMOTE_URL must be http://HOST:PORT or https://HOST:PORT".to_owned()),
        };
        let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.is_empty() || authority.contains(['@', '?', '#']) || prefix.contains(['?', '#']) {
            return Err(
                "WEIR_REMOTE_URL must be http://HOST:PORT or https://HOST:PORT, optionally with a path".to_owned()
            );
        }
        let timeout_ms = match var("WEIR_REMOTE_TIMEOUT_MS") {
            Ok(value) => match value.parse() {
                Ok(timeout_ms @ 1..) => timeout_ms,
                _ => return Err("WEIR_REMOTE_TIMEOUT_MS must be a number of milliseconds, at least 1".to_owned()),
            },
            Err(_) => TIMEOUT_MS,
        };
        let token = var("WEIR_REMOTE_TOKEN").ok().filter(|token| !token.is_empty());
        Ok(Self {
            is_tls,
            authority: authority.to_owned(),
            prefix: prefix.trim_end_matches('/').to_owned(),
            authorization: token.map(|token| format!("Bearer {token}")),
            timeout_ns: timeout_ms.saturating_mul(NS_PER_MS),
        })
    }

    /// The name of the server in failures.
    pub(crate) fn name(&self) -> String {
        format!("{}://{}", if self.is_tls { "https" } else { "http" }, self.authority)
    }
}
