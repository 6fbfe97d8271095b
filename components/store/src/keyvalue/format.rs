//! The stored forms. Each begins with a mark, a version and its kind, and ends with a checksum, so a value that is cut, or that another
//! program wrote, is found to be damaged. Integers are little-endian.

use std::sync::Arc;

use thiserror::Error;
use weir_core::channels::{Cursor, Draft, Entry, EventLimits, Log, Retention};

const MARK: &[u8; 5] = b"weir\x01";
const CHECKSUM_BYTES: usize = 8;

/// The greatest sequence number, token and number of a lock.
const NUMBER_MAX: u64 = u64::MAX / 2;

const FINISHES: u8 = 1;
const COALESCES: u8 = 2;

/// The stored bytes are not such a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it is damaged, or another program wrote it")]
pub(super) struct Damaged;

/// A value until its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) end_ms: u64,
    pub(super) bytes: Vec<u8>,
}

/// A lease. It can be renewed until `remove_at_ms`, unless another owner acquires it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) token: u64,
    pub(super) owner: String,
    pub(super) end_ms: u64,
    pub(super) remove_at_ms: u64,
}

/// A claim until its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) end_ms: u64,
}

/// The last number of a lock that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) number: u64,
}

/// The removal of expired keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sweep {
    /// When it was last begun.
    pub(super) at_ms: u64,
    /// The number of keys that it found.
    pub(super) keys: u64,
    /// The last key that it checked.
    pub(super) after: String,
}

pub(super) fn encode_log(log: &Log) -> Vec<u8> {
    let mut out = Writer::new(b'L');
    let last = log.last();
    out.u64(last.epoch).u64(last.seq).u8(u8::from(log.finished()));
    for entry in log.all_after(Cursor::START) {
        let coalesce = entry.coalesce.as_deref();
        let flags = if entry.finishes { FINISHES } else { 0 } | if coalesce.is_some() { COALESCES } else { 0 };
        out.u8(flags).u64(entry.cursor.epoch).u64(entry.cursor.seq).u64(entry.time_ms).text(&entry.name);
        if let Some(key) = coalesce {
            out.text(key);
        }
        out.text(&entry.data);
    }
    out.finish()
}

/// The newest cursor of a stored log, and whether it is finished, without a check of the rest.
pub(super) fn newest(bytes: &[u8]) -> Result<(Cursor, bool), Damaged> {
    let mut input = Reader::without_check(b'L', bytes)?;
    let last = input.cursor()?;
    Ok((last, input.u8()? != 0))
}

pub(super) fn decode_log(bytes: &[u8], retention: Retention) -> Result<Log, Damaged> {
    let mut input = Reader::new(b'L', bytes)?;
    let (last, finished) = (input.cursor()?, input.u8()? != 0);
    // No store comes near to it, and the next cursors must be greater.
    if last.seq > NUMBER_MAX {
        return Err(Damaged);
    }
    let mut log = Log::new(retention, Cursor::START);
    while !input.is_empty() {
        let entry = entry(&mut input)?;
        if entry.cursor > last || !log.push(Arc::new(entry)) {
            return Err(Damaged);
        }
    }
    log.skip_to(last);
    if finished {
        log.finish();
    }
    Ok(log)
}

fn entry(input: &mut Reader<'_>) -> Result<Entry, Damaged> {
    let flags = input.u8()?;
    let (cursor, time_ms, name) = (input.cursor()?, input.u64()?, input.text()?);
    let coalesce = if flags & COALESCES != 0 { Some(input.text()?.into()) } else { None };
    let draft = Draft { name: name.into(), coalesce, data: input.text()?.into(), finishes: flags & FINISHES != 0 };
    // The grammar of names protects the protocols in which events are rendered.
    Draft::check_all(std::slice::from_ref(&draft), &EventLimits::default()).map_err(|_| Damaged)?;
    Ok(draft.at(cursor, time_ms))
}

impl Value {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(b'V');
        out.u64(self.end_ms).bytes(&self.bytes);
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut input = Reader::new(b'V', bytes)?;
        Ok(Self { end_ms: input.u64()?, bytes: input.rest().to_vec() })
    }
}

impl Lease {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(b'E');
        out.u64(self.token).u64(self.end_ms).u64(self.remove_at_ms).text(&self.owner);
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut input = Reader::new(b'E', bytes)?;
        let (token, end_ms, remove_at_ms) = (input.u64()?, input.u64()?, input.u64()?);
        // The next token must be greater.
        if token > NUMBER_MAX {
            return Err(Damaged);
        }
        Ok(Self { token, owner: input.text()?.to_owned(), end_ms, remove_at_ms })
    }
}

impl Claim {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Writer::new(b'C');
        out.u64(self.end_ms);
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        Ok(Self { end_ms: Reader::new(b'C', bytes)?.u64()? })
    }
}

impl Served {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Writer::new(b'T');
        out.u64(self.number);
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let number = Reader::new(b'T', bytes)?.u64()?;
        if number > NUMBER_MAX { Err(Damaged) } else { Ok(Self { number }) }
    }
}

impl Sweep {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(b'S');
        out.u64(self.at_ms).u64(self.keys).text(&self.after);
        out.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut input = Reader::new(b'S', bytes)?;
        Ok(Self { at_ms: input.u64()?, keys: input.u64()?, after: input.text()?.to_owned() })
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self([&MARK[..], &[kind]].concat())
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A text after its length.
    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let sum = checksum(&self.0);
        self.0.extend_from_slice(&sum.to_le_bytes());
        self.0
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks the checksum, the mark and the kind.
    fn new(kind: u8, bytes: &'a [u8]) -> Result<Self, Damaged> {
        let (content, sum) = bytes.split_at_checked(bytes.len().wrapping_sub(CHECKSUM_BYTES)).ok_or(Damaged)?;
        if checksum(content).to_le_bytes() != sum { Err(Damaged) } else { Self::without_check(kind, content) }
    }

