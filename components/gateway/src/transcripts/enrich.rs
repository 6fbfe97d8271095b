//! Enrichment: the queries of a session's events to models. They are batched with all other items.

use std::ops::ControlFlow;

use weir_codec::{
    inference::output::{Entity, ItemError, LabelScore, Output},
    transcripts::outbox::{Query, QueryResult},
};
use weir_core::{
    failure::Failure,
    inference::{rewrite::SummaryText, text_step::TextStep},
};

use crate::{
    generation::rewrite::rewrite,
    inference::{
        client::{exchange, no_outcome},
        convert::output,
        requests::text_item,
    },
    platform::{
        bindings::weir::stream::types::{self as wire, Item},
        clock::{self, Deadline},
        settings::Settings,
    },
};

/// Runs queries and returns the result of each. A query without an outcome within the request timeout fails.
pub(crate) async fn run_queries(queries: Vec<Query>, settings: &Settings) -> Vec<(Query, QueryResult)> {
    let items = (0..).zip(&queries).map(|(id, query)| text_item(id, query.step, query.text.clone(), settings));
    let items: Vec<Item> = items.collect();
    let mut outcomes: Vec<Option<Result<wire::Output, Failure>>> = queries.iter().map(|_| None).collect();
    let mut missing = queries.len();
    let exchange = exchange(items, async |id, outcome: Result<wire::Output, Failure>| {
        if let Some(slot) = usize::try_from(id).ok().and_then(|id| outcomes.get_mut(id)) {
            *slot = Some(outcome);
            missing = missing.saturating_sub(1);
        }
        if missing == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let timeout_ms = settings.request_timeout_ms;
    let in_time = Deadline::after(clock::now(), timeout_ms).bound(exchange).await.is_some();
    let missing_failure = || if in_time { no_outcome() } else { Failure::RequestTimeout { timeout_ms } };
    let mut results = Vec::with_capacity(queries.len());
    for (query, outcome) in queries.into_iter().zip(outcomes) {
        let mut result = query_result(query.step, outcome.unwrap_or_else(|| Err(missing_failure())));
        if let QueryResult::Summary(Ok(summary)) = &mut result
            && query.is_abstractive
        {
            *summary = rewrite(std::mem::take(&mut summary.text), timeout_ms / 2).await;
        }
        results.push((query, result));
    }
    results
}

fn query_result(step: TextStep, outcome: Result<wire::Output, Failure>) -> QueryResult {
    let unexpected = || ItemError::from(&Failure::Other("the model returned another kind of output".to_owned()));
    match step {
        TextStep::Summarization => QueryResult::Summary(match outcome {
            Ok(wire::Output::Summary(summary)) => Ok(SummaryText::new(summary)),
            Ok(_) => Err(unexpected()),
            Err(failure) => Err(ItemError::from(&failure)),
        }),
        TextStep::Sentiment => QueryResult::Sentiment(match outcome.and_then(output) {
            Ok(Output::Labels(labels)) => labels.into_iter().next().ok_or_else(unexpected),
            Ok(_) => Err(unexpected()),
            Err(failure) => Err::<LabelScore, ItemError>(ItemError::from(&failure)),
        }),
        TextStep::Entities => QueryResult::Entities(match outcome.and_then(output) {
            Ok(Output::Entities(entities)) => Ok::<Vec<Entity>, ItemError>(entities),
            Ok(_) => Err(unexpected()),
            Err(failure) => Err(ItemError::from(&failure)),
        }),
    }
}
