//! The keys of a bucket.
//!
//! | key | value |
//! |---|---|
//! | `weir.channel.KIND.ID` | the events of a channel |
//! | `weir.value.KIND.ID`, `weir.lease.KIND.ID`, `weir.claim.KEY` | a value, a lease, a claim |
//! | `weir.lock.NN`, `weir.served.NN` | a lock |
//! | `weir.sweep` | the position of the removal of expired keys |
//!
//! Letters, digits, `-` and `_` are themselves, any other byte is `=` and two hexadecimal digits: hosts that store a key as a file or as a
//! subject of NATS accept no more.

use std::fmt::Write;

use weir_core::channels::ChannelName;

/// What all keys begin with.
pub(super) const PREFIX: &str = "weir.";
/// The position of the removal of expired keys.
pub(super) const SWEEP: &str = "weir.sweep";
/// A key that is never set, for checks of the bucket.
pub(super) const PROBE: &str = "weir.probe";

/// What a key with an expiry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    Channel(ChannelName),
    Value(ChannelName),
    Lease(ChannelName),
    Claim,
}

pub(super) fn channel(name: &ChannelName) -> String {
    of("channel", name)
}

pub(super) fn value(name: &ChannelName) -> String {
    of("value", name)
}

/// What the keys of the values of a kind begin with.
pub(super) fn values(kind: &str) -> String {
    format!("{PREFIX}value.{kind}.")
}

pub(super) fn lease(name: &ChannelName) -> String {
    of("lease", name)
}

pub(super) fn claim(key: &str) -> String {
    format!("{PREFIX}claim.{}", escape(key))
}

pub(super) fn numbers(shard: u64) -> String {
    format!("{PREFIX}lock.{shard:02}")
}

pub(super) fn served(shard: u64) -> String {
    format!("{PREFIX}served.{shard:02}")
}

/// What a key names; `None` if it has no expiry, or is not one of this store.
pub(super) fn parse(key: &str) -> Option<Named> {
    let (what, rest) = key.strip_prefix(PREFIX)?.split_once('.')?;
    if what == "claim" {
        return Some(Named::Claim);
    }
    let (kind, id) = rest.split_once('.')?;
    let name = ChannelName::new(kind, &unescape(id)?).ok()?;
    match what {
        "channel" => Some(Named::Channel(name)),
        "value" => Some(Named::Value(name)),
        "lease" => Some(Named::Lease(name)),
        _ => None,
    }
}

fn of(what: &str, name: &ChannelName) -> String {
    format!("{PREFIX}{what}.{}.{}", name.kind(), escape(name.id()))
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "={byte:02X}");
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = rest.next() {
        if byte == b'=' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_have_only_bytes_that_files_and_subjects_may_have() {
        let name: ChannelName = "user:auth0|a:b@c.d".parse().unwrap();
        assert_eq!(channel(&name), "weir.channel.user.auth0=7Ca=3Ab=40c=2Ed");
        assert_eq!(parse(&channel(&name)), Some(Named::Channel(name)));
        assert_eq!(claim("ticket:a/../b"), "weir.claim.ticket=3Aa=2F=2E=2E=2Fb");
    }

    #[test]
    fn foreign_keys_are_not_parsed() {
        for key in
            ["", "weir.", "weir.sweep", "weir.served.01", "weir.lock.01", "other", "weir.value.a", "weir.value.a.=4"]
        {
            assert_eq!(parse(key), None, "{key}");
        }
    }

    proptest! {
        #[test]
        fn names_read_back(kind in "[a-z][a-z0-9-]{0,10}", id in "[A-Za-z0-9_~:@+=|-][A-Za-z0-9._~:@+=|-]{0,40}") {
            let name = ChannelName::new(&kind, &id).unwrap();
            prop_assert_eq!(parse(&value(&name)), Some(Named::Value(name.clone())));
            prop_assert_eq!(parse(&lease(&name)), Some(Named::Lease(name.clone())));
            prop_assert!(value(&name).starts_with(&values(&kind)));
        }

        #[test]
        fn arbitrary_keys_do_not_panic(key in "(weir\\.(channel|value|lease|claim)\\.)?\\PC{0,30}") {
            let _ = parse(&key);
        }
    }
}
