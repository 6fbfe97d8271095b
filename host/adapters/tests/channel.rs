//! Channels as sources and sinks.

mod echo;

use anyhow::{Result, ensure};
use echo::{start, start_plan, until};
use weir_adapters::build::Plan;
use weir_config::{Adapter, AdapterSink, AdapterSource, ChannelSink, ChannelSource, FileSource};
use weir_core::channels::{ChannelName, Cursor, Draft};
use weir_events::{EventsConfig, Store};

fn adapter(name: &str) -> Adapter {
    Adapter {
        name: name.to_owned(),
        reconnect_delay_ms: 1,
        source: AdapterSource::Channel(ChannelSource { channel: "workflow:in".into(), ..ChannelSource::default() }),
        sink: AdapterSink::Channel(ChannelSink { channel: "workflow:out".into(), ..ChannelSink::default() }),
        ..Adapter::default()
    }
}

fn plan(adapter: &Adapter, store: &Store) -> Result<Plan> {
    Plan::with_store(adapter, 1, Some(store.clone())).map_err(anyhow::Error::msg)
}

/// The names and the data of the events of a channel.
async fn events(store: &Store, channel: &str) -> Result<Vec<(String, String)>> {
    let channel: ChannelName = channel.parse()?;
    let (mut after, mut events) = (Cursor::START, Vec::new());
    loop {
        let page = store.read(&channel, after, 100).await?;
        if page.entries.is_empty() {
            return Ok(events);
        }
        events.extend(page.entries.iter().map(|entry| (entry.name.to_string(), entry.data.to_string())));
        after = page.next;
    }
}

#[tokio::test]
async fn events_are_records_results_are_events_and_the_position_is_kept() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let input: ChannelName = "workflow:in".parse()?;
    let drafts = |range: std::ops::Range<u32>| range.map(|n| Draft::new("step", n.to_string())).collect::<Vec<_>>();
    store.append(&input, drafts(0..300)).await?;
    let running = start_plan(plan(&adapter("a"), &store)?)?;
    until("read", async || Ok(events(&store, "workflow:out").await?.len() == 300)).await?;
    // Live events.
    store.append(&input, drafts(300..310)).await?;
    until("read", async || Ok(events(&store, "workflow:out").await?.len() == 310)).await?;
    running.stop().await?;
    // What came while it was stopped is read at the next start, and nothing twice.
    store.append(&input, drafts(310..320)).await?;
    let running = start_plan(plan(&adapter("a"), &store)?)?;
    until("read", async || Ok(events(&store, "workflow:out").await?.len() >= 320)).await?;
    running.stop().await?;
    let all = events(&store, "workflow:out").await?;
    let numbers: Vec<u32> = all.iter().map(|(_, data)| data.parse()).collect::<Result<_, _>>()?;
    ensure!(numbers == (0..320).collect::<Vec<u32>>(), "{} events", numbers.len());
    ensure!(all.iter().all(|(name, _)| name == "adapter_result"), "{all:?}");
    Ok(())
}

#[tokio::test]
async fn adapter_ends_with_its_channel_and_takes_the_named_events() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let input: ChannelName = "workflow:in".parse()?;
    let mut adapter = adapter("a");
    if let AdapterSource::Channel(source) = &mut adapter.source {
        (source.events, source.start) = (vec!["meant".into()], "now".into());
    }
    store.append(&input, vec![Draft::new("meant", "0")]).await?;
    let running = start_plan(plan(&adapter, &store)?)?;
    let status = running.status.clone();
    until("connected", async || Ok(status.report().state == "running")).await?;
    let drafts = vec![Draft::new("other", "1"), Draft::new("meant", "2"), Draft::new("meant", "3").finishing()];
    store.append(&input, drafts).await?;
    running.ended().await?;
    let data: Vec<String> = events(&store, "workflow:out").await?.into_iter().map(|(_, data)| data).collect();
    assert_eq!(data, ["2", "3"]);
    Ok(())
}

#[tokio::test]
async fn results_that_are_not_events_go_to_the_errors() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let dir = tempfile::tempdir()?;
    let input = dir.path().join("in.ndjson");
    let long = format!("\"{}\"", "x".repeat(300 << 10));
    std::fs::write(&input, format!("1\nbad\nno json\n{long}\n2\n"))?;
    let channel = |name: &str| AdapterSink::Channel(ChannelSink { channel: name.into(), ..ChannelSink::default() });
    let adapter = Adapter {
        name: "a".into(),
        format: "ndjson".into(),
        source: AdapterSource::File(FileSource { paths: vec![input.display().to_string()], ..FileSource::default() }),
        sink: channel("workflow:out"),
        errors: Some(channel("workflow:errors")),
        ..Adapter::default()
    };
    start_plan(plan(&adapter, &store)?)?.ended().await?;
    let data: Vec<String> = events(&store, "workflow:out").await?.into_iter().map(|(_, data)| data).collect();
    assert_eq!(data, ["1", "2"]);
    let errors = events(&store, "workflow:errors").await?;
    let codes: Vec<&str> =
        errors.iter().map(|(_, data)| if data.contains("sink_refused") { "refused" } else { "bad" }).collect();
    // The error with the original bytes of the long line is too long as well, and is logged.
    assert_eq!(codes, ["bad", "refused"], "{errors:?}");
    assert!(errors.iter().all(|(name, _)| name == "adapter_error"));
    Ok(())
}

#[tokio::test]
async fn wrong_channels_are_named() -> Result<()> {
    let store = Store::open(EventsConfig::default()).await?;
    let error = |adapter: &Adapter| Plan::with_store(adapter, 1, Some(store.clone())).err().unwrap_or_default();
    let mut looped = adapter("a");
    looped.sink = AdapterSink::Channel(ChannelSink { channel: "workflow:in".into(), ..ChannelSink::default() });
    assert!(error(&looped).contains("sink.channel `workflow:in` is also the source"), "{}", error(&looped));
    let mut unnamed = adapter("a");
    unnamed.source = AdapterSource::Channel(ChannelSource::default());
    assert!(error(&unnamed).contains("source.channel ``"), "{}", error(&unnamed));
    let without_server = start(&adapter("a")).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(without_server.contains("weir serve"), "{without_server}");
    Ok(())
}
