//! The batching engine with the built components and injected faults: texts that fail, trap, hang or are slow.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::FutureExt as _;
use serde_json::Value;
use weir_config::{Batching, Config, DropPolicy, Model, Switch};
use weir_runtime::Runtime;
use weir_runtime::types::{Aggregation, EmbedOptions, Failure, Item, Output, Task, TokenOptions, WhenFull};
use weir_tests::texts::{Random, classify_item, collect, run_items, runtime, wait_until};
use weir_tests::{models, root};

/// A configuration with one replica of `sentiment`.
fn sentiment() -> Config {
    let mut config = Config::default();
    config.models.replicas = 1;
    config.models.dir = models();
    config.models.names = vec!["sentiment".into()];
    config
}

/// A runtime with the stand-in for the infer component.
fn stub(config: &Config) -> Result<Runtime> {
    runtime(config, "infer_stub")
}

fn scores(output: &Output) -> Result<BTreeMap<String, f32>> {
    let Output::Labels(labels) = output else { bail!("no labels: {output:?}") };
    Ok(labels.iter().map(|label| (label.label.clone(), label.score)).collect())
}

/// Bound of the difference between the outputs of tract for a text alone and in a batch, over 1,300 mixtures.
///
/// It is not 0: a kernel that computes several rows at once adds in another order than one that computes a single row, and sums over longer
/// sequences are split differently. See docs/decisions/011.
const TRACT_DIFFERENCE_MAX: f32 = 2e-5;

