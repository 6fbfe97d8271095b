//! Texts of a client's as keys of ours: any texts, one short name for each sequence of them.

use sha2::{Digest as _, Sha256};

use crate::base64url;

/// SHA-256 of a sequence of texts in base64url: 43 characters that every store takes in a key. Sequences that differ anywhere,
/// also only in where one text ends and the next begins, have different names.
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
    fn every_sequence_has_a_name_of_its_own() {
        let sequences: [&[&[u8]]; 7] =
            [&[], &[b""], &[b"", b""], &[b"ab", b"c"], &[b"a", b"bc"], &[b"abc"], &[b"a", b"b", b"c"]];
        let names: BTreeSet<String> = sequences.iter().map(|texts| of(texts)).collect();
        assert_eq!(names.len(), sequences.len());
        assert!(names.iter().all(|name| name.len() == 43 && !name.contains(['=', '+', '/'])));
        // The digest of eight zero bytes.
        assert_eq!(of(&[b""]), "r1Vw9aGBC3r3jK9LxwpmDw31HkK6-R1N5bIyjeDoPfw");
    }
}
