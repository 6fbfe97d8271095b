//! The sentiment of a text from the sentiments of its chunks.

/// The label of a neutral chunk or text.
pub const NEUTRAL: &str = "NEUTRAL";
/// The label of a positive chunk or text.
pub const POSITIVE: &str = "POSITIVE";
/// The label of a negative chunk or text.
pub const NEGATIVE: &str = "NEGATIVE";

/// The label for clients: `POSITIVE`, `NEGATIVE` or `NEUTRAL` for the model's names of these. Any other label (`joy`,
/// `3 stars`) is only converted to capitals.
pub fn sentiment_label(label: &str) -> String {
    match label.trim().to_ascii_lowercase().as_str() {
        "pos" => POSITIVE.to_owned(),
        "neg" => NEGATIVE.to_owned(),
        "neu" => NEUTRAL.to_owned(),
        _ => label.trim().to_uppercase(),
    }
}

/// Counts of positive and negative chunks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Chunks labelled `POSITIVE`.
    pub positive: usize,
    /// Chunks labelled `NEGATIVE`.
    pub negative: usize,
}

impl Tally {
    /// Counts one chunk by its label for clients.
    pub fn record(&mut self, label: &str) {
        match label {
            POSITIVE => self.positive += 1,
            NEGATIVE => self.negative += 1,
            _ => {}
        }
    }

    /// The label with more chunks; a tie, or a text without either, is neutral.
    pub fn overall(self) -> &'static str {
        match self.positive.cmp(&self.negative) {
            std::cmp::Ordering::Greater => POSITIVE,
            std::cmp::Ordering::Less => NEGATIVE,
            std::cmp::Ordering::Equal => NEUTRAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overall(labels: &[&str]) -> &'static str {
        let mut tally = Tally::default();
        for label in labels {
            tally.record(label);
        }
        tally.overall()
    }

    #[test]
    fn majority_wins_and_a_tie_is_neutral() {
        assert_eq!(overall(&[]), NEUTRAL);
        assert_eq!(overall(&[POSITIVE]), POSITIVE);
        assert_eq!(overall(&[NEGATIVE, NEGATIVE, POSITIVE]), NEGATIVE);
        assert_eq!(overall(&[NEGATIVE, POSITIVE]), NEUTRAL);
        assert_eq!(overall(&[NEUTRAL, NEUTRAL, POSITIVE]), POSITIVE);
        assert_eq!(overall(&[NEUTRAL, "JOY"]), NEUTRAL);
    }

    #[test]
    fn labels_are_written_in_capitals() {
        assert_eq!(sentiment_label("positive"), POSITIVE);
        assert_eq!(sentiment_label("Negative "), NEGATIVE);
        assert_eq!(sentiment_label("NEU"), NEUTRAL);
        assert_eq!(sentiment_label("5 stars"), "5 STARS");
        assert_eq!(sentiment_label("négatif"), "NÉGATIF");
    }
}