/// The numbers in an output, in an order that does not depend on their values.
fn numbers(output: &Output) -> Result<Vec<f32>> {
    Ok(match output {
        Output::Labels(_) => scores(output)?.into_values().collect(),
        Output::Entities(entities) => entities.iter().map(|entity| entity.score).collect(),
        Output::Embedding(vector) => vector.clone(),
        Output::Summary(_) => bail!("no numbers: {output:?}"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_bit_identical_in_every_batch() -> Result<()> {
    compare_mixtures("auto", "auto", 0.0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_output_is_bit_identical_in_every_batch() -> Result<()> {
    compare_mixtures("builtin", "f32", 0.0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_changes_tract_output_within_its_bound() -> Result<()> {
    compare_mixtures("tract", "auto", TRACT_DIFFERENCE_MAX).await
}

/// Compares the outputs for texts alone with those in 1,300 mixtures.
#[expect(clippy::print_stdout, reason = "the test runner shows the measured differences on demand")]
async fn compare_mixtures(engine: &str, precision: &str, difference_max: f32) -> Result<()> {
    for (model, mixtures) in [("sentiment", 1000), ("entities", 150), ("embeddings", 150)] {
        let mut config = sentiment();
        config.models.names = vec![model.into()];
        (config.models.engine, config.models.precision) = (engine.into(), precision.into());
        let runtime = runtime(&config, "infer")?;
        runtime.settled(model).await.map_err(anyhow::Error::msg)?;
        let task = |id, text: &str| {
            let item = classify_item(id, model, text);
            match model {
                "entities" => Item { task: Task::Tokens(TOKENS), ..item },
                "embeddings" => Item { task: Task::Embed(EmbedOptions { normalize: true }), ..item },
                _ => item,
            }
        };
        let mut random = Random(7);
        let texts: Vec<String> = (0..60).map(|index| random.text(1 + index % 20)).collect();
        let mut alone = Vec::new();
        for text in &texts {
            let results = run_items(&runtime, vec![task(0, text)]).await?;
            alone.push(numbers(results[&0].as_ref().ok().context("a result")?)?);
        }
        let (mut largest, mut identical, mut compared) = (0f32, 0, 0);
        for _ in 0..mixtures {
            let mixture: Vec<usize> = (0..2 + random.below(7)).map(|_| random.below(texts.len())).collect();
            let items = (0..).zip(&mixture).map(|(id, &text)| task(id, &texts[text])).collect();
            for (id, result) in run_items(&runtime, items).await? {
                let batched = numbers(result.as_ref().ok().context("a result")?)?;
                let expected = &alone[mixture[id as usize]];
                ensure!(batched.len() == expected.len(), "{model}: {batched:?} for {expected:?}");
                for (one, other) in batched.iter().zip(expected) {
                    largest = largest.max((one - other).abs());
                    identical += usize::from(one == other);
                    compared += 1;
                }
            }
        }
        println!(
            "{engine} in {precision}, {model}: {compared} numbers compared, {identical} identical, largest difference {largest:e}"
        );
        ensure!(compared > 0 && largest <= difference_max, "{model}: a batch changed an output by {largest:e}");
    }
    Ok(())
}

/// Options with which each token has its own score.
const TOKENS: TokenOptions = TokenOptions { aggregation: Aggregation::None, ignore_labels: Vec::new(), stride: None };

/// A copy of a toy model whose word `poison` has a token id beyond the embedding table of the graph.
fn poisoned_model(into: &Path) -> Result<Model> {
    let toy = root().join("tests/models/regression-toy");
    for file in std::fs::read_dir(&toy)? {
        let file = file?;
        std::fs::copy(file.path(), into.join(file.file_name()))?;
    }
    let path = into.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().context("a vocabulary")?;
    vocabulary.insert("poison".into(), 1_000_000.into());
    std::fs::write(&path, serde_json::to_vec(&tokenizer)?)?;
    Ok(Model { path: into.to_owned(), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_item_does_not_fail_its_batch() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut config = sentiment();
    config.models.names = vec!["sentiment".into()];
    config.model.insert("toy".into(), poisoned_model(folder.path())?);
    let runtime = runtime(&config, "infer")?;
    runtime.settled("toy").await.map_err(anyhow::Error::msg)?;
    for culprits in [vec![], vec![5], vec![0, 39], (0..40).step_by(7).collect::<Vec<u64>>()] {
        let text = |id| if culprits.contains(&id) { "the quick poison fox" } else { "the quick brown fox" };
        let results = run_items(&runtime, (0..40).map(|id| classify_item(id, "toy", text(id))).collect()).await?;
        for (id, result) in results {
            match result {
                Ok(_) => ensure!(!culprits.contains(&id), "{id} has an output"),
                Err(Failure::Engine(_)) => ensure!(culprits.contains(&id), "{id} failed although its text is valid"),
                Err(other) => bail!("{id}: {other:?}"),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn trapping_text_does_not_fail_others() -> Result<()> {
    let runtime = stub(&sentiment())?;
    let text = |id| if id == 11 { "!trap" } else { "good" };
    let results = run_items(&runtime, (0..30).map(|id| classify_item(id, "sentiment", text(id))).collect()).await?;
    for (id, result) in results {
        match (id, result) {
            (11, Err(Failure::Engine(_))) => {}
            (11, other) => bail!("the culprit: {other:?}"),
            (_, result) => ensure!(result.is_ok(), "{id}: {result:?}"),
        }
    }
    wait_until("the replica is back", || runtime.stats("sentiment").is_some_and(|stats| stats.replicas_ready == 1))
        .await?;
    ensure!(runtime.stats("sentiment").is_some_and(|stats| stats.retried > 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_that_hangs_is_replaced() -> Result<()> {
    let mut config = sentiment();
    config.infer.hang_timeout_ms = 1000;
    let runtime = stub(&config)?;
    let text = |id| if id == 3 { "!hang" } else { "good" };
    let results = run_items(&runtime, (0..10).map(|id| classify_item(id, "sentiment", text(id))).collect()).await?;
    for (id, result) in results {
        match (id, result) {
            (3, Err(Failure::Engine(_))) => {}
            (3, other) => bail!("the culprit: {other:?}"),
            (_, result) => ensure!(result.is_ok(), "{id}: {result:?}"),
        }
    }
    let stats = || runtime.stats("sentiment").unwrap_or_default();
    ensure!(stats().hangs == 2, "{:?}", stats());
    wait_until("no thread hangs", || stats().threads_hanging == 0 && stats().replicas_ready == 1).await
}

/// The engine hangs: a batch of long texts takes longer than `hang_timeout_ms`. Another replica retries its items one by one, each of which
/// is quick.
#[tokio::test(flavor = "multi_thread")]
async fn batch_that_hangs_the_engine_is_retried_item_by_item() -> Result<()> {
    let mut config = sentiment();
    config.models.names = vec!["embeddings".into()];
    // Without the packed graph, long texts share a batch.
    let folder = tempfile::tempdir()?;
    for file in std::fs::read_dir(models().join("sentiment"))? {
        let file = file?;
        let name = file.file_name();
        if file.file_type()?.is_dir() || name == "model_packed.onnx" {
            continue;
        }
        std::fs::copy(file.path(), folder.path().join(name))?;
    }
    config.model.insert("slow".into(), Model { path: folder.path().to_owned(), ..Default::default() });
    config.infer.batch_tokens_max = 16 * 512;
    let long = Random(3).text(600);
    // The timeout is derived from the time of one text on this machine: a batch has several.
    let alone = {
        let runtime = runtime(&config, "infer")?;
        runtime.settled("slow").await.map_err(anyhow::Error::msg)?;
        run_items(&runtime, vec![classify_item(0, "slow", long.as_str())]).await?;
        let began = Instant::now();
        run_items(&runtime, vec![classify_item(0, "slow", long.as_str())]).await?;
        began.elapsed()
    };
    config.infer.hang_timeout_ms = u64::try_from(alone.as_millis())? * 3 + 1;
    let runtime = runtime(&config, "infer")?;
    runtime.settled("slow").await.map_err(anyhow::Error::msg)?;
    let results = run_items(&runtime, (0..24).map(|id| classify_item(id, "slow", long.as_str())).collect()).await?;
    let stats = || runtime.stats("slow").unwrap_or_default();
    ensure!(stats().hangs >= 1, "no replica hung: {:?}", stats());
    // On a very busy machine even a single text may exceed the timeout; not all have to succeed.
    let answered = results.values().filter(|result| result.is_ok()).count();
    ensure!(answered >= 1, "no item succeeded: {results:?}");
    wait_until("the thread has returned", || stats().threads_hanging == 0).await?;
    let after = run_items(&runtime, vec![classify_item(0, "slow", "short")]).await?;
    ensure!(after[&0].is_ok(), "{after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn circuit_opens_and_closes_again() -> Result<()> {
    let mut config = sentiment();
    (config.infer.circuit_failures, config.infer.circuit_open_ms) = (3, 300);
    let runtime = stub(&config)?;
    let one = async |text: &str| -> Result<Result<Output, Failure>> {
        let mut results = run_items(&runtime, vec![classify_item(0, "sentiment", text)]).await?;
        results.remove(&0).context("a result")
    };
    ensure!(one("good").await?.is_ok());
    for _ in 0..4 {
        ensure!(matches!(one("!fail").await?, Err(Failure::Engine(_))));
    }
    let refused = one("good").await?;
    ensure!(matches!(refused, Err(Failure::CircuitOpen(ms)) if (1..=300).contains(&ms)), "{refused:?}");
    let began = Instant::now();
    while one("good").await?.is_err() {
        ensure!(began.elapsed() < Duration::from_secs(30), "the circuit stays open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(one("good").await?.is_ok() && one("good").await?.is_ok());
    ensure!(runtime.stats("sentiment").is_some_and(|stats| stats.circuit_closed && stats.circuit_open > 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_with_many_items_does_not_delay_one_with_few() -> Result<()> {
    let runtime = runtime(&sentiment(), "infer")?;
    runtime.settled("sentiment").await.map_err(anyhow::Error::msg)?;
    let mut random = Random(1);
    let texts: Vec<String> = (0..100).map(|_| random.text(12)).collect();
    let (sender, mut outcomes) = runtime.call().open();
    let many = tokio::spawn(async move {
        for id in 0..10_000 {
            if sender.send(classify_item(id, "sentiment", texts[id as usize % texts.len()].as_str())).await.is_err() {
                return;
            }
        }
    });
    outcomes.recv().await.context("a first outcome")?;
    let reading = tokio::spawn(async move {
        let mut read = 1u64;
        let mut reported = Vec::new();
        while reported.len() < 20 {
            if outcomes.recv().await.is_none() {
                break;
            }
            read += 1;
            if read.is_multiple_of(20) {
                reported.push(read);
            }
        }
        (outcomes, read)
    });
    // Items of the other caller that were answered while this one waited: those of the batch in progress, and those of its own batch.
    let mut counts = Vec::new();
    for _ in 0..10 {
        let before = runtime.stats("sentiment").context("stats")?.answered;
        let results = run_items(&runtime, vec![classify_item(0, "sentiment", "A single text.")]).await?;
        ensure!(results[&0].is_ok());
        let after = runtime.stats("sentiment").context("stats")?.answered;
        counts.push(after - before);
    }
    let (outcomes, _) = reading.await?;
    // About nine texts of this length make a batch: the batch in progress, its own batch, and what was answered before this task counted.
    // A busy machine can prolong the last part once or twice, so the median is compared.
    counts.sort_unstable();
    ensure!(counts[counts.len() / 2] <= 40, "{counts:?} items of the other caller were answered first");
    let handed_over_before = runtime.stats("sentiment").context("stats")?.handed_over;
    drop(outcomes);
    many.await?;
    wait_until("the queue is empty", || runtime.stats("sentiment").is_some_and(|stats| stats.waiting == 0)).await?;
    let stats = runtime.stats("sentiment").context("stats")?;
    ensure!(stats.abandoned > 0, "{stats:?}");
    ensure!(
        stats.handed_over <= handed_over_before + 40,
        "items were computed after their caller left: {handed_over_before}, then {stats:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn item_past_its_deadline_is_answered_and_not_computed() -> Result<()> {
    const SLOW: usize = 12;
    let runtime = stub(&sentiment())?;
    runtime.settled("sentiment").await.map_err(anyhow::Error::msg)?;
    // The stand-in processes these one after the other, 300 ms each.
    let (sender, mut slow) = runtime.call().open();
    for id in 0..SLOW as u64 {
        sender.send(classify_item(id, "sentiment", "!slow")).await?;
    }
    wait_until("they are being computed", || runtime.stats("sentiment").is_some_and(|stats| stats.handed_over >= 2))
        .await?;
    let before = runtime.stats("sentiment").context("stats")?;
    let dated = Item { deadline_ms: Some(20), ..classify_item(0, "sentiment", "good") };
    let results = run_items(&runtime, vec![dated]).await?;
    ensure!(results[&0] == Err(Failure::DeadlineExceeded), "{results:?}");
    let mut computed = 0;
    while let Some(Some(outcome)) = slow.recv().now_or_never() {
        ensure!(outcome.result.is_ok(), "{outcome:?}");
        computed += 1;
    }
    ensure!(computed < SLOW, "the item waited for all of those before it");
    let after = runtime.stats("sentiment").context("stats")?;
    ensure!(after.expired == before.expired + 1, "{after:?}");
    drop(sender);
    ensure!(collect(slow).await?.values().all(Result::is_ok));
    Ok(())
}

/// Ten times as many items as the queue has room for: of calls of one item with `WhenFull::Fail`, each is answered or refused at once. The
/// items of one call wait for each other, as they do with `WhenFull::Wait`.
#[tokio::test(flavor = "multi_thread")]
async fn overloaded_queue_refuses_or_pushes_back() -> Result<()> {
    let mut config = sentiment();
    (config.infer.queue_items_max, config.infer.call_items_max) = (50, 10_000);
    config.infer.circuit_breaker = Switch::Off;
    let runtime = runtime(&config, "infer")?;
    runtime.settled("sentiment").await.map_err(anyhow::Error::msg)?;
    let mut random = Random(2);
    let items = |when_full: WhenFull, random: &mut Random| -> Vec<Item> {
        (0..500).map(|id| Item { when_full, ..classify_item(id, "sentiment", random.text(10)) }).collect()
    };
    let mut calls = Vec::new();
    for item in items(WhenFull::Fail, &mut random) {
        let (sender, outcomes) = runtime.call().open();
        sender.send(item).await?;
        calls.push(outcomes);
    }
    let mut results = BTreeMap::new();
    for outcomes in calls {
        results.extend(collect(outcomes).await?);
    }
    let refused = results.values().filter(|result| matches!(result, Err(Failure::Overloaded(1..)))).count();
    let answered = results.values().filter(|result| result.is_ok()).count();
    ensure!(answered >= 50 && refused > 0 && answered + refused == 500, "{answered} answered, {refused} refused");
    ensure!(runtime.stats("sentiment").is_some_and(|stats| stats.overloaded == refused as u64));
    for when_full in [WhenFull::Fail, WhenFull::Wait] {
        let results = run_items(&runtime, items(when_full, &mut random)).await?;
        ensure!(results.len() == 500 && results.values().all(Result::is_ok), "{when_full:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_items_get_an_outcome() -> Result<()> {
    for policy in [DropPolicy::Head, DropPolicy::Tail] {
        let mut config = sentiment();
        (config.infer.queue_items_max, config.infer.drop_policy) = (5, policy);
        let runtime = stub(&config)?;
        runtime.settled("sentiment").await.map_err(anyhow::Error::msg)?;
        let (sender, outcomes) = runtime.call().open();
        sender.send(classify_item(1000, "sentiment", "!slow")).await?;
        wait_until("it is being computed", || runtime.stats("sentiment").is_some_and(|s| s.handed_over >= 2)).await?;
        for id in 0..20 {
            sender.send(classify_item(id, "sentiment", "good")).await?;
        }
        drop(sender);
        let results = collect(outcomes).await?;
        let answered_ids: Vec<u64> = results.iter().filter(|(_, result)| result.is_ok()).map(|(id, _)| *id).collect();
        let expected: Vec<u64> = if policy == DropPolicy::Head { (15..20).collect() } else { (0..5).collect() };
        ensure!(answered_ids == [expected, vec![1000]].concat(), "{policy:?}: {answered_ids:?} are answered");
        ensure!(results.len() == 21 && runtime.stats("sentiment").is_some_and(|stats| stats.overloaded == 15));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_delay_items_until_count_time_or_flush() -> Result<()> {
    // Long enough that a busy machine computes a batch within it.
    const WINDOW_MS: u32 = 4000;
    const WINDOW: Duration = Duration::from_millis(WINDOW_MS as u64);
    let mut config = sentiment();
    config.infer.batching = Batching::Windowed;
    (config.infer.batch_size, config.infer.window_ms) = (4, WINDOW_MS);
    let runtime = stub(&config)?;
    runtime.settled("sentiment").await.map_err(anyhow::Error::msg)?;
    let few = |count: u64| (0..count).map(|id| classify_item(id, "sentiment", "good")).collect::<Vec<_>>();
    let began = Instant::now();
    run_items(&runtime, few(1)).await?;
    ensure!(began.elapsed() >= WINDOW, "an item did not wait for its window");
    let began = Instant::now();
    run_items(&runtime, few(4)).await?;
    let full = began.elapsed();
    ensure!(full < WINDOW, "a full batch took {full:?}");
    let (sender, outcomes) = runtime.call().open();
    sender.send(classify_item(0, "sentiment", "good")).await?;
    ensure!(runtime.flush("sentiment") == 1);
    drop(sender);
    ensure!(collect(outcomes).await?[&0].is_ok());
    Ok(())
}
