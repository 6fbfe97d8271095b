//! What the environment says. The host passes it to every instance; it is read once.

use std::sync::OnceLock;

/// The gateway's settings.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `WEIR_HTTP_BODY_BYTES_MAX`: most bytes in a body, 1048576 unless told.
    pub(crate) body_bytes_max: u64,
    /// `WEIR_HTTP_BODY_TIMEOUT_MS`: how long a body may take to arrive, 30000 unless told.
    pub(crate) body_timeout_ms: u64,
    /// `WEIR_HTTP_REQUEST_TIMEOUT_MS`: how long a request may take, 60000 unless told.
    pub(crate) request_timeout_ms: u64,
    /// `WEIR_STEPS_SENTIMENT`: the model that labels chunks, `sentiment` unless told.
    pub(crate) sentiment_model: String,
    /// `WEIR_STEPS_SUMMARY`: the model that summarizes, `embeddings` unless told.
    pub(crate) summary_model: String,
    /// `WEIR_STEPS_ENTITIES`: the model that finds entities, `entities` unless told.
    pub(crate) entities_model: String,
}

impl Settings {
    /// The settings, or a sentence about the variable that cannot be understood.
    pub(crate) fn current() -> Result<&'static Self, &'static str> {
        static SETTINGS: OnceLock<Result<Settings, String>> = OnceLock::new();
        SETTINGS.get_or_init(|| Self::read(|name| std::env::var(name).ok())).as_ref().map_err(String::as_str)
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str, default: u64| match variable(name) {
            None => Ok(default),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("`{name}` must be a whole number above 0, and is `{text}`")),
            },
        };
        let model = |name: &str, default: &str| match variable(name) {
            None => Ok(default.to_owned()),
            Some(text) if text.trim().is_empty() => Err(format!("`{name}` must name a model, and is empty")),
            Some(text) => Ok(text.trim().to_owned()),
        };
        Ok(Self {
            body_bytes_max: number("WEIR_HTTP_BODY_BYTES_MAX", 1_048_576)?,
            body_timeout_ms: number("WEIR_HTTP_BODY_TIMEOUT_MS", 30_000)?,
            request_timeout_ms: number("WEIR_HTTP_REQUEST_TIMEOUT_MS", 60_000)?,
            sentiment_model: model("WEIR_STEPS_SENTIMENT", "sentiment")?,
            summary_model: model("WEIR_STEPS_SUMMARY", "embeddings")?,
            entities_model: model("WEIR_STEPS_ENTITIES", "entities")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn defaults() {
        let settings = read(&[]).expect("no variable is needed");
        assert_eq!(settings.body_bytes_max, 1_048_576);
        assert_eq!(settings.body_timeout_ms, 30_000);
        assert_eq!(settings.request_timeout_ms, 60_000);
        assert_eq!(settings.sentiment_model, "sentiment");
        assert_eq!(settings.summary_model, "embeddings");
        assert_eq!(settings.entities_model, "entities");
    }

    #[test]
    fn what_is_told_is_taken() {
        let settings = read(&[("WEIR_HTTP_BODY_BYTES_MAX", " 7 "), ("WEIR_STEPS_SUMMARY", "mini")]);
        let settings = settings.expect("both can be understood");
        assert_eq!((settings.body_bytes_max, settings.summary_model.as_str()), (7, "mini"));
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (name, value) in [
            ("WEIR_HTTP_BODY_BYTES_MAX", "1MB"),
            ("WEIR_HTTP_BODY_TIMEOUT_MS", "0"),
            ("WEIR_HTTP_REQUEST_TIMEOUT_MS", "-1"),
            ("WEIR_HTTP_REQUEST_TIMEOUT_MS", ""),
            ("WEIR_STEPS_ENTITIES", " "),
        ] {
            let error = read(&[(name, value)]).expect_err(name);
            assert!(error.contains(name), "{error}");
        }
    }
}
