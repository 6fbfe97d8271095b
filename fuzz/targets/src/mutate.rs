//! Mutations of inputs: flipped bytes, removed and repeated ranges, parts of other inputs, and words of a dictionary.

use weir_core::random::{SplitMix64, between};

/// Bound of the length of an input, in bytes.
pub const INPUT_BYTES_MAX: usize = 4096;
/// Bound of the number of mutations of one input.
const MUTATIONS_MAX: u64 = 8;

/// Words with a meaning in the formats of several targets.
const WORDS: &[&[u8]] = &[
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"9223372036854775808",
    b"0.1",
    b"1e-400",
    b"{\"keys\":[",
    b"\"kty\":\"oct\"",
    b"-----BEGIN PUBLIC KEY-----\n",
    b"-----END PUBLIC KEY-----\n",
    b"-->",
    b"00:00:01.000 --> 00:00:02.000\n",
    b"WEBVTT\n\n",
    b"NOTE\n",
    b"<v Ann>",
    b"&amp;",
    b"&#x10ffff;",
    b"data: ",
    b"event: ",
    b"id: ",
    b"Grip-Hold: stream\n",
    b"Grip-Channel: a",
    b"workflow:",
    b"user:",
    b"%2f",
    b"%",
    b"?",
    b"&",
    b"=",
    b"..",
    b"TEXT 5\r\n",
    b"[*]",
    b"[]",
    b"[?",
    b"`1`",
    b"map(&",
    b"sort(",
    b"merge(",
    b"||",
    b"&&",
    b"|",
    b"@",
    b"\xf0\x9f\x98\x80",
    b"e\xcc\x81",
];

/// A generator of inputs.
#[derive(Debug)]
pub struct Mutator {
    random: SplitMix64,
}

impl Mutator {
    /// A generator. The same seed gives the same inputs.
    pub fn new(seed: u64) -> Self {
        Self { random: SplitMix64::new(seed) }
    }

    /// The next input: a mutation of one of `inputs`, possibly with parts of others.
    pub fn next(&mut self, inputs: &[&[u8]]) -> Vec<u8> {
        let mut bytes = self.pick(inputs).to_vec();
        for _ in 0..self.below(MUTATIONS_MAX) + 1 {
            self.mutate(&mut bytes, inputs);
            bytes.truncate(INPUT_BYTES_MAX);
        }
        bytes
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>, inputs: &[&[u8]]) {
        let at = self.below(bytes.len() as u64 + 1) as usize;
        let end = (at + self.below(32) as usize).min(bytes.len());
        match self.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let part = bytes[at..end].to_vec();
                let count = self.below(16) as usize + 1;
                bytes.splice(at..at, part.repeat(count));
            }
            4 => {
                let other = self.pick(inputs);
                let from = self.below(other.len() as u64 + 1) as usize;
                bytes.splice(at.., other[from..].iter().copied());
            }
            5 => bytes.truncate(at),
            _ => {
                let word = self.pick(WORDS);
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }

    fn pick<'i>(&mut self, inputs: &[&'i [u8]]) -> &'i [u8] {
        inputs.get(self.below(inputs.len() as u64) as usize).copied().unwrap_or_default()
    }

    /// A random number below `bound`; 0 if `bound` is 0.
    fn below(&mut self, bound: u64) -> u64 {
        between(self.random.next_u64(), 0, bound.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_depend_on_the_seed_only_and_are_bounded() {
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..1000).map(|_| mutator.next(&[b"one input", b"{\"another\": 1}", b""])).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(3).iter().all(|input| input.len() <= INPUT_BYTES_MAX));
    }
}
