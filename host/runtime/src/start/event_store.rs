//! Opens the channel store with the configured settings, and starts the consumers of all events: metrics and the events
//! file.

use std::collections::HashSet;

use weir_config::{Events, EventsFallback, EventsStore};
use weir_core::channels::Retention;
use weir_events::{EventsConfig, Fallback, FileConfig, RedisConfig, Store, StoreKind, TapItem};

use crate::start::{StartError, pipeline_metrics};

/// Opens the store, and starts the consumers of all its events.
pub(crate) async fn open(config: &Events) -> Result<Store, StartError> {
    let events = Store::open(events_config(config)).await?;
    start_consumers(config, &events)?;
    Ok(events)
}

/// Copies the counters of the store to the metrics.
pub(crate) fn report(events: &Store) {
    let stats = events.stats();
    metrics::gauge!("weir_events_channels").set(stats.channels as f64);
    metrics::gauge!("weir_events_subscribers").set(stats.subscribers as f64);
    let counters = [
        ("weir_events_appended_total", stats.appended),
        ("weir_events_delivered_total", stats.delivered),
        ("weir_events_coalesced_total", stats.coalesced),
        ("weir_events_gaps_total", stats.gaps),
        ("weir_events_closed_slow_total", stats.closed_slow),
        ("weir_events_evicted_total", stats.evicted),
    ];
    for (name, count) in counters {
        metrics::counter!(name).absolute(count);
    }
}

/// Most event names with a counter of their own: publishers choose the names.
const COUNTED_NAMES_MAX: usize = 64;

fn start_consumers(config: &Events, events: &Store) -> Result<(), StartError> {
    if !config.file.as_os_str().is_empty() {
        let (path, bytes_max, files_max) = (config.file.clone(), config.file_bytes_max, config.file_count_max);
        weir_events::write_events(FileConfig { path, bytes_max, files_max }, events.tap()).map_err(|error| {
            StartError::Config(format!("events.file {} cannot be written: {error}", config.file.display()))
        })?;
    }
    let mut tap = events.tap();
    tokio::spawn(async move {
        let mut counted = CountedNames::default();
        while let Some(item) = tap.next().await {
            let (kind, name, events) = counted.labels(&item);
            metrics::counter!("weir_events_published_total", "kind" => kind, "event" => name).increment(events);
            if let TapItem::Event { channel, entry } = item
                && channel.kind() == "pipeline"
            {
                pipeline_metrics::count(&entry.name, &entry.data);
            }
        }
    });
    Ok(())
}

/// The names of events that have a counter of their own.
#[derive(Default)]
struct CountedNames(HashSet<Box<str>>);

impl CountedNames {
    /// The kind of channel and the name to count an item under, and its number of events.
    fn labels(&mut self, item: &TapItem) -> (String, String, u64) {
        match item {
            TapItem::Event { channel, entry } => {
                let is_counted = self.0.contains(&entry.name)
                    || self.0.len() < COUNTED_NAMES_MAX && self.0.insert(entry.name.clone());
                let name = if is_counted { entry.name.to_string() } else { "other".to_owned() };
                (channel.kind().to_owned(), name, 1)
            }
            // Their channels and names are not known; the sum of all counters is complete.
            TapItem::Missed(missed) => ("other".to_owned(), "other".to_owned(), *missed),
        }
    }
}

fn events_config(events: &Events) -> EventsConfig {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let default = EventsConfig::default();
    EventsConfig {
        store: match events.store {
            EventsStore::Memory => StoreKind::Memory,
            EventsStore::Disk => StoreKind::Disk,
            EventsStore::Redis => StoreKind::Redis,
        },
        path: events.path.clone(),
        durable: events.durable,
        redis: RedisConfig {
            url: events.redis_url.clone(),
            prefix: events.redis_prefix.clone(),
            block_ms: events.redis_block_ms,
            timeout_ms: events.redis_timeout_ms,
            retry_ms: events.redis_retry_ms,
            fallback: match events.fallback {
                EventsFallback::None => Fallback::None,
                EventsFallback::Memory => Fallback::Memory,
            },
        },
        retention: Retention {
            events_max: events.events_max as usize,
            bytes_max: size(events.bytes_max),
            age_ms_max: events.age_ms_max,
        },
        channels_max: events.channels_max as usize,
        subscribers_max: events.subscribers_max as usize,
        outbox_bytes_max: size(events.outbox_bytes_max),
        state_bytes_max: size(events.state_bytes_max),
        user_percent_max: u8::try_from(events.user_percent_max).unwrap_or(100),
        ..default
    }
}

#[cfg(test)]
mod tests {
    use weir_core::channels::Draft;

    use super::*;

    /// More events than a tap holds, of more names than have a counter.
    #[tokio::test]
    async fn every_event_is_counted_though_a_tap_misses_some() {
        let store = Store::open(EventsConfig::default()).await.unwrap();
        let (mut tap, channel) = (store.tap(), "user:ann".parse().unwrap());
        for number in 0..3_000 {
            store.append(&channel, vec![Draft::new(format!("e{}", number % 100), "{}")]).await.unwrap();
        }
        let (mut counted, mut sum, mut missed) = (CountedNames::default(), 0, 0);
        while let Some(item) = tap.try_next() {
            let (kind, name, events) = counted.labels(&item);
            sum += events;
            match item {
                TapItem::Missed(_) => {
                    missed += events;
                    assert_eq!((&*kind, &*name), ("other", "other"));
                }
                TapItem::Event { entry, .. } => {
                    assert_eq!(kind, "user");
                    assert!(name == *entry.name || name == "other" && counted.0.len() == COUNTED_NAMES_MAX);
                }
            }
        }
        assert_eq!(sum, 3_000);
        assert!(missed > 0, "the tap has missed nothing");
    }
}
