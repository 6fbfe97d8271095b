//! Callbacks, taps and the events file.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_core::channels::{ChannelName, Cursor, Delivery, Draft};
use weir_events::{EventsConfig, FileConfig, Store, TapItem, write_events};

const PATIENCE: Duration = Duration::from_secs(30);

fn channel(name: &str) -> Result<ChannelName> {
    name.parse().context("a channel")
}

fn numbered(n: usize) -> Draft {
    Draft::new("workflow_progress", format!("{{\"n\":{n},\n\"pad\":\"{}\"}}", "x".repeat(100)))
}

#[tokio::test]
async fn callback_gets_all_events_and_a_panic_affects_no_other() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let name = channel("workflow:w")?;
    store.append(&name, vec![numbered(0)]).await?;
    let (sender, receiver) = mpsc::channel();
    let all = store.subscribe_callback(&name, Cursor::START, move |delivery| drop(sender.send(delivery))).await?;
    let bad = store.subscribe_callback(&name, Cursor::START, |_| panic!("on purpose")).await?;
    for n in 1..20 {
        store.append(&name, vec![numbered(n)]).await?;
    }
    store.append(&name, vec![Draft::new("workflow_progress", "{}").finishing()]).await?;
    let received = tokio::task::spawn_blocking(move || {
        let mut sequences = Vec::new();
        while let Ok(Delivery::Event { entry, .. }) = receiver.recv_timeout(PATIENCE) {
            sequences.push(entry.cursor.seq);
        }
        sequences
    });
    assert_eq!(received.await?, (1..=21).collect::<Vec<_>>());
    let start = Instant::now();
    while !(all.is_over() && bad.is_over()) {
        ensure!(start.elapsed() < PATIENCE, "the callbacks do not end");
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test]
async fn removed_callback_is_not_called() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let name = channel("workflow:w")?;
    let (sender, receiver) = mpsc::channel();
    let callback = store
        .subscribe_callback(&name, Cursor::START, move |_| {
            let _ = sender.send(());
        })
        .await?;
    callback.unsubscribe();
    // The function is dropped, and the sender with it.
    let over = tokio::task::spawn_blocking(move || receiver.recv_timeout(PATIENCE));
    assert_eq!(over.await?, Err(mpsc::RecvTimeoutError::Disconnected));
    assert_eq!(store.stats().subscribers, 0);
    Ok(())
}

#[tokio::test]
async fn tap_gets_events_of_all_channels_and_the_missed_count() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let mut tap = store.tap();
    for n in 0..3000 {
        store.append(&channel(&format!("workflow:w{}", n % 3))?, vec![numbered(n)]).await?;
    }
    let Some(TapItem::Missed(missed)) = tap.next().await else { anyhow::bail!("it was too slow") };
    let mut count = 0;
    while let Some(TapItem::Event { channel, entry }) = tap.try_next() {
        let n = missed as usize + count;
        assert_eq!(channel.to_string(), format!("workflow:w{}", n % 3));
        assert_eq!(*entry.data, *numbered(n).data);
        count += 1;
    }
    assert_eq!(missed as usize + count, 3000);
    drop(store);
    Ok(())
}

/// The lines of the newest file and of those before it, oldest first.
fn lines(path: &Path, files: u32) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for number in (1..files).rev() {
        all.extend(
            std::fs::read_to_string(format!("{}.{number}", path.display()))
                .unwrap_or_default()
                .lines()
                .map(str::to_owned),
        );
    }
    all.extend(std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned));
    Ok(all)
}

#[tokio::test]
async fn file_gets_all_events_and_is_rotated() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("events.ndjson");
    std::fs::write(&path, "{\"type\":\"before\"}\n")?;
    let store = Store::open(EventsConfig::default()).await?;
    write_events(FileConfig { path: path.clone(), bytes_max: 2000, files_max: 4 }, store.tap())?;
    for n in 0..60 {
        store.append(&channel("workflow:w")?, vec![numbered(n)]).await?;
    }
    let start = Instant::now();
    while !lines(&path, 1)?.last().is_some_and(|line| line.contains("\"n\":59")) {
        ensure!(start.elapsed() < PATIENCE, "the last is not written");
        tokio::task::yield_now().await;
    }
    // Read after the last write, so that no rotation happens between the reads of two files.
    let written = lines(&path, 4)?;
    // Each event is one line, and the newest events are all there.
    for (line, n) in written.iter().rev().zip((0..60).rev()) {
        assert!(line.starts_with("{\"type\":\"workflow_progress\",\"id\":\"") && line.ends_with("\"}}"), "{line}");
        assert!(line.contains("\"channel\":\"workflow:w\",\"time\":"), "{line}");
        assert!(line.contains(&format!("\"data\":{{\"n\":{n}, ")), "{line}");
    }
    assert!((20..60).contains(&written.len()), "{}", written.len());
    for number in 0..4 {
        let file = if number == 0 { path.clone() } else { dir.path().join(format!("events.ndjson.{number}")) };
        assert!(std::fs::metadata(&file)?.len() <= 2000, "{}", file.display());
    }
    assert!(!dir.path().join("events.ndjson.4").exists());
    Ok(())
}

#[tokio::test]
async fn file_that_cannot_be_opened_is_an_error() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let config = FileConfig { path: "/nowhere/at/all".into(), bytes_max: 1, files_max: 1 };
    assert!(write_events(config, store.tap()).is_err());
    Ok(())
}
