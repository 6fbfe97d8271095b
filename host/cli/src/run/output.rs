//! Results as JSON lines.

use serde::Serialize;
use weir_runtime::runtime::{failure_code, failure_text};
use weir_runtime::types::{Entity, Failure, LabelScore, Output};

use super::Work;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The best label and its score.
    Label,
    /// Several labels with their scores.
    Scores,
    /// What the task gives.
    Plain,
}

/// A line to print.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) index: u64,
    pub(crate) json: String,
    pub(crate) failed: bool,
}

#[derive(Serialize)]
struct Best<'a> {
    index: u64,
    label: &'a str,
    score: f64,
}

#[derive(Serialize)]
struct Scores<'a> {
    index: u64,
    scores: Vec<Score<'a>>,
}

#[derive(Serialize)]
struct Score<'a> {
    label: &'a str,
    score: f64,
}

#[derive(Serialize)]
struct Entities<'a> {
    index: u64,
    entities: Vec<Span<'a>>,
}

#[derive(Serialize)]
struct Span<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity: Option<&'a str>,
    score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u32>,
    word: &'a str,
    start: u32,
    end: u32,
}

#[derive(Serialize)]
struct Embedding {
    index: u64,
    embedding: Vec<f64>,
}

#[derive(Serialize)]
struct Summary<'a> {
    index: u64,
    summary: &'a str,
}

#[derive(Serialize)]
struct Failed<'a> {
    index: u64,
    error: Reason<'a>,
}

#[derive(Serialize)]
struct Reason<'a> {
    code: &'a str,
    message: &'a str,
}

impl Form {
    pub(super) fn of(work: Work, several: bool) -> Self {
        match work {
            Work::Sentiment if several => Self::Scores,
            Work::Sentiment => Self::Label,
            _ => Self::Plain,
        }
    }

    pub(crate) fn render(self, index: u64, output: Output) -> Rendered {
        let json = match &output {
            Output::Labels(labels) => match labels.first() {
                Some(LabelScore { label, score }) if self == Self::Label => {
                    json(&Best { index, label, score: f64::from(*score) })
                }
                _ => json(&Scores { index, scores: labels.iter().map(score).collect() }),
            },
            Output::Entities(entities) => json(&Entities { index, entities: entities.iter().map(span).collect() }),
            Output::Embedding(vector) => {
                json(&Embedding { index, embedding: vector.iter().copied().map(f64::from).collect() })
            }
            Output::Summary(summary) => json(&Summary { index, summary }),
        };
        Rendered { index, json, failed: false }
    }
}

impl Rendered {
    pub(crate) fn failure(index: u64, failure: &Failure) -> Self {
        let error = Reason { code: failure_code(failure), message: &failure_text(failure) };
        Self { index, json: json(&Failed { index, error }), failed: true }
    }
}

fn score(label: &LabelScore) -> Score<'_> {
    Score { label: &label.label, score: f64::from(label.score) }
}

fn span(entity: &Entity) -> Span<'_> {
    let label = entity.label.as_str();
    let grouped = entity.index.is_none();
    Span {
        entity_group: grouped.then_some(label),
        entity: (!grouped).then_some(label),
        score: f64::from(entity.score),
        token: entity.index,
        word: &entity.word,
        start: entity.start,
        end: entity.end,
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("records of strings and numbers can be written")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn scores_are_the_f64_of_the_f32() {
        let labels = Output::Labels(vec![LabelScore { label: "positive".into(), score: 0.999_865_65 }]);
        let line = Form::Label.render(0, labels);
        expect![[r#"{"index":0,"label":"positive","score":0.9998656511306763}"#]].assert_eq(&line.json);
    }

    #[test]
    fn a_failure_is_a_line() {
        let line = Rendered::failure(3, &Failure::UnknownModel("x".into()));
        expect![[r#"{"index":3,"error":{"code":"unknown_model","message":"no model named \"x\" is served here"}}"#]]
            .assert_eq(&line.json);
    }
}
