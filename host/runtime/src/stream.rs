//! The embedding API: texts pushed into a stream, results by callback.
//!
//! A [`TextStream`] is the state machine of [`weir_core::inference::stream`] driven by tokio: it buffers, batches,
//! retries, guards the model with a circuit breaker and, if configured, restores the order of results. It shares the
//! models of the runtime with all other callers.
//!
//! ```
//! use weir_runtime::stream::{StreamingConfig, Text, TextStream};
//! use weir_runtime::{Builtin, Runtime};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = weir_config::Config::default();
//! config.models.dir = "../nn/models".into();
//! # let Ok(components) = std::env::var("WEIR_COMPONENTS_DIR") else { return Ok(()) };
//! # let target = std::path::PathBuf::from(components);
//! config.infer.component = target.join("infer.wasm");
//! let runtime = Runtime::start(&config, Builtin::default())?;
//!
//! let stream = TextStream::initialize(&runtime, "sentiment", StreamingConfig::low_latency()).await?;
//! let results = stream.subscribe_result_callback(|result| println!("{}: {:?}", result.seq, result.result));
//! let errors = stream.subscribe_error_callback(|error| eprintln!("{}: {}", error.seq, error.cause));
//! stream.start()?;
//! stream.push(Text::from("A fine day.")).await?;
//! stream.push_batch(["It rained.", "The sun came out."].map(Text::from)).await?;
//! stream.stop().await?; // answers every pushed text first
//! println!("{} answered", stream.get_stats().delivered);
//! results.unsubscribe();
//! errors.unsubscribe();
//! # Ok(()) }
//! # tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap();
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use weir_core::inference::stream::{PushError, ReleasedBatch, Stream};

pub use weir_core::inference::stream::{
    Aggregation, Batching, Cause, ConfigError, DropPolicy, ErrorCategory, FlushReason, ItemError, ItemResult, Ordering,
    Stats, StreamState, StreamingConfig, TransitionError,
};

use crate::inference::call::{CallOpener, Outcomes};
use crate::inference::item::SharedItem;
use crate::interfaces::convert::core_failure;
use crate::runtime::Runtime;
use crate::types::{Aggregation as TokenAggregation, TokenOptions};
use crate::types::{ClassifyOptions, EmbedOptions, ModelKind, Output, Overflow, Task, WhenFull};

/// A text for the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// The text, at most 1,000,000 bytes.
    pub text: Arc<str>,
    /// A second text, for models that classify a pair.
    pub text_pair: Option<Arc<str>>,
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self { text: text.into(), text_pair: None }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self { text: text.into(), text_pair: None }
    }
}

/// Why a stream cannot be created or used.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model cannot answer.
    #[error("model `{name}` cannot be used: {reason}")]
    Model {
        /// The model's name.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The requested state does not follow the current one.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The stream accepts no texts in its current state.
    #[error("the stream is not running")]
    NotRunning,
}

/// Most outcomes that are handled together.
const OUTCOMES_MAX: usize = 256;

type CoreStream = Stream<Text, Output>;
type OnResult = Arc<dyn Fn(&ItemResult<Output>) + Send + Sync>;
type OnError = Arc<dyn Fn(&ItemError<Text>) + Send + Sync>;

/// A stream of texts through one model. Dropping it ends the stream and abandons its unanswered texts.
pub struct TextStream {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    core: Mutex<CoreStream>,
    start_time: Instant,
    model: Arc<str>,
    task: Task,
    /// Notified when a text was pushed, flushed or acknowledged, or the state has changed.
    changed: Notify,
    /// Notified when there is room again, or the stream is drained.
    progress: Notify,
    subscribers: Mutex<Subscribers>,
}

#[derive(Default)]
struct Subscribers {
    next: u64,
    results: Vec<(u64, OnResult)>,
    errors: Vec<(u64, OnError)>,
}

/// A subscription of a callback, which [`Subscription::unsubscribe`] ends; dropping this does not.
#[must_use = "the subscription can only be ended with it"]
pub struct Subscription {
    shared: Weak<Shared>,
    id: u64,
}

