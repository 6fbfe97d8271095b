//! Encodes outputs as payloads.

use serde::Serialize;

use weir_core::transcripts::Annotation;

use super::{
    config::{AdapterConfig, OutputFormat, TaskKind},
    csv,
    decode::{Input, ItemMetadata},
};
use crate::{
    inference::output::{Entity, LabelScore},
    transcripts::semantic::{Semantic, SemanticParts},
};

/// The output of an item.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Of `classify`, best first.
    Labels(Vec<LabelScore>),
    /// Of `tokens`, in the order of the text.
    Entities(Vec<Entity>),
    /// Of `embed`.
    Embedding(Vec<f32>),
    /// Of `summarize`.
    Summary(String),
    /// Of `annotate`.
    Annotation(Annotation),
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    metadata: &'a ItemMetadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<&'a [LabelScore]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entities: Option<&'a [Entity]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    semantic: Option<Semantic<'a>>,
}

/// The semantic block of an item's text.
fn semantic<'a>(input: &'a Input, annotation: &'a Annotation) -> Option<Semantic<'a>> {
    Semantic::new(annotation, SemanticParts::ALL, 0, &input.text, None)
}

/// The payload of a result, without a line end.
pub fn encode(config: &AdapterConfig, input: &Input, output: &Output) -> Vec<u8> {
    match config.output {
        OutputFormat::Json => json(config, input, output),
        OutputFormat::Text => text(config, input, output).into_bytes(),
        OutputFormat::Csv => csv_row(config, input, output).into_bytes(),
    }
}

fn json(config: &AdapterConfig, input: &Input, output: &Output) -> Vec<u8> {
    let mut line = Line {
        metadata: &input.metadata,
        text: config.output_text.then_some(&input.text),
        label: None,
        score: None,
        scores: None,
        entities: None,
        embedding: None,
        summary: None,
        semantic: None,
    };
    match output {
        Output::Labels(labels) => match labels.first() {
            Some(best) if config.top_k == 1 => {
                (line.label, line.score) = (Some(best.label.as_str()), Some(best.score));
            }
            _ => line.scores = Some(labels),
        },
        Output::Entities(entities) => line.entities = Some(entities),
        Output::Embedding(embedding) => line.embedding = Some(embedding),
        Output::Summary(summary) => line.summary = Some(summary),
        Output::Annotation(annotation) => line.semantic = semantic(input, annotation),
    }
    crate::json::to_vec(&line)
}

/// The row with the names of the columns of a result in CSV, without a line end.
pub fn csv_columns(config: &AdapterConfig) -> String {
    let result: &[&str] = match config.task {
        TaskKind::Classify if config.top_k == 1 => &["label", "score"],
        TaskKind::Classify => &["scores"],
        TaskKind::Tokens => &["entities"],
        TaskKind::Embed => &["embedding"],
        TaskKind::Summarize => &["summary"],
        TaskKind::Annotate => &["semantic"],
        // Its results are events, which have no columns.
        TaskKind::Transcript => &[],
    };
    let text = config.output_text.then_some("text");
    csv::row(["id"].into_iter().chain(text).chain(result.iter().copied()), config.delimiter as u8)
}

fn csv_row(config: &AdapterConfig, input: &Input, output: &Output) -> String {
    let list = |value: Vec<u8>| String::from_utf8(value).expect("JSON is UTF-8");
    let mut cells = vec![input.metadata.id.as_ref().map(ToString::to_string).unwrap_or_default()];
    if config.output_text {
        cells.push(input.text.clone());
    }
    match output {
        Output::Labels(labels) => match labels.first() {
            Some(best) if config.top_k == 1 => cells.extend([best.label.clone(), best.score.to_string()]),
            _ => cells.push(list(crate::json::to_vec(labels))),
        },
        Output::Entities(entities) => cells.push(list(crate::json::to_vec(entities))),
        Output::Embedding(embedding) => cells.push(list(crate::json::to_vec(embedding))),
        Output::Summary(summary) => cells.push(summary.clone()),
        Output::Annotation(annotation) => cells.push(list(crate::json::to_vec(&semantic(input, annotation)))),
    }
    csv::row(cells.iter().map(String::as_str), config.delimiter as u8)
}

