//! The response of `/process-batch`, collected from the events of its pipeline.

use serde::{Deserialize, Serialize};
use weir_core::{
    inference::text_step::TextStep,
    pipelines::{Data, Definition, Event, Json, StepFailure},
};

use super::{process_event::seconds, process_stream::STEPS};
use crate::json::to_vec;

/// The response of `/process-batch`, collected from the events of a pipeline whose text is one chunk. Results that were not requested
/// are absent.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "BatchAnswer"))]
pub struct BatchResponse {
    /// The sentiment of the text, truncated to the maximum length of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentiment: Option<BatchSentiment>,
    /// The summary; only for a text longer than 100 code points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// `extractive` or `abstractive`, where the request asked for a mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary_mode: Option<String>,
    /// Why the summary is extractive although the request asked for an abstractive one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary_fallback: Option<String>,
    /// In the order of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entities: Option<Vec<BatchEntity>>,
    /// Seconds from the request to the response.
    pub processing_time: f64,
}

/// The sentiment of a text.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BatchSentiment {
    /// POSITIVE, NEGATIVE, NEUTRAL, or a label of the model in capitals.
    pub label: String,
    /// The score of the label.
    pub confidence: f32,
}

/// An entity of a text.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BatchEntity {
    /// The slice of the text.
    pub text: String,
    /// Its label.
    pub label: String,
    /// First code point of the span.
    pub start: u32,
    /// Code point after the span.
    pub end: u32,
}

impl BatchResponse {
    /// The body.
    pub fn to_json(&self) -> Vec<u8> {
        to_vec(self)
    }
}

/// The first failure of a batch, with its step; `None` for a failure of the whole execution.
pub type BatchFailure = (Option<TextStep>, StepFailure);

/// Collects the events of an execution of [`super::process_stream::definition`] whose text is one chunk.
///
/// The result is the complete response or the failure of the first failed step, in the order of `STEPS`.
#[derive(Debug)]
pub struct BatchCollector {
    /// The state of each step; `None` for a step that was not requested.
    steps: [Option<BatchStepState>; STEPS.len()],
    result: Option<Result<BatchResponse, BatchFailure>>,
}

#[derive(Debug)]
enum BatchStepState {
    Running,
    Complete(Json),
    Failed(StepFailure),
}

impl BatchCollector {
    /// A collector for an execution of a definition.
    pub fn new(definition: &Definition) -> Self {
        let has = |id: &str| definition.steps().iter().any(|step| *step.task.id == *id);
        Self { steps: STEPS.map(|(id, _)| has(id).then_some(BatchStepState::Running)), result: None }
    }

    /// Handles an event; events must be in the order of their sequence.
    pub fn handle_event(&mut self, event: &Event) {
        if self.result.is_some() {
            return;
        }
        let step = event.step_id.as_deref().and_then(|id| STEPS.iter().position(|(step, _)| *step == id));
        match (&event.data, step) {
            (Data::StepComplete { output, .. }, Some(at)) => {
                self.steps[at] = Some(BatchStepState::Complete(output.clone()))
            }
            (Data::StepError { failure, retry_in_ns: None, .. }, Some(at)) => {
                self.steps[at] = Some(BatchStepState::Failed(failure.clone()));
            }
            (Data::PipelineError { failure, .. }, _) => self.result = Some(Err((None, failure.failure.clone()))),
            (Data::PipelineComplete { duration_ns, .. }, _) => self.result = Some(self.response(*duration_ns)),
            _ => {}
        }
        // A completed step may be followed by one that failed earlier.
        if self.result.is_none() {
            self.result = self.first_failure().map(Err);
        }
    }

    /// The response or the first failure, once there is one.
    pub fn poll_result(&mut self) -> Option<Result<BatchResponse, BatchFailure>> {
        self.result.take()
    }

    /// The failure of the first step that is not completed, if it has failed.
    fn first_failure(&self) -> Option<BatchFailure> {
        for ((_, step), state) in STEPS.iter().zip(&self.steps) {
            match state {
                Some(BatchStepState::Running) => return None,
                Some(BatchStepState::Failed(failure)) => return Some((Some(*step), failure.clone())),
                Some(BatchStepState::Complete(_)) | None => {}
            }
        }
        None
    }

    fn response(&self, duration_ns: u64) -> Result<BatchResponse, BatchFailure> {
        let [sentiment, summary, entities] = &self.steps;
        let sentiment = read::<SentimentOutput>(TextStep::Sentiment, sentiment.as_ref())?;
        let summary = read::<SummaryOutput>(TextStep::Summarization, summary.as_ref())?.unwrap_or_default();
        Ok(BatchResponse {
            sentiment: sentiment
                .and_then(|output| output.chunk_sentiments.into_iter().next())
                .map(BatchSentiment::from),
            summary: summary.summary,
            summary_mode: summary.summary_mode,
            summary_fallback: summary.summary_fallback,
            entities: read::<EntitiesOutput>(TextStep::Entities, entities.as_ref())?.map(|output| output.entities),
            processing_time: seconds(duration_ns),
        })
    }
}

/// The members of the output of `sentiment` that a batch reads.
#[derive(Deserialize)]
struct SentimentOutput {
    chunk_sentiments: Vec<ChunkOutput>,
}

#[derive(Deserialize)]
struct ChunkOutput {
    sentiment: String,
    /// Null when the score is not a number.
    confidence: Option<f32>,
}

impl From<ChunkOutput> for BatchSentiment {
    fn from(chunk: ChunkOutput) -> Self {
        Self { label: chunk.sentiment, confidence: chunk.confidence.unwrap_or(f32::NAN) }
    }
}

/// The members of the output of `summary` that a batch reads.
#[derive(Default, Deserialize)]
struct SummaryOutput {
    summary: Option<String>,
    summary_mode: Option<String>,
    summary_fallback: Option<String>,
}

/// The members of the output of `entities` that a batch reads.
#[derive(Deserialize)]
struct EntitiesOutput {
    entities: Vec<BatchEntity>,
}

/// The output of a step, which this crate wrote; `None` for a step that was not requested.
fn read<T: for<'de> Deserialize<'de>>(
    step: TextStep,
    state: Option<&BatchStepState>,
) -> Result<Option<T>, BatchFailure> {
    let Some(BatchStepState::Complete(output)) = state else { return Ok(None) };
    let failed = |error: serde_json::Error| (Some(step), StepFailure::last("inference_failed", error.to_string()));
    serde_json::from_str(output.as_str()).map(Some).map_err(failed)
}
