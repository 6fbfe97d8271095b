//! The operator's files of keys: public keys in `token_keys`, shared secrets in `token_secrets`.
//!
//! A public key must never become a shared secret: it is public, and a client that knows the secret of HS256 can sign as any user.
//! A text is a secret only if it is declared as one, by its file or by a JWK with `kty` `oct`, and a file of secrets that
//! resembles a public key is refused.
//!
//! An unusable key is skipped with its reason if another key of the file is usable (RFC 7517, section 5). A file that cannot be
//! read, or without a usable key, is an error.

use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding as _};
use thiserror::Error;
use weir_core::text_file::{self, TextFileError};

use crate::{
    jwks::{self, JwksError},
    key::{Key, KeyError},
    pem,
};

/// Most bytes in a file of keys.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// Most reasons in an error.
const REASONS_MAX: usize = 4;
/// How many layers of encoding are removed before a secret is compared with the forms of public keys.
pub(crate) const ENCODINGS_MAX: usize = 2;
/// Shortest word of a secret that is checked by itself: no public key is shorter.
const WORD_BYTES_MIN: usize = 40;

/// The keys of a file.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The keys that can be used, at least one.
    pub keys: Vec<Key>,
    /// The keys that cannot be used.
    pub skipped: Vec<SkippedKey>,
}

/// A key of a file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct SkippedKey {
    /// Where in the file it is.
    pub place: KeyPlace,
    /// Why it cannot be used.
    pub reason: KeyError,
}

/// Where in a file a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPlace {
    /// The index of a JWK in its set, from 0.
    Jwk(usize),
    /// The line at which a PEM block begins, from 1.
    Line(usize),
}

impl std::fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Jwk(index) => write!(f, "key {index} of the JWKS"),
            Self::Line(line) => write!(f, "PEM block at line {line}"),
        }
    }
}

/// Why a file of keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyFileError {
    /// It is too large.
    #[error("the file has {bytes} bytes, and may have at most {FILE_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It has no contents but white space.
    #[error("the file is empty")]
    Empty,
    /// It is not UTF-8 text.
    #[error(transparent)]
    Text(#[from] TextFileError),
    /// It is a public key in DER.
    #[error("the file is binary (DER); convert it to PEM: `openssl pkey -pubin -inform DER -in FILE -out token_keys`")]
    Der,
    /// It is a public key in a form of OpenSSH.
    #[error("the file is an OpenSSH key; write it as PEM (`-----BEGIN PUBLIC KEY-----`) or as a JWK")]
    OpenSsh,
    /// It is in none of the forms of public keys.
    #[error(
        "the file is neither a JWKS, a JWK nor PEM; a shared secret for HS256 belongs in the file `token_secrets`, one per line, \
         or in a JWK with `kty` `oct`"
    )]
    UnknownForm,
    /// The JSON cannot be read, or is not a set of keys.
    #[error(transparent)]
    Jwks(#[from] JwksError),
    /// No key can be used.
    #[error("the file has no key that can verify tokens{}", reasons(.0))]
    NoUsableKey(Vec<SkippedKey>),
    /// A shared secret that is too short or too long.
    #[error("line {line}: {reason}")]
    Secret {
        /// The line, from 1.
        line: usize,
        /// Why the secret cannot be used.
        reason: KeyError,
    },
    /// A public key in the file of shared secrets.
    #[error("line {line} resembles a public or private key ({form}); a public key belongs in the file `token_keys`")]
    KeyAmongSecrets {
        /// The line, from 1.
        line: usize,
        /// What it resembles.
        form: &'static str,
    },
}

fn reasons(skipped: &[SkippedKey]) -> String {
    let more = if skipped.len() > REASONS_MAX { "; …" } else { "" };
    let all: Vec<String> = skipped.iter().take(REASONS_MAX).map(ToString::to_string).collect();
    if all.is_empty() { String::new() } else { format!(": {}{more}", all.join("; ")) }
}

/// Reads the file `token_keys`: a JWKS (RFC 7517), a JWK, an array of JWKs, or public keys in PEM (RFC 7468) with any text
/// between them.
///
/// # Errors
///
/// The file is in another form, or has no key that can be used.
pub fn read_keys(contents: &[u8]) -> Result<KeyFile, KeyFileError> {
    if contents.len() > FILE_BYTES_MAX {
        return Err(KeyFileError::TooLarge { bytes: contents.len() });
    }
    // Some DER is valid UTF-8.
    if is_der_key(contents) {
        return Err(KeyFileError::Der);
    }
    let text = text_file::text(contents)?;
    let file = match text.trim_start().chars().next() {
        None => return Err(KeyFileError::Empty),
        Some('{' | '[') => jwks::read(text)?,
        Some(_) if pem::has_block(text) => pem::read(text),
        Some(_) if is_open_ssh(text.trim_start().as_bytes()) => return Err(KeyFileError::OpenSsh),
        Some(_) => return Err(KeyFileError::UnknownForm),
    };
    if file.keys.is_empty() { Err(KeyFileError::NoUsableKey(file.skipped)) } else { Ok(file) }
}

