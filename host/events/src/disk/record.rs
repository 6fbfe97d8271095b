//! The encoding of events and values. A record that cannot be decoded counts as missing, and its readers get a gap.

use weir_core::channels::{ChannelName, Cursor, Draft, Entry};

const FINISHES: u8 = 1;
const COALESCES: u8 = 2;
/// The record contains the time of the store clock, and its checksum covers the channel's name too. Records of earlier
/// versions lack both.
const STORED: u8 = 4;

/// Encodes an event. Fields with their bytes: checksum (8), time (8), flags (1), length of the name (1), length of the
/// coalescing key (1), time by the store clock (8), name, coalescing key, data. The checksum covers the channel, the
/// cursor and all following fields, so that a record under the wrong key is not decoded either.
pub(crate) fn encode(id: u64, channel: &ChannelName, entry: &Entry) -> Vec<u8> {
    let key = entry.coalesce.as_deref().unwrap_or_default();
    let flags = (u8::from(entry.finishes) * FINISHES) | (u8::from(entry.coalesce.is_some()) * COALESCES) | STORED;
    let mut bytes = Vec::with_capacity(27 + entry.name.len() + key.len() + entry.data.len());
    bytes.extend([0; 8]);
    bytes.extend(entry.time_ms.to_le_bytes());
    // Names and keys have at most 64 bytes.
    bytes.extend([flags, entry.name.len() as u8, key.len() as u8]);
    bytes.extend(entry.stored_ms.to_le_bytes());
    bytes.extend(entry.name.as_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend(entry.data.as_bytes());
    let sum = checksum(seed(id, channel), entry.cursor, &bytes[8..]);
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Decodes an event; none if the record is damaged.
pub(crate) fn decode(id: u64, channel: &ChannelName, cursor: Cursor, bytes: &[u8]) -> Option<Entry> {
    let (sum, rest) = bytes.split_first_chunk::<8>()?;
    let stored = rest.get(8)? & STORED != 0;
    if u64::from_le_bytes(*sum) != checksum(if stored { seed(id, channel) } else { id }, cursor, rest) {
        return None;
    }
    let (time_ms, rest) = rest.split_first_chunk::<8>()?;
    let time_ms = u64::from_le_bytes(*time_ms);
    let ([flags, name_len, key_len], rest) = rest.split_first_chunk::<3>()?;
    let (stored_ms, rest) = if stored {
        let (stored_ms, rest) = rest.split_first_chunk::<8>()?;
        (u64::from_le_bytes(*stored_ms), rest)
    } else {
        (time_ms, rest)
    };
    let (name, rest) = rest.split_at_checked(usize::from(*name_len))?;
    let (key, data) = rest.split_at_checked(usize::from(*key_len))?;
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(Box::from);
    let draft = Draft {
        name: text(name)?,
        data: text(data)?,
        coalesce: if flags & COALESCES == 0 { None } else { Some(text(key)?) },
        finishes: flags & FINISHES != 0,
    };
    Some(draft.at(cursor, time_ms).stored_at(stored_ms))
}

/// The initial value of a channel's checksums.
fn seed(id: u64, channel: &ChannelName) -> u64 {
    checksum(id, Cursor::START, channel.as_str().as_bytes())
}

/// Encodes a value. Fields with their bytes: checksum (8), end by the store clock (8), value. The checksum covers the
/// key and all following fields.
pub(crate) fn encode_value(key: &ChannelName, end_ms: u64, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + value.len());
    bytes.extend([0; 8]);
    bytes.extend(end_ms.to_le_bytes());
    bytes.extend(value);
    let sum = value_checksum(key, &bytes[8..]);
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Decodes a value, as (end by the store clock, value); none if the record is damaged.
pub(crate) fn decode_value<'a>(key: &ChannelName, bytes: &'a [u8]) -> Option<(u64, &'a [u8])> {
    let (sum, rest) = bytes.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*sum) != value_checksum(key, rest) {
        return None;
    }
    let (end_ms, value) = rest.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*end_ms), value))
}

fn value_checksum(key: &ChannelName, bytes: &[u8]) -> u64 {
    checksum(checksum(0, Cursor::START, key.as_str().as_bytes()), Cursor::START, bytes)
}

/// A 64-bit checksum like FNV-1a (Fowler, Noll, Vo), over words of 8 bytes, with a rotation and a final mix. It detects
/// accidental changes, not those of an attacker.
fn checksum(id: u64, cursor: Cursor, bytes: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    [id, cursor.epoch, cursor.seq, bytes.len() as u64].into_iter().for_each(&mut add);
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().for_each(|word| add(u64::from_le_bytes(*word)));
    rest.iter().for_each(|byte| add(u64::from(*byte)));
    let mixed = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let cursor = Cursor::new(7, 9);
        vec![
            Draft::new("a", "").at(cursor, 0),
            Draft::new("step_progress", r#"{"progress":0.5,"message":"ä"}"#).coalescing("k").at(cursor, u64::MAX),
            Draft::new("x".repeat(64), "d".repeat(70_000)).finishing().at(cursor, 1).stored_at(2),
        ]
    }

    fn channel(name: &str) -> ChannelName {
        name.parse().unwrap()
    }

    #[test]
    fn encoded_records_are_decoded_unchanged() {
        for entry in entries() {
            let read = decode(3, &channel("user:a"), entry.cursor, &encode(3, &channel("user:a"), &entry));
            assert_eq!(read.as_ref().map(|read| read.stored_ms), Some(entry.stored_ms));
            assert_eq!(read, Some(entry));
        }
    }

    /// The record of an event in the format of version 0.1.
    pub(crate) fn earlier(id: u64, cursor: Cursor, time_ms: u64) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend(time_ms.to_le_bytes());
        bytes.extend([0, 1, 0]);
        bytes.extend(b"adata");
        let sum = checksum(id, cursor, &bytes[8..]);
        bytes[..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn record_of_an_earlier_version_is_decoded() {
        let cursor = Cursor::new(7, 9);
        let bytes = earlier(3, cursor, 5);
        let entry = Draft::new("a", "data").at(cursor, 5);
        assert_eq!(decode(3, &channel("user:a"), cursor, &bytes), Some(entry));
        assert_eq!(decode(4, &channel("user:a"), cursor, &bytes), None);
    }

    #[test]
    fn values_are_decoded_unless_they_are_damaged_or_misplaced() {
        let (key, other) = (channel("session:a"), channel("session:b"));
        for value in [&b""[..], b"abc", &[7; 1_000]] {
            let bytes = encode_value(&key, 9, value);
            assert_eq!(decode_value(&key, &bytes), Some((9, value)));
            assert_eq!(decode_value(&other, &bytes), None);
            for at in (0..bytes.len()).take(100) {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                assert_eq!(decode_value(&key, &changed), None);
                assert_eq!(decode_value(&key, &bytes[..at]), None);
            }
        }
    }

    #[test]
    fn changed_truncated_or_misplaced_record_is_not_decoded() {
        let own = channel("user:a");
        for entry in entries() {
            let bytes = encode(3, &own, &entry);
            for at in (0..bytes.len()).take(200) {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                assert_eq!(decode(3, &own, entry.cursor, &changed), None);
                assert_eq!(decode(3, &own, entry.cursor, &bytes[..at]), None);
            }
            assert_eq!(decode(4, &own, entry.cursor, &bytes), None);
            assert_eq!(decode(3, &channel("user:b"), entry.cursor, &bytes), None);
            assert_eq!(decode(3, &own, entry.cursor.next(), &bytes), None);
        }
    }
}
