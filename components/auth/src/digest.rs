//! Short keys for sequences of texts from clients.

use sha2::{Digest as _, Sha256};

use crate::base64url;

/// SHA-256 of a sequence of texts in base64url: 43 characters that every store accepts in a key. Sequences that differ
/// in any way, also only in the boundaries of their texts, have different keys.
pub fn of(texts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    base64url::encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn different_sequences_have_different_keys() {
        let sequences: [&[&[u8]]; 7] =
            [&[], &[b""], &[b"", b""], &[b"ab", b"c"], &[b"a", b"bc"], &[b"abc"], &[b"a", b"b", b"c"]];
        let names: BTreeSet<String> = sequences.iter().map(|texts| of(texts)).collect();
        assert_eq!(names.len(), sequences.len());
        assert!(names.iter().all(|name| name.len() == 43 && !name.contains(['=', '+', '/'])));
        // The digest of eight zero bytes.
        assert_eq!(of(&[b""]), "r1Vw9aGBC3r3jK9LxwpmDw31HkK6-R1N5bIyjeDoPfw");
    }
}
