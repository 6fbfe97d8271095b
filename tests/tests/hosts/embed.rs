//! The embedding API with a shipped model and with the stand-in: texts are pushed into a stream, results arrive in callbacks.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use weir_config::Config;
use weir_runtime::stream::{
    Aggregation, Batching, Cause, DropPolicy, FlushReason, Ordering, StreamState, StreamingConfig, Text, TextStream,
};
use weir_tests::models;
use weir_tests::texts::{Random, runtime, wait_until};

fn config() -> Config {
    let mut config = Config::default();
    config.models.replicas = 2;
    config.models.dir = models();
    config.models.names = vec!["sentiment".into()];
    config
}

type SeqList = Arc<Mutex<Vec<u64>>>;

/// The sequence numbers so far.
fn snapshot(list: &SeqList) -> Vec<u64> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A function that appends sequence numbers.
fn append_to(list: &SeqList) -> impl Fn(u64) + Send + Sync + 'static {
    let list = list.clone();
    move |seq| list.lock().unwrap_or_else(PoisonError::into_inner).push(seq)
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_stream_with_strict_order_delivers_in_order() -> Result<()> {
    let runtime = runtime(&config(), "infer")?;
    let strict = StreamingConfig { ordering: Ordering::Strict, ..StreamingConfig::high_throughput() };
    let stream = TextStream::initialize(&runtime, "sentiment", strict).await?;
    ensure!(stream.get_stats().state == StreamState::Initialized);
    ensure!(stream.push(Text::from("too early")).await.is_err());
    stream.start()?;
    let (results, after_unsubscribe) = (SeqList::default(), SeqList::default());
    let (on_result, on_other) = (append_to(&results), append_to(&after_unsubscribe));
    let subscription = stream.subscribe_result_callback(move |result| on_result(result.seq));
    stream.subscribe_result_callback(move |result| on_other(result.seq)).unsubscribe();
    let panics = stream.subscribe_result_callback(|_| panic!("a callback panics"));
    let mut random = Random(5);
    let texts: Vec<Text> = (0..200).map(|index| Text::from(random.text(1 + index % 15))).collect();
    let numbers = stream.push_batch(texts).await?;
    ensure!(numbers == (0..200).collect::<Vec<u64>>());
    stream.stop().await?;
    ensure!(snapshot(&results) == numbers, "strict order: {:?}", snapshot(&results));
    ensure!(snapshot(&after_unsubscribe).is_empty(), "a result after unsubscribing");
    let stats = stream.get_stats();
    ensure!((stats.state, stats.delivered, stats.failed_total()) == (StreamState::Stopped, 200, 0), "{stats:?}");
    ensure!(stream.push(Text::from("too late")).await.is_err());
    subscription.unsubscribe();
    panics.unsubscribe();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_stream_reports_failures_and_windows_wait_for_a_flush() -> Result<()> {
    let runtime = runtime(&config(), "infer_stub")?;
    let mut windowed = StreamingConfig {
        batching: Batching::Windowed,
        aggregation: Aggregation::TimeOnly,
        window_ms: 60_000,
        batch_size: 8,
        ..StreamingConfig::default()
    };
    windowed.buffering.max_buffer_size = 8;
    windowed.buffering.min_batch_size = 1;
    windowed.buffering.max_batch_size = 8;
    windowed.buffering.drop_policy = DropPolicy::Tail;
    let stream = TextStream::initialize(&runtime, "sentiment", windowed).await?;
    let (results, failed, dropped) = (SeqList::default(), SeqList::default(), SeqList::default());
    let (on_result, on_failed, on_dropped) = (append_to(&results), append_to(&failed), append_to(&dropped));
    let subscriptions = [
        stream.subscribe_result_callback(move |result| on_result(result.seq)),
        stream.subscribe_error_callback(move |error| match error.cause {
            Cause::Failed(_) => on_failed(error.seq),
            Cause::Dropped => on_dropped(error.seq),
        }),
    ];
    stream.start()?;
    for text in ["good", "!fail", "good", "good", "good", "good", "good", "good", "one too many"] {
        stream.push(Text::from(text)).await?;
    }
    wait_until("the dropped text is reported", || snapshot(&dropped) == [8]).await?;
    ensure!(snapshot(&results).is_empty(), "results before the window of a minute ends");
    ensure!(stream.flush(FlushReason::Manual) == 8);
    wait_until("all texts have a result or an error", || snapshot(&results).len() == 7 && snapshot(&failed) == [1])
        .await?;
    let stats = stream.get_stats();
    ensure!(stats.batches(FlushReason::Manual) == 1 && stats.dropped == 1, "{stats:?}");
    stream.stop().await?;
    subscriptions.into_iter().for_each(|subscription| subscription.unsubscribe());
    ensure!(TextStream::initialize(&runtime, "no such model", StreamingConfig::default()).await.is_err());
    Ok(())
}
