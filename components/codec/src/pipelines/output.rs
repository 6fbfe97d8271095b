//! The outputs of steps on texts. The output of a step that `/process-stream` also has equals its event without `status`, byte by byte.
//!
//! | step | output | parts |
//! |---|---|---|
//! | `chunk` | `{"chunks": ["…", …]}` | |
//! | `sentiment` | `{"overall_sentiment", "chunk_sentiments", "positive_chunks", "negative_chunks"}` | per chunk, in order: `{"progress", "chunk_result": {"chunk", "sentiment", "confidence"}}` |
//! | `summary` | `{"summary", "compression_ratio"}` | |
//! | `entities` | `{"entities", "entity_types", "total_entities"}` | |
//! | `embed` | `{"embeddings": [[…], …], "dimensions"}` | |
//! | `annotate` | `{"outputs": [{…}, …]}`, a block for each text | |
//! | `generate` | `{"text", "finish_reason", "usage"}` | per piece: `{"text"}` |

use std::num::NonZeroUsize;

use weir_core::{
    failure::Failure,
    inference::{
        chunk,
        rewrite::SummaryText,
        tally::{Tally, sentiment_label},
        text_step::{ChunkSentiment, TextOutput, compression, locate, unexpected},
    },
    pipelines::Json,
    transcripts::Annotation,
};

use super::writer::{object, value};
use crate::{
    generation::event::{Finish, Usage},
    pipelines::process_event::{self, ProcessEvent},
    transcripts::{
        annotate_stream::blocks_json,
        semantic::{SemanticParts, TextInput},
    },
};

/// The output of a `chunk` step.
pub fn chunks(text: &str, chunk_size: u32) -> Json {
    let size = NonZeroUsize::new(chunk_size as usize).unwrap_or(NonZeroUsize::MIN);
    let chunks: Vec<&str> = chunk::split(text, size).collect();
    Json::from_checked(object(|out| {
        out.value("chunks", &chunks);
    }))
}

/// The output of a `summary` step.
pub fn summary(summary: SummaryText, text: &str) -> Json {
    let SummaryText { text: summary, mode, fallback } = summary;
    let compression_ratio = compression(&summary, chunk::code_points(text));
    let fallback = fallback.map(|refusal| refusal.to_string());
    body(&ProcessEvent::SummarizationComplete { summary, compression_ratio, mode, fallback })
}

/// The sentences of a summary, from the answer of the model that chooses them.
pub fn sentences(answer: Result<TextOutput, Failure>) -> Result<String, Failure> {
    match answer {
        Ok(TextOutput::Summary(sentences)) => Ok(sentences),
        other => Err(unexpected(other)),
    }
}

/// The output of an `entities` step.
pub fn entities(outcome: Result<TextOutput, Failure>, text: &str) -> Result<Json, Failure> {
    match outcome {
        Ok(TextOutput::Entities(spans)) => Ok(body(&ProcessEvent::EntitiesComplete { entities: locate(text, spans)? })),
        other => Err(unexpected(other)),
    }
}

/// The output of an `embed` step, a vector for each text, written in parts.
#[derive(Debug, Default)]
pub struct Embeddings {
    /// The vectors so far, without the brackets around them.
    vectors: String,
    dimensions: Option<usize>,
}

impl Embeddings {
    /// Appends vectors.
    pub fn push(&mut self, vectors: &[Vec<f32>]) {
        for vector in vectors {
            if self.dimensions.is_some() {
                self.vectors.push(',');
            }
            value(&mut self.vectors, vector);
            self.dimensions.get_or_insert(vector.len());
        }
    }

    /// The length of the vectors so far, in bytes.
    pub fn bytes(&self) -> usize {
        self.vectors.len()
    }

    /// The output.
    pub fn finish(self) -> Json {
        let Self { vectors, dimensions } = self;
        Json::from_checked(format!(r#"{{"embeddings":[{vectors}],"dimensions":{}}}"#, dimensions.unwrap_or(0)))
    }
}

/// The output of an `annotate` step: `outputs` in the form of `/v1/annotate`.
pub fn annotations(parts: SemanticParts, texts: &[TextInput], annotations: &[Annotation]) -> Json {
    let blocks = blocks_json(parts, texts, annotations);
    Json::from_checked(String::from_utf8(blocks).expect("serde_json writes UTF-8, on one line"))
}

/// The output of a `generate` step.
pub fn generated(text: &str, finish: Finish, usage: &Usage) -> Json {
    Json::from_checked(object(|out| {
        out.value("text", text).value("finish_reason", &finish).value("usage", usage);
    }))
}

/// A piece of the output of a `generate` step.
pub fn generated_part(text: &str) -> Json {
    Json::from_checked(object(|out| {
        out.value("text", text);
    }))
}

/// The state of a `sentiment` step: outcomes arrive in any order, parts are returned in the order of the chunks.
#[derive(Debug)]
pub struct Sentiments {
    outcomes: Vec<Option<Result<TextOutput, Failure>>>,
    results: Vec<ChunkSentiment>,
    tally: Tally,
    is_over: bool,
}

/// An output of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepOutput {
    /// A part of its output.
    Part(Json),
    /// The complete output.
    Finished(Json),
    /// The failure of the step; the last output.
    Failed(Failure),
}

impl Sentiments {
    /// A step with this number of chunks.
    pub fn new(chunks: usize) -> Self {
        let outcomes = std::iter::repeat_with(|| None).take(chunks).collect();
        Self { outcomes, results: Vec::with_capacity(chunks), tally: Tally::default(), is_over: false }
    }

    /// Records the outcome of a chunk, numbered from 0. Only the first outcome of each chunk counts.
    pub fn handle_outcome(&mut self, chunk: usize, outcome: Result<TextOutput, Failure>) {
        if let Some(slot) = self.outcomes.get_mut(chunk) {
            slot.get_or_insert(outcome);
        }
    }

    /// The next output, or `None` until another outcome arrives.
    pub fn poll(&mut self) -> Option<StepOutput> {
        let next = self.results.len();
        if self.is_over {
            return None;
        }
        if next == self.outcomes.len() {
            self.is_over = true;
            let (chunks, tally) = (std::mem::take(&mut self.results), self.tally);
            return Some(StepOutput::Finished(body(&ProcessEvent::SentimentComplete {
                overall: tally.overall(),
                chunks,
                tally,
            })));
        }
        match self.outcomes[next].clone()? {
            Ok(TextOutput::Label { label, score }) => {
                let sentiment = sentiment_label(&label);
                self.tally.record(&sentiment);
                let result = ChunkSentiment { chunk: next + 1, sentiment, confidence: score };
                self.results.push(result.clone());
                Some(StepOutput::Part(body(&ProcessEvent::SentimentProgress { result, chunks: self.outcomes.len() })))
            }
            other => {
                self.is_over = true;
                Some(StepOutput::Failed(unexpected(other)))
            }
        }
    }
}

/// An event of `/process-stream` without its status.
fn body(event: &ProcessEvent) -> Json {
    let line = String::from_utf8(process_event::to_json(event)).expect("serde_json writes UTF-8");
    let tag = format!(r#"{{"status":"{}","#, process_event::status(event));
    let rest = line.strip_prefix(&tag).expect("an event begins with its status, and these events have further members");
    Json::from_checked(format!("{{{rest}"))
}
