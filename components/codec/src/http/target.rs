//! The target of a request: percent-encoding of its path and its query (RFC 3986, section 2).

use std::borrow::Cow;

use thiserror::Error;

use crate::http::problem::Problem;

/// Why a target is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TargetError {
    /// `%` without two hexadecimal digits.
    #[error(
        "the {part} has a `%` at byte {at} that is not followed by two hexadecimal digits; write `%25` for the character itself"
    )]
    Escape {
        /// `path` or `query`.
        part: &'static str,
        /// The index of the `%` in the part, from 0, in bytes.
        at: usize,
    },
    /// The bytes of the escapes are not UTF-8.
    #[error("the {part} is not UTF-8 once its percent-encoding is removed; encode the bytes of UTF-8")]
    NotUtf8 {
        /// `path` or `query`.
        part: &'static str,
    },
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        Self::refused(400, "invalid_url", "The URL cannot be read", error.to_string(), None)
    }
}

/// The normal form of a path, which routes match (RFC 3986, section 6.2.2): characters that need no escape in a segment are decoded, all
/// other escapes are in upper case. So `/%6Detrics` is `/metrics`, and `%2F` is not `/`.
///
/// # Errors
///
/// An escape is incomplete, or the escapes are not UTF-8.
pub fn normalize_path(path: &str) -> Result<Cow<'_, str>, TargetError> {
    const PART: &str = "path";
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    check(path, PART)?;
    let mut normal = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((plain, after)) = rest.split_once('%') {
        normal.push_str(plain);
        let Some(byte) = escaped(after.as_bytes()) else { return Err(TargetError::Escape { part: PART, at: 0 }) };
        match byte {
            byte if is_segment(byte) => normal.push(char::from(byte)),
            byte => normal.push_str(&format!("%{byte:02X}")),
        }
        // Both digits are ASCII.
        rest = &after[2..];
    }
    normal.push_str(rest);
    Ok(Cow::Owned(normal))
}

/// Checks that a query, without its question mark, can be decoded.
///
/// # Errors
///
/// As [`normalize_path`].
pub fn check_query(query: &str) -> Result<(), TargetError> {
    check(query, "query")
}

fn check(text: &str, part: &'static str) -> Result<(), TargetError> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'%' {
            decoded.push(escaped(&bytes[at + 1..]).ok_or(TargetError::Escape { part, at })?);
            at += 3;
        } else {
            decoded.push(*byte);
            at += 1;
        }
    }
    match std::str::from_utf8(&decoded) {
        Ok(_) => Ok(()),
        Err(_) => Err(TargetError::NotUtf8 { part }),
    }
}

/// The byte of the two hexadecimal digits at the beginning of a text.
fn escaped(text: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match text {
        [high, low, ..] => Some(digit(*high)? * 16 + digit(*low)?),
        _ => None,
    }
}

/// The characters of a segment that need no escape: `pchar` of RFC 3986, section 3.3.
fn is_segment(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inference::query::decode_path;

    #[test]
    fn escapes_of_plain_characters_are_removed() {
        for (path, want) in [
            ("/metrics", "/metrics"),
            ("/%6Detri%63s", "/metrics"),
            ("/%6d%65trics", "/metrics"),
            ("/v1%2Fclassify", "/v1%2Fclassify"),
            ("/v1%2fclassify", "/v1%2Fclassify"),
            ("/models/org%2fa%20b%c3%a9", "/models/org%2Fa%20b%C3%A9"),
            ("/stream/user/ann%40example.org", "/stream/user/ann@example.org"),
            ("/%2e%2e/x", "/../x"),
            ("/%2561", "/%2561"),
            ("/a%00%0d%0A", "/a%00%0D%0A"),
            ("/\u{e9}%7E", "/\u{e9}~"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(normalize_path(path).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn invalid_escapes_are_refused() {
        for (path, at) in
            [("/%", 1), ("/a%4", 2), ("/%zz", 1), ("/%4g", 1), ("/%41%+1", 4), ("/%\u{e9}", 1), ("/%%41", 1)]
        {
            assert_eq!(normalize_path(path), Err(TargetError::Escape { part: "path", at }), "{path}");
            assert_eq!(check_query(path), Err(TargetError::Escape { part: "query", at }), "{path}");
        }
        for path in ["/%ff", "/%c3%28", "/%ed%a0%80", "/%c0%af"] {
            assert_eq!(normalize_path(path), Err(TargetError::NotUtf8 { part: "path" }), "{path}");
            assert_eq!(check_query(path), Err(TargetError::NotUtf8 { part: "query" }), "{path}");
        }
        assert_eq!(check_query("a=b+c&d=%C3%A9&&=%25"), Ok(()));
    }

    proptest! {
        #[test]
        fn normal_form_is_stable_and_means_the_same(path in "/([a-z/%+]|%[0-9a-fA-F]{2}){0,12}") {
            if let Ok(normal) = normalize_path(&path) {
                prop_assert_eq!(decode_path(&normal), decode_path(&path));
                let again = normalize_path(&normal);
                prop_assert_eq!(again.as_deref(), Ok(&*normal));
                prop_assert_eq!(normal.matches('/').count(), path.matches('/').count());
            }
        }
    }
}
