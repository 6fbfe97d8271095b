//! The steps that run a model on one text, and their results.

use crate::{
    failure::Failure,
    inference::chunk::{self, Offsets},
};

/// A text must be longer than this many code points to be summarized.
pub const SUMMARY_CODE_POINTS_OVER: usize = 100;

/// A step that runs a model on a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextStep {
    /// The best label of each chunk.
    Sentiment,
    /// A summary of the whole text.
    Summarization,
    /// The named entities of the whole text.
    Entities,
}

/// The output of a model for a text.
#[derive(Debug, Clone, PartialEq)]
pub enum TextOutput {
    /// The best label and its score.
    Label {
        /// The model's name of the label.
        label: String,
        /// Its score.
        score: f32,
    },
    /// A summary.
    Summary(String),
    /// Entities in the order of the text.
    Entities(Vec<Span>),
}

/// A labelled span, in code points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its label.
    pub label: String,
    /// The index of the first code point.
    pub start: u32,
    /// The index after the last code point.
    pub end: u32,
}

/// The sentiment of a chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkSentiment {
    /// The chunk's number, from 1.
    pub chunk: usize,
    /// `POSITIVE`, `NEGATIVE`, `NEUTRAL`, or a label of the model in capitals.
    pub sentiment: String,
    /// The score of the label.
    pub confidence: f32,
}

/// An entity with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// The slice of the text.
    pub text: String,
    /// Its label.
    pub label: String,
    /// The index of the first code point.
    pub start: u32,
    /// The index after the last code point.
    pub end: u32,
}

/// The code points of a summary divided by those of its text, `text_length`.
pub fn compression(summary: &str, text_length: usize) -> f64 {
    chunk::code_points(summary) as f64 / text_length as f64
}

/// Spans with their slices of the text.
///
/// # Errors
///
/// A span is outside the text, which is a failure of the model.
pub fn locate(text: &str, spans: Vec<Span>) -> Result<Vec<Entity>, Failure> {
    let offsets = Offsets::new(text);
    let entity = |Span { label, start, end }| {
        let outside = || Failure::Other(format!("the model put an entity at {start}..{end}, outside the text"));
        let text = offsets.slice(text, start as usize, end as usize).ok_or_else(outside)?.to_owned();
        Ok(Entity { text, label, start, end })
    };
    spans.into_iter().map(entity).collect()
}

/// The failure for a result of the wrong kind, or of a failed step.
pub fn unexpected(result: Result<TextOutput, Failure>) -> Failure {
    match result {
        Err(failure) => failure,
        Ok(_) => Failure::Other("the model answered something that was not asked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_are_slices_by_code_point() {
        let text = "😀 Zoë\u{301} 👨\u{200d}👩 met";
        let span = |start, end| Span { label: "PER".to_owned(), start, end };
        let entities = locate(text, vec![span(2, 6), span(7, 10), span(11, 14)]).unwrap();
        let texts: Vec<&str> = entities.iter().map(|entity| entity.text.as_str()).collect();
        assert_eq!(texts, ["Zoë\u{301}", "👨\u{200d}👩", "met"]);
    }

    #[test]
    fn entity_outside_the_text_is_a_failure() {
        for (start, end) in [(0, 99), (5, 4), (u32::MAX, u32::MAX)] {
            let spans = vec![Span { label: "PER".to_owned(), start, end }];
            assert!(matches!(locate("ten points", spans), Err(Failure::Other(_))), "{start}..{end}");
        }
    }

    #[test]
    fn compression_counts_code_points() {
        assert_eq!(compression(&"é".repeat(50), 200), 0.25);
    }
}
