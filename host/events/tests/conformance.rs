//! The behaviour that every kind of store shares.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{ReaderState, conformance, gap, name, next, number, numbered, open, until};
use weir_core::channels::{CloseReason, Cursor, Delivery, Draft, EventLimits, Gap, Retention};
use weir_events::{Error, EventsConfig, Store};

conformance!(
    appended_cursors_are_consecutive_and_pages_continue_each_other,
    unknown_channel_is_empty,
    events_beyond_retention_are_a_gap,
    extreme_cursors_are_read_and_followed,
    busy_channel_evicts_no_events_of_another,
    channel_is_bounded_by_bytes_and_age,
    replay_continues_into_live_events,
    finished_channel_ends_and_refuses_appends,
    append_out_of_bounds_is_refused_completely,
    concurrent_publishers_share_one_sequence,
    stalled_reader_is_closed_delays_no_other_and_resumes,
    progress_coalesces_for_a_slow_reader_and_results_do_not,
    claim_is_granted_to_exactly_one_caller,
    health_and_statistics_are_reported,
);

async fn all(store: &Store, channel: &str, after: Cursor) -> (Vec<Gap>, Vec<u64>, Cursor) {
    let (mut cursor, mut gaps, mut numbers) = (after, Vec::new(), Vec::new());
    loop {
        let page = store.read(&name(channel), cursor, 7).await.unwrap();
        gaps.extend(page.gap);
        numbers.extend(page.entries.iter().map(|entry| entry.data.parse::<u64>().unwrap()));
        if page.next == cursor || page.entries.is_empty() {
            return (gaps, numbers, page.next);
        }
        cursor = page.next;
    }
}

async fn appended_cursors_are_consecutive_and_pages_continue_each_other(config: EventsConfig) {
    let store = open(config).await;
    let channel = name("workflow:a");
    let mut cursors = store.append(&channel, numbered(1..=3)).await.unwrap();
    cursors.extend(store.append(&channel, numbered(4..=20)).await.unwrap());
    assert_eq!(cursors[0].seq, 1);
    assert!(cursors.windows(2).all(|pair| pair[0].leads_to(pair[1])));
    assert_eq!(store.append(&channel, Vec::new()).await, Ok(Vec::new()));
    let (gaps, numbers, end) = all(&store, "workflow:a", Cursor::START).await;
    assert_eq!((gaps, numbers, end), (vec![], (1..=20).collect(), cursors[19]));
    let page = store.read(&channel, cursors[4], 3).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.cursor).collect::<Vec<_>>(), cursors[5..8]);
    assert!(page.gap.is_none() && !page.ended && page.next == cursors[7]);
    // All fields of an event are read back.
    let draft = Draft::new("step_progress", "{\"message\":\"ä\\n\r\n\u{0}\"}").coalescing("step:1");
    store.append(&channel, vec![draft.clone()]).await.unwrap();
    let page = store.read(&channel, cursors[19], 3).await.unwrap();
    let entry = &page.entries[0];
    assert_eq!(
        (&entry.name, &entry.data, &entry.coalesce, entry.finishes),
        (&draft.name, &draft.data, &draft.coalesce, false)
    );
    assert!(entry.time_ms > 1_600_000_000_000);
}

async fn unknown_channel_is_empty(config: EventsConfig) {
    let store = open(config).await;
    let page = store.read(&name("file:x"), Cursor::START, 10).await.unwrap();
    assert!(page.gap.is_none() && page.entries.is_empty() && !page.ended);
    // A cursor of events that the store does not have.
    let foreign = Cursor::new(5, 5);
    let page = store.read(&name("file:x"), foreign, 10).await.unwrap();
    assert_eq!(page.gap.map(|gap| gap.missing_from), Some(foreign.next()));
    // The channel begins with its first event, for earlier subscribers too.
    let mut early = store.follow(&name("file:x"), Cursor::START).await.unwrap();
    let mut stale = store.follow(&name("file:x"), foreign).await.unwrap();
    store.append(&name("file:x"), numbered([1])).await.unwrap();
    assert_eq!(number(&mut early).await, 1);
    assert_eq!(gap(&mut stale).await.missing_from, foreign.next());
    let mut declared = stale;
    loop {
        match next(&mut declared).await {
            Some(Delivery::Gap(_)) => {}
            Some(Delivery::Event { entry, .. }) => break assert_eq!(&*entry.data, "1"),
            other => panic!("{other:?}"),
        }
    }
}

