//! The settings of the host for its engine, from environment variables with defaults.
//!
//! | variable | default | |
//! |---|---|---|
//! | `WEIR_INFER_MAX_BATCH_SIZE` | 32 | most sequences in a batch |
//! | `WEIR_INFER_BATCH_TOKENS_MAX` | 128 | most tokens in a batch, with padding |
//! | `WEIR_INFER_BATCH_TIME_MS_MAX` | 0 | a batch expected to take longer is made smaller; 0: no bound |
//! | `WEIR_INFER_SHAPES` | `any` | `bounded` where the engine plans for each shape |
//! | `WEIR_INFER_YIELD` | `on` | `off` where the host reads outcomes while they are written |

use weir_core::inference::batch::Shapes;

/// The bounds of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most sequences in a batch.
    pub rows_max: usize,
    /// Most tokens in a batch, with padding. With 128, one run of a small encoder takes about 10 ms on a CPU core, so
    /// that results are sent at short intervals; on tract a larger run costs more for each token.
    pub tokens_max: usize,
    /// The longest expected time of a batch, in nanoseconds; 0: no bound.
    pub time_ns_max: u64,
    /// The shapes that a run may have.
    pub shapes: Shapes,
    /// Whether a call yields after each write of outcomes, for a reader in the same component.
    pub yields: bool,
}

impl Settings {
    /// The settings of this instance.
    pub fn read() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    /// The most items in one read: enough short texts for a batch.
    pub fn read_items_max(&self) -> usize {
        (self.tokens_max / 4).clamp(32, 1024)
    }

    /// The most bytes of text that are tokenized before the next batch is computed, so that short texts do not wait for
    /// long ones behind them to be tokenized.
    pub fn tokenized_bytes_max(&self) -> usize {
        self.tokens_max.saturating_mul(8).max(64 << 10)
    }

    /// The settings from variables. An invalid variable counts as absent, since the host has checked them.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name).and_then(|value| value.parse::<u32>().ok());
        Self {
            rows_max: number("WEIR_INFER_MAX_BATCH_SIZE").unwrap_or(32).max(1) as usize,
            tokens_max: number("WEIR_INFER_BATCH_TOKENS_MAX").unwrap_or(128).max(1) as usize,
            time_ns_max: u64::from(number("WEIR_INFER_BATCH_TIME_MS_MAX").unwrap_or(0)) * 1_000_000,
            shapes: match variable("WEIR_INFER_SHAPES").as_deref() {
                Some("bounded") => Shapes::Bounded,
                _ => Shapes::Any,
            },
            yields: variable("WEIR_INFER_YIELD").as_deref() != Some("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_set_the_settings() {
        let defaults = Settings { rows_max: 32, tokens_max: 128, time_ns_max: 0, shapes: Shapes::Any, yields: true };
        assert_eq!(Settings::from(|_| None), defaults);
        assert_eq!(Settings::from(|_| Some("x".to_owned())), defaults);
        let given = |name: &str| {
            let value = match name {
                "WEIR_INFER_SHAPES" => "bounded",
                "WEIR_INFER_YIELD" => "off",
                _ => "7",
            };
            Some(value.to_owned())
        };
        let all =
            Settings { rows_max: 7, tokens_max: 7, time_ns_max: 7_000_000, shapes: Shapes::Bounded, yields: false };
        assert_eq!(Settings::from(given), all);
        let reads = |tokens_max| {
            let settings = Settings { tokens_max, ..all };
            (settings.read_items_max(), settings.tokenized_bytes_max())
        };
        assert_eq!([reads(128), reads(4096), reads(usize::MAX)], [(32, 65_536), (1024, 65_536), (1024, usize::MAX)]);
    }
}
