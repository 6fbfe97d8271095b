//! What models say of final segments and of windows: batched with everything else that is asked of them.

use std::pin::pin;

use futures::future::{Either, select};
use weir_codec::{
    inference::output::{Entity, ItemError, Label, Output},
    transcripts::outbox::{Answer, Asked, Question},
};
use weir_core::failure::Failure;
use wit_bindgen::rt::async_support::StreamResult;

use crate::{
    bindings::{
        weir::stream::{
            infer,
            types::{self as wire, Item, Outcome},
        },
        wit_stream,
    },
    clock::{self, Deadline},
    infer::{OUTCOMES_MAX, SUMMARY_TOKENS, failure},
    items,
    settings::Settings,
};

/// Answers questions, each; those that are not answered in the time of a request have failed.
pub(crate) async fn ask(questions: Vec<Question>, settings: &Settings) -> Vec<(Question, Answer)> {
    let items: Vec<Item> = (0..).zip(&questions).map(|(id, question)| item(id, question, settings)).collect();
    let mut outcomes: Vec<Option<Result<wire::Output, wire::Failure>>> = items.iter().map(|_| None).collect();
    let timeout_ms = settings.request_timeout_ms;
    let in_time = Deadline::after(clock::now(), timeout_ms).bound(run(items, &mut outcomes)).await.is_some();
    let missing = || match in_time {
        true => Failure::Unavailable("inference ended without an answer".to_owned()),
        false => Failure::RequestTimeout { timeout_ms },
    };
    let answered = questions.into_iter().zip(outcomes);
    answered
        .map(|(question, outcome)| {
            let answer = match outcome {
                Some(result) => answer(question.asked, result.map_err(failure)),
                None => answer(question.asked, Err(missing())),
            };
            (question, answer)
        })
        .collect()
}

/// One call with all items.
async fn run(items: Vec<Item>, answers: &mut [Option<Result<wire::Output, wire::Failure>>]) {
    let mut owed = items.len();
    let (mut writer, reader) = wit_stream::new::<Item>();
    let send = pin!(async move {
        // What is left over was refused by a reader that is gone; the outcomes, or their absence, say the rest.
        writer.write_all(items).await;
        drop(writer);
    });
    let receive = pin!(async {
        let mut outcomes = infer::run(reader).await;
        let mut buffer = Vec::with_capacity(owed.min(OUTCOMES_MAX));
        while owed > 0 {
            let (read, mut batch) = outcomes.read(buffer).await;
            for Outcome { id, result, .. } in batch.drain(..) {
                let Some(place) = usize::try_from(id).ok().and_then(|id| answers.get_mut(id)) else { continue };
                *place = Some(result);
                owed = owed.saturating_sub(1);
            }
            buffer = batch;
            if !matches!(read, StreamResult::Complete(_)) {
                return;
            }
        }
    });
    if let Either::Right(((), receive)) = select(receive, send).await {
        receive.await;
    }
}

fn item(id: u64, question: &Question, settings: &Settings) -> Item {
    let (model, overflow, task) = match question.asked {
        Asked::Sentiment => {
            let options = wire::ClassifyOptions { top_k: Some(1), activation: None };
            (&settings.sentiment_model, wire::Overflow::Truncate, wire::Task::Classify(options))
        }
        Asked::Entities => {
            let ignore_labels = vec!["O".to_owned()];
            let options = wire::TokenOptions { aggregation: wire::Aggregation::First, ignore_labels, stride: None };
            (&settings.entities_model, wire::Overflow::Split, wire::Task::Tokens(options))
        }
        Asked::Summary => {
            let (tokens_min, tokens_max) = SUMMARY_TOKENS;
            let options = wire::SummaryOptions { tokens_min, tokens_max };
            (&settings.summary_model, wire::Overflow::Split, wire::Task::Summarize(options))
        }
    };
    Item {
        id,
        model: model.clone(),
        text: question.text.clone(),
        text_pair: None,
        overflow,
        deadline_ms: None,
        when_full: wire::WhenFull::Wait,
        task,
    }
}

fn answer(asked: Asked, result: Result<wire::Output, Failure>) -> Answer {
    let other = || ItemError::from(&Failure::Other("the model answered something else".to_owned()));
    match asked {
        Asked::Summary => Answer::Summary(match result {
            Ok(wire::Output::Summary(summary)) => Ok(summary),
            Ok(_) => Err(other()),
            Err(failure) => Err(ItemError::from(&failure)),
        }),
        Asked::Sentiment => Answer::Sentiment(labels(items::output(result)).and_then(|labels| {
            let first: Option<Label> = labels.into_iter().next();
            first.ok_or_else(other)
        })),
        Asked::Entities => Answer::Entities(match items::output(result) {
            Ok(Output::Entities(entities)) => Ok::<Vec<Entity>, ItemError>(entities),
            Ok(_) => Err(other()),
            Err(failure) => Err(ItemError::from(&failure)),
        }),
    }
}

fn labels(result: Result<Output, Failure>) -> Result<Vec<Label>, ItemError> {
    match result {
        Ok(Output::Labels(labels)) => Ok(labels),
        Ok(_) => Err(ItemError::from(&Failure::Other("the model answered something else".to_owned()))),
        Err(failure) => Err(ItemError::from(&failure)),
    }
}
