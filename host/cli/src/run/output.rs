//! Results as JSON lines.

use serde::Serialize;
use weir_codec::generation::event::Finish;
use weir_codec::inference::output::{Id, ItemError};
use weir_core::inference::rewrite::{SummaryMode, SummaryText};
use weir_runtime::inference::failure;
use weir_runtime::types::{Entity, Failure, LabelScore, Output};

use super::model::ModelTask;

/// The form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The best label and its score.
    Label,
    /// Several labels with their scores.
    Scores,
    /// The output of the task.
    Plain,
}

/// A line to print.
#[derive(Debug)]
pub(crate) struct OutputLine {
    pub(crate) index: u64,
    pub(crate) json: String,
    pub(crate) failed: bool,
}

/// The fields of every line: the index and the id of the input.
#[derive(Serialize)]
struct LineHeader {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Id>,
}

#[derive(Serialize)]
struct Line<T> {
    #[serde(flatten)]
    header: LineHeader,
    #[serde(flatten)]
    body: T,
}

#[derive(Serialize)]
struct Best<'a> {
    label: &'a str,
    score: f32,
}

#[derive(Serialize)]
struct Scores<'a> {
    scores: Vec<Score<'a>>,
}

#[derive(Serialize)]
struct Score<'a> {
    label: &'a str,
    score: f32,
}

#[derive(Serialize)]
struct Entities<'a> {
    entities: Vec<Span<'a>>,
}

#[derive(Serialize)]
struct Span<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity: Option<&'a str>,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u32>,
    word: &'a str,
    text: &'a str,
    start: u32,
    end: u32,
}

#[derive(Serialize)]
struct Embedding<'a> {
    embedding: &'a [f32],
}

#[derive(Serialize)]
struct Summary<'a> {
    summary: &'a str,
}

#[derive(Serialize)]
struct RewrittenSummary<'a> {
    summary: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary_fallback: Option<String>,
}

#[derive(Serialize)]
struct Generated<'a> {
    text: &'a str,
    finish_reason: Finish,
}

#[derive(Serialize)]
struct Failed<'a> {
    error: Reason<'a>,
}

#[derive(Serialize)]
struct Reason<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
}

impl Form {
    pub(super) fn of(task: ModelTask, several: bool) -> Self {
        match task {
            ModelTask::Sentiment if several => Self::Scores,
            ModelTask::Sentiment => Self::Label,
            _ => Self::Plain,
        }
    }

    pub(crate) fn render(self, index: u64, id: Option<Id>, output: Output) -> OutputLine {
        let header = LineHeader { index, id };
        let json = match &output {
            Output::Labels(labels) => match labels.first() {
                Some(LabelScore { label, score }) if self == Self::Label => line(header, Best { label, score: *score }),
                _ => line(header, Scores { scores: labels.iter().map(score).collect() }),
            },
            Output::Entities(entities) => line(header, Entities { entities: entities.iter().map(span).collect() }),
            Output::Embedding(embedding) => line(header, Embedding { embedding }),
            Output::Summary(summary) => line(header, Summary { summary }),
        };
        OutputLine { index, json, failed: false }
    }
}

impl OutputLine {
    /// A generated text.
    pub(crate) fn generated(index: u64, id: Option<Id>, text: &str, finish_reason: Finish) -> Self {
        Self { index, json: line(LineHeader { index, id }, Generated { text, finish_reason }), failed: false }
    }

    /// A summary that a language model was asked to rewrite.
    pub(crate) fn rewritten(index: u64, id: Option<Id>, summary: &SummaryText) -> Self {
        let body = RewrittenSummary {
            summary: &summary.text,
            summary_mode: summary.mode.map(SummaryMode::name),
            summary_fallback: summary.fallback.as_ref().map(ToString::to_string),
        };
        Self { index, json: line(LineHeader { index, id }, body), failed: false }
    }

    /// The failure of an input.
    pub(crate) fn failure(index: u64, id: Option<Id>, failure: &Failure) -> Self {
        let message = failure::text(failure);
        let reason = Reason { code: failure::code(failure), message: &message, field: None, line: None };
        Self::failed(LineHeader { index, id }, reason)
    }

    /// The error of an invalid line.
    pub(crate) fn refused(index: u64, id: Option<Id>, error: &ItemError) -> Self {
        let ItemError { code, message, field, line, .. } = error;
        Self::failed(LineHeader { index, id }, Reason { code, message, field: field.as_deref(), line: *line })
    }

    fn failed(header: LineHeader, error: Reason<'_>) -> Self {
        Self { index: header.index, json: line(header, Failed { error }), failed: true }
    }
}

fn score(label: &LabelScore) -> Score<'_> {
    Score { label: &label.label, score: label.score }
}

fn span(entity: &Entity) -> Span<'_> {
    let label = entity.label.as_str();
    let grouped = entity.index.is_none();
    Span {
        entity_group: grouped.then_some(label),
        entity: (!grouped).then_some(label),
        score: entity.score,
        token: entity.index,
        word: &entity.word,
        text: &entity.text,
        start: entity.start,
        end: entity.end,
    }
}

fn line(header: LineHeader, body: impl Serialize) -> String {
    serde_json::to_string(&Line { header, body }).expect("records of strings and numbers can be written")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn score_is_the_shortest_decimal_of_its_f32() {
        let labels = Output::Labels(vec![LabelScore { label: "positive".into(), score: 0.999_865_65 }]);
        let line = Form::Label.render(0, None, labels);
        expect![[r#"{"index":0,"label":"positive","score":0.99986565}"#]].assert_eq(&line.json);
        let line = Form::Plain.render(1, Some(Id::Number(7)), Output::Embedding(vec![0.1, -1e-9]));
        expect![[r#"{"index":1,"id":7,"embedding":[0.1,-1e-9]}"#]].assert_eq(&line.json);
    }

    #[test]
    fn failure_is_a_line() {
        let line = OutputLine::failure(3, None, &Failure::UnknownModel("x".into()));
        expect![[r#"{"index":3,"error":{"code":"unknown_model","message":"no model named `x` is served here"}}"#]]
            .assert_eq(&line.json);
        let error = ItemError { line: Some(9), ..ItemError::new("not_utf8", "line 9: it is not UTF-8") };
        let line = OutputLine::refused(4, Some(Id::Text("a".into())), &error);
        expect![[r#"{"index":4,"id":"a","error":{"code":"not_utf8","message":"line 9: it is not UTF-8","line":9}}"#]]
            .assert_eq(&line.json);
    }
}
