//! The fewest tokens that a text can have, in one pass and without tokenizing it.
//!
//! A token is a sequence of bytes. Two neighbouring bytes of a text that no token has next to each other are in different tokens, so a text is
//! divided between them. A token is at most as long as the longest one that has one of its bytes, so each byte is at least a fraction of a
//! token. The sum of the fractions between two divisions, rounded up, is at most the number of tokens there.

/// The unit of the fractions.
const TOKEN: u64 = 1 << 32;

/// What the vocabulary tells about the tokens of a text.
pub(crate) struct TokenMinimum {
    /// For each byte, the fraction of a token that it is at least.
    fractions: [u64; 256],
    /// For each byte, the bytes that follow it in a token, as a set.
    followers: Box<[[u64; 4]; 256]>,
}

impl TokenMinimum {
    /// From the bytes of all tokens. A byte that `is_encoded` does not have may be dropped from a text.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a [u8]>, is_encoded: impl Fn(u8) -> bool) -> Self {
        let mut longest = [1; 256];
        let mut followers = Box::new([[0; 4]; 256]);
        for token in tokens {
            for byte in token {
                let longest = &mut longest[usize::from(*byte)];
                *longest = token.len().max(*longest);
            }
            for pair in token.windows(2) {
                insert(&mut followers[usize::from(pair[0])], pair[1]);
            }
        }
        let mut fractions = longest.map(|bytes| TOKEN / bytes as u64);
        for byte in (0..=255).filter(|byte| !is_encoded(*byte)) {
            // Its neighbours may become neighbours of each other.
            fractions[usize::from(byte)] = 0;
            followers[usize::from(byte)] = [u64::MAX; 4];
            followers.iter_mut().for_each(|followers| insert(followers, byte));
        }
        Self { fractions, followers }
    }

    /// The fewest tokens of a text.
    pub(crate) fn of(&self, text: impl Iterator<Item = u8>) -> u64 {
        let (mut tokens, mut fraction, mut previous) = (0, 0_u64, None);
        for byte in text {
            if previous.is_some_and(|previous| !self.are_in_one(previous, byte)) {
                tokens += fraction.div_ceil(TOKEN);
                fraction = 0;
            }
            fraction += self.fractions[usize::from(byte)];
            previous = Some(byte);
        }
        tokens + fraction.div_ceil(TOKEN)
    }

    /// Whether a token has these bytes next to each other.
    fn are_in_one(&self, one: u8, next: u8) -> bool {
        self.followers[usize::from(one)][usize::from(next >> 6)] >> (next & 63) & 1 == 1
    }
}

fn insert(set: &mut [u64; 4], byte: u8) {
    set[usize::from(byte >> 6)] |= 1 << (byte & 63);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_divided_where_no_token_has_both_bytes() {
        let tokens: [&[u8]; 7] = [b"a", b"b", b"c", b" ", b" ab", b"abab", b"cc"];
        let minimum = TokenMinimum::new(tokens.into_iter(), |byte| byte != b'x');
        let of = |text: &str| minimum.of(text.bytes());
        assert_eq!(of(""), 0);
        // `b` and ` `, and `c` and any other, are in different tokens; four of `ab` are one.
        assert_eq!(of(" ab ab"), 2);
        assert_eq!(of("abababab"), 2);
        assert_eq!(of("ababababa"), 3);
        assert_eq!(of("cccaccc"), 2 + 1 + 2);
        assert_eq!(of(&"c".repeat(1_000_001)), 500_001);
        // `x` may be dropped, and then `c` and `c` are neighbours.
        assert_eq!(of("cxc"), 1);
        assert_eq!(of("xxxx"), 0);
        // No token has it: each is a token.
        assert_eq!(of("zz"), 2);
    }
}