impl Subscription {
    /// Ends the subscription: the callback is not called again, apart from a call in progress.
    pub fn unsubscribe(self) {
        if let Some(shared) = self.shared.upgrade() {
            let mut subscribers = lock(&shared.subscribers);
            subscribers.results.retain(|(id, _)| *id != self.id);
            subscribers.errors.retain(|(id, _)| *id != self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TextStream {
    /// Creates a stream to a model of the runtime, and waits until the model is ready. Must be called within tokio.
    ///
    /// # Errors
    /// When the model is not served or cannot answer, or the configuration contradicts itself.
    pub async fn initialize(runtime: &Runtime, model: &str, config: StreamingConfig) -> Result<Self, StreamError> {
        let unusable = |reason: String| StreamError::Model { name: model.to_owned(), reason };
        runtime.settled(model).await.map_err(unusable)?;
        let info = runtime.models().into_iter().find(|info| info.name == model);
        let kind = info.map(|info| info.kind).ok_or_else(|| unusable("it is a language model".into()))?;
        let task = match kind {
            ModelKind::TextClassification => Task::Classify(ClassifyOptions { top_k: None, activation: None }),
            ModelKind::TokenClassification => Task::Tokens(TokenOptions {
                aggregation: TokenAggregation::First,
                ignore_labels: vec!["O".into()],
                stride: None,
            }),
            ModelKind::FeatureExtraction => Task::Embed(EmbedOptions { normalize: true }),
        };
        // A random seed of the jitter, so that two streams do not retry at the same times.
        let seed = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), model);
        let shared = Arc::new(Shared {
            core: Mutex::new(Stream::new(config, 0, seed)?),
            start_time: Instant::now(),
            model: model.into(),
            task,
            changed: Notify::new(),
            progress: Notify::new(),
            subscribers: Mutex::default(),
        });
        let task = tokio::spawn(drive(Arc::downgrade(&shared), runtime.call().clone()));
        Ok(Self { shared, task })
    }

    /// Accepts texts from now on. Also ends a pause.
    ///
    /// # Errors
    /// When the stream is stopping or has stopped.
    pub fn start(&self) -> Result<(), StreamError> {
        let mut core = self.shared.lock();
        match core.state() {
            StreamState::Paused => core.resume()?,
            _ => core.start()?,
        }
        drop(core);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Holds back waiting texts; new ones are accepted while there is room.
    ///
    /// # Errors
    /// When the stream is not running.
    pub fn pause(&self) -> Result<(), StreamError> {
        Ok(self.shared.lock().pause()?)
    }

    /// Accepts no more texts, and resolves when every pushed text has been answered and delivered.
    ///
    /// # Errors
    /// When the stream was never started.
    pub async fn stop(&self) -> Result<(), StreamError> {
        self.shared.lock().stop()?;
        self.shared.changed.notify_one();
        self.shared.wait_until(CoreStream::is_drained).await;
        Ok(())
    }

    /// Pushes a text; waits for room unless the drop policy makes some. Returns the text's number, from 0.
    ///
    /// # Errors
    /// When the stream does not run.
    pub async fn push(&self, text: Text) -> Result<u64, StreamError> {
        let mut text = text;
        loop {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            match self.try_push(text) {
                Ok(seq) => return Ok(seq),
                Err(PushError::NotRunning(_)) => return Err(StreamError::NotRunning),
                Err(PushError::Full(rejected)) => text = rejected,
            }
            progress.await;
        }
    }

    /// Pushes a text if there is room; otherwise the error returns it.
    ///
    /// # Errors
    /// When there is no room and the drop policy makes none, or the stream does not run.
    pub fn try_push(&self, text: Text) -> Result<u64, PushError<Text>> {
        let bytes = text.text.len() + text.text_pair.as_ref().map_or(0, |pair| pair.len());
        let mut core = self.shared.lock();
        let due = core.poll_timeout();
        let result = core.push_sized(self.shared.now(), text, bytes);
        // A text that waits for a free slot does not wake the task of the stream: an outcome will.
        if core.poll_timeout() != due || core.has_errors() {
            drop(core);
            self.shared.changed.notify_one();
        }
        result
    }

    /// Pushes texts one after another. Returns their numbers.
    ///
    /// # Errors
    /// When the stream stops running; texts pushed before that stay accepted.
    pub async fn push_batch(&self, texts: impl IntoIterator<Item = Text>) -> Result<Vec<u64>, StreamError> {
        let mut numbers = Vec::new();
        for text in texts {
            numbers.push(self.push(text).await?);
        }
        Ok(numbers)
    }

    /// Sends the waiting texts to the model now. Returns their number.
    pub fn flush(&self, reason: FlushReason) -> usize {
        let count = self.shared.lock().flush(reason);
        self.shared.changed.notify_one();
        count
    }

    /// Acknowledges `count` results and errors, if `backpressure` is `ack_based`.
    pub fn acknowledge(&self, count: usize) {
        self.shared.lock().acknowledge(count);
        self.shared.changed.notify_one();
    }

    /// Calls `callback` with every result, in the stream's own task: a slow callback slows the stream.
    pub fn subscribe_result_callback(
        &self,
        callback: impl Fn(&ItemResult<Output>) + Send + Sync + 'static,
    ) -> Subscription {
        self.shared.subscribe(|subscribers, id| subscribers.results.push((id, Arc::new(callback))))
    }

    /// Calls `callback` with every failed text and its error; as [`TextStream::subscribe_result_callback`].
    pub fn subscribe_error_callback(
        &self,
        callback: impl Fn(&ItemError<Text>) + Send + Sync + 'static,
    ) -> Subscription {
        self.shared.subscribe(|subscribers, id| subscribers.errors.push((id, Arc::new(callback))))
    }

    /// The counters of the stream.
    pub fn get_stats(&self) -> Stats {
        self.shared.lock().stats()
    }
}

impl Drop for TextStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, CoreStream> {
        lock(&self.core)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start_time.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn wait_until(&self, condition: impl Fn(&CoreStream) -> bool) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if condition(&self.lock()) {
                return;
            }
            progress.await;
        }
    }

    fn subscribe(self: &Arc<Self>, add: impl FnOnce(&mut Subscribers, u64)) -> Subscription {
        let mut subscribers = lock(&self.subscribers);
        let id = subscribers.next;
        subscribers.next += 1;
        add(&mut subscribers, id);
        Subscription { shared: Arc::downgrade(self), id }
    }

    fn item(&self, id: u64, text: &Text) -> SharedItem {
        SharedItem {
            id,
            model: self.model.clone(),
            text: text.text.clone(),
            text_pair: text.text_pair.clone(),
            overflow: Overflow::Truncate,
            deadline_ms: None,
            when_full: WhenFull::Wait,
            traceparent: None,
            task: self.task.clone(),
        }
    }

    /// Calls the subscribers with results and errors, outside of every lock. A callback that panics is not called
    /// again.
    fn deliver(&self) {
        let mut progress = false;
        loop {
            let (result, error) = {
                let mut core = self.lock();
                let result = core.poll_result();
                let error = if result.is_none() { core.poll_error() } else { None };
                (result, error)
            };
            if result.is_none() && error.is_none() {
                break;
            }
            progress = true;
            let (results, errors) = {
                let subscribers = lock(&self.subscribers);
                (subscribers.results.clone(), subscribers.errors.clone())
            };
            let mut panicked = Vec::new();
            if let Some(result) = &result {
                let calls = results.iter().map(|(id, call)| (id, catch_unwind(AssertUnwindSafe(|| call(result)))));
                panicked.extend(calls.filter(|(_, outcome)| outcome.is_err()).map(|(id, _)| *id));
            }
            if let Some(error) = &error {
                let calls = errors.iter().map(|(id, call)| (id, catch_unwind(AssertUnwindSafe(|| call(error)))));
                panicked.extend(calls.filter(|(_, outcome)| outcome.is_err()).map(|(id, _)| *id));
            }
            if !panicked.is_empty() {
                tracing::error!(model = &*self.model, "a callback panicked and is not called again");
                let mut subscribers = lock(&self.subscribers);
                subscribers.results.retain(|(id, _)| !panicked.contains(id));
                subscribers.errors.retain(|(id, _)| !panicked.contains(id));
            }
        }
        if progress || self.lock().is_drained() {
            self.progress.notify_waiters();
        }
    }
}

/// Sends texts to inference and outcomes back, until the stream is dropped.
async fn drive(shared: Weak<Shared>, calls: CallOpener) {
    let (sender, mut outcomes) = calls.open();
    // Bounded by `batches_in_flight_max`: released texts wait here for room in the queue.
    let (item_sender, mut item_receiver) = mpsc::unbounded_channel::<SharedItem>();
    let send = async move {
        while let Some(item) = item_receiver.recv().await {
            if sender.send(item).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = run_machine(&shared, &item_sender, &mut outcomes) => {}
    }
}

async fn run_machine(shared: &Weak<Shared>, item_sender: &mpsc::UnboundedSender<SharedItem>, outcomes: &mut Outcomes) {
    loop {
        let Some(stream) = shared.upgrade() else { return };
        let mut batches: Vec<ReleasedBatch<Text>> = Vec::new();
        let timeout = {
            let mut core = stream.lock();
            let now = stream.now();
            while let Some(batch) = core.poll_batch(now) {
                batches.push(batch);
            }
            core.poll_timeout()
        };
        for attempt in batches.into_iter().flat_map(|batch| batch.attempts) {
            // The receiver exists as long as this future, so sending does not fail.
            let _ = item_sender.send(stream.item(attempt.id, &attempt.item));
        }
        stream.deliver();
        let sleep = async {
            match timeout {
                Some(at) => tokio::time::sleep(Duration::from_nanos(at.saturating_sub(stream.now()))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stream.changed.notified() => {}
            () = sleep => {}
            outcomes = outcomes.recv_many(OUTCOMES_MAX) => {
                if outcomes.is_empty() {
                    return;
                }
                let (mut core, now) = (stream.lock(), stream.now());
                for outcome in outcomes {
                    core.handle_outcome(now, outcome.id, outcome.result.map_err(core_failure));
                }
            }
        }
    }
}
