//! An index of phrases by their first words, to find those that begin at a word of a text.

use super::words::{Gap, Lexicon, Word, WordId, spell};

/// A phrase without its first word.
#[derive(Debug, Clone)]
struct Phrase<T> {
    head: WordId,
    rest: Box<[(WordId, Gap)]>,
    value: T,
}

/// Phrases, each with a value.
#[derive(Debug, Clone)]
pub(super) struct Phrases<T> {
    /// Sorted by first word, then the longest first.
    phrases: Vec<Phrase<T>>,
    /// By word id: the range in `phrases` of the phrases with that first word.
    heads: Vec<(u32, u32)>,
}

impl<T: Copy> Phrases<T> {
    /// An index of phrases. Their words are added to the lexicon.
    ///
    /// # Errors
    ///
    /// The index of the first phrase without a word, or with a word that is too long.
    pub(super) fn new<'a>(
        phrases: impl IntoIterator<Item = (&'a str, T)>,
        lexicon: &mut Lexicon,
    ) -> Result<Self, usize> {
        let mut all = Vec::new();
        for (index, (phrase, value)) in phrases.into_iter().enumerate() {
            let mut words = Vec::new();
            for (word, before) in spell(phrase) {
                words.push((lexicon.add(&word).ok_or(index)?, before));
            }
            let Some((&(head, _), rest)) = words.split_first() else { return Err(index) };
            all.push(Phrase { head, rest: rest.into(), value });
        }
        // A stable sort: of equal phrases, the first stays first.
        all.sort_by_key(|phrase| (phrase.head, usize::MAX - phrase.rest.len()));
        let last = all.last().map_or(0, |phrase| usize::from(phrase.head));
        let mut heads = vec![(0, 0); last + 1];
        for (at, phrase) in all.iter().enumerate() {
            let (from, to) = &mut heads[usize::from(phrase.head)];
            if from == to {
                *from = at as u32;
            }
            *to = at as u32 + 1;
        }
        Ok(Self { phrases: all, heads })
    }

    /// The phrases that begin at a word, the longest first, with their lengths in words. With `loose` any gap within a
    /// sentence matches a space.
    pub(super) fn at<'a>(
        &'a self,
        words: &'a [Word],
        index: usize,
        loose: bool,
    ) -> impl Iterator<Item = (usize, T)> + 'a {
        let (from, to) = self.heads.get(usize::from(words[index].id)).copied().unwrap_or_default();
        let after = &words[index + 1..];
        self.phrases[from as usize..to as usize].iter().filter_map(move |phrase| {
            let matches = phrase.rest.len() <= after.len()
                && phrase.rest.iter().zip(after).all(|((id, gap), word)| {
                    *id == word.id
                        && (*gap == word.before || (loose && *gap == Gap::Space && word.before == Gap::Within))
                });
            matches.then_some((phrase.rest.len() + 1, phrase.value))
        })
    }
}
