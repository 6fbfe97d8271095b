//! The operator's files of keys: public keys in `token_keys`, shared secrets in `token_secrets`.
//!
//! A public key must never be used as a shared secret, since a client that knows the secret of HS256 can sign as any
//! user. A text is a secret only if it is declared as one, by its file or by a JWK with `kty` `oct`, and a file of
//! secrets that resembles a public key is refused.
//!
//! An unusable key is skipped with its reason if another key of the file is usable (RFC 7517, section 5). A file that
//! cannot be read, or without a usable key, is an error.

use thiserror::Error;
use weir_core::text_file::{self, TextFileError};

pub use crate::key_list::{KeyFile, KeyLocation, SkippedKey};
use crate::{
    jwks::{self, JwksError},
    key::{Key, KeyError},
    key_form::{ENCODINGS_MAX, is_der_key, is_open_ssh, key_form},
    pem,
};

/// Most bytes in a file of keys.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// Most reasons in an error.
const REASONS_MAX: usize = 4;

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

/// Reads the file `token_keys`: a JWKS (RFC 7517), a JWK, an array of JWKs, or public keys in PEM (RFC 7468) with any
/// text between them.
///
/// # Errors
///
/// The file is in another form, or has no key that can be used.
pub fn read_keys(contents: &[u8]) -> Result<KeyFile, KeyFileError> {
    if contents.len() > FILE_BYTES_MAX {
        return Err(KeyFileError::TooLarge { bytes: contents.len() });
    }
    // DER is checked before the encoding, since some DER is valid UTF-8.
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

/// Reads the file `token_secrets`: a shared secret for HS256 on each line. A secret is all bytes of its line, without
/// the line end; empty lines are skipped.
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
    // Not every line of a JWK or a PEM block resembles a key, so one such line refuses the whole file.
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

#[cfg(test)]
mod tests;
