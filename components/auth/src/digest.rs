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

/// Bytes that are hashed between two pauses.
const SLICE_BYTES: usize = 32 << 10;

/// The digest of a sequence of one text, with a pause after each 32 KiB, so that other tasks can run on the same thread.
pub async fn of_in_slices(text: &[u8], mut pause: impl AsyncFnMut()) -> String {
    let mut hash = Sha256::new();
    hash.update((text.len() as u64).to_be_bytes());
    for (at, slice) in text.chunks(SLICE_BYTES).enumerate() {
        if at > 0 {
            pause().await;
        }
        hash.update(slice);
    }
    base64url::encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::BTreeSet,
        pin::pin,
        task::{Context, Poll, Waker},
    };

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

    #[test]
    fn digest_in_slices_is_that_of_the_whole() {
        let text = vec![7; 3 * SLICE_BYTES + 1];
        for length in [0, 1, SLICE_BYTES, SLICE_BYTES + 1, text.len()] {
            let pauses = Cell::new(0);
            let mut digest = pin!(of_in_slices(&text[..length], async || pauses.set(pauses.get() + 1)));
            let Poll::Ready(digest) = digest.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("a digest of {length} bytes waits")
            };
            assert_eq!(digest, of(&[&text[..length]]));
            assert_eq!(pauses.get(), length.saturating_sub(1) / SLICE_BYTES);
        }
    }
}
