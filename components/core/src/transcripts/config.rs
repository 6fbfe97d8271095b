//! The configuration of a session: every setting, its default and its bounds.

use std::sync::Arc;

use thiserror::Error;

use super::{
    annotate::{AnnotateConfig, AnnotateError, Annotator},
    route::RoutingConfig,
};

/// How much a session remembers for a language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ContextConfig {
    /// Most segments in the window.
    pub max_segments: usize,
    /// A segment leaves the window when it ended at least this many seconds before the latest.
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
    /// After this number of final segments; 0 for never.
    pub every_finals: u32,
    /// At the end, if segments have become final since the last one at an end.
    pub at_end: bool,
}

impl Default for SummaryConfig {
    fn default() -> Self {
        Self { every_finals: 5, at_end: true }
    }
}

/// How long a session may be left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleConfig {
    /// It expires this number of milliseconds after its last chunk; 0 for never.
    pub expire_ms: u64,
    /// It says so this many milliseconds before.
    pub warn_ms: u64,
}

impl Default for IdleConfig {
    fn default() -> Self {
        Self { expire_ms: 600_000, warn_ms: 30_000 }
    }
}

/// Bounds that slower-whisper leaves open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionLimits {
    /// Most bytes in the text of a chunk.
    pub text_bytes_max: usize,
    /// Most bytes in the name of a speaker.
    pub speaker_bytes_max: usize,
    /// Most bytes in the text of a segment: one that would pass it is final, and a new one begins.
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
    /// The same speaker's next chunk belongs to the segment when it starts at most this number of seconds after its end.
    pub max_gap_sec: f64,
    /// Chunks may start while the segment in flight lasts, as when two people speak at once; they come in the order of their start.
    pub overlap: bool,
    /// What is found in final segments.
    pub annotate: AnnotateConfig,
    /// Where final segments go.
    pub routing: RoutingConfig,
    /// How much is remembered.
    pub context: ContextConfig,
    /// When summaries are due.
    pub summary: SummaryConfig,
    /// How long it may be left alone.
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
/// Most bytes that a text may be allowed to have.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most bytes that a speaker's name may be allowed to have.
pub const SPEAKER_BYTES_MAX: usize = 4096;

/// Why a configuration makes no session.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ConfigError {
    /// A number of seconds is negative, or none.
    #[error("{name} must be a finite number of at least 0, and is {value}")]
    Seconds {
        /// The knob.
        name: &'static str,
        /// The value.
        value: f64,
    },
    /// A number is outside its bounds.
    #[error("{name} must be {min} to {max}, and is {value}")]
    Outside {
        /// The knob.
        name: &'static str,
        /// The value.
        value: usize,
        /// The least.
        min: usize,
        /// The most.
        max: usize,
    },
    /// There is nothing to warn of.
    #[error("idle.warn_ms {warn_ms} must be less than idle.expire_ms {expire_ms}")]
    Warning {
        /// The value.
        warn_ms: u64,
        /// What that is.
        expire_ms: u64,
    },
    /// What is to be found cannot be.
    #[error(transparent)]
    Annotate(#[from] AnnotateError),
}

impl SessionConfig {
    /// Checks every knob.
    ///
    /// # Errors
    ///
    /// The first that is wrong, in the order of the fields; not what [`Annotator::new`] finds.
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

/// A configuration that was checked, and the rules made of it. Sessions of the same configuration share it.
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
    /// [`ConfigError`]
    pub fn new(config: SessionConfig) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        let annotator = Annotator::new(&config.annotate)?;
        Ok(Arc::new(Self { config, annotator }))
    }

    /// What they were made of.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// What finds keywords, actions and intents.
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