/// The result on one line of text; fields are separated by tabs.
fn text(config: &AdapterConfig, input: &Input, output: &Output) -> String {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut fields: Vec<String> = input.metadata.id.as_ref().map(ToString::to_string).into_iter().collect();
    match output {
        Output::Labels(labels) => {
            fields.extend(labels.iter().map(|label| format!("{} {:.4}", label.label, label.score)));
        }
        Output::Entities(entities) => fields.extend(entities.iter().map(|entity| {
            let label = entity.entity_group.as_deref().or(entity.entity.as_deref()).unwrap_or_default();
            format!("{label} {}", one_line(&entity.text))
        })),
        Output::Embedding(embedding) => {
            fields.push(embedding.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        }
        Output::Summary(summary) => fields.push(one_line(summary)),
        Output::Annotation(annotation) => {
            fields.extend(annotation.intent.map(|intent| intent.name().to_owned()));
            fields.push(annotation.risk_tags.join(" "));
            fields.push(annotation.keywords.join(" "));
        }
    }
    if config.output_text {
        fields.push(one_line(&input.text));
    }
    fields.join("\t")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::inference::output::Id;

    fn check(format: OutputFormat, top_k: u32, output: &Output, expect: Expect) {
        let config = AdapterConfig {
            output: format,
            top_k,
            output_text: format != OutputFormat::Json,
            ..AdapterConfig::default()
        };
        let metadata = ItemMetadata { id: Some(Id::Text("a,1".into())), language: None, user: Some("u".into()) };
        let input = Input { text: "one\ntwo".into(), text_pair: None, metadata };
        expect.assert_eq(&String::from_utf8(encode(&config, &input, output)).unwrap());
    }

    #[test]
    fn result_is_encoded_in_each_format() {
        let label = |label: &str, score| LabelScore { label: label.to_owned(), score };
        let labels = Output::Labels(vec![label("positive", 0.999_865_65), label("negative", 0.000_1)]);
        check(
            OutputFormat::Json,
            1,
            &labels,
            expect![[r#"{"id":"a,1","user":"u","label":"positive","score":0.99986565}"#]],
        );
        check(
            OutputFormat::Json,
            2,
            &labels,
            expect![[
                r#"{"id":"a,1","user":"u","scores":[{"label":"positive","score":0.99986565},{"label":"negative","score":0.0001}]}"#
            ]],
        );
        check(
            OutputFormat::Csv,
            1,
            &labels,
            expect![[r#"
            "a,1","one
            two",positive,0.99986565"#]],
        );
        check(OutputFormat::Text, 2, &labels, expect!["a,1\tpositive 0.9999\tnegative 0.0001\tone two"]);
        let entity = Entity::new("PER".into(), 0.5, None, ("Ada".into(), "Ada".into()), (0, 3));
        check(OutputFormat::Text, 1, &Output::Entities(vec![entity]), expect!["a,1\tPER Ada\tone two"]);
        check(
            OutputFormat::Json,
            1,
            &Output::Embedding(vec![0.1, -1e-9]),
            expect![[r#"{"id":"a,1","user":"u","embedding":[0.1,-1e-9]}"#]],
        );
        check(
            OutputFormat::Csv,
            1,
            &Output::Summary("s".into()),
            expect![[r#"
            "a,1","one
            two",s"#]],
        );
    }

    #[test]
    fn csv_row_has_a_cell_for_each_column() {
        for (task, output) in [
            (TaskKind::Classify, Output::Labels(vec![LabelScore { label: "l".into(), score: 0.5 }])),
            (TaskKind::Tokens, Output::Entities(Vec::new())),
            (TaskKind::Embed, Output::Embedding(vec![1.0, 2.0])),
            (TaskKind::Summarize, Output::Summary("a, b".into())),
        ] {
            let config = AdapterConfig { task, output: OutputFormat::Csv, ..AdapterConfig::default() };
            let input = Input { text: "t".into(), text_pair: None, metadata: ItemMetadata::default() };
            let row = encode(&config, &input, &output);
            let columns = csv_columns(&config);
            let count = |row: &[u8]| csv::fields(row, b',').unwrap().len();
            assert_eq!(count(&row), count(columns.as_bytes()), "{columns}");
        }
    }

    #[test]
    fn csv_output_has_the_delimiter_of_the_configuration() {
        let config = AdapterConfig {
            output: OutputFormat::Csv,
            delimiter: ';',
            output_text: true,
            top_k: 1,
            ..AdapterConfig::default()
        };
        let input = Input { text: "a; b, c".into(), text_pair: None, metadata: ItemMetadata::default() };
        let output = Output::Labels(vec![LabelScore { label: "l".into(), score: 0.5 }]);
        assert_eq!(csv_columns(&config), "id;text;label;score");
        assert_eq!(encode(&config, &input, &output), b";\"a; b, c\";l;0.5");
    }
}
