//! Positions in a channel.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The position of an event in its channel: the epoch of the channel, and the event's number in it, from 1.
///
/// A reader's cursor is that of the last event that it received. Cursors have the order of their channel, as long as
/// the clock from which epochs are taken is not set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor {
    /// The epoch. A channel that was removed, or may have lost its end, continues in another one.
    pub epoch: u64,
    /// The number of the event in its epoch; 0 is before the first.
    pub seq: u64,
}

impl Cursor {
    /// The position before the oldest retained event: `0` on the wire.
    pub const START: Self = Self { epoch: 0, seq: 0 };

    /// The cursor of a reader whose last event is not one of this channel: the reader gets a gap, then all retained
    /// events. No channel has the epoch 0.
    pub const UNKNOWN: Self = Self { epoch: 0, seq: 1 };

    /// The cursor of an event.
    pub const fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch, seq }
    }

    /// The cursor of a reader that sends `id` as its last event: [`Self::UNKNOWN`] if that is not a cursor.
    ///
    /// This is not an error, since a browser may send the last id of another server, and does not reconnect after an
    /// error.
    pub fn from_id(id: &str) -> Self {
        id.parse().unwrap_or(Self::UNKNOWN)
    }

    /// True for a cursor that no channel assigns and that is not [`Self::START`].
    pub fn is_unknown(self) -> bool {
        self.epoch == 0 && self.seq > 0
    }

    /// The cursor after this one, in the same epoch.
    pub fn next(self) -> Self {
        Self { epoch: self.epoch, seq: self.seq.saturating_add(1) }
    }

    /// The cursor before this one, in the same epoch.
    pub fn previous(self) -> Self {
        Self { epoch: self.epoch, seq: self.seq.saturating_sub(1) }
    }

    /// True when no event lies between this cursor and the other.
    pub fn leads_to(self, other: Self) -> bool {
        self.epoch == other.epoch && self.seq.checked_add(1) == Some(other.seq)
    }
}

/// The text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a cursor is an event's id, epoch-seq, or 0 for the beginning")]
pub struct CursorError;

impl FromStr for Cursor {
    type Err = CursorError;

    /// Parses `epoch-seq`, or `0`. Only the written form is accepted: no sign, no leading zero, no white space.
    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text == "0" {
            return Ok(Self::START);
        }
        let (epoch, seq) = text.split_once('-').ok_or(CursorError)?;
        Ok(Self { epoch: number(epoch)?, seq: number(seq)? })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::START => out.write_str("0"),
            Self { epoch, seq } => write!(out, "{epoch}-{seq}"),
        }
    }
}

fn number(text: &str) -> Result<u64, CursorError> {
    let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_canonical { text.parse().map_err(|_| CursorError) } else { Err(CursorError) }
}

/// Events that are not available to a reader: from one cursor to another, both included.
///
/// Within one epoch the cursors enclose a range of sequence numbers, some of which may never have had an event after a
/// crash. Across epochs the gap is the end of one and the beginning of the other; `missing_to` has sequence 0 if the
/// other begins with the next available event. A reader that resumes from `missing_to` gets the events after the gap.
/// `missing_from` is [`Cursor::START`] for a reader whose cursor no channel assigned. If the reader's cursor is after
/// the end of the channel, `missing_to` is before `missing_from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first missing cursor.
    pub missing_from: Cursor,
    /// The last missing cursor.
    pub missing_to: Cursor,
}

impl Gap {
    /// The gap between the cursor of a reader and the next available event; `None` if the event follows the cursor
    /// directly, or if the cursor is [`Cursor::START`], which any event follows.
    pub fn between(last: Cursor, next: Cursor) -> Option<Self> {
        let missing_from = if last.is_unknown() { Cursor::START } else { last.next() };
        (last != Cursor::START && (last.is_unknown() || !last.leads_to(next)))
            .then(|| Self { missing_from, missing_to: next.previous() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_canonical_cursors_are_parsed() {
        assert_eq!("0".parse(), Ok(Cursor::START));
        assert_eq!("12-7".parse(), Ok(Cursor::new(12, 7)));
        assert_eq!(Cursor::new(u64::MAX, u64::MAX).to_string().parse(), Ok(Cursor::new(u64::MAX, u64::MAX)));
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "1-2-3",
            "+1-2",
            "01-2",
            "1-02",
            " 1-2",
            "1-2\n",
            "１-2",
            "18446744073709551616-1",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text:?}");
        }
    }

    #[test]
    fn cursors_that_are_not_adjacent_have_a_gap() {
        let at = Cursor::new;
        assert_eq!(Gap::between(at(1, 4), at(1, 5)), None);
        assert_eq!(Gap::between(at(1, 4), at(1, 9)), Some(Gap { missing_from: at(1, 5), missing_to: at(1, 8) }));
        assert_eq!(Gap::between(at(1, 4), at(2, 1)), Some(Gap { missing_from: at(1, 5), missing_to: at(2, 0) }));
    }

    #[test]
    fn malformed_id_gives_the_unknown_cursor() {
        assert_eq!((Cursor::from_id("12-7"), Cursor::from_id("0")), (Cursor::new(12, 7), Cursor::START));
        for id in ["", "x", "e-7", "1-2-3", "18446744073709551616-1", "\u{fffd}", "01-1", "0-5"] {
            assert!(Cursor::from_id(id).is_unknown(), "{id:?}");
        }
        let next = Cursor::new(3, 9);
        let gap = Gap { missing_from: Cursor::START, missing_to: Cursor::new(3, 8) };
        assert_eq!(Gap::between(Cursor::UNKNOWN, next), Some(gap));
        // Even if the sequence numbers are adjacent.
        assert!(Gap::between(Cursor::UNKNOWN, Cursor::UNKNOWN.next()).is_some());
    }

    proptest! {
        #[test]
        fn cursors_read_back(epoch: u64, seq: u64) {
            let cursor = Cursor { epoch, seq };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn arbitrary_text_is_parsed_or_refused(text in "[0-9+-]{0,45}|\\PC{0,10}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert!(cursor.to_string() == text || text == "0-0");
            }
        }
    }
}
