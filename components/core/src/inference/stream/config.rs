//! The configuration of a stream: its settings, their defaults and the relations between them.

use thiserror::Error;

use crate::{
    inference::{
        backpressure::BackpressurePolicy,
        breaker::BreakerConfig,
        retry::{RetryBudgetConfig, RetryConfig},
    },
    named::named,
};

named! {
    /// When items become a batch.
    pub enum Batching {
        /// As soon as a batch slot is free: all waiting items are released, and batches grow only while the model is
        /// busy.
        Adaptive = "adaptive",
        /// By count and window: see [`Aggregation`].
        Windowed = "windowed",
    }
}

named! {
    /// What ends a window when batching is windowed.
    pub enum Aggregation {
        /// `batch_size` items or `window_ms`, whichever is first.
        TimeAndCount = "time_and_count",
        /// `window_ms` alone.
        TimeOnly = "time_only",
        /// `batch_size` items alone: fewer items wait for a flush or a stop.
        CountOnly = "count_only",
    }
}

named! {
    /// The order in which results are delivered.
    pub enum Ordering {
        /// In the order of completion.
        BestEffort = "best_effort",
        /// In the order of the pushes; an item that fails or is dropped is skipped.
        Strict = "strict",
    }
}

named! {
    /// The item that is dropped when the buffer is full.
    pub enum DropPolicy {
        /// No item: the push is refused.
        None = "none",
        /// The oldest item that waits for its first attempt.
        Head = "head",
        /// The item that is being pushed.
        Tail = "tail",
    }
}

/// The buffering of items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferingConfig {
    /// The smallest batch that is released when acknowledgements make room, unless fewer items wait.
    pub min_batch_size: usize,
    /// Most items in a batch that is released by a free slot or the end of a window.
    pub max_batch_size: usize,
    /// Most items in the stream, from their push until their result or error is polled.
    pub max_buffer_size: usize,
    /// The item that is dropped when the buffer is full.
    pub drop_policy: DropPolicy,
}

impl Default for BufferingConfig {
    fn default() -> Self {
        Self { min_batch_size: 8, max_batch_size: 64, max_buffer_size: 512, drop_policy: DropPolicy::None }
    }
}

/// Bounds that the interface of slower-whisper does not define.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLimits {
    /// The batch slots: most batches at inference at once.
    pub batches_in_flight_max: usize,
    /// With `ack_based`, most items that are released and not acknowledged.
    pub unacknowledged_max: usize,
    /// With `size_based`, most bytes of all items, with the sizes given to the pushes.
    pub buffer_bytes_max: usize,
    /// When the circuit breaker of the stream's model opens and closes.
    pub breaker: BreakerConfig,
    /// The bounds of the retries of all items together.
    pub retry_budget: RetryBudgetConfig,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            batches_in_flight_max: 2,
            unacknowledged_max: 512,
            buffer_bytes_max: 8 << 20,
            breaker: BreakerConfig::default(),
            retry_budget: RetryBudgetConfig::default(),
        }
    }
}

/// The configuration of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamingConfig {
    /// The number of items that ends a window.
    pub batch_size: usize,
    /// The time from the push of the oldest waiting item to the end of its window, in milliseconds.
    pub window_ms: u32,
    /// Most items in any batch: a flush and the stop release batches of at most this size.
    pub max_batch_size: usize,
    /// The order in which results are delivered.
    pub ordering: Ordering,
    /// The buffering of items.
    pub buffering: BufferingConfig,
    /// The retries of temporary failures.
    pub retry: RetryConfig,
    /// The cause of backpressure.
    pub backpressure: BackpressurePolicy,
    /// What ends a window.
    pub aggregation: Aggregation,
    /// When items become a batch.
    pub batching: Batching,
    /// Further bounds.
    pub limits: StreamLimits,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            batch_size: 32,
            window_ms: 250,
            max_batch_size: 128,
            ordering: Ordering::BestEffort,
            buffering: BufferingConfig::default(),
            retry: RetryConfig::default(),
            backpressure: BackpressurePolicy::SizeBased,
            aggregation: Aggregation::TimeAndCount,
            batching: Batching::Adaptive,
            limits: StreamLimits::default(),
        }
    }
}

/// The largest configurable buffer, in items.
pub const BUFFER_ITEMS_MAX: usize = 1 << 20;

/// Why a configuration is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A number that must be at least 1 is 0.
    #[error("{name} must be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// A number is larger than another that bounds it.
    #[error("{name} {value} is larger than {bound_name} {bound}")]
    Larger {
        /// The setting.
        name: &'static str,
        /// The value.
        value: u64,
        /// The setting or constant that bounds it.
        bound_name: &'static str,
        /// The value of the bound.
        bound: u64,
    },
}

impl StreamingConfig {
    /// A preset for low latency: batches of 4 and a window of 100 ms.
    pub fn low_latency() -> Self {
        Self { batch_size: 4, window_ms: 100, ..Self::default() }
    }

    /// A preset for high throughput: batches of 64, a window of 500 ms and a buffer of 2048 items.
    pub fn high_throughput() -> Self {
        let buffering = BufferingConfig { max_buffer_size: 2048, ..BufferingConfig::default() };
        Self { batch_size: 64, window_ms: 500, buffering, ..Self::default() }
    }

