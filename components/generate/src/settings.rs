//! The settings, from environment variables that the host derives from its configuration.

/// The section `generate` of the host's configuration, as far as this component needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Expected time of a step, in milliseconds.
    pub step_ms: u32,
    /// Maximum number of texts that one model generates concurrently.
    pub running_max: u32,
    /// Maximum number of requests that wait for one model.
    pub queue_requests_max: u32,
    /// Maximum number of generated tokens of a request that sets none.
    pub tokens_max: u32,
    /// Maximum size of a prompt, in bytes.
    pub prompt_bytes_max: u32,
    /// Maximum number of choices of one request.
    pub choices_max: u32,
    /// System messages whose computed state is shared between callers.
    pub prefixes: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            step_ms: 30,
            running_max: 64,
            queue_requests_max: 256,
            tokens_max: 512,
            prompt_bytes_max: 1 << 20,
            choices_max: 8,
            prefixes: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads the settings from `variable`. An absent or invalid variable has its default.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let default = Self::default();
        let number = |name: &str, default: u32| {
            let value = variable(&format!("WEIR_GENERATE_{name}"));
            value.and_then(|value| value.parse().ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let prefixes = variable("WEIR_GENERATE_PREFIXES").unwrap_or_default();
        Self {
            step_ms: number("STEP_MS", default.step_ms),
            running_max: number("RUNNING_MAX", default.running_max),
            queue_requests_max: number("QUEUE_REQUESTS_MAX", default.queue_requests_max),
            tokens_max: number("TOKENS_MAX", default.tokens_max),
            prompt_bytes_max: number("PROMPT_BYTES_MAX", default.prompt_bytes_max),
            choices_max: number("CHOICES_MAX", default.choices_max),
            prefixes: prefixes.split('\u{1e}').filter(|text| !text.is_empty()).map(str::to_owned).collect(),
        }
    }
}
