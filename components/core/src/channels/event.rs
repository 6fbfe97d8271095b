//! Events, before and after they have a cursor.

use std::sync::OnceLock;

use thiserror::Error;

use super::Cursor;

/// What an event costs beside its texts, in bytes, roughly: so that many small events count too.
const ENTRY_BYTES: usize = 128;

/// The most bytes of an event's name and of its coalescing key.
const WORD_BYTES_MAX: usize = 64;

/// The bounds of one append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// The most bytes of one event's data.
    pub data_bytes_max: usize,
    /// The most events in one append.
    pub append_events_max: usize,
    /// The most bytes in one append, all data together.
    pub append_bytes_max: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self { data_bytes_max: 256 << 10, append_events_max: 1_000, append_bytes_max: 1 << 20 }
    }
}

/// Why an event is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EventError {
    /// The name is empty, too long or has a byte outside the grammar.
    #[error("an event's name is 1 to {WORD_BYTES_MAX} of A-Z, a-z, 0-9 and _ . : -")]
    Name,
    /// The coalescing key is empty, too long or has a byte outside the grammar.
    #[error("a coalescing key is 1 to {WORD_BYTES_MAX} of A-Z, a-z, 0-9 and _ . : -")]
    Coalesce,
    /// A result, an error or the last event has a coalescing key, and might be replaced.
    #[error("an event that finishes its channel or is named *_complete or *_error has no coalescing key")]
    MustArrive,
    /// Something comes after the event that finishes the channel.
    #[error("nothing comes after the event that finishes its channel")]
    AfterFinish,
    /// More data than one event may have.
    #[error("an event's data has {bytes} bytes and may have {bytes_max}")]
    DataTooLarge {
        /// What it has.
        bytes: usize,
        /// What it may have.
        bytes_max: usize,
    },
    /// More events than one append may have.
    #[error("{events} events are more than the {events_max} of one append")]
    TooManyEvents {
        /// How many there are.
        events: usize,
        /// How many there may be.
        events_max: usize,
    },
    /// More data than one append may have.
    #[error("the events have {bytes} bytes together and may have {bytes_max}")]
    AppendTooLarge {
        /// What they have.
        bytes: usize,
        /// What they may have.
        bytes_max: usize,
    },
}

impl EventError {
    /// True when less would have been taken.
    pub fn too_large(self) -> bool {
        matches!(self, Self::DataTooLarge { .. } | Self::TooManyEvents { .. } | Self::AppendTooLarge { .. })
    }
}

/// An event to be appended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Draft {
    /// What happened: the event name of SSE.
    pub name: Box<str>,
    /// The event as JSON text.
    pub data: Box<str>,
    /// A later event of the same key says all that this one says: a reader that is behind need not get this one.
    pub coalesce: Option<Box<str>>,
    /// True for the last event of the channel.
    pub finishes: bool,
}

impl Draft {
    /// An event that every reader gets.
    pub fn new(name: impl Into<Box<str>>, data: impl Into<Box<str>>) -> Self {
        Self { name: name.into(), data: data.into(), coalesce: None, finishes: false }
    }

    /// The same, replaced by a later one of the same key where a reader is behind.
    #[must_use]
    pub fn coalescing(self, key: impl Into<Box<str>>) -> Self {
        Self { coalesce: Some(key.into()), ..self }
    }

    /// The same as the last event of its channel.
    #[must_use]
    pub fn finishing(self) -> Self {
        Self { finishes: true, ..self }
    }

    /// Checks an append as a whole.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, whose correction may help.
    pub fn check_all(drafts: &[Self], limits: &EventLimits) -> Result<(), EventError> {
        let events_max = limits.append_events_max;
        if drafts.len() > events_max {
            return Err(EventError::TooManyEvents { events: drafts.len(), events_max });
        }
        let mut bytes = 0_usize;
        for (index, draft) in drafts.iter().enumerate() {
            draft.check(limits)?;
            if draft.finishes && index + 1 < drafts.len() {
                return Err(EventError::AfterFinish);
            }
            bytes = bytes.saturating_add(draft.data.len());
        }
        let bytes_max = limits.append_bytes_max;
        if bytes > bytes_max { Err(EventError::AppendTooLarge { bytes, bytes_max }) } else { Ok(()) }
    }

    fn check(&self, limits: &EventLimits) -> Result<(), EventError> {
        if !word(&self.name) {
            return Err(EventError::Name);
        }
        if let Some(key) = &self.coalesce {
            if !word(key) {
                return Err(EventError::Coalesce);
            }
            if self.finishes || self.name.ends_with("_complete") || self.name.ends_with("_error") {
                return Err(EventError::MustArrive);
            }
        }
        let (bytes, bytes_max) = (self.data.len(), limits.data_bytes_max);
        if bytes > bytes_max { Err(EventError::DataTooLarge { bytes, bytes_max }) } else { Ok(()) }
    }

