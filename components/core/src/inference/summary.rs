//! Extractive summaries: the centrality of sentences, and the selection of the most central ones.
//!
//! Centrality is continuous LexRank: G. Erkan and D. Radev, "LexRank: Graph-based Lexical Centrality as Salience in
//! Text Summarization", Journal of Artificial Intelligence Research 22 (2004), section 3.3, with the cosine of
//! sentence embeddings in place of the idf-modified cosine. Sentences that repeat a chosen one are skipped, as
//! cross-sentence informational subsumption does in D. Radev, H. Jing and M. Budzikowska, "Centroid-based
//! summarization of multiple documents" (2000). All arithmetic is f64 in a fixed order: the same input always gives
//! the same summary.

/// The probability of following a similarity rather than jumping to any sentence.
const DAMPING: f64 = 0.85;
/// Power iteration ends when the sum of the changes of all scores is below this.
const CONVERGED: f64 = 1e-10;
/// Most power iterations. `0.85^150` is below [`CONVERGED`], so the bound is not reached.
const ITERATIONS_MAX: usize = 200;
/// Sentences with a cosine above this are redundant.
const REDUNDANT_COSINE: f64 = 0.9;

/// Cosines between all pairs of sentences; negative ones count as 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarity {
    count: usize,
    /// `[count, count]`, row by row.
    cells: Vec<f64>,
}

impl Similarity {
    /// The cosines of `vectors`, which all have the same dimension. A vector of length 0, or one that is not finite, is
    /// similar to itself only.
    pub fn cosine(vectors: &[Vec<f32>]) -> Self {
        let count = vectors.len();
        let unit: Vec<Vec<f64>> = vectors.iter().map(|vector| unit_vector(vector)).collect();
        let mut cells = vec![0.0; count * count];
        for row in 0..count {
            cells[row * count + row] = 1.0;
            for column in 0..row {
                let dot: f64 = unit[row].iter().zip(&unit[column]).map(|(a, b)| a * b).sum();
                let value = dot.clamp(0.0, 1.0);
                cells[row * count + column] = value;
                cells[column * count + row] = value;
            }
        }
        Self { count, cells }
    }

    /// The cosine of two sentences.
    pub fn between(&self, a: usize, b: usize) -> f64 {
        self.cells[a * self.count + b]
    }

    /// The continuous LexRank score of every sentence; the scores add up to 1.
    pub fn centrality(&self) -> Vec<f64> {
        let count = self.count;
        if count == 0 {
            return Vec::new();
        }
        let row_sums: Vec<f64> = self.cells.chunks_exact(count).map(|row| row.iter().sum()).collect();
        let uniform = 1.0 / count as f64;
        let mut scores = vec![uniform; count];
        for _ in 0..ITERATIONS_MAX {
            let mut next = vec![(1.0 - DAMPING) * uniform; count];
            for ((row, &score), &row_sum) in self.cells.chunks_exact(count).zip(&scores).zip(&row_sums) {
                // A row sum is at least 1: every sentence is similar to itself.
                let share = DAMPING * score / row_sum;
                for (cell, sum) in row.iter().zip(&mut next) {
                    *sum += share * cell;
                }
            }
            let change: f64 = scores.iter().zip(&next).map(|(old, new)| (old - new).abs()).sum();
            scores = next;
            if change < CONVERGED {
                break;
            }
        }
        scores
    }
}

fn unit_vector(vector: &[f32]) -> Vec<f64> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length.is_finite() && length > 0.0 {
        vector.iter().map(|&x| f64::from(x) / length).collect()
    } else {
        vec![0.0; vector.len()]
    }
}

/// The bounds of a summary, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SummaryBounds {
    /// At least this many, if the text has them.
    pub tokens_min: usize,
    /// At most this many.
    pub tokens_max: usize,
}

/// The sentences of a summary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// The sentences, in the order of the text.
    pub sentences: Vec<usize>,
    /// The one of `sentences` that must be cut, and its length in tokens after the cut.
    pub cut: Option<(usize, usize)>,
}

