//! The names of channels.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::named::named;

/// Most bytes in a kind.
pub(super) const KIND_BYTES_MAX: usize = 32;
/// Most bytes in the id of a channel or of a user.
pub const ID_BYTES_MAX: usize = 128;

named! {
    /// The kinds that Weir itself publishes to. Any other word of the grammar is a kind too.
    pub enum Kind {
        /// A workflow's progress.
        Workflow = "workflow",
        /// The analysis of a file.
        File = "file",
        /// Events for one user.
        User = "user",
        /// One execution of a pipeline.
        Pipeline = "pipeline",
        /// A transcript session.
        Session = "session",
        /// Generated text.
        Generation = "generation",
    }
}

/// The characters of an id besides ASCII letters and digits. None of them needs quoting in a header, a path, a key of
/// Redis or a file name; `*`, `;` and `,` are excluded because they have a meaning in scopes and headers.
const ID_PUNCTUATION: &[u8] = b"-_.~:@+=|";

/// The prefix of the kinds of owner records.
const OWNER_KIND_PREFIX: &str = "owner-";

/// Why a text is not the name of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not `kind:id`.
    #[error("a channel is named kind:id")]
    NoKind,
    /// The kind is empty, too long or has a byte outside the grammar.
    #[error("a channel's kind is 1 to {KIND_BYTES_MAX} of a-z, 0-9 and -, beginning with a letter")]
    Kind,
    /// The id is empty, too long or has a byte outside the grammar.
    #[error("a channel's id is 1 to {ID_BYTES_MAX} of A-Z, a-z, 0-9 and . _ ~ : @ + = | -, not beginning with a dot")]
    Id,
}

/// Why a text is not an id of a channel or of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IdError {
    /// It is empty.
    #[error("an id must not be empty")]
    Empty,
    /// It is too long.
    #[error("an id may have at most {ID_BYTES_MAX} bytes, and has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It has a character outside the grammar.
    #[error("an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte {at} is none of them")]
    Character {
        /// Its position in bytes, from 0.
        at: usize,
    },
    /// It begins with a dot, as names that have a special meaning in paths and file systems do.
    #[error("an id must not begin with a dot")]
    Dots,
}

/// Checks an id of a channel or of a user.
///
/// # Errors
///
/// It is empty, longer than [`ID_BYTES_MAX`], has another character, or begins with a dot.
pub fn check_id(id: &str) -> Result<(), IdError> {
    match id.len() {
        0 => return Err(IdError::Empty),
        1..=ID_BYTES_MAX => {}
        bytes => return Err(IdError::TooLong { bytes }),
    }
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || ID_PUNCTUATION.contains(&byte);
    if let Some(at) = id.bytes().position(|byte| !is_id_byte(byte)) {
        return Err(IdError::Character { at });
    }
    if id.starts_with('.') {
        return Err(IdError::Dots);
    }
    Ok(())
}

/// The name of a channel, `kind:id`. Copies share the text.
///
/// No byte of the grammar has a special meaning in a header, a path, a pattern of Redis or an SSE field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName {
    text: Arc<str>,
}

impl ChannelName {
    /// The channel of a kind and an id.
    ///
    /// # Errors
    ///
    /// Either is outside the grammar.
    pub fn new(kind: &str, id: &str) -> Result<Self, NameError> {
        check_kind(kind)?;
        check_id(id).map_err(|_| NameError::Id)?;
        Ok(Self { text: format!("{kind}:{id}").into() })
    }

    /// The channel of one of Weir's own kinds.
    ///
    /// # Errors
    ///
    /// The id is outside the grammar.
    pub fn of(kind: Kind, id: &str) -> Result<Self, NameError> {
        Self::new(kind.name(), id)
    }

    /// `kind:id`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The kind: the part before the first colon.
    pub fn kind(&self) -> &str {
        self.parts().0
    }

    /// The id: the part after the first colon.
    pub fn id(&self) -> &str {
        self.parts().1
    }