    /// Checks that a stream with this configuration can always make progress.
    ///
    /// # Errors
    ///
    /// The first invalid setting: see [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { buffering, retry, limits, .. } = self;
        for (name, value) in [
            ("batch_size", self.batch_size),
            ("max_batch_size", self.max_batch_size),
            ("buffering.min_batch_size", buffering.min_batch_size),
            ("buffering.max_batch_size", buffering.max_batch_size),
            ("buffering.max_buffer_size", buffering.max_buffer_size),
            ("retry.max_attempts", retry.max_attempts as usize),
            ("limits.batches_in_flight_max", limits.batches_in_flight_max),
            ("limits.unacknowledged_max", limits.unacknowledged_max),
            ("limits.buffer_bytes_max", limits.buffer_bytes_max),
            ("limits.breaker.failures_to_open", limits.breaker.failures_to_open as usize),
            ("limits.breaker.successes_to_close", limits.breaker.successes_to_close as usize),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { name });
            }
        }
        let (max_batch, max_buffer) = ("max_batch_size", "buffering.max_buffer_size");
        let (min_batch_size, max_batch_size) = ("buffering.min_batch_size", "buffering.max_batch_size");
        check_bound("batch_size", self.batch_size, max_batch, self.max_batch_size)?;
        // A window that ends by count alone must fit in the buffer.
        check_bound("batch_size", self.batch_size, max_buffer, buffering.max_buffer_size)?;
        check_bound(min_batch_size, buffering.min_batch_size, max_batch_size, buffering.max_batch_size)?;
        check_bound(max_batch_size, buffering.max_batch_size, max_batch, self.max_batch_size)?;
        check_bound(max_batch_size, buffering.max_batch_size, max_buffer, buffering.max_buffer_size)?;
        check_bound(max_buffer, buffering.max_buffer_size, "the bound", BUFFER_ITEMS_MAX)?;
        let [base, longest] = [retry.base_backoff_ms, retry.backoff_ms_max].map(|ms| ms as usize);
        check_bound("retry.base_backoff_ms", base, "retry.backoff_ms_max", longest)?;
        // The smallest batch must have room once all items are acknowledged.
        check_bound(min_batch_size, buffering.min_batch_size, "limits.unacknowledged_max", limits.unacknowledged_max)
    }
}

fn check_bound(name: &'static str, value: usize, bound_name: &'static str, bound: usize) -> Result<(), ConfigError> {
    if value > bound {
        return Err(ConfigError::Larger { name, value: value as u64, bound_name, bound: bound as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::retry::{CircuitBreakerPolicy, RetryPolicy};
    use expect_test::expect;

    #[test]
    fn defaults_and_presets_are_those_of_the_contract() {
        let config = StreamingConfig::default();
        assert_eq!((config.batch_size, config.window_ms, config.max_batch_size), (32, 250, 128));
        let buffering = &config.buffering;
        assert_eq!((buffering.min_batch_size, buffering.max_batch_size, buffering.max_buffer_size), (8, 64, 512));
        assert_eq!((config.retry.max_attempts, config.retry.base_backoff_ms), (3, 100));
        assert_eq!(config.retry.policy, RetryPolicy::ExponentialJitter);
        assert_eq!(config.retry.circuit_breaker_policy, CircuitBreakerPolicy::On);
        assert_eq!((config.ordering, buffering.drop_policy), (Ordering::BestEffort, DropPolicy::None));
        assert_eq!((config.aggregation, config.batching), (Aggregation::TimeAndCount, Batching::Adaptive));

        let fast = StreamingConfig::low_latency();
        assert_eq!((fast.batch_size, fast.window_ms), (4, 100));
        let much = StreamingConfig::high_throughput();
        assert_eq!((much.batch_size, much.window_ms, much.buffering.max_buffer_size), (64, 500, 2048));
        for config in [config, fast, much] {
            assert_eq!(config.validate(), Ok(()));
        }
    }

    #[test]
    fn names_are_those_of_the_contract() {
        fn names<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> Vec<&'static str> {
            all.iter().map(|variant| name(*variant)).collect()
        }
        assert_eq!(names(Batching::ALL, Batching::name), ["adaptive", "windowed"]);
        assert_eq!(names(Ordering::ALL, Ordering::name), ["best_effort", "strict"]);
        assert_eq!(names(DropPolicy::ALL, DropPolicy::name), ["none", "head", "tail"]);
        assert_eq!(names(Aggregation::ALL, Aggregation::name), ["time_and_count", "time_only", "count_only"]);
        assert_eq!(Aggregation::from_name("count_only"), Some(Aggregation::CountOnly));
        assert_eq!(DropPolicy::from_name("newest"), None);
    }

    #[test]
    fn invalid_values_are_refused_with_their_key() {
        type Change = fn(&mut StreamingConfig);
        let changes: [Change; 10] = [
            |config| config.batch_size = 0,
            |config| config.retry.max_attempts = 0,
            |config| config.limits.batches_in_flight_max = 0,
            |config| config.batch_size = 129,
            |config| config.buffering = BufferingConfig { max_buffer_size: 31, ..BufferingConfig::default() },
            |config| config.buffering.min_batch_size = 65,
            |config| config.buffering.max_batch_size = 129,
            |config| config.buffering.max_buffer_size = 2 << 20,
            |config| config.retry.backoff_ms_max = 99,
            |config| config.limits.unacknowledged_max = 7,
        ];
        let messages = changes.map(|change| {
            let mut config = StreamingConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        });
        expect![[r#"
            batch_size must be at least 1
            retry.max_attempts must be at least 1
            limits.batches_in_flight_max must be at least 1
            batch_size 129 is larger than max_batch_size 128
            batch_size 32 is larger than buffering.max_buffer_size 31
            buffering.min_batch_size 65 is larger than buffering.max_batch_size 64
            buffering.max_batch_size 129 is larger than max_batch_size 128
            buffering.max_buffer_size 2097152 is larger than the bound 1048576
            retry.base_backoff_ms 100 is larger than retry.backoff_ms_max 99
            buffering.min_batch_size 8 is larger than limits.unacknowledged_max 7"#]]
        .assert_eq(&messages.join("\n"));
    }
}
