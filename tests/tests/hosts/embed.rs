//! The embedding API: texts pushed into a stream, results by callback, on the real model and on the stand-in.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use weir_config::Config;
use weir_runtime::stream::{
    Aggregation, Batching, Cause, DropPolicy, FlushReason, Ordering, StreamState, StreamingConfig, Text, TextStream,
};
use weir_tests::models;
use weir_tests::texts::{Random, wait_until, runtime};

fn config() -> Config {
    let mut config = Config::default();
    config.models.replicas = 2;
    config.models.dir = models();
    config.models.names = vec!["sentiment".into()];
    config
}

type Seen = Arc<Mutex<Vec<u64>>>;

fn seen(list: &Seen) -> Vec<u64> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note(list: &Seen) -> impl Fn(u64) + Send + Sync + 'static {
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
    let (results, none) = (Seen::default(), Seen::default());
    let (on_result, on_other) = (note(&results), note(&none));
    let subscription = stream.subscribe_result_callback(move |result| on_result(result.seq));
    stream.subscribe_result_callback(move |result| on_other(result.seq)).unsubscribe();
    let panics = stream.subscribe_result_callback(|_| panic!("a callback's own trouble"));
    let mut random = Random(5);
    let texts: Vec<Text> = (0..200).map(|index| Text::from(random.text(1 + index % 15))).collect();
    let numbers = stream.push_batch(texts).await?;
    ensure!(numbers == (0..200).collect::<Vec<u64>>());
    stream.stop().await?;
    ensure!(seen(&results) == numbers, "strict order: {:?}", seen(&results));
    ensure!(seen(&none).is_empty(), "unsubscribed");
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
    let (results, failed, dropped) = (Seen::default(), Seen::default(), Seen::default());
    let (on_result, on_failed, on_dropped) = (note(&results), note(&failed), note(&dropped));
    let kept = [
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
    wait_until("the one too many is reported", || seen(&dropped) == [8]).await?;
    ensure!(seen(&results).is_empty(), "the window is a minute");
    ensure!(stream.flush(FlushReason::Manual) == 8);
    wait_until("all are answered", || seen(&results).len() == 7 && seen(&failed) == [1]).await?;
    let stats = stream.get_stats();
    ensure!(stats.batches(FlushReason::Manual) == 1 && stats.dropped == 1, "{stats:?}");
    stream.stop().await?;
    kept.into_iter().for_each(|subscription| subscription.unsubscribe());
    ensure!(TextStream::initialize(&runtime, "no such model", StreamingConfig::default()).await.is_err());
    Ok(())
}
