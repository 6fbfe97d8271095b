//! Bytes of tokens as whole characters. A token need not be valid UTF-8: an emoji can be four tokens.

/// Assembles characters from pieces of bytes. The text is that of [`String::from_utf8_lossy`] over all bytes, however
/// they are cut.
#[derive(Debug, Clone, Default)]
pub struct Utf8Assembler {
    /// The first bytes of a character, at most 3.
    incomplete: Vec<u8>,
}

impl Utf8Assembler {
    /// Adds bytes, and returns the characters that are complete. Invalid bytes become U+FFFD; the first bytes of an
    /// incomplete character are held back until the rest arrives.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut pending = std::mem::take(&mut self.incomplete);
        pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(pending.len());
        let mut rest = pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    match error.error_len() {
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[length..];
                        }
                        None => {
                            self.incomplete = after.to_vec();
                            return text;
                        }
                    }
                }
            }
        }
    }

    /// Whether the first bytes of a character are held back.
    pub fn is_incomplete(&self) -> bool {
        !self.incomplete.is_empty()
    }

    /// Ends the text: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> &'static str {
        if std::mem::take(&mut self.incomplete).is_empty() { "" } else { "\u{fffd}" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn emoji_in_four_tokens_is_one_piece() {
        let mut assembler = Utf8Assembler::default();
        let pieces: Vec<String> = "😀".bytes().map(|byte| assembler.push(&[byte])).collect();
        assert_eq!(pieces, ["", "", "", "😀"]);
        assert_eq!(assembler.finish(), "");
    }

    #[test]
    fn incomplete_tail_is_replaced_at_the_end_only() {
        let mut assembler = Utf8Assembler::default();
        assert_eq!(assembler.push(b"a\xf0\x9f"), "a");
        assert!(assembler.is_incomplete());
        assert_eq!(assembler.finish(), "\u{fffd}");
        assert_eq!(assembler.finish(), "");
    }

    proptest! {
        #[test]
        fn text_is_that_of_all_bytes_however_they_are_cut(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xf0), Just(0x9f), Just(0x98), Just(0x80), Just(b'a')], 0..60),
            cuts in prop::collection::vec(1usize..6, 0..60),
        ) {
            let mut assembler = Utf8Assembler::default();
            let (mut text, mut rest) = (String::new(), bytes.as_slice());
            for cut in cuts.into_iter().chain(std::iter::repeat(3)) {
                if rest.is_empty() {
                    break;
                }
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                text.push_str(&assembler.push(piece));
                rest = tail;
            }
            text.push_str(assembler.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