async fn events_beyond_retention_are_a_gap(config: EventsConfig) {
    let retention = Retention { events_max: 10, ..Retention::default() };
    let store = open(EventsConfig { retention, ..config }).await;
    let channel = name("workflow:a");
    let mut cursors = Vec::new();
    for chunk in 0..5 {
        cursors.extend(store.append(&channel, numbered(chunk * 5..chunk * 5 + 5)).await.unwrap());
    }
    let (gaps, numbers, _) = all(&store, "workflow:a", cursors[3]).await;
    assert_eq!(gaps, [Gap { missing_from: cursors[4], missing_to: cursors[14] }]);
    assert_eq!(numbers, (15..25).collect::<Vec<_>>());
    assert_eq!(all(&store, "workflow:a", Cursor::START).await.0, []);
    assert_eq!(all(&store, "workflow:a", cursors[14]).await.0, []);
    let mut follower = store.follow(&channel, cursors[3]).await.unwrap();
    assert_eq!(gap(&mut follower).await, Gap { missing_from: cursors[4], missing_to: cursors[14] });
    assert_eq!(number(&mut follower).await, 15);
    // A cursor that was not assigned yet, and one of another epoch.
    for foreign in [Cursor::new(cursors[0].epoch, 999), Cursor::new(u64::MAX - 1, 1), Cursor::new(1, 1)] {
        let page = store.read(&channel, foreign, 100).await.unwrap();
        assert_eq!(page.gap.unwrap().missing_from, foreign.next());
        assert_eq!(page.next, cursors[24]);
    }
}

