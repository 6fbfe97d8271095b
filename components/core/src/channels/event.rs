//! Events, before and after they have a cursor.

use std::sync::OnceLock;

use thiserror::Error;

use super::Cursor;

/// The approximate memory of an event besides its texts, in bytes, so that many small events count towards the bounds.
const ENTRY_BYTES: usize = 128;

/// Most bytes in an event's name and in its coalescing key.
const WORD_BYTES_MAX: usize = 64;

/// The bounds of one append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// Most bytes in one event's data.
    pub data_bytes_max: usize,
    /// Most events in one append.
    pub append_events_max: usize,
    /// Most bytes in the data of one append together.
    pub append_bytes_max: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self { data_bytes_max: 256 << 10, append_events_max: 1_000, append_bytes_max: 1 << 20 }
    }
}

/// Why an append is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EventError {
    /// The name is empty, too long or has a byte outside the grammar.
    #[error("an event's name is 1 to {WORD_BYTES_MAX} of A-Z, a-z, 0-9 and _ . : -")]
    Name,
    /// The coalescing key is empty, too long or has a byte outside the grammar.
    #[error("a coalescing key is 1 to {WORD_BYTES_MAX} of A-Z, a-z, 0-9 and _ . : -")]
    Coalesce,
    /// A result, an error or the last event has a coalescing key. It could then be replaced, but must reach every
    /// reader.
    #[error("an event that finishes its channel or is named *_complete or *_error has no coalescing key")]
    MustArrive,
    /// The event that finishes the channel is not the last one of the append.
    #[error("nothing comes after the event that finishes its channel")]
    AfterFinish,
    /// The data of an event exceeds [`EventLimits::data_bytes_max`].
    #[error("an event's data has {bytes} bytes and may have {bytes_max}")]
    DataTooLarge {
        /// The bytes of the data.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The append exceeds [`EventLimits::append_events_max`].
    #[error("{events} events are more than the {events_max} of one append")]
    TooManyEvents {
        /// The number of events.
        events: usize,
        /// The bound.
        events_max: usize,
    },
    /// The append exceeds [`EventLimits::append_bytes_max`].
    #[error("the events have {bytes} bytes together and may have {bytes_max}")]
    AppendTooLarge {
        /// The bytes of all data.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
}

impl EventError {
    /// True when a smaller append would be accepted.
    pub fn too_large(self) -> bool {
        matches!(self, Self::DataTooLarge { .. } | Self::TooManyEvents { .. } | Self::AppendTooLarge { .. })
    }
}

/// An event to be appended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Draft {
    /// The event name of SSE.
    pub name: Box<str>,
    /// The event as JSON text.
    pub data: Box<str>,
    /// The coalescing key: a later event of the same key supersedes this one, so a slow reader may skip this one.
    pub coalesce: Option<Box<str>>,
    /// True for the last event of the channel.
    pub finishes: bool,
}

impl Draft {
    /// An event that every reader gets.
    pub fn new(name: impl Into<Box<str>>, data: impl Into<Box<str>>) -> Self {
        Self { name: name.into(), data: data.into(), coalesce: None, finishes: false }
    }

    /// The same event with a coalescing key: for a slow reader, a later event of the same key replaces it.
    #[must_use]
    pub fn coalescing(self, key: impl Into<Box<str>>) -> Self {
        Self { coalesce: Some(key.into()), ..self }
    }

    /// The same event as the last one of its channel.
    #[must_use]
    pub fn finishing(self) -> Self {
        Self { finishes: true, ..self }
    }

    /// Checks an append as a whole.
    ///
    /// # Errors
    ///
    /// The first violation: see [`EventError`].
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
        if !is_word(&self.name) {
            return Err(EventError::Name);
        }
        if let Some(key) = &self.coalesce {
            if !is_word(key) {
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
            rendered: OnceLock::new(),
            compressed: OnceLock::new(),
        }
    }
}

fn is_word(text: &str) -> bool {
    let is_word_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    !text.is_empty() && text.len() <= WORD_BYTES_MAX && text.bytes().all(is_word_byte)
}

/// An event with its cursor. All readers share one.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its cursor.
    pub cursor: Cursor,
    /// When it was appended, in milliseconds since 1970.
    pub time_ms: u64,
    /// When it was appended, in milliseconds of the clock that ages are measured with. A store uses a monotonic clock,
    /// so setting the wall clock does not change the age of an event.
    pub stored_ms: u64,
    /// The event name of SSE.
    pub name: Box<str>,
    /// The event as JSON text.
    pub data: Box<str>,
    /// The key under which a later event replaces it.
    pub coalesce: Option<Box<str>>,
    /// True for the last event of the channel.
    pub finishes: bool,
    rendered: OnceLock<Box<[u8]>>,
    compressed: OnceLock<Box<[u8]>>,
}

impl Entry {
    /// The same event, whose age is measured from `stored_ms`.
    #[must_use]
    pub fn stored_at(self, stored_ms: u64) -> Self {
        Self { stored_ms, ..self }
    }

    /// The bytes with which it counts towards bounds.
    pub fn bytes(&self) -> usize {
        let key = self.coalesce.as_ref().map_or(0, |key| key.len());
        ENTRY_BYTES + self.name.len() + self.data.len() + key
    }

    /// The event in the most common protocol of its readers: rendered by the first call, and shared. There is one such
    /// form, so all callers must pass the same function.
    pub fn rendered_once(&self, render: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.rendered.get_or_init(|| render(self).into_boxed_slice())
    }

    /// The rendered event, compressed by the first call, and shared.
    pub fn compressed_once(&self, compress: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.compressed.get_or_init(|| compress(self).into_boxed_slice())
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
        assert_eq!(entry.rendered_once(|entry| entry.data.as_bytes().to_vec()), b"1");
        assert_eq!(entry.rendered_once(|_| panic!("rendered twice")), b"1");
        assert_eq!(entry.compressed_once(|_| b"p".to_vec()), b"p");
        assert_eq!(entry.compressed_once(|_| panic!("compressed twice")), b"p");
    }
}
