//! The sentences of a summary, rewritten by a language model.

use weir_codec::generation::{event::GenerationEvent, rewrite};
use weir_core::{
    failure::Failure,
    inference::rewrite::{RewriteRefusal, SummaryText},
};

use super::client::{self, Computation, Progress};
use crate::platform::clock::{self, Deadline};

/// Rewrites sentences within a time. If that fails, or the rewritten text has numbers or names that the sentences lack, the sentences are the
/// summary. The model is the first that is ready, at temperature 0.
pub(crate) async fn rewrite(sentences: String, timeout_ms: u64) -> SummaryText {
    let timeout = || RewriteRefusal::NoAnswer(format!("it took more than {timeout_ms} ms"));
    let rewriting = Deadline::after(clock::now(), timeout_ms).bound(generate(&sentences, timeout_ms)).await;
    SummaryText::rewritten(sentences, rewriting.unwrap_or_else(|| Err(timeout())))
}

async fn generate(sentences: &str, timeout_ms: u64) -> Result<String, RewriteRefusal> {
    let failed = |failure: &Failure| RewriteRefusal::NoAnswer(failure.to_string());
    let model = client::choose_model(None, clock::now()).await;
    let model = model.map_err(|problem| RewriteRefusal::NoAnswer(problem.detail))?;
    // It belongs to the session or the execution, whose request may end before it.
    let deadline_ms = u32::try_from(timeout_ms).ok();
    let mut computation = Computation::start(rewrite::request(sentences), model, deadline_ms, true).await;
    let begun = computation.wait_begun().await.map_err(|failure| failed(&failure))?;
    let mut progress = Progress::new(&begun, 1);
    let mut rewriting = String::new();
    while let Some(kinds) = computation.next().await {
        for event in kinds.into_iter().filter_map(|kind| progress.event(kind)) {
            match event.map_err(|failure| failed(&failure))? {
                GenerationEvent::Token(token) => rewriting.push_str(&token.text),
                GenerationEvent::Done(done) => {
                    return rewrite::rewriting(&rewriting, done.finish_reason);
                }
                GenerationEvent::Error(error) => return Err(RewriteRefusal::NoAnswer(error.message)),
                GenerationEvent::Started(_) | GenerationEvent::ToolCall(_) => {}
            }
        }
    }
    Err(failed(&client::lost()))
}