async fn extreme_cursors_are_read_and_followed(config: EventsConfig) {
    let store = open(config).await;
    let channel = name("workflow:a");
    let epoch = store.append(&channel, numbered([1])).await.unwrap()[0].epoch;
    let ends = [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    let cursors = ends.iter().flat_map(|epoch| ends.map(|seq| Cursor::new(*epoch, seq)));
    let near = [0, u64::MAX - 1, u64::MAX].map(|seq| Cursor::new(epoch, seq));
    for (number, cursor) in (2..).zip(cursors.chain(near)) {
        // An empty channel is read and followed too.
        for channel in [&channel, &name("workflow:none")] {
            let page = store.read(channel, cursor, 10).await.unwrap_or_else(|error| panic!("{cursor}: {error}"));
            assert!(cursor == Cursor::START || page.gap.is_some() || page.next.epoch == epoch, "{cursor}");
            drop(store.follow(channel, cursor).await.unwrap_or_else(|error| panic!("{cursor}: {error}")));
        }
        let mut follower = store.follow(&channel, cursor).await.unwrap();
        while follower.try_next().is_some() {}
        store.append(&channel, numbered([number])).await.unwrap();
        loop {
            match next(&mut follower).await {
                Some(Delivery::Event { entry, .. }) if *entry.data == *number.to_string() => break,
                Some(Delivery::Event { .. } | Delivery::Gap(_)) => {}
                other => panic!("{cursor}: {other:?}"),
            }
        }
    }
}

async fn busy_channel_evicts_no_events_of_another(config: EventsConfig) {
    let retention = Retention { events_max: 20, bytes_max: 20_000, ..Retention::default() };
    let store = open(EventsConfig { retention, ..config }).await;
    let quiet = store.append(&name("user:quiet"), numbered(0..5)).await.unwrap();
    for chunk in 0..40 {
        store.append(&name("user:busy"), numbered(chunk * 10..chunk * 10 + 10)).await.unwrap();
    }
    let (gaps, numbers, end) = all(&store, "user:quiet", Cursor::new(quiet[0].epoch, 0)).await;
    assert_eq!((gaps, numbers, end), (vec![], (0..5).collect(), quiet[4]));
    assert_eq!(all(&store, "user:busy", Cursor::START).await.1, (380..400).collect::<Vec<_>>());
}

async fn channel_is_bounded_by_bytes_and_age(config: EventsConfig) {
    let retention = Retention { bytes_max: 5_000, age_ms_max: 700, events_max: 1_000 };
    let store = open(EventsConfig { retention, ..config }).await;
    let channel = name("session:s");
    let large = |number: u64| Draft::new("e", format!("{number:01000}"));
    let mut cursors = Vec::new();
    for number in 0..10 {
        cursors.extend(store.append(&channel, vec![large(number)]).await.unwrap());
    }
    assert_eq!(all(&store, "session:s", Cursor::START).await.1, [6, 7, 8, 9]);
    let store = Arc::new(store);
    until("events get too old", || async { all(&store, "session:s", Cursor::START).await.1.is_empty() }).await;
    // The sequence continues, and a reader that has seen all of it gets no gap.
    let cursor = store.append(&channel, vec![large(10)]).await.unwrap()[0];
    assert_eq!(all(&store, "session:s", cursors[9]).await, (vec![], vec![10], cursor));
    let gaps = all(&store, "session:s", cursors[7]).await.0;
    assert_eq!(gaps, [Gap { missing_from: cursors[8], missing_to: cursors[9] }]);
}

async fn replay_continues_into_live_events(config: EventsConfig) {
    const EVENTS: u64 = 600;
    let store = open(config).await;
    let channel = name("pipeline:p");
    store.append(&channel, numbered(0..50)).await.unwrap();
    let publisher = tokio::spawn({
        let (store, channel) = (store.clone(), channel.clone());
        async move {
            for chunk in 10..EVENTS / 5 {
                store.append(&channel, numbered(chunk * 5..chunk * 5 + 5)).await.unwrap();
            }
        }
    });
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..20 {
        let (store, channel) = (store.clone(), channel.clone());
        readers.spawn(async move {
            let mut reader_state = ReaderState::default();
            // Each reader disconnects and resumes at positions of its own.
            let mut stays = 7 + reader * 13;
            while reader_state.numbers.len() < EVENTS as usize {
                let mut subscription = store.follow(&channel, reader_state.cursor).await.unwrap();
                for _ in 0..stays {
                    if reader_state.numbers.len() == EVENTS as usize {
                        break;
                    }
                    reader_state.record(&next(&mut subscription).await.unwrap());
                }
                assert_eq!(subscription.delivered(), reader_state.cursor);
                stays = stays * 2 + 1;
            }
            reader_state
        });
    }
    publisher.await.unwrap();
    while let Some(reader_state) = readers.join_next().await {
        let reader_state = reader_state.unwrap();
        assert_eq!((reader_state.gaps, reader_state.numbers), (vec![], (0..EVENTS).collect()));
    }
    assert_eq!(store.stats().subscribers, 0);
}

async fn finished_channel_ends_and_refuses_appends(config: EventsConfig) {
    let store = open(config).await;
    let channel = name("pipeline:p");
    let mut follower = store.follow(&channel, Cursor::START).await.unwrap();
    let last = vec![Draft::new("step_start", "1"), Draft::new("pipeline_complete", "2").finishing()];
    let cursors = store.append(&channel, last).await.unwrap();
    assert_eq!((number(&mut follower).await, number(&mut follower).await), (1, 2));
    assert_eq!(next(&mut follower).await, None);
    assert_eq!(next(&mut follower).await, None);
    assert_eq!(store.append(&channel, numbered([3])).await, Err(Error::Finished));
    let page = store.read(&channel, cursors[0], 10).await.unwrap();
    assert!(page.ended && page.entries.len() == 1 && page.entries[0].finishes);
    assert!(store.read(&channel, cursors[1], 10).await.unwrap().ended);
    let mut late = store.follow(&channel, cursors[1]).await.unwrap();
    assert_eq!(next(&mut late).await, None);
    let mut late = store.follow(&channel, Cursor::START).await.unwrap();
    assert_eq!((number(&mut late).await, number(&mut late).await), (1, 2));
    assert_eq!(next(&mut late).await, None);
}

async fn append_out_of_bounds_is_refused_completely(config: EventsConfig) {
    let limits = EventLimits { data_bytes_max: 100, append_events_max: 3, append_bytes_max: 200 };
    let store = open(EventsConfig { limits, ..config }).await;
    let channel = name("workflow:a");
    let large = Draft::new("e", "x".repeat(101));
    assert!(matches!(store.append(&channel, vec![Draft::new("e", "1"), large]).await, Err(Error::TooLarge(_))));
    assert!(matches!(store.append(&channel, numbered(0..4)).await, Err(Error::TooLarge(_))));
    let injected = Draft::new("e\nid: 9", "1");
    assert!(matches!(store.append(&channel, vec![injected]).await, Err(Error::Invalid(_))));
    assert!(store.read(&channel, Cursor::START, 10).await.unwrap().entries.is_empty());
    assert_eq!(store.append(&channel, numbered(0..3)).await.unwrap()[0].seq, 1);
}

async fn concurrent_publishers_share_one_sequence(config: EventsConfig) {
    let store = open(config).await;
    let channel = name("workflow:a");
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..10_u64 {
        let (store, channel) = (store.clone(), channel.clone());
        publishers.spawn(async move {
            let mut cursors = Vec::new();
            for turn in 0..20_u64 {
                cursors.extend(store.append(&channel, numbered([publisher * 1_000 + turn; 2])).await.unwrap());
            }
            assert!(cursors.is_sorted() && cursors.chunks(2).all(|pair| pair[0].leads_to(pair[1])));
            cursors
        });
    }
    let mut cursors = Vec::new();
    while let Some(own) = publishers.join_next().await {
        cursors.extend(own.unwrap());
    }
    cursors.sort_unstable();
    assert!(cursors.len() == 400 && cursors.windows(2).all(|pair| pair[0].leads_to(pair[1])));
    let (gaps, numbers, end) = all(&store, "workflow:a", Cursor::START).await;
    assert_eq!((gaps.len(), numbers.len(), end), (0, 400, cursors[399]));
    // Each publisher's events are in its own order.
    for publisher in 0..10 {
        let own: Vec<_> = numbers.iter().filter(|number| **number / 1_000 == publisher).collect();
        assert!(own.len() == 40 && own.is_sorted());
    }
}

async fn stalled_reader_is_closed_delays_no_other_and_resumes(config: EventsConfig) {
    const EVENTS: u64 = 400;
    let store = open(EventsConfig { outbox_bytes_max: 20_000, ..config }).await;
    let channel = name("workflow:a");
    store.append(&channel, numbered([0])).await.unwrap();
    let mut stalled = store.follow(&channel, Cursor::START).await.unwrap();
    assert_eq!(number(&mut stalled).await, 0);
    // It is live now, and is not polled any more.
    assert_eq!(stalled.try_next(), None);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut subscription = store.follow(&channel, Cursor::START).await.unwrap();
        readers.spawn(async move {
            for expected in 0..EVENTS {
                assert_eq!(number(&mut subscription).await, expected);
            }
        });
    }
    let channel_of_publisher = channel.clone();
    let publisher = store.clone();
    for expected in 1..EVENTS {
        publisher.append(&channel_of_publisher, numbered([expected])).await.unwrap();
        // Readers that keep up must not be closed.
        tokio::task::yield_now().await;
        if expected % 20 == 0 {
            let delivered = (expected + 1) * 50;
            until("readers keep up", || async { store.stats().delivered > delivered }).await;
        }
    }
    while let Some(reader) = readers.join_next().await {
        reader.unwrap();
    }
    let resume = stalled.delivered();
    assert_eq!(next(&mut stalled).await, Some(Delivery::Closed(CloseReason::Slow)));
    assert_eq!(next(&mut stalled).await, None);
    assert_eq!((stalled.delivered(), store.stats().closed_slow), (resume, 1));
    let mut again = store.follow(&channel, resume).await.unwrap();
    for expected in 1..EVENTS {
        assert_eq!(number(&mut again).await, expected);
    }
}

