//! The configuration of a session: its settings, their defaults and bounds.

use std::sync::Arc;

use thiserror::Error;

use super::{
    annotate::{AnnotateConfig, AnnotateError, Annotator},
    route::RoutingConfig,
};

/// The context window for a language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ContextConfig {
    /// Most segments in the window.
    pub max_segments: usize,
    /// A segment leaves the window when it ended more than this many seconds before the latest one.
    pub max_time_sec: f64,
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self { max_segments: 10, max_time_sec: 120.0 }
    }
}

/// When summaries are due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryConfig {
    /// A summary is due after this number of final segments; 0: never.
    pub every_finals: u32,
    /// A summary is due at the end, if segments have become final since the previous end.
    pub at_end: bool,
}

impl Default for SummaryConfig {
    fn default() -> Self {
        Self { every_finals: 5, at_end: true }
    }
}

/// The expiry of an idle session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleConfig {
    /// The session expires this number of milliseconds after its last input; 0: never.
    pub expire_ms: u64,
    /// The expiry is announced this many milliseconds before.
    pub warn_ms: u64,
}

impl Default for IdleConfig {
    fn default() -> Self {
        Self { expire_ms: 600_000, warn_ms: 30_000 }
    }
}

/// Bounds that slower-whisper does not define.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionLimits {
    /// Most bytes in the text of a chunk.
    pub text_bytes_max: usize,
    /// Most bytes in the name of a speaker.
    pub speaker_bytes_max: usize,
    /// Most bytes in the text of a segment. A segment that would exceed it is final, and a new one begins.
    pub segment_bytes_max: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { text_bytes_max: 8192, speaker_bytes_max: 256, segment_bytes_max: 16_384 }
    }
}

/// The configuration of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionConfig {
    /// The longest pause within a segment, in seconds: the next chunk of the same speaker extends the segment if it
    /// starts at most this long after the segment's end.
    pub max_gap_sec: f64,
    /// Chunks may start before the segment in flight ends, such as when two people speak at once. They must be in the
    /// order of their starts.
    pub overlap: bool,
    /// The annotation of final segments.
    pub annotate: AnnotateConfig,
    /// The queues of final segments.
    pub routing: RoutingConfig,
    /// The context window.
    pub context: ContextConfig,
    /// When summaries are due.
    pub summary: SummaryConfig,
    /// The expiry of an idle session.
    pub idle: IdleConfig,
    /// Further bounds.
    pub limits: SessionLimits,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            max_gap_sec: 1.0,
            overlap: false,
            annotate: AnnotateConfig::default(),
            routing: RoutingConfig::default(),
            context: ContextConfig::default(),
            summary: SummaryConfig::default(),
            idle: IdleConfig::default(),
            limits: SessionLimits::default(),
        }
    }
}

/// Largest configurable number of segments in a window or a queue.
pub const SEGMENTS_MAX: usize = 1000;
/// Largest configurable number of bytes in a text.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Largest configurable number of bytes in a speaker's name.
pub const SPEAKER_BYTES_MAX: usize = 4096;

/// Why a configuration is invalid.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ConfigError {
    /// A number of seconds is negative or not finite.
    #[error("{name} must be a finite number of at least 0, and is {value}")]
    Seconds {
        /// The setting.
        name: &'static str,
        /// The value.
        value: f64,
    },
    /// A number is outside its bounds.
    #[error("{name} must be {min} to {max}, and is {value}")]
    Outside {
        /// The setting.
        name: &'static str,
        /// The value.
        value: usize,
        /// The smallest value.
        min: usize,
        /// The largest value.
        max: usize,
    },
    /// The warning time is not less than the expiry time.
    #[error("idle.warn_ms {warn_ms} must be less than idle.expire_ms {expire_ms}")]
    Warning {
        /// The value of `idle.warn_ms`.
        warn_ms: u64,
        /// The value of `idle.expire_ms`.
        expire_ms: u64,
    },
    /// The annotation rules are invalid.
    #[error(transparent)]
    Annotate(#[from] AnnotateError),
}

impl SessionConfig {
    /// Checks every setting except for the annotation rules, which [`Annotator::new`] checks.
    ///
    /// # Errors
    ///
    /// The first invalid setting: see [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [("max_gap_sec", self.max_gap_sec), ("context.max_time_sec", self.context.max_time_sec)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigError::Seconds { name, value });
            }
        }
        let Self { routing, context, idle, limits, .. } = self;
        let mut bounds = vec![("context.max_segments", context.max_segments, 1, SEGMENTS_MAX)];
        bounds.extend(routing.queue_len_max.iter().map(|len| ("routing.queue_len_max", *len, 0, SEGMENTS_MAX)));
        bounds.extend([
            ("routing.queued_max", routing.queued_max, 0, SEGMENTS_MAX),
            ("limits.text_bytes_max", limits.text_bytes_max, 1, TEXT_BYTES_MAX),
            ("limits.speaker_bytes_max", limits.speaker_bytes_max, 1, SPEAKER_BYTES_MAX),
            ("limits.segment_bytes_max", limits.segment_bytes_max, limits.text_bytes_max, TEXT_BYTES_MAX),
        ]);
        for (name, value, min, max) in bounds {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::Outside { name, value, min, max });
            }
        }
        let IdleConfig { expire_ms, warn_ms } = *idle;
        if expire_ms > 0 && warn_ms >= expire_ms {
            return Err(ConfigError::Warning { warn_ms, expire_ms });
        }
        Ok(())
    }
}

/// A validated configuration with its compiled rules, which sessions with the same configuration share.
#[derive(Debug)]
pub struct SessionRules {
    pub(super) config: SessionConfig,
    pub(super) annotator: Annotator,
}

impl SessionRules {
    /// The rules of a configuration.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn new(config: SessionConfig) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        let annotator = Annotator::new(&config.annotate)?;
        Ok(Arc::new(Self { config, annotator }))
    }

    /// The configuration.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The annotator for keywords, actions and intents.
    pub fn annotator(&self) -> &Annotator {
        &self.annotator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = SessionConfig::default();
        assert_eq!(config.max_gap_sec, 1.0);
        assert_eq!((config.context.max_segments, config.context.max_time_sec), (10, 120.0));
        assert_eq!(config.annotate.groups.len(), 3);
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn invalid_values_are_refused_with_their_key() {
        type Change = fn(&mut SessionConfig);
        let changes: [(Change, &str); 7] = [
            (|config| config.max_gap_sec = f64::NAN, "max_gap_sec must be a finite number of at least 0, and is NaN"),
            (
                |config| config.context.max_time_sec = -1.0,
                "context.max_time_sec must be a finite number of at least 0, and is -1",
            ),
            (|config| config.context.max_segments = 0, "context.max_segments must be 1 to 1000, and is 0"),
            (|config| config.routing.queue_len_max[3] = 1001, "routing.queue_len_max must be 0 to 1000, and is 1001"),
            (
                |config| config.limits.segment_bytes_max = 1,
                "limits.segment_bytes_max must be 8192 to 1048576, and is 1",
            ),
            (|config| config.idle.warn_ms = 600_000, "idle.warn_ms 600000 must be less than idle.expire_ms 600000"),
            (
                |config| config.annotate.groups[0].keywords.push(String::new()),
                "`` must be made of words, each of at most 48 bytes",
            ),
        ];
        for (change, message) in changes {
            let mut config = SessionConfig::default();
            change(&mut config);
            assert_eq!(SessionRules::new(config).unwrap_err().to_string(), message);
        }
    }
}
