//! The log of a partition as its broker stores it: batches of producers, and the markers that end transactions.
//!
//! A broker gives consumers of committed records the aborted transactions of what they fetch. The broker of the tests gives none, so the
//! tests apply the markers themselves. Formats: the request `Fetch` of version 4, and record batches of version 2 (KIP-98).

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::PATIENCE;

const FETCH: i16 = 1;
const FETCH_VERSION: i16 = 4;
/// The bytes of a fetch, and of a response.
const FETCH_BYTES_MAX: i32 = 1 << 26;
/// How long the broker may wait for records.
const FETCH_WAIT_MS: i32 = 500;
/// Attributes of a batch.
const IS_TRANSACTIONAL: i16 = 1 << 4;
const IS_CONTROL: i16 = 1 << 5;
/// The types of markers.
const ABORT: i16 = 0;
const COMMIT: i16 = 1;

/// The offsets of records whose transaction is aborted or open.
pub(crate) fn uncommitted(broker: &str, topic: &str, partition: i32) -> Result<Vec<Range<i64>>> {
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut transactions, mut offset, began) = (Transactions::default(), 0, Instant::now());
    loop {
        ensure!(began.elapsed() < PATIENCE, "`{topic}`, partition {partition} is not read after {PATIENCE:?}");
        // The broker may not have read it in time.
        let Some(Fetched { end, batches }) = fetch(&mut stream, topic, partition, offset)? else { continue };
        if let Some(next) = transactions.read(&batches)? {
            offset = next;
        }
        if offset >= end {
            return Ok(transactions.into_uncommitted());
        }
    }
}

/// The content of a partition.
struct Fetched {
    /// The offset after the last record of the partition.
    end: i64,
    /// The first batches from the requested offset on.
    batches: Vec<u8>,
}

/// Fetches a partition from an offset on, whether or not its records are committed. None if the broker has not read it in time.
fn fetch(stream: &mut TcpStream, topic: &str, partition: i32, offset: i64) -> Result<Option<Fetched>> {
    let name = |name: &str| [&i16::try_from(name.len()).unwrap_or(0).to_be_bytes()[..], name.as_bytes()].concat();
    let int = |number: i32| number.to_be_bytes().to_vec();
    let header = [&FETCH.to_be_bytes()[..], &FETCH_VERSION.to_be_bytes(), &int(1), &name("test")].concat();
    // No replica, all records (not the committed ones alone), one topic, one partition.
    let bounds =
        [int(-1), int(FETCH_WAIT_MS), int(1), int(FETCH_BYTES_MAX), vec![0], int(1), name(topic), int(1)].concat();
    let part = [int(partition), offset.to_be_bytes().to_vec(), int(FETCH_BYTES_MAX)].concat();
    let request = [header, bounds, part].concat();
    stream.write_all(&[int(i32::try_from(request.len())?), request].concat())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = i32::from_be_bytes(length);
    ensure!((0..=FETCH_BYTES_MAX * 2).contains(&length), "a response of {length} bytes");
    let mut response = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut response)?;
    let mut rest = Cursor(&response);
    // The number of the request and a delay.
    rest.take(4 + 4)?;
    let topics = rest.i32()?;
    if topics == 0 {
        return Ok(None);
    }
    let name = rest.i16()?;
    rest.take(usize::try_from(name)?)?;
    // The number of partitions, and the partition.
    rest.take(4 + 4)?;
    let code = rest.i16()?;
    ensure!(code == 0, "the broker refuses to give `{topic}`, partition {partition}: error {code}");
    let end = rest.i64()?;
    // The last stable offset.
    rest.take(8)?;
    let aborted = rest.i32()?.max(0);
    rest.take(usize::try_from(aborted)? * 16)?;
    let bytes = rest.i32()?.max(0);
    let batches = rest.take(usize::try_from(bytes)?)?.to_vec();
    Ok(Some(Fetched { end, batches }))
}

/// The transactions of a partition.
#[derive(Debug, Default)]
struct Transactions {
    /// The records of open transactions by the number of their producer, which has one at a time.
    open: BTreeMap<i64, Vec<Range<i64>>>,
    aborted: Vec<Range<i64>>,
}

