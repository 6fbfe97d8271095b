//! Windows over a text that is longer than a model takes: their ranges, and the choice of the window whose prediction
//! is used for a token.
//!
//! Windows overlap, as with the `stride` of Hugging Face, so that text at the edge of one is inside another. They are
//! cut between words. Where windows overlap, all tokens of an entity are taken from the same window: among the windows
//! with enough context on both sides, the one with the best score.

use std::ops::Range;

/// The boundary before a token, in the order of preference for a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Boundary {
    /// The token continues a word.
    Inside,
    /// The token begins a word right after another, as punctuation does.
    Word,
    /// White space stands before the token.
    Space,
}

/// The last part of a window, as a fraction of its room, in which the best cut is looked for.
const SLACK_PARTS: usize = 8;

/// The windows over tokens with these boundaries before them: each of at most `room` tokens, and neighbours with at least `stride`
/// tokens in common, as far as words allow. One window where all tokens fit.
///
/// `room` is at least 1, `stride` at most half of it.
pub fn windows(boundaries: &[Boundary], room: usize, stride: usize) -> Vec<Range<usize>> {
    let (count, slack) = (boundaries.len(), room / SLACK_PARTS);
    let mut windows = Vec::new();
    let (mut start, mut end) = (0, 0);
    while count - start > room {
        end = cut(boundaries, start.max(end) + 1..start + room + 1, slack).unwrap_or(start + room);
        windows.push(start..end);
        // Each window begins after the previous one, even if a word is longer than the stride.
        let last = end.saturating_sub(stride).max(start + 1);
        let next = cut(boundaries, start + 1..last + 1, slack).unwrap_or(last);
        // If the next word does not fit after the overlap, the next window begins with that word, without an overlap.
        let fits = count - next <= room || cut(boundaries, end + 1..next + room + 1, slack).is_some();
        start = if fits || boundaries[end] == Boundary::Inside { next } else { end };
    }
    windows.push(start..count);
    windows
}

/// The best position to cut among `at`, the last of equal ones: at white space in the last `slack` positions, else
/// between words there, else between words anywhere.
fn cut(boundaries: &[Boundary], at: Range<usize>, slack: usize) -> Option<usize> {
    let near = at.end.saturating_sub(slack + 1).max(at.start)..at.end;
    let last = |mut range: Range<usize>, least: Boundary| range.rfind(|at| boundaries[*at] >= least);
    last(near.clone(), Boundary::Space).or_else(|| last(near, Boundary::Word)).or_else(|| last(at, Boundary::Word))
}

/// The prediction of a window for a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenPrediction {
    /// The score of its label.
    pub score: f32,
    /// Whether the token belongs to the same entity as the one before.
    pub continues: bool,
}

/// The predictions of overlapping windows.
pub struct Overlap<'a> {
    /// The windows, in order.
    pub windows: &'a [Range<usize>],
    /// The predictions of each window, one per token.
    pub predictions: &'a [Vec<TokenPrediction>],
    /// Whether each token continues a word.
    pub continues_word: &'a [bool],
    /// The intended overlap of neighbouring windows, in tokens.
    pub stride: usize,
}

impl Overlap<'_> {
    /// The index of the window whose prediction is used, for each token.
    pub fn choose(&self) -> Vec<usize> {
        // Tokens that any window joins stay together.
        let mut joined = self.continues_word.to_vec();
        for (window, predictions) in self.windows.iter().zip(self.predictions) {
            for (at, prediction) in window.clone().zip(predictions).skip(1) {
                joined[at] |= prediction.continues;
            }
        }
        let mut chosen = vec![0; joined.len()];
        let mut first = 0;
        for block in blocks(0..joined.len(), &joined) {
            // Windows that end before this block end before all later blocks.
            while first + 1 < self.windows.len() && self.windows[first].end <= block.start {
                first += 1;
            }
            if let Some(window) = self.best(&block, first) {
                chosen[block].fill(window);
                continue;
            }
            // No window contains all of an entity that is longer than a window: the window is chosen for each of its
            // words, and for each token of a word that is longer than a window.
            for word in blocks(block, self.continues_word) {
                match self.best(&word, first) {
                    Some(window) => chosen[word].fill(window),
                    None => word.for_each(|at| chosen[at] = self.best(&(at..at + 1), first).unwrap_or(first)),
                }
            }
        }
        chosen
    }

    /// The best window for a block, of those from `first` on that contain all of it: the one with the most context,
    /// counted up to a quarter of the stride, between the block and the edges of the window; among equal ones that with
    /// the best mean score.
    fn best(&self, block: &Range<usize>, first: usize) -> Option<usize> {
        let last = self.windows.len() - 1;
        let candidates = (first..=last)
            .take_while(|at| self.windows[*at].start <= block.start)
            .filter(|at| self.windows[*at].end >= block.end);
        let judged = candidates.map(|at| {
            let window = &self.windows[at];
            let before = if at == 0 { usize::MAX } else { block.start - window.start };
            let after = if at == last { usize::MAX } else { window.end - block.end };
            let context = before.min(after).min((self.stride / 4).max(1));
            let scores = &self.predictions[at][block.start - window.start..block.end - window.start];
            let score = scores.iter().map(|prediction| f64::from(prediction.score)).sum::<f64>() / scores.len() as f64;
            (at, context, score)
        });
        let better = |best: (usize, usize, f64), next: (usize, usize, f64)| match (next.1, next.2) > (best.1, best.2) {
            true => next,
            false => best,
        };
        judged.reduce(better).map(|(at, ..)| at)
    }
}

