//! A small generator of pseudorandom numbers; its seed is an argument.

/// The SplitMix64 generator (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): 64 bits
/// of state, any seed is valid, not for secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator from any seed; the same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number, uniform over all of `u64`.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Maps a uniform `random` to `low..=high`, by the high half of a 128-bit product; `low` if the range is empty.
pub fn between(random: u64, low: u64, high: u64) -> u64 {
    let Some(width) = high.checked_sub(low) else { return low };
    let offset = (u128::from(random) * (u128::from(width) + 1)) >> 64;
    low + offset as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_equal_the_reference() {
        let mut random = SplitMix64::new(1_234_567);
        let numbers: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    proptest! {
        #[test]
        fn number_is_within_its_range(random: u64, low: u64, high: u64) {
            let number = between(random, low, high);
            prop_assert!(number >= low && (number <= high || high < low));
        }
    }

    #[test]
    fn both_ends_are_reached() {
        assert_eq!((between(0, 3, 9), between(u64::MAX, 3, 9)), (3, 9));
        assert_eq!((between(0, 0, u64::MAX), between(u64::MAX, 0, u64::MAX)), (0, u64::MAX));
    }
}
