//! Requests with several texts and one response.

use std::{cell::Cell, ops::ControlFlow};

use weir_codec::{
    http::problem::Problem,
    inference::{
        output::{ItemError, Output},
        request::Input,
    },
};
use weir_core::{failure::Failure, time::Now};

use super::{
    client::{exchange_counting, no_outcome},
    convert::output,
    requests::Plan,
};
use crate::platform::{
    bindings::weir::stream::types::{self as wire, Item, WhenFull},
    clock::{self, Deadline},
    settings::Settings,
};

/// The results of all texts in their order, or the problem that stopped them.
///
/// A retryable failure of one text fails the request, which the client should retry as a whole. Any other failure is
/// the result of its text; with a single text it fails the request too.
pub(crate) async fn whole(
    plan: &Plan,
    inputs: Vec<Input>,
    settings: &Settings,
    began: Now,
) -> Result<Vec<Result<Output, ItemError>>, Problem> {
    let is_single = inputs.len() == 1;
    let results = run_in_time(plan, inputs, &Cell::new(0), settings, began).await?;
    let item_result = |result: Result<Output, Failure>| match result {
        Err(failure) if is_single || failure.retryable() => Err(Problem::item(&failure)),
        Err(failure) => Ok(Err(ItemError::from(&failure))),
        Ok(output) => Ok(Ok(output)),
    };
    results.into_iter().map(item_result).collect()
}

/// The results of all texts, or the problem of the first that failed.
pub(crate) async fn all(
    plan: &Plan,
    inputs: Vec<Input>,
    settings: &Settings,
    began: Now,
) -> Result<Vec<Output>, Problem> {
    all_counted(plan, inputs, settings, began).await.map(|(outputs, _)| outputs)
}

/// As [`all`], with the tokens of all texts.
pub(crate) async fn all_counted(
    plan: &Plan,
    inputs: Vec<Input>,
    settings: &Settings,
    began: Now,
) -> Result<(Vec<Output>, u64), Problem> {
    let tokens = Cell::new(0);
    let results = run_in_time(plan, inputs, &tokens, settings, began).await?;
    let outputs = results.into_iter().map(|result| result.map_err(|failure| Problem::item(&failure)));
    Ok((outputs.collect::<Result<_, _>>()?, tokens.get()))
}

/// As [`run`], until the deadline of the request.
async fn run_in_time(
    plan: &Plan,
    inputs: Vec<Input>,
    tokens: &Cell<u64>,
    settings: &Settings,
    began: Now,
) -> Result<Vec<Result<Output, Failure>>, Problem> {
    let deadline = Deadline::after(began, settings.request_timeout_ms);
    let results = if settings.has_item_deadlines && plan.is_within_request && plan.when_full == WhenFull::Fail {
        // To set and cancel a timer takes longer than to read the clock after a failure.
        let results = run(plan, inputs, tokens).await;
        let is_late = results.contains(&Err(Failure::DeadlineExceeded)) && deadline.is_past(clock::now());
        (!is_late).then_some(results)
    } else {
        deadline.bound(run(plan, inputs, tokens)).await
    };
    results.ok_or_else(|| Problem::request_timeout(settings.request_timeout_ms))
}

/// Runs all texts in one call. When one of them has a retryable failure, the others are dropped.
async fn run(plan: &Plan, inputs: Vec<Input>, tokens: &Cell<u64>) -> Vec<Result<Output, Failure>> {
    let mut results: Vec<Result<Output, Failure>> = inputs.iter().map(|_| Err(no_outcome())).collect();
    let mut missing = inputs.len();
    let items: Vec<Item> = (0..).zip(inputs).map(|(id, input)| plan.item(id, input)).collect();
    let stop_failure = exchange_counting(items, tokens, async |id, outcome: Result<wire::Output, Failure>| {
        let Some(result) = usize::try_from(id).ok().and_then(|id| results.get_mut(id)) else {
            return ControlFlow::Continue(());
        };
        *result = outcome.and_then(output);
        missing = missing.saturating_sub(1);
        match result {
            Err(failure) if failure.retryable() => ControlFlow::Break(Some(failure.clone())),
            _ if missing == 0 => ControlFlow::Break(None),
            _ => ControlFlow::Continue(()),
        }
    });
    match stop_failure.await {
        Some(Some(failure)) => vec![Err(failure)],
        _ => results,
    }
}