async fn progress_coalesces_for_a_slow_reader_and_results_do_not(config: EventsConfig) {
    let store = open(EventsConfig { outbox_bytes_max: 20_000, ..config }).await;
    let channel = name("file:f");
    store.append(&channel, numbered([0])).await.unwrap();
    let mut reader = store.follow(&channel, Cursor::START).await.unwrap();
    let mut reader_state = ReaderState::default();
    reader_state.record(&next(&mut reader).await.unwrap());
    assert_eq!(reader.try_next(), None);
    for event in 1..=600_u64 {
        let draft = Draft::new("analysis_progress", event.to_string());
        let draft = match event % 100 {
            0 => Draft { name: "step_complete".into(), ..draft },
            _ => draft.coalescing(if event % 2 == 0 { "even" } else { "odd" }),
        };
        store.append(&channel, vec![draft]).await.unwrap();
    }
    let mut coalesced = 0;
    while reader_state.numbers.last() != Some(&600) {
        let delivery = next(&mut reader).await.unwrap();
        if let Delivery::Event { coalesced: count, .. } = &delivery {
            coalesced += u64::from(*count);
        }
        reader_state.record(&delivery);
    }
    assert!(coalesced > 300, "{coalesced} coalesced");
    assert_eq!(reader_state.numbers.len() as u64 + coalesced, 601);
    assert!((1..=6).all(|result| reader_state.numbers.contains(&(result * 100))));
    assert_eq!((store.stats().coalesced, store.stats().closed_slow, reader_state.gaps.len()), (coalesced, 0, 0));
}