    /// The event at a cursor, with a time in milliseconds since 1970.
    pub fn at(self, cursor: Cursor, time_ms: u64) -> Entry {
        let Self { name, data, coalesce, finishes } = self;
        Entry {
            cursor,
            time_ms,
            stored_ms: time_ms,
            name,
            data,
            coalesce,
            finishes,
            drawn: OnceLock::new(),
            packed: OnceLock::new(),
        }
    }
}

fn word(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    !text.is_empty() && text.len() <= WORD_BYTES_MAX && text.bytes().all(good)
}

/// An event with its cursor. All readers share one.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its cursor.
    pub cursor: Cursor,
    /// When it was appended, in milliseconds since 1970.
    pub time_ms: u64,
    /// When it was appended by the clock that ages are measured with, in milliseconds. A store uses a clock that is never set, so
    /// that setting the wall clock makes no event older.
    pub stored_ms: u64,
    /// What happened.
    pub name: Box<str>,
    /// The event as JSON text.
    pub data: Box<str>,
    /// The key under which a later event replaces it.
    pub coalesce: Option<Box<str>>,
    /// True for the last event of the channel.
    pub finishes: bool,
    drawn: OnceLock<Box<[u8]>>,
    packed: OnceLock<Box<[u8]>>,
}

impl Entry {
    /// The same event, whose age is measured from `stored_ms`.
    #[must_use]
    pub fn stored_at(self, stored_ms: u64) -> Self {
        Self { stored_ms, ..self }
    }

    /// What it counts against bounds, in bytes.
    pub fn bytes(&self) -> usize {
        let key = self.coalesce.as_ref().map_or(0, |key| key.len());
        ENTRY_BYTES + self.name.len() + self.data.len() + key
    }

    /// The event as its readers' most usual protocol renders it: rendered on the first call and shared. There
    /// is one such drawing, so that everybody has to ask for the same.
    pub fn drawn_once(&self, draw: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.drawn.get_or_init(|| draw(self).into_boxed_slice())
    }

    /// The rendered event, compressed.
    pub fn packed_once(&self, pack: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.packed.get_or_init(|| pack(self).into_boxed_slice())
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        let key = |entry: &Self| (entry.cursor, entry.time_ms, entry.finishes);
        key(self) == key(other) && self.name == other.name && self.data == other.data && self.coalesce == other.coalesce
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(drafts: &[Draft]) -> Result<(), EventError> {
        let limits = EventLimits { data_bytes_max: 10, append_events_max: 3, append_bytes_max: 20 };
        Draft::check_all(drafts, &limits)
    }

    #[test]
    fn events_that_must_arrive_do_not_coalesce() {
        let progress = |name: &str| Draft::new(name, "1").coalescing("step");
        assert_eq!(check(&[progress("step_progress")]), Ok(()));
        assert_eq!(check(&[progress("step_complete")]), Err(EventError::MustArrive));
        assert_eq!(check(&[progress("step_error")]), Err(EventError::MustArrive));
        assert_eq!(check(&[progress("note").finishing()]), Err(EventError::MustArrive));
    }

    #[test]
    fn names_with_line_ends_are_refused() {
        for name in ["", "a b", "a\nb", "a\r", "a\0", "ä", &"x".repeat(65)] {
            assert_eq!(check(&[Draft::new(name, "")]), Err(EventError::Name), "{name:?}");
            assert_eq!(check(&[Draft::new("a", "").coalescing(name)]), Err(EventError::Coalesce), "{name:?}");
        }
    }

    #[test]
    fn each_bound_has_its_error() {
        let event = |bytes: usize| Draft::new("e", "x".repeat(bytes));
        assert_eq!(check(&[event(11)]), Err(EventError::DataTooLarge { bytes: 11, bytes_max: 10 }));
        assert_eq!(
            check(&[event(9), event(9), event(9)]),
            Err(EventError::AppendTooLarge { bytes: 27, bytes_max: 20 })
        );
        let many = [event(0), event(0), event(0), event(0)];
        assert_eq!(check(&many), Err(EventError::TooManyEvents { events: 4, events_max: 3 }));
        assert_eq!(check(&[event(0).finishing(), event(0)]), Err(EventError::AfterFinish));
        assert!(EventError::DataTooLarge { bytes: 2, bytes_max: 1 }.too_large() && !EventError::Name.too_large());
    }

    #[test]
    fn event_is_rendered_once() {
        let entry = Draft::new("e", "1").at(Cursor::new(1, 1), 0);
        assert_eq!(entry.drawn_once(|entry| entry.data.as_bytes().to_vec()), b"1");
        assert_eq!(entry.drawn_once(|_| panic!("drawn twice")), b"1");
        assert_eq!(entry.packed_once(|_| b"p".to_vec()), b"p");
        assert_eq!(entry.packed_once(|_| panic!("packed twice")), b"p");
    }
}
