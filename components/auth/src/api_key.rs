//! API keys: long random texts. Only their hashes are stored.
//!
//! A file has one record per line: `NAME USER sha256:HEX SCOPE…`, separated by white space, since users and scopes may
//! contain colons; empty lines and lines that begin with `#` are ignored. A key has 256 random bits, so one round of
//! SHA-256 is as good as the slow hashes for passwords (see the crate's documentation).

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use thiserror::Error;
use weir_codec::channels::route::check_id;
use weir_core::text_file::{self, TextFileError};

use crate::{
    base64url,
    identity::Identity,
    scope::{ScopeError, Scopes},
};

/// The prefix of every key, by which people and scanners recognize one.
pub const PREFIX: &str = "weir_";
/// Random bytes in a key.
pub const RANDOM_BYTES: usize = 32;
/// Bytes in a key: the prefix, and the random bytes in base64url.
pub const KEY_BYTES: usize = PREFIX.len() + 43;
/// Most records.
pub const RECORDS_MAX: usize = 10_000;
/// Most bytes in a file of records.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A new key and its hash.
pub struct NewKey {
    /// The key, for its owner.
    pub key: String,
    /// The hash, for the record: `sha256:` and hexadecimal digits.
    pub hash: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// Creates a key from random bytes, which must come from the system's generator.
pub fn generate(random: &[u8; RANDOM_BYTES]) -> NewKey {
    let key = format!("{PREFIX}{}", base64url::encode(random));
    let hash: String = Sha256::digest(&key).iter().map(|byte| format!("{byte:02x}")).collect();
    NewKey { key, hash: format!("{HASH}{hash}") }
}

/// Whether a text has the prefix of a key.
pub fn is_key(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// Why a file of records is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// It is too large, or has too many records.
    #[error("a file of API keys has at most {FILE_BYTES_MAX} bytes and {RECORDS_MAX} keys")]
    TooLarge,
    /// It is not UTF-8 text.
    #[error(transparent)]
    Text(#[from] TextFileError),
    /// A line does not have name, user, hash and scopes.
    #[error("line {line}: a record is `NAME USER sha256:HEX SCOPE…`")]
    Record {
        /// From 1.
        line: usize,
    },
    /// The line has a key instead of its hash.
    #[error("line {line}: this is a key, not its hash; everyone who has read the file knows it: create another")]
    Plain {
        /// From 1.
        line: usize,
    },
    /// A scope is invalid.
    #[error("line {line}: {source}")]
    Scope {
        /// From 1.
        line: usize,
        /// The error.
        source: ScopeError,
    },
    /// Two records have the same name or the same hash.
    #[error("line {line}: another record has this name or this hash")]
    Twice {
        /// From 1.
        line: usize,
    },
}

const HASH: &str = "sha256:";

/// The valid keys. To rotate keys, read the file again and replace the set.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys {
    records: Vec<Record>,
}

#[derive(Debug, Clone)]
struct Record {
    name: Box<str>,
    user: Box<str>,
    hash: [u8; 32],
    scopes: Scopes,
}

/// No record has the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the API key is not known")]
pub struct UnknownKey;

impl ApiKeys {
    /// Reads a file of records.
    ///
    /// # Errors
    ///
    /// See [`RecordError`].
    pub fn from_file(contents: &[u8]) -> Result<Self, RecordError> {
        if contents.len() > FILE_BYTES_MAX {
            return Err(RecordError::TooLarge);
        }
        let text = text_file::text(contents)?;
        let mut records: Vec<Record> = Vec::new();
        let (mut names, mut hashes) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for (at, content) in text.lines().enumerate() {
            let content = content.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let line = at + 1;
            let record = Record::parse(content, line)?;
            if !names.insert(record.name.clone()) || !hashes.insert(record.hash) {
                return Err(RecordError::Twice { line });
            }
            if records.len() == RECORDS_MAX {
                return Err(RecordError::TooLarge);
            }
            records.push(record);
        }
        Ok(Self { records })
    }

