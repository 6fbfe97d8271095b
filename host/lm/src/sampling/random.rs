//! Stateless random numbers, computed from the position of their use, so that other sequences do not change them.

/// A number in `[0, 1)` for a seed, the index of a choice and a position of its sequence.
pub(super) fn uniform(seed: u64, index: u32, position: u64) -> f64 {
    let mut state = mix(seed.wrapping_add(GOLDEN));
    state = mix(state ^ u64::from(index).wrapping_add(1).wrapping_mul(GOLDEN));
    state = mix(state ^ position.wrapping_add(1).wrapping_mul(0xd1b5_4a32_d192_ed03));
    (state >> 11) as f64 / (1_u64 << 53) as f64
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_over_each_argument() {
        type Number = fn(u64) -> f64;
        let numbers: [Number; 3] = [|n| uniform(n, 0, 5), |n| uniform(7, n as u32, 5), |n| uniform(7, 0, n)];
        for number in numbers {
            let mut counts = [0_u32; 16];
            for n in 0..16_000 {
                let value = number(n);
                assert!((0.0..1.0).contains(&value));
                counts[(value * 16.0) as usize] += 1;
            }
            // Six standard deviations.
            assert!(counts.iter().all(|count| count.abs_diff(1000) < 185), "{counts:?}");
        }
    }
}