    /// The channel that stores the owner of this one, `owner-KIND:ID`; `None` if the kind is too long for the prefix.
    pub fn owner_record(&self) -> Option<Self> {
        Self::new(&format!("{OWNER_KIND_PREFIX}{}", self.kind()), self.id()).ok()
    }

    /// True when the channel stores the owner of another one.
    pub fn is_owner_record(&self) -> bool {
        self.text.starts_with(OWNER_KIND_PREFIX)
    }

    /// The channel whose owner this one stores; `None` if it is not an owner record.
    pub fn owned(&self) -> Option<Self> {
        self.text.strip_prefix(OWNER_KIND_PREFIX).and_then(|name| name.parse().ok())
    }

    fn parts(&self) -> (&str, &str) {
        self.text.split_once(':').unwrap_or((&self.text, ""))
    }
}

impl FromStr for ChannelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (kind, id) = text.split_once(':').ok_or(NameError::NoKind)?;
        check_kind(kind)?;
        check_id(id).map_err(|_| NameError::Id)?;
        Ok(Self { text: text.into() })
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.text)
    }
}

fn check_kind(kind: &str) -> Result<(), NameError> {
    let is_kind_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let begins_with_letter = kind.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if begins_with_letter && kind.len() <= KIND_BYTES_MAX && kind.bytes().all(is_kind_byte) {
        Ok(())
    } else {
        Err(NameError::Kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colons_are_allowed_in_ids_only() {
        let name: ChannelName = "user:auth0|a:b@c".parse().unwrap();
        assert_eq!((name.kind(), name.id()), ("user", "auth0|a:b@c"));
        assert_eq!(name, ChannelName::of(Kind::User, "auth0|a:b@c").unwrap());
        assert_eq!(ChannelName::new("my-kind2", "x").unwrap().to_string(), "my-kind2:x");
    }

    #[test]
    fn owner_record_names_its_channel() {
        let name: ChannelName = "workflow:a:b".parse().unwrap();
        let record = name.owner_record().unwrap();
        assert_eq!((record.as_str(), record.is_owner_record()), ("owner-workflow:a:b", true));
        assert_eq!(record.owned(), Some(name.clone()));
        assert_eq!((name.is_owner_record(), name.owned()), (false, None));
        let long = ChannelName::new(&"k".repeat(KIND_BYTES_MAX), "x").unwrap();
        assert_eq!(long.owner_record(), None);
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(ID_BYTES_MAX + 1);
        for (text, error) in [
            ("", NameError::NoKind),
            ("workflow", NameError::NoKind),
            (":x", NameError::Kind),
            ("Workflow:x", NameError::Kind),
            ("1st:x", NameError::Kind),
            ("-a:x", NameError::Kind),
            ("abcdefghijklmnopqrstuvwxyzabcdefg:x", NameError::Kind),
            ("work\nflow:x", NameError::Kind),
            ("file:", NameError::Id),
            ("file:..", NameError::Id),
            ("file:../etc", NameError::Id),
            ("file:a b", NameError::Id),
            ("file:a\r\nid: 1", NameError::Id),
            ("file:a\0", NameError::Id),
            ("file:*", NameError::Id),
            ("file:{a}", NameError::Id),
            ("file:ä", NameError::Id),
            (&format!("file:{long}"), NameError::Id),
        ] {
            assert_eq!(text.parse::<ChannelName>(), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_a_name_or_an_error(text in "\\PC{0,40}|[a-z]{1,8}:[ -~]{0,12}") {
            if let Ok(name) = text.parse::<ChannelName>() {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert_eq!(&ChannelName::new(name.kind(), name.id()).unwrap(), &name);
                let special = |byte: u8| byte <= b' ' || byte >= 0x7f || b"/*?[]{}\\\"'%".contains(&byte);
                prop_assert!(!text.bytes().any(special), "{}", text);
            }
        }
    }
}