/// Splits tokens into runs of joined tokens.
fn blocks(tokens: Range<usize>, joined: &[bool]) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for at in tokens {
        match blocks.last_mut() {
            Some(block) if joined[at] => block.end = at + 1,
            _ => blocks.push(at..at + 1),
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Boundary::{Inside, Space, Word};

    #[test]
    fn short_text_is_one_window() {
        assert_eq!(windows(&[Space; 8], 8, 2), vec![0..8; 1]);
        assert_eq!(windows(&[], 8, 2), vec![0..0; 1]);
    }

    #[test]
    fn windows_overlap_and_are_cut_at_white_space() {
        assert_eq!(windows(&[Space; 20], 8, 2), [0..8, 6..14, 12..20]);
        let mut boundaries = [Space; 20];
        boundaries[8] = Word;
        boundaries[5..8].fill(Inside);
        // A cut at 8 is between words, but white space is near.
        assert_eq!(windows(&boundaries, 8, 2)[0], 0..8);
        boundaries[8] = Inside;
        assert_eq!(windows(&boundaries, 8, 2)[..2], [0..4, 2..10]);
    }

    #[test]
    fn word_longer_than_a_window_is_cut() {
        let windows = windows(&[Inside; 30], 8, 2);
        assert_eq!(windows[0], 0..8);
        assert!(windows.windows(2).all(|pair| pair[0].start < pair[1].start && pair[1].start <= pair[0].end));
        assert_eq!(windows.last().map(|window| window.end), Some(30));
    }

    fn choose(
        windows: &[Range<usize>],
        predictions: &[Vec<TokenPrediction>],
        continues_word: &[bool],
        stride: usize,
    ) -> Vec<usize> {
        Overlap { windows, predictions, continues_word, stride }.choose()
    }

    fn predictions(scores: &[(f32, bool)]) -> Vec<TokenPrediction> {
        scores.iter().map(|&(score, continues)| TokenPrediction { score, continues }).collect()
    }

    #[test]
    fn entity_is_read_in_the_window_with_the_better_score() {
        let windows = [0..8, 4..12];
        let mut first = vec![(0.5, false); 8];
        let mut second = vec![(0.4, false); 8];
        // Tokens 5 and 6 are an entity in both; the second window has the higher score.
        (first[5], first[6]) = ((0.6, false), (0.6, true));
        (second[1], second[2]) = ((0.9, false), (0.9, true));
        let chosen = choose(&windows, &[predictions(&first), predictions(&second)], &[false; 12], 4);
        assert_eq!(chosen, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn entity_cut_by_an_edge_is_read_in_the_other_window() {
        let windows = [0..8, 4..12];
        let mut first = vec![(0.5, false); 8];
        let mut second = vec![(0.4, false); 8];
        // The second window begins within the entity 3..6, and has a high score.
        (first[4], first[5]) = ((0.5, true), (0.5, true));
        (second[0], second[1]) = ((0.99, false), (0.99, true));
        let chosen = choose(&windows, &[predictions(&first), predictions(&second)], &[false; 12], 4);
        assert_eq!(chosen[3..6], [0, 0, 0]);
    }

    #[test]
    fn entity_longer_than_a_window_is_read_word_by_word() {
        let windows = [0..4, 2..6, 4..8];
        let all = vec![predictions(&[(0.5, true); 4]); 3];
        let continues_word = [false, true, false, true, false, true, false, true];
        let chosen = choose(&windows, &all, &continues_word, 2);
        assert_eq!(chosen.len(), 8);
        assert!(chosen.iter().enumerate().all(|(token, window)| windows[*window].contains(&token)), "{chosen:?}");
        assert!(chosen.chunks(2).all(|word| word[0] == word[1]), "{chosen:?}");
        let chosen = choose(&windows, &all, &[true; 8], 2);
        assert!(chosen.iter().enumerate().all(|(token, window)| windows[*window].contains(&token)), "{chosen:?}");
    }

    proptest! {
        #[test]
        fn windows_cover_all_tokens_and_overlap(
            boundaries in proptest::collection::vec(prop_oneof![1 => Just(Inside), 1 => Just(Word), 2 => Just(Space)], 0..300),
            room in 1usize..40,
            part in 0usize..=4,
        ) {
            let stride = room / 2 * part / 4;
            let ranges = windows(&boundaries, room, stride);
            prop_assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, boundaries.len()));
            prop_assert!(ranges.iter().all(|window| window.len() <= room));
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].start < pair[1].start && pair[1].start <= pair[0].end && pair[0].end < pair[1].end, "{:?}", ranges);
            }
            // The chosen window contains the token, and all tokens of a word that fits a window are from the same one.
            let continues_word: Vec<bool> = boundaries.iter().map(|boundary| *boundary == Inside).collect();
            let predictions: Vec<Vec<TokenPrediction>> = ranges
                .iter()
                .map(|window| window.clone().map(|at| TokenPrediction { score: (at % 7) as f32, continues: at % 5 == 0 }).collect())
                .collect();
            let chosen = choose(&ranges, &predictions, &continues_word, stride);
            prop_assert!(chosen.iter().enumerate().all(|(token, window)| ranges[*window].contains(&token)));
            for word in blocks(0..boundaries.len(), &continues_word) {
                if ranges.iter().any(|window| window.start <= word.start && word.end <= window.end) {
                    prop_assert!(chosen[word.clone()].iter().all(|window| *window == chosen[word.start]), "{:?}", word);
                }
            }
        }
    }
}