    /// The identity of a key, and the name of its record, for the log.
    ///
    /// Every record is compared, so the duration does not depend on which one matches.
    ///
    /// # Errors
    ///
    /// No record has the key.
    pub fn find(&self, key: &str) -> Result<(Identity, &str), UnknownKey> {
        // The length of a key is public. Checking it bounds the input of the hash.
        if key.len() != KEY_BYTES || !is_key(key) {
            return Err(UnknownKey);
        }
        let hash: [u8; 32] = Sha256::digest(key).into();
        let (mut is_known, mut matching) = (Choice::from(0), 0_u32);
        for (index, record) in (0_u32..).zip(&self.records) {
            let is_equal = record.hash.ct_eq(&hash);
            matching.conditional_assign(&index, is_equal);
            is_known |= is_equal;
        }
        let record = self.records.get(matching as usize).filter(|_| bool::from(is_known)).ok_or(UnknownKey)?;
        let identity =
            Identity { user: record.user.clone(), scopes: record.scopes.clone(), limit: None, expires_at_s: None };
        Ok((identity, &record.name))
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True when there is no key.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl Record {
    fn parse(content: &str, line: usize) -> Result<Self, RecordError> {
        if content.split_ascii_whitespace().any(is_key) {
            return Err(RecordError::Plain { line });
        }
        let mut words = content.split_ascii_whitespace();
        let (name, user, hash) = (words.next(), words.next(), words.next());
        let name = name.filter(|name| check_id(name).is_ok());
        let user = user.filter(|user| check_id(user).is_ok());
        let hash = hash.and_then(|hash| hash.strip_prefix(HASH)).and_then(parse_hash);
        let (Some(name), Some(user), Some(hash)) = (name, user, hash) else {
            return Err(RecordError::Record { line });
        };
        let scopes = Scopes::read(words).map_err(|source| RecordError::Scope { line, source })?;
        Ok(Self { name: name.into(), user: user.into(), hash, scopes })
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| (digits[at] as char).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn file(keys: &[(&str, &NewKey, &str)]) -> String {
        keys.iter().map(|(name, key, rest)| format!("{name} {name}-user {} {rest}\n", key.hash)).collect()
    }

    fn check(contents: &str, want: Expect) {
        want.assert_eq(&match ApiKeys::from_file(contents.as_bytes()) {
            Ok(keys) => format!("{} keys", keys.len()),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn key_is_identified_by_its_hash() {
        let (one, two) = (generate(&[1; 32]), generate(&[2; 32]));
        assert_eq!(one.key, "weir_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE");
        assert_eq!(one.key.len(), KEY_BYTES);
        let contents =
            format!("# workers\n\n{}", file(&[("one", &one, ""), ("two", &two, "publish:workflow:* read:*:*")]));
        assert!(!contents.contains(&one.key));
        let keys = ApiKeys::from_file(contents.as_bytes()).unwrap();
        let (identity, name) = keys.find(&two.key).unwrap();
        assert_eq!((identity.user(), name), ("two-user", "two"));
        assert_eq!(identity.scopes().to_string(), "publish:workflow:* read:*:*");
        assert_eq!(keys.find(&one.key).unwrap().1, "one");
        // A hash is not accepted as a key.
        for key in
            ["", "weir_", &two.hash, &generate(&[3; 32]).key, &one.key[..KEY_BYTES - 1], &format!("{}A", one.key)]
        {
            assert_eq!(keys.find(key), Err(UnknownKey), "{key}");
        }
        assert_eq!(ApiKeys::default().find(&one.key), Err(UnknownKey));
        assert!(!format!("{one:?}").contains(&one.key));
    }

    #[test]
    fn invalid_record_is_refused_with_its_line() {
        let (one, two) = (generate(&[1; 32]), generate(&[2; 32]));
        check(&file(&[("a", &one, "admin"), ("b", &two, "")]), expect!["2 keys"]);
        check(
            &format!("\u{feff}# keys\r\n\r\n{}", file(&[("a", &one, "admin")]).replace('\n', "\r\n")),
            expect!["1 keys"],
        );
        check(&format!("\u{feff}{}", file(&[("a", &one, "admin")])), expect!["1 keys"]);
        check("a\0 \0a", expect!["the file is UTF-16 or binary; save it as UTF-8 text"]);
        check("a ann", expect!["line 1: a record is `NAME USER sha256:HEX SCOPE…`"]);
        check(&format!("\na a;b {}", one.hash), expect!["line 2: a record is `NAME USER sha256:HEX SCOPE…`"]);
        check("a ann sha256:00", expect!["line 1: a record is `NAME USER sha256:HEX SCOPE…`"]);
        check(&format!("a ann {}é", &one.hash[..69]), expect!["line 1: a record is `NAME USER sha256:HEX SCOPE…`"]);
        check(
            &format!("a ann {} {}", one.hash, one.key),
            expect!["line 1: this is a key, not its hash; everyone who has read the file knows it: create another"],
        );
        check(
            &file(&[("a", &one, "read:everything")]),
            expect![
                "line 1: `read:everything` is not a scope: use `admin` or ACTION:KIND:ID, such as `read:workflow:*`"
            ],
        );
        check(&file(&[("a", &one, ""), ("a", &two, "")]), expect!["line 2: another record has this name or this hash"]);
        check(&file(&[("a", &one, ""), ("b", &one, "")]), expect!["line 2: another record has this name or this hash"]);
    }

    proptest! {
        #[test]
        fn only_listed_keys_authenticate(randoms in prop::collection::btree_set(any::<[u8; 32]>(), 1..6), other: [u8; 32]) {
            let issued: Vec<NewKey> = randoms.iter().map(generate).collect();
            let contents: String =
                issued.iter().enumerate().map(|(at, key)| format!("n{at} u{at} {}\n", key.hash)).collect();
            let keys = ApiKeys::from_file(contents.as_bytes()).expect("records");
            for (at, key) in issued.iter().enumerate() {
                let user = keys.find(&key.key).map(|(identity, _)| identity.user().to_owned());
                prop_assert_eq!(user, Ok(format!("u{at}")));
            }
            if !randoms.contains(&other) {
                prop_assert_eq!(keys.find(&generate(&other).key), Err(UnknownKey));
            }
        }

        #[test]
        fn arbitrary_file_is_parsed_or_refused(contents in "([a-z#é ]{0,5}(sha256:)?[0-9a-f]{0,64}[ \n]){0,6}") {
            let _ = ApiKeys::from_file(contents.as_bytes());
        }
    }
}