impl Transactions {
    /// Applies batches in their order. Returns the offset after them; none without a batch.
    fn read(&mut self, mut batches: &[u8]) -> Result<Option<i64>> {
        let mut next = None;
        while let Some(length) = batches.get(8..12) {
            let length = 12 + usize::try_from(i32::from_be_bytes(length.try_into()?))?;
            // A broker may cut the last batch of a response.
            let Some(batch) = batches.get(..length) else { break };
            batches = batches.get(length..).unwrap_or_default();
            next = Some(self.apply(batch)?);
        }
        Ok(next)
    }

    /// Applies a batch. Returns the offset after it.
    fn apply(&mut self, batch: &[u8]) -> Result<i64> {
        let mut rest = Cursor(batch);
        let base = rest.i64()?;
        // Its length, the epoch of its leader, its version and its checksum.
        rest.take(4 + 4 + 1 + 4)?;
        let attributes = rest.i16()?;
        let next = base + i64::from(rest.i32()?) + 1;
        // Two times.
        rest.take(8 + 8)?;
        let producer = rest.i64()?;
        // The epoch of the producer, a sequence number, the number of records.
        rest.take(2 + 4 + 4)?;
        if attributes & IS_CONTROL != 0 {
            // The one record: its length, attributes, time, offset and the length of its key, which are a version and a type.
            rest.varint()?;
            rest.take(1)?;
            rest.varint()?;
            rest.varint()?;
            rest.varint()?;
            rest.i16()?;
            let records = self.open.remove(&producer).unwrap_or_default();
            match rest.i16()? {
                ABORT => self.aborted.extend(records),
                COMMIT => {}
                other => anyhow::bail!("a marker of type {other}"),
            }
        } else if attributes & IS_TRANSACTIONAL != 0 {
            self.open.entry(producer).or_default().push(base..next);
        }
        Ok(next)
    }

    fn into_uncommitted(self) -> Vec<Range<i64>> {
        self.aborted.into_iter().chain(self.open.into_values().flatten()).collect()
    }
}

/// The bytes that are not read yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("the bytes end early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn i16(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.take(2)?.try_into()?))
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into()?))
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into()?))
    }

    /// A number of variable length, without its sign.
    fn varint(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        anyhow::bail!("a number of more than 64 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch without its records.
    fn batch(base: i64, last: i32, attributes: i16, producer: i64, records: &[u8]) -> Vec<u8> {
        let length = i32::try_from(49 + records.len()).unwrap();
        let times = [0; 16];
        let start = [&base.to_be_bytes()[..], &length.to_be_bytes(), &[0, 0, 0, 0, 2, 0, 0, 0, 0]].concat();
        let middle = [&attributes.to_be_bytes()[..], &last.to_be_bytes(), &times, &producer.to_be_bytes()].concat();
        [start, middle, vec![0; 10], records.to_vec()].concat()
    }

    fn marker(base: i64, producer: i64, kind: u8) -> Vec<u8> {
        // A time delta of two bytes.
        let record = [0x22, 0, 0x80, 0x01, 0, 8, 0, 0, 0, kind, 12, 0, 0, 0, 0, 0, 0, 0];
        batch(base, 0, IS_TRANSACTIONAL | IS_CONTROL, producer, &record)
    }

    #[test]
    fn markers_end_the_transactions_of_their_producer() {
        let mut transactions = Transactions::default();
        let log = [
            batch(0, 2, IS_TRANSACTIONAL, 7, b"abc"),
            batch(3, 0, IS_TRANSACTIONAL, 8, b"d"),
            batch(4, 0, 0, -1, b"e"),
            marker(5, 7, 0),
            batch(6, 1, IS_TRANSACTIONAL, 7, b"fg"),
            marker(8, 8, 1),
            marker(9, 7, 1),
            batch(10, 4, IS_TRANSACTIONAL, 8, b"open"),
        ]
        .concat();
        assert_eq!(transactions.read(&log[..log.len() - 1]).unwrap(), Some(10));
        assert_eq!(transactions.read(&batch(10, 4, IS_TRANSACTIONAL, 8, b"open")).unwrap(), Some(15));
        assert_eq!(transactions.read(&[]).unwrap(), None);
        assert_eq!(transactions.into_uncommitted(), [0..3, 10..15]);
    }
}
