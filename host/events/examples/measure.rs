//! Measures the channel store: the latency from append to delivery, and the throughput in events per second.
//!
//! `cargo run --release -p weir-events --example measure`; with WEIR_TEST_REDIS_URL=redis://… Redis is measured too, in
//! keys that begin with `weir-measure:`.
#![allow(clippy::print_stdout, reason = "the results are printed")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weir_core::channels::{ChannelName, Cursor, Delivery, Draft, Retention};
use weir_events::{EventsConfig, RedisConfig, Store, StoreKind};

/// Events of the paced measurement, ten milliseconds apart.
const PACED_EVENTS: usize = 300;
const SUBSCRIBERS: usize = 1_000;
/// The publishers of the unpaced measurement, and how long they publish.
const PUBLISHERS: usize = 32;
const UNPACED_DURATION: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().context("no folder for the file")?;
    let retention = Retention { events_max: 1_000, ..Retention::default() };
    let base = EventsConfig { retention, ..EventsConfig::default() };
    measure("memory", base.clone()).await?;
    let disk = |file: &str| EventsConfig { store: StoreKind::Disk, path: folder.path().join(file), ..base.clone() };
    measure("disk, durable", EventsConfig { durable: true, ..disk("durable") }).await?;
    measure("disk", disk("loose")).await?;
    if let Ok(url) = std::env::var("WEIR_TEST_REDIS_URL") {
        let redis = RedisConfig { url, prefix: "weir-measure:".to_owned(), ..RedisConfig::default() };
        measure("redis", EventsConfig { store: StoreKind::Redis, redis, ..base }).await?;
    }
    Ok(())
}

async fn measure(store_name: &str, config: EventsConfig) -> Result<()> {
    for subscribers in [1, SUBSCRIBERS] {
        let store = Store::open(config.clone()).await?;
        let mut times = latency(&store, &format!("workflow:paced{subscribers}"), subscribers).await?;
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "{store_name}: append to delivery, {subscribers} subscribers, 100 events/s: p50 {:?}, p99 {:?}, most {:?}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
        store.close().await?;
    }
    let store = Store::open(config).await?;
    for (publishers, batch) in [(1, 1), (PUBLISHERS, 1), (PUBLISHERS, 16)] {
        let rate = rate(&store, publishers, batch).await?;
        println!("{store_name}: {publishers} publishers, {batch} events an append: {rate:.0} events/s");
    }
    store.close().await?;
    Ok(())
}

fn data(start: Instant) -> String {
    format!("{{\"ns\":{},\"message\":\"{}\"}}", start.elapsed().as_nanos(), "x".repeat(150))
}

/// The time from before each append to each delivery.
async fn latency(store: &Store, channel: &str, subscribers: usize) -> Result<Vec<Duration>> {
    let channel: ChannelName = channel.parse()?;
    let start = Instant::now();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..subscribers {
        let mut subscription = store.follow(&channel, Cursor::START).await?;
        readers.spawn(async move {
            let mut times = Vec::with_capacity(PACED_EVENTS);
            while times.len() < PACED_EVENTS {
                let Some(Delivery::Event { entry, .. }) = subscription.next().await else { break };
                let now = start.elapsed();
                let sent = entry.data.split([':', ',']).nth(1).and_then(|ns| ns.parse().ok()).unwrap_or_default();
                times.push(now.saturating_sub(Duration::from_nanos(sent)));
            }
            times
        });
    }
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..PACED_EVENTS {
        pace.tick().await;
        store.append(&channel, vec![Draft::new("step_progress", data(start))]).await?;
    }
    let mut all = Vec::new();
    while let Some(times) = readers.join_next().await {
        all.extend(times?);
    }
    Ok(all)
}

/// Events per second that are appended and delivered to one subscriber of each publisher's channel.
async fn rate(store: &Store, publishers: usize, batch: usize) -> Result<f64> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..publishers {
        let store = store.clone();
        let channel: ChannelName = format!("file:{publisher}-{publishers}-{batch}").parse()?;
        let mut subscription = store.follow(&channel, Cursor::START).await?;
        tasks.spawn(async move {
            let mut count = 0_usize;
            while start.elapsed() < UNPACED_DURATION {
                let events = (0..batch).map(|_| Draft::new("step_progress", data(start))).collect();
                store.append(&channel, events).await?;
                for _ in 0..batch {
                    subscription.next().await.context("the subscription ended")?;
                    count += 1;
                }
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(task) = tasks.join_next().await {
        count += task??;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