async fn claim_is_granted_to_exactly_one_caller(config: EventsConfig) {
    let store = open(config).await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = store.clone();
        callers.spawn(async move { store.claim("ticket:1", 60_000).await.unwrap() });
    }
    let mut granted = 0;
    while let Some(caller) = callers.join_next().await {
        granted += u32::from(caller.unwrap());
    }
    assert_eq!(granted, 1);
    // The time to live starts at the request, however long the claim takes.
    let claimed = Instant::now();
    assert_eq!(store.claim("ticket:2", 50).await, Ok(true));
    until("the claim ends", || async { store.claim("ticket:2", 60_000).await.unwrap() }).await;
    assert!(claimed.elapsed() >= Duration::from_millis(45));
    assert_eq!(store.claim("ticket:2", 60_000).await, Ok(false));
    store.append(&name("claim:ticket:2"), numbered([1])).await.unwrap();
    for (key, ttl_ms) in [("", 1), ("k", 0), ("k", u64::MAX), (&*"k".repeat(257), 1)] {
        assert!(matches!(store.claim(key, ttl_ms).await, Err(Error::Invalid(_))));
    }
}

async fn health_and_statistics_are_reported(config: EventsConfig) {
    let kind = config.store;
    let store = open(config).await;
    let health = store.health().await;
    assert_eq!((health.store, health.ok, health.fallback, health.detail), (kind, true, false, None));
    let follower = store.follow(&name("user:u"), Cursor::START).await.unwrap();
    store.append(&name("user:u"), numbered(0..3)).await.unwrap();
    assert_eq!((store.stats().subscribers, store.stats().appended), (1, 3));
    drop(follower);
    assert_eq!(store.stats().subscribers, 0);
    let mut follower = store.follow(&name("user:u"), Cursor::START).await.unwrap();
    for expected in 0..3 {
        assert_eq!(number(&mut follower).await, expected);
    }
    store.close().await.unwrap();
    assert_eq!(next(&mut follower).await, Some(Delivery::Closed(CloseReason::Lost)));
}
