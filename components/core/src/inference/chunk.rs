//! Texts counted in Unicode code points: slices of a given size, and slices by offset.
//!
//! A slice never ends inside a code point. It can separate a grapheme cluster (a letter and its combining mark, the
//! parts of a ZWJ emoji): the contract counts code points, and so does this module.

use std::num::NonZeroUsize;

/// The length of a text in code points.
pub fn code_points(text: &str) -> usize {
    text.chars().count()
}

/// Cuts a text into slices of `size` code points; the last one may be shorter. An empty text has no slices.
/// Joined again, the slices are the text.
pub fn split(text: &str, size: NonZeroUsize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.char_indices().nth(size.get()).map_or(rest.len(), |(at, _)| at);
        let (head, tail) = rest.split_at(end);
        rest = tail;
        Some(head)
    })
}

/// The byte offsets of a text's code points, so that many slices by offset need one pass over the text.
#[derive(Debug, Clone)]
pub struct Offsets {
    /// Byte offset of every code point, and the length of the text at the end.
    bytes: Vec<usize>,
}

impl Offsets {
    /// Computes the offsets of a text.
    pub fn new(text: &str) -> Self {
        Self { bytes: text.char_indices().map(|(at, _)| at).chain([text.len()]).collect() }
    }

    /// The length of the text in code points.
    pub fn len(&self) -> usize {
        self.bytes.len() - 1
    }

    /// True when the text is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The code points `start..end` of `text`, which must be the text of [`Self::new`]; `None` if the span is reversed
    /// or exceeds it.
    pub fn slice<'t>(&self, text: &'t str, start: usize, end: usize) -> Option<&'t str> {
        if start > end {
            return None;
        }
        text.get(*self.bytes.get(start)?..*self.bytes.get(end)?)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, size: usize, want: Expect) {
        let chunks: Vec<&str> = split(text, NonZeroUsize::new(size).expect("a size")).collect();
        want.assert_eq(&format!("{chunks:?}"));
    }

    #[test]
    fn plain_text_is_cut_at_the_size() {
        check("abcdef", 2, expect![[r#"["ab", "cd", "ef"]"#]]);
        check("abcde", 2, expect![[r#"["ab", "cd", "e"]"#]]);
        check("abc", 50, expect![[r#"["abc"]"#]]);
        check("", 50, expect!["[]"]);
    }

    #[test]
    fn code_points_are_not_cut_and_clusters_are() {
        check("😀😀😀", 2, expect![[r#"["😀😀", "😀"]"#]]);
        // A family is man, joiner, woman, joiner, girl: five code points.
        check("👨\u{200d}👩\u{200d}👧!", 4, expect![[r#"["👨\u{200d}👩\u{200d}", "👧!"]"#]]);
        // e and its acute accent are two code points.
        check("cafe\u{301}s", 4, expect![[r#"["cafe", "\u{301}s"]"#]]);
    }

    #[test]
    fn offsets_slice_by_code_point() {
        let text = "a😀e\u{301}日";
        let offsets = Offsets::new(text);
        assert_eq!(offsets.len(), 5);
        assert_eq!(offsets.slice(text, 1, 2), Some("😀"));
        assert_eq!(offsets.slice(text, 2, 4), Some("e\u{301}"));
        assert_eq!(offsets.slice(text, 4, 5), Some("日"));
        assert_eq!(offsets.slice(text, 5, 5), Some(""));
        assert_eq!(offsets.slice(text, 4, 6), None);
        assert_eq!(offsets.slice(text, 3, 2), None);
        assert!(Offsets::new("").is_empty());
    }

    proptest! {
        #[test]
        fn slices_join_to_the_text_and_have_the_size(text in any::<String>(), size in 1usize..60) {
            let size = NonZeroUsize::new(size).expect("a size");
            let chunks: Vec<&str> = split(&text, size).collect();
            prop_assert_eq!(chunks.concat(), text.clone());
            prop_assert_eq!(chunks.len(), code_points(&text).div_ceil(size.get()));
            for (at, chunk) in chunks.iter().enumerate() {
                if at + 1 < chunks.len() {
                    prop_assert_eq!(code_points(chunk), size.get());
                } else {
                    prop_assert!((1..=size.get()).contains(&code_points(chunk)));
                }
            }
        }

        #[test]
        fn offsets_agree_with_counting(text in any::<String>(), a in 0usize..40, b in 0usize..40) {
            let offsets = Offsets::new(&text);
            let want = (a <= b && b <= code_points(&text)).then(|| text.chars().skip(a).take(b - a).collect::<String>());
            prop_assert_eq!(offsets.slice(&text, a, b).map(str::to_owned), want);
        }
    }
}
