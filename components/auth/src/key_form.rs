//! Recognition of encoded keys, so that a public key is not used as a secret.

use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding as _};
use weir_core::text_file;

/// How many layers of encoding are removed before a secret is compared with the forms of public keys.
pub(crate) const ENCODINGS_MAX: usize = 2;
/// Shortest word of a secret that is checked separately: no encoded public key is shorter.
const WORD_BYTES_MIN: usize = 40;

/// The form of a key that bytes resemble, directly or after up to `encodings_max` decodings of base64, base64url or
/// hexadecimal digits.
pub(crate) fn key_form(bytes: &[u8], encodings_max: usize) -> Option<&'static str> {
    let bytes = text_file::without_bom(bytes);
    if is_der_key(bytes) {
        return Some("DER");
    }
    // ASCII text in UTF-16 is the same text with NUL bytes between the characters.
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

/// The decodings of a text as base64, base64url and hexadecimal digits, as far as it is valid in them. White space is
/// ignored.
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

pub(crate) fn is_open_ssh(text: &[u8]) -> bool {
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

/// Whether bytes begin as a key in DER does: a sequence whose first item is the sequence of an algorithm (RFC 5280,
/// section 4.1.2.7) or of a certificate, or the integers of PKCS #1 and PKCS #8. The bytes may be truncated.
pub(crate) fn is_der_key(bytes: &[u8]) -> bool {
    /// The bytes after the header of an item with this tag.
    fn content(bytes: &[u8], tag: u8) -> Option<&[u8]> {
        let (&[first, length], rest) = bytes.split_first_chunk::<2>()?;
        let length_bytes = match length {
            0..=0x7f => 0,
            0x81 | 0x82 => usize::from(length - 0x80),
            _ => return None,
        };
        (first == tag).then(|| rest.get(length_bytes..)).flatten()
    }
    let Some(items) = content(bytes, 0x30) else { return false };
    let algorithm = content(items, 0x30).is_some_and(|items| matches!(items.first(), Some(0x06 | 0x02 | 0xa0)));
    let integer = matches!(items, [0x02, 0x01, 0x00 | 0x01, ..] | [0x02, 0x81 | 0x82, ..]);
    algorithm || integer
}