/// Chooses sentences by their centrality, given the number of tokens of each.
///
/// The most central are chosen first, until one does not fit in `tokens_max`. While fewer than `tokens_min` are chosen,
/// the search continues: first among sentences that fit, then among the redundant ones, and finally the best remaining
/// sentence is cut. Of equal sentences the earlier one is chosen. Sentences without tokens are never chosen.
pub fn select_sentences(similarity: &Similarity, tokens: &[usize], bounds: SummaryBounds) -> Selection {
    let scores = similarity.centrality();
    let mut ranked: Vec<usize> = (0..tokens.len()).filter(|&sentence| tokens[sentence] > 0).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));

    let mut chosen = Vec::new();
    let mut total = 0;
    let mut full = false;
    for allow_redundant in [false, true] {
        for &sentence in &ranked {
            if (full || allow_redundant) && total >= bounds.tokens_min {
                break;
            }
            let redundant = |&other: &usize| similarity.between(sentence, other) > REDUNDANT_COSINE;
            if chosen.contains(&sentence) || !allow_redundant && chosen.iter().any(redundant) {
                continue;
            }
            if total + tokens[sentence] <= bounds.tokens_max {
                total += tokens[sentence];
                chosen.push(sentence);
            } else {
                full = true;
            }
        }
    }

    let mut cut = None;
    if total < bounds.tokens_min || chosen.is_empty() {
        let budget = bounds.tokens_max - total;
        if let Some(&sentence) = ranked.iter().find(|sentence| !chosen.contains(sentence)).filter(|_| budget > 0) {
            chosen.push(sentence);
            cut = Some((sentence, budget));
        }
    }
    chosen.sort_unstable();
    Selection { sentences: chosen, cut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: SummaryBounds = SummaryBounds { tokens_min: 30, tokens_max: 130 };

    #[test]
    fn scores_are_the_stationary_distribution() {
        // Three sentences, of which the middle one is similar to both others: solved by hand from p = 0.15/3 + 0.85
        // Mᵀp.
        let similarity = Similarity { count: 3, cells: vec![1.0, 0.5, 0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0] };
        let scores = similarity.centrality();
        // By symmetry p = (x, y, x), 2x + y = 1 and x = 0.05 + 0.85 (x / 1.5 + y / 4).
        let x = (0.05 + 0.85 / 4.0) / (1.0 - 0.85 / 1.5 + 0.85 / 2.0);
        for (score, expected) in scores.iter().zip([x, 1.0 - 2.0 * x, x]) {
            assert!((score - expected).abs() < 1e-9, "{scores:?}");
        }
        assert!(scores[1] > scores[0]);
    }

    #[test]
    fn non_finite_vectors_have_no_similarity() {
        let similarity = Similarity::cosine(&[vec![f32::NAN, 1.0], vec![0.0, 0.0], vec![0.0, 2.0]]);
        assert_eq!(similarity.cells, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn repetition_of_a_chosen_sentence_is_skipped() {
        let vectors = [vec![1.0, 0.1, 0.0], vec![1.0, 0.1, 0.0], vec![0.7, 0.7, 0.1]];
        let selection = select_sentences(&Similarity::cosine(&vectors), &[40, 40, 40], BOUNDS);
        assert_eq!(selection, Selection { sentences: vec![0, 2], cut: None });
    }

    #[test]
    fn redundant_sentence_fills_a_short_summary() {
        let vectors = [vec![1.0, 0.0], vec![1.0, 0.0]];
        let selection = select_sentences(&Similarity::cosine(&vectors), &[20, 20], BOUNDS);
        assert_eq!(selection, Selection { sentences: vec![0, 1], cut: None });
    }

    #[test]
    fn sentence_over_the_bound_is_cut() {
        let vectors = [vec![1.0, 0.0], vec![0.9, 0.3]];
        let selection = select_sentences(&Similarity::cosine(&vectors), &[300, 10], BOUNDS);
        assert_eq!(selection, Selection { sentences: vec![0, 1], cut: Some((0, 120)) });
    }

    proptest! {
        #[test]
        fn summary_stays_within_its_bounds_and_in_order(
            sentences in prop::collection::vec((prop::collection::vec(-1.0f32..1.0, 3), 0usize..200), 0..20),
            tokens_min in 0usize..60,
            room in 0usize..100,
        ) {
            let (vectors, tokens): (Vec<_>, Vec<_>) = sentences.into_iter().unzip();
            let bounds = SummaryBounds { tokens_min, tokens_max: tokens_min + room + 1 };
            let similarity = Similarity::cosine(&vectors);
            let selection = select_sentences(&similarity, &tokens, bounds);
            let length = |&sentence: &usize| match selection.cut {
                Some((cut, budget)) if cut == sentence => budget.min(tokens[sentence]),
                _ => tokens[sentence],
            };
            let total: usize = selection.sentences.iter().map(length).sum();
            let has: usize = tokens.iter().sum();
            prop_assert!(total <= bounds.tokens_max);
            prop_assert!(total >= bounds.tokens_min.min(has), "{} of {}", total, has);
            prop_assert!(selection.sentences.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!((similarity.centrality().iter().sum::<f64>() - 1.0).abs() < 1e-9 || tokens.is_empty());
            prop_assert_eq!(&selection, &select_sentences(&similarity, &tokens, bounds));
        }
    }
}
