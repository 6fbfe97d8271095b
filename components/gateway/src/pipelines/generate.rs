//! Steps that generate text. Each piece is a part of the output, so that it is sent with the next events of the
//! execution.

use weir_codec::{
    generation::{
        event::{Finish, GenerationEvent},
        request::{GenerateRequest, Prompt, Sampling},
    },
    pipelines::{output, template},
};
use weir_core::{
    failure::Failure,
    pipelines::{Json, Kind, StepFailure},
    wording::counted,
};

use super::attempt::Attempt;
use crate::{
    generation::client::{self, Computation, Progress},
    platform::clock,
};

impl Attempt<'_> {
    /// Generates text from the template of the step, with the values of its input.
    pub(super) async fn generate(&self, input: &Json) -> Result<Json, StepFailure> {
        let Kind::Generate { model, template, system, tokens_max, temperature_thousandths, seed } = &self.task.kind
        else {
            return Err(StepFailure::last("internal", "the step generates no text"));
        };
        let parts = template::parts(template).map_err(|error| StepFailure::last("expression_failed", error))?;
        let mut text = String::new();
        for part in parts {
            match part {
                template::TemplatePart::Text(part) => text.push_str(part),
                template::TemplatePart::Expression(expression) => {
                    text.push_str(&template::value_text(&self.evaluate(expression, input).await?));
                }
            }
        }
        let request = GenerateRequest {
            sampling: Sampling {
                temperature: temperature_thousandths.map(|thousandths| thousandths as f32 / 1000.0),
                seed: *seed,
                ..Sampling::default()
            },
            tokens_max: *tokens_max,
            ..GenerateRequest::new(Prompt::chat(system.as_deref(), &text))
        };
        let failed = |failure: Failure| StepFailure::from(&failure);
        let model = client::choose_model(model.clone(), clock::now()).await;
        let model = model.map_err(|problem| StepFailure::passing("model_unavailable", problem.detail))?;
        let deadline_ms = u32::try_from(self.task.timeout_ms).ok();
        // An execution belongs to no request.
        let mut computation = Computation::start(request, model, deadline_ms, true).await;
        let begun = computation.wait_begun().await.map_err(failed)?;
        let mut progress = Progress::new(&begun, 1);
        let (mut text_so_far, mut pieces) = (String::new(), 0_u64);
        while let Some(kinds) = computation.next().await {
            for kind in kinds {
                match progress.event(kind) {
                    Some(Ok(GenerationEvent::Token(token))) => {
                        text_so_far.push_str(&token.text);
                        pieces += 1;
                        let done = tokens_max.map_or(0.0, |max| (pieces as f64 / f64::from(max)).min(1.0));
                        self.running.progress(self.run, done, &counted(pieces, "piece").to_string());
                        self.running.part(self.run, output::generated_part(&token.text)).await?;
                    }
                    Some(Ok(GenerationEvent::Done(done))) => {
                        let finish: Finish = done.finish_reason;
                        return Ok(output::generated(&text_so_far, finish, &done.usage.unwrap_or_default()));
                    }
                    Some(Ok(_)) | None => {}
                    Some(Err(failure)) => return Err(failed(failure)),
                }
            }
        }
        Err(failed(client::lost()))
    }
}
