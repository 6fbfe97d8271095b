//! Ids of executions: `exec_` and 128 random bits in base64url (RFC 4648, section 5), so that an id cannot be guessed.

/// The prefix of every id.
pub const PREFIX: &str = "exec_";
/// Number of characters after the prefix.
const DIGITS: usize = 22;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The id of 128 bits, which must come from a cryptographically secure generator.
pub fn from_random(random: [u8; 16]) -> String {
    let bits = u128::from_be_bytes(random);
    // Six bits per digit, from the highest; the last digit has two bits and four zero bits.
    let digit = |at: usize| match 122usize.checked_sub(6 * at) {
        Some(shift) => (bits >> shift) as usize & 63,
        None => (bits << 4) as usize & 63,
    };
    let digits = (0..DIGITS).map(|at| char::from(ALPHABET[digit(at)]));
    PREFIX.chars().chain(digits).collect()
}

/// True exactly for the results of [`from_random`]. Such an id is safe in a path, a header, a file name and an SSE field.
pub fn is_valid(id: &str) -> bool {
    let Some(digits) = id.strip_prefix(PREFIX) else { return false };
    let is_last_canonical = matches!(digits.as_bytes().last(), Some(b'A' | b'Q' | b'g' | b'w'));
    digits.len() == DIGITS && digits.bytes().all(|byte| ALPHABET.contains(&byte)) && is_last_canonical
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_base64url() {
        assert_eq!(from_random([0; 16]), "exec_AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(from_random([0xff; 16]), format!("exec_{}w", "_".repeat(21)));
        let bytes = [0x14, 0xfb, 0x9c, 0x03, 0xd9, 0x7e, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc];
        assert_eq!(from_random(bytes), "exec_FPucA9l-ASNFZ4mrze_-3A");
        // Every bit matters.
        let ids: BTreeSet<String> = (0..128).map(|bit| from_random((1u128 << bit).to_be_bytes())).collect();
        assert_eq!(ids.len(), 128);
    }

    #[test]
    fn malformed_ids_are_refused() {
        for id in [
            "",
            "exec_",
            "FPucA9l-ASNFZ4mrze_-3A",
            "EXEC_FPucA9l-ASNFZ4mrze_-3A",
            "exec_FPucA9l-ASNFZ4mrze_-3",
            "exec_FPucA9l-ASNFZ4mrze_-3AA",
            "exec_FPucA9l-ASNFZ4mrze_-3B",
            "exec_FPucA9l+ASNFZ4mrze/-3A",
            "exec_FPucA9l-ASNFZ4mrze_-\n3",
            "exec_../../../../../../etcA",
            "exec_éPucA9l-ASNFZ4mrze_-3A",
        ] {
            assert!(!is_valid(id), "{id}");
        }
    }

    proptest! {
        #[test]
        fn generated_ids_are_valid(random: [u8; 16]) {
            prop_assert!(is_valid(&from_random(random)));
        }
    }
}