    fn without_check(kind: u8, bytes: &'a [u8]) -> Result<Self, Damaged> {
        let rest = bytes.strip_prefix(MARK).and_then(|rest| rest.strip_prefix(&[kind]));
        rest.map(Self).ok_or(Damaged)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Damaged> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn u8(&mut self) -> Result<u8, Damaged> {
        self.take(1).map(|byte| byte[0])
    }

    fn u64(&mut self) -> Result<u64, Damaged> {
        let bytes = self.take(8)?.try_into().map_err(|_| Damaged)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn cursor(&mut self) -> Result<Cursor, Damaged> {
        Ok(Cursor::new(self.u64()?, self.u64()?))
    }

    fn text(&mut self) -> Result<&'a str, Damaged> {
        let bytes = usize::try_from(self.u64()?).map_err(|_| Damaged)?;
        str::from_utf8(self.take(bytes)?).map_err(|_| Damaged)
    }
}

/// FNV-1a of 64 bits: for accidents, not for attackers.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RETENTION: Retention = Retention { events_max: 1000, bytes_max: 1 << 20, age_ms_max: u64::MAX };

    fn log(events: &[(u64, &str, Option<&str>)], finished: bool) -> Log {
        let mut log = Log::new(RETENTION, Cursor::new(7, 0));
        for (step, data, key) in events {
            let last = log.last();
            let cursor = Cursor::new(last.epoch, last.seq + step);
            let draft = Draft::new("note", *data);
            let draft = if let Some(key) = key { draft.coalescing(*key) } else { draft };
            assert!(log.push(Arc::new(draft.at(cursor, 5))));
        }
        if finished {
            log.finish();
        }
        log
    }

    fn parts(log: &Log) -> (Cursor, bool, Vec<Entry>) {
        (log.last(), log.finished(), log.all_after(Cursor::START).map(|entry| (**entry).clone()).collect())
    }

    #[test]
    fn entries_out_of_order_are_damage() {
        let log = log(&[(1, "{}", None), (1, "{}", None)], false);
        let good = encode_log(&log);
        // The second entry gets the cursor of the first one.
        let at = good.len() - CHECKSUM_BYTES - (8 + 2) - (8 + 4) - 8 - 8;
        let mut bad = good[..good.len() - CHECKSUM_BYTES].to_vec();
        bad[at] = 1;
        bad.extend_from_slice(&checksum(&bad).to_le_bytes());
        assert!(decode_log(&good, RETENTION).is_ok());
        assert_eq!(decode_log(&bad, RETENTION).map(drop), Err(Damaged));
    }

    #[test]
    fn record_of_another_kind_is_damage() {
        let claim = Claim { end_ms: 5 }.encode();
        assert_eq!(Claim::decode(&claim), Ok(Claim { end_ms: 5 }));
        assert_eq!((Value::decode(&claim), Lease::decode(&claim)), (Err(Damaged), Err(Damaged)));
        assert_eq!(decode_log(&claim, RETENTION).map(drop), Err(Damaged));
        assert_eq!(Claim::decode(b""), Err(Damaged));
    }

    proptest! {
        #[test]
        fn records_read_back(
            events in proptest::collection::vec((1_u64..4, "\\PC{0,20}", proptest::option::of("[a-z]{1,5}")), 0..20),
            finished: bool,
            (token, end_ms, remove_at_ms) in any::<(u64, u64, u64)>(),
            owner in "\\PC{0,20}",
            bytes: Vec<u8>,
        ) {
            let events: Vec<_> = events.iter().map(|(step, data, key)| (*step, data.as_str(), key.as_deref())).collect();
            let log = log(&events, finished);
            let stored = encode_log(&log);
            prop_assert_eq!(newest(&stored), Ok((log.last(), finished)));
            prop_assert_eq!(parts(&decode_log(&stored, RETENTION).unwrap()), parts(&log));
            let lease = Lease { token: token / 2, owner: owner.clone(), end_ms, remove_at_ms };
            prop_assert_eq!(Lease::decode(&lease.encode()), Ok(lease));
            let value = Value { end_ms, bytes };
            prop_assert_eq!(Value::decode(&value.encode()), Ok(value));
            let sweep = Sweep { at_ms: end_ms, keys: token, after: owner };
            prop_assert_eq!(Sweep::decode(&sweep.encode()), Ok(sweep));
        }

        /// Even with a correct checksum.
        #[test]
        fn arbitrary_bytes_are_damage_or_a_record(kind in 0_usize..6, content: Vec<u8>, is_checked: bool) {
            let mut bytes = [&MARK[..], &[b"LVECTS"[kind]], &content].concat();
            if is_checked {
                bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
            }
            let _ = (newest(&bytes), decode_log(&bytes, RETENTION).map(drop));
            let _ = (Value::decode(&bytes), Lease::decode(&bytes), Claim::decode(&bytes));
            let _ = (Served::decode(&bytes), Sweep::decode(&bytes));
        }

        #[test]
        fn cut_or_changed_log_is_damage(at in 0_usize..80, byte: u8) {
            let good = encode_log(&log(&[(1, "{\"a\":1}", Some("k")), (2, "{}", None)], true));
            let at = at % good.len();
            prop_assert_eq!(decode_log(&good[..at], RETENTION).map(drop), Err(Damaged));
            let mut changed = good.clone();
            changed[at] = byte;
            prop_assert_eq!(decode_log(&changed, RETENTION).is_ok(), changed == good);
        }
    }
}