/// Reads the file `token_secrets`: a shared secret for HS256 on each line. A secret is all bytes of its line, without the line
/// end; empty lines are skipped.
///
/// # Errors
///
/// The file is not text, has no secret, or has one that is too short, too long, or resembles a public key.
pub fn read_secrets(contents: &[u8]) -> Result<Vec<Key>, KeyFileError> {
    if contents.len() > FILE_BYTES_MAX {
        return Err(KeyFileError::TooLarge { bytes: contents.len() });
    }
    if is_der_key(contents) {
        return Err(KeyFileError::KeyAmongSecrets { line: 1, form: "DER" });
    }
    let text = text_file::text(contents)?;
    // Some lines of JSON and PEM resemble nothing, so one line that resembles a key is enough for the file.
    for (at, line) in text.lines().enumerate() {
        if let Some(form) = key_form(line.as_bytes(), ENCODINGS_MAX) {
            return Err(KeyFileError::KeyAmongSecrets { line: at + 1, form });
        }
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let keys: Vec<Key> = lines
        .map(|(at, line)| {
            Key::from_secret(line.as_bytes()).map_err(|reason| KeyFileError::Secret { line: at + 1, reason })
        })
        .collect::<Result<_, _>>()?;
    if keys.is_empty() { Err(KeyFileError::Empty) } else { Ok(keys) }
}

/// The form of a key that bytes resemble, in base64, base64url or hexadecimal digits too.
pub(crate) fn key_form(bytes: &[u8], encodings_max: usize) -> Option<&'static str> {
    let bytes = text_file::without_bom(bytes);
    if is_der_key(bytes) {
        return Some("DER");
    }
    // ASCII in UTF-16 is the ASCII with NUL bytes between.
    let ascii: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    let has =
        |parts: &[&str]| parts.iter().any(|part| ascii.windows(part.len()).any(|window| window == part.as_bytes()));
    if has(&["-----BEGIN ", "-----END "]) {
        return Some("PEM");
    }
    if has(&["\"kty\"", "\"keys\"", "\"crv\""]) {
        return Some("JWK");
    }
    // The blob of an OpenSSH key begins with the length of its type, and the type.
    let is_open_ssh_blob = bytes.starts_with(b"\0\0\0") && is_open_ssh(bytes.get(4..).unwrap_or_default());
    let words = || bytes.split(u8::is_ascii_whitespace);
    if is_open_ssh_blob || words().any(is_open_ssh) || is_open_ssh(bytes) {
        return Some("OpenSSH");
    }
    let encodings_left = encodings_max.checked_sub(1)?;
    let text = std::str::from_utf8(bytes).ok()?;
    let words = text.split_ascii_whitespace().filter(|word| word.len() >= WORD_BYTES_MIN);
    std::iter::once(text)
        .chain(words)
        .find_map(|text| decodings(text).iter().find_map(|decoded| key_form(decoded, encodings_left)))
}

/// The bytes of a text in base64, base64url or hexadecimal digits, if it is such a text, white space apart.
pub(crate) fn decodings(text: &str) -> Vec<Vec<u8>> {
    let text: String = text.split_ascii_whitespace().collect();
    let unpadded = text.trim_end_matches('=');
    // A line of a longer text may end within a group of four characters.
    let whole = &unpadded[..if unpadded.is_ascii() { unpadded.len() / 4 * 4 } else { 0 }];
    let hex = || -> Option<Vec<u8>> {
        let digits: Vec<u8> =
            text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
        let (pairs, rest) = digits.as_chunks::<2>();
        rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
    };
    let base64 = |text: &str| Base64Unpadded::decode_vec(text).or_else(|_| Base64UrlUnpadded::decode_vec(text)).ok();
    [base64(unpadded).or_else(|| base64(whole)), hex()].into_iter().flatten().filter(|d| !d.is_empty()).collect()
}

fn is_open_ssh(text: &[u8]) -> bool {
    [
        &b"ssh-ed25519"[..],
        b"ssh-rsa",
        b"ssh-dss",
        b"ecdsa-sha2-",
        b"sk-ssh-",
        b"sk-ecdsa-",
        b"---- BEGIN SSH2",
        b"openssh-key-v1",
    ]
    .iter()
    .any(|start| text.starts_with(start))
}

/// Whether bytes begin as a key in DER does: a sequence whose first item is the sequence of an algorithm (RFC 5280, section
/// 4.1.2.7) or of a certificate, or the integers of PKCS #1 and PKCS #8. They may be cut short.
fn is_der_key(bytes: &[u8]) -> bool {
    /// What follows the header of an item with this tag.
    fn inside(bytes: &[u8], tag: u8) -> Option<&[u8]> {
        let (&[first, length], rest) = bytes.split_first_chunk::<2>()?;
        let length_bytes = match length {
            0..=0x7f => 0,
            0x81 | 0x82 => usize::from(length - 0x80),
            _ => return None,
        };
        (first == tag).then(|| rest.get(length_bytes..)).flatten()
    }
    let Some(items) = inside(bytes, 0x30) else { return false };
    let algorithm = inside(items, 0x30).is_some_and(|items| matches!(items.first(), Some(0x06 | 0x02 | 0xa0)));
    let integer = matches!(items, [0x02, 0x01, 0x00 | 0x01, ..] | [0x02, 0x81 | 0x82, ..]);
    algorithm || integer
}

#[cfg(test)]
mod tests;
