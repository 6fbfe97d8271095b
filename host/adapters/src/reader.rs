//! Reads records while there is room for them in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};
use weir_core::adapter::SourceRecord;

use crate::driver::{CONTROL_HEADERS, DriverError, Read, Source};
use crate::status::Status;

/// The most records of a read.
const READ_RECORDS_MAX: usize = 256;
/// The part of the window that a read waits for, and for how long. Small reads would become small lists in all later stages.
const READ_SHARE: usize = 4;
const READ_DELAY: Duration = Duration::from_millis(5);
/// The bytes of records in flight from which no more are read.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// The room for records that were read and are not written.
#[derive(Debug)]
pub(crate) struct Room {
    records: Semaphore,
    /// The number of records for which there is room altogether.
    size: AtomicUsize,
    /// The records in flight beyond it: their room is not returned.
    excess: AtomicUsize,
    /// The bytes of the records in flight.
    bytes: AtomicUsize,
    released: Notify,
}

impl Room {
    /// Room for this many records.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            records: Semaphore::new(size),
            size: AtomicUsize::new(size),
            excess: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            released: Notify::new(),
        }
    }

    /// Changes the number of records for which there is room altogether. It is called by the task that calls [`Room::release`].
    pub(crate) fn resize(&self, size: usize) {
        let before = self.size.swap(size, Ordering::Relaxed);
        match size.checked_sub(before) {
            Some(more) => self.release_records(more),
            None => {
                let fewer = before - size;
                let excess = fewer - self.records.forget_permits(fewer);
                self.excess.fetch_add(excess, Ordering::Relaxed);
            }
        }
    }

    /// Returns the room of records that are complete.
    pub(crate) fn release(&self, records: usize, bytes: usize) {
        self.release_records(records);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.released.notify_waiters();
    }

    fn release_records(&self, records: usize) {
        let excess = records.min(self.excess.load(Ordering::Relaxed));
        self.excess.fetch_sub(excess, Ordering::Relaxed);
        self.records.add_permits(records - excess);
    }

    fn bytes_left(&self) -> usize {
        IN_FLIGHT_BYTES_MAX.saturating_sub(self.bytes.load(Ordering::Relaxed))
    }

    async fn bytes_available(&self) {
        loop {
            let released = self.released.notified();
            if self.bytes_left() > 0 {
                return;
            }
            released.await;
        }
    }

    /// Waits for room, if possible for a chunk of records.
    async fn acquire(&self) -> Option<SemaphorePermit<'_>> {
        self.bytes_available().await;
        let chunk = chunk(self.size.load(Ordering::Relaxed));
        let enough = self.records.acquire_many(u32::try_from(chunk).unwrap_or(1));
        let mut permits = match tokio::time::timeout(READ_DELAY, enough).await {
            Ok(enough) => enough,
            Err(_) => self.records.acquire().await,
        }
        .ok()?;
        let more = self.records.available_permits().min(READ_RECORDS_MAX - permits.num_permits());
        if let Ok(more) = self.records.try_acquire_many(u32::try_from(more).unwrap_or(0)) {
            permits.merge(more);
        }
        Some(permits)
    }

    /// Takes the room of records that were read.
    fn take(&self, mut permits: SemaphorePermit<'_>, records: usize, bytes: usize) {
        let count = records.min(permits.num_permits());
        if let Some(used) = permits.split(count) {
            used.forget();
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The number of records for which a read waits.
pub(crate) fn chunk(window: usize) -> usize {
    (window / READ_SHARE).clamp(1, READ_RECORDS_MAX)
}

/// The bytes of a record.
pub(crate) fn record_bytes(record: &SourceRecord) -> usize {
    let headers: usize = record.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
    record.payload.len() + record.key.as_ref().map_or(0, Vec::len) + record.origin.len() + headers
}

/// Reads records while there is room, if possible in chunks.
pub(crate) async fn read(
    mut source: Box<dyn Source>,
    room: Arc<Room>,
    reads: mpsc::Sender<Result<Read, DriverError>>,
    status: Status,
) {
    // The mean of the last read, so that large records do not exceed the bound by many.
    let mut mean_bytes = 1;
    while let Some(permits) = room.acquire().await {
        let max = permits.num_permits().min(room.bytes_left() / mean_bytes).max(1);
        let mut read = source.read(max).await;
        let (mut records, mut bytes) = (0, 0);
        if let Ok(Read::Records(list) | Read::Dead(list, _)) = &mut read {
            for record in &mut *list {
                if !source.sets_control_headers() {
                    record.headers.retain(|header| !CONTROL_HEADERS.contains(&header.name.as_str()));
                }
                bytes += record_bytes(record);
            }
            records = list.len();
            mean_bytes = (bytes / records.max(1)).max(1);
        }
        room.take(permits, records, bytes);
        status.counters().remaining.store(source.remaining().unwrap_or(u64::MAX), Ordering::Relaxed);
        let is_last = matches!(read, Ok(Read::End) | Err(_));
        if reads.send(read).await.is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use weir_core::adapter::Position;

    use super::*;
    use crate::driver::BoxFuture;

    /// Has records of one size without end, and records the bounds of its reads.
    struct Endless {
        record_bytes: usize,
        offset: u64,
        reads: Arc<std::sync::Mutex<Vec<usize>>>,
    }

    impl Source for Endless {
        fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
            self.reads.lock().unwrap().push(max);
            let record = |offset| SourceRecord {
                payload: vec![0; self.record_bytes],
                key: None,
                headers: Vec::new(),
                origin: String::new(),
                position: Position { partition: 0, offset },
            };
            let records: Vec<SourceRecord> = (self.offset..).take(max.min(4)).map(record).collect();
            self.offset += records.len() as u64;
            Box::pin(async move { Ok(Read::Records(records)) })
        }
    }

    #[test]
    fn smaller_room_is_reached_as_records_complete() {
        let room = Room::new(8);
        let permits = room.records.try_acquire_many(6).unwrap();
        room.take(permits, 6, 60);
        room.resize(3);
        assert_eq!((room.records.available_permits(), room.excess.load(Ordering::Relaxed)), (0, 3));
        room.release(4, 40);
        assert_eq!(room.records.available_permits(), 1, "two are in flight");
        room.resize(5);
        assert_eq!(room.records.available_permits(), 3);
        room.release(2, 20);
        assert_eq!((room.records.available_permits(), room.bytes.load(Ordering::Relaxed)), (5, 0));
        room.resize(2);
        room.resize(8);
        assert_eq!(room.records.available_permits(), 8);
    }

    #[tokio::test]
    async fn records_in_flight_are_bounded_by_their_bytes_too() {
        let (room, bounds) = (Arc::new(Room::new(1024)), Arc::default());
        let source = Endless { record_bytes: 10 << 20, offset: 0, reads: Arc::clone(&bounds) };
        let (sender, mut reads) = mpsc::channel(16);
        let reader = tokio::spawn(read(Box::new(source), room.clone(), sender, Status::new("a", "file", "file")));
        let mut read = async || match reads.recv().await {
            Some(Ok(Read::Records(records))) => records.iter().map(record_bytes).sum::<usize>(),
            other => panic!("{other:?}"),
        };
        // 40 MiB, then two of the records for which there is room, then one more, which exceeds the bound.
        assert_eq!([read().await >> 20, read().await >> 20, read().await >> 20], [40, 20, 10]);
        tokio::task::yield_now().await;
        assert_eq!((*bounds.lock().unwrap()).as_slice(), [256, 2, 1]);
        assert!(read().now_or_never().is_none());
        room.release(1, 10 << 20);
        assert_eq!(read().await >> 20, 10);
        reader.abort();
    }
}
