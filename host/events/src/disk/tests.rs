//! Tests of the disk store on storage that fails at any operation, once or until it is repaired, followed by a crash or
//! not.

pub(super) mod drive;
mod faults;
mod times;

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_core::channels::{ChannelName, Cursor, Draft, Retention};

use super::Disk;
use super::storage::Opener;
use crate::backend::WriteContext;
use crate::clock::Clock;
use crate::clock::tests::TestClock;
use crate::config::{EventsConfig, StoreKind};
use crate::error::Error;
use crate::hub::Hub;
use drive::Drive;

fn name(text: &str) -> ChannelName {
    text.parse().unwrap()
}

fn config(durable: bool) -> EventsConfig {
    EventsConfig {
        store: StoreKind::Disk,
        path: "events.redb".into(),
        durable,
        retention: Retention { events_max: 1_000, ..Retention::default() },
        flush_ms: 0,
        ..EventsConfig::default()
    }
}

/// Opens a store whose file is on a drive.
async fn open(config: EventsConfig, drive: &Drive, source: &Arc<TestClock>) -> Disk {
    let config = Arc::new(config);
    let hub = Arc::new(Hub::new(&config, 10_000));
    let drive = drive.clone();
    let opener = Opener::new(move || drive.backend());
    Disk::open_with(config, Arc::new(Clock::new(source.clone())), hub, opener).await.unwrap()
}

/// The users whose shares the channels and values of tests count towards.
const SHARES: [&str; 3] = ["ann", "bob", "eve"];

/// The conditions of a write to a name: one of [`SHARES`], or no user.
fn write_of(name: &ChannelName) -> WriteContext<'static> {
    let number = name.as_str().bytes().map(usize::from).sum::<usize>();
    WriteContext { fence: None, user: SHARES.get(number % 4).copied() }
}

/// The number of channels and the bytes of state of each user.
fn shares(store: &Disk) -> [(usize, usize); 3] {
    SHARES.map(|user| (store.database.count_of(user), store.values.bytes_of(user)))
}

fn draft(data: &str) -> Vec<Draft> {
    vec![Draft::new("e", data)]
}

/// The cursors and data of all events that a reader gets after a cursor. Checks that a gap is reported wherever two are
/// not consecutive.
async fn contents(store: &Disk, channel: &ChannelName, after: Cursor) -> Result<Vec<(Cursor, String)>, Error> {
    let (mut cursor, mut events) = (after, Vec::new());
    loop {
        let page = store.read(channel, cursor, 1_000).await?;
        let mut before = page.gap.map_or(cursor, |gap| gap.missing_to);
        for entry in &page.entries {
            assert!(
                before == Cursor::START || before.leads_to(entry.cursor),
                "a hole without a gap: {before} {}",
                entry.cursor
            );
            before = entry.cursor;
            events.push((entry.cursor, entry.data.to_string()));
        }
        if page.next == cursor || page.entries.is_empty() {
            return Ok(events);
        }
        cursor = page.next;
    }
}

/// Every event that was acknowledged or read, by its cursor.
#[derive(Debug, Default)]
struct History(BTreeMap<(ChannelName, Cursor), String>);

impl History {
    fn record(&mut self, channel: &ChannelName, cursor: Cursor, data: &str) {
        let owner = data.split(' ').next();
        assert_eq!(owner, Some(channel.as_str()), "{channel} has an event of another channel");
        let before = self.0.insert((channel.clone(), cursor), data.to_owned());
        assert!(before.as_deref().is_none_or(|before| before == data), "{channel} {cursor}: {before:?}, then {data}");
    }
}
