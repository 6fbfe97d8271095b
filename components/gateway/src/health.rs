//! `/readyz` and `/stream/health`: the models, the steps and the channel store.

use weir_codec::{
    channels::event::{ServiceHealth, health_json},
    http::problem::Problem,
    inference::{
        models::{self, Model},
        readiness::StepModels,
    },
};
use weir_core::time::Now;

use crate::{
    auth::Access,
    generation,
    http::response::BufferedResponse,
    inference::client::served_models,
    platform::{
        bindings::weir::stream::{events, state},
        clock::{self, Deadline},
        settings::Settings,
    },
};

/// The timeout of the channel store's report of its condition, in milliseconds.
const STORE_TIMEOUT_MS: u64 = 5000;

pub(crate) async fn readyz(began: Now) -> Result<BufferedResponse, Problem> {
    let mut models = served_models(began).await?;
    let (language, unusable) = generation::client::readiness(began).await?;
    models.extend(language);
    if !models.iter().all(|model| model.ready) {
        models.extend(unusable);
        return Err(Problem::not_ready(models));
    }
    let unmet = unmet_steps(&models)?;
    if !unmet.is_empty() {
        return Err(Problem::steps_not_ready(&unmet, models));
    }
    // Without authentication, and on an address other than loopback, channels are refused by design, so keys are not
    // checked.
    let access = Access::current()?;
    if access.required() {
        access.check_keys(began.monotonic_ns)?;
    }
    match store(began).await {
        Ok(condition) => {
            let exhausted = exhausted(condition.exhausted, began).await?;
            models.extend(unusable);
            models.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(BufferedResponse::json(models::ready_json(&models, &exhausted)))
        }
        Err(detail) => Err(Problem::store_not_ready(&detail)),
    }
}

/// The bounds for all users together that are reached: those of the store, and those of sessions and executions. The
/// server stays ready: requests without state are served, and the others get 503 until there is capacity.
async fn exhausted(mut exhausted: Vec<String>, began: Now) -> Result<Vec<String>, Problem> {
    let settings = Settings::current().map_err(Problem::internal)?;
    let mut bounds = vec![("session", "sessions.live_max", settings.sessions.live_max)];
    // Executions in a shared store may belong to other instances.
    if !settings.shared {
        bounds.push(("execution", "pipelines.executions_max", settings.pipelines.executions_max as u64));
    }
    for (kind, key, max) in bounds {
        let count = Deadline::after(began, STORE_TIMEOUT_MS).bound(state::count(kind.to_owned())).await;
        if count.is_some_and(|count| count.is_ok_and(|count| count >= max)) {
            exhausted.push(key.to_owned());
        }
    }
    Ok(exhausted)
}

/// What the models that the configuration names for the steps lack, as sentences.
fn unmet_steps(models: &[Model]) -> Result<Vec<String>, Problem> {
    let settings = Settings::current().map_err(Problem::internal)?;
    let steps = StepModels {
        sentiment: &settings.sentiment_model,
        summary: &settings.summary_model,
        entities: &settings.entities_model,
    };
    Ok(steps.unmet(models))
}

/// The condition of the channel store, or why it accepts no events.
async fn store(began: Now) -> Result<events::Condition, String> {
    match Deadline::after(began, STORE_TIMEOUT_MS).bound(events::health()).await {
        None => Err("it does not answer".to_owned()),
        Some(condition) if condition.ok => Ok(condition),
        // Details are for the log of the host, not for clients.
        Some(_) => Err("it takes no events".to_owned()),
    }
}

/// The health of the channel store and the models.
pub(crate) async fn health(began: Now) -> Result<BufferedResponse, Problem> {
    let (store, models) = futures::join!(store(began), served_models(began));
    let usable = store.is_ok();
    let (events, streams) = match store {
        Ok(condition) => {
            let detail = condition.fallback.then(|| "memory has taken over".to_owned());
            let events = ServiceHealth { name: condition.store, healthy: !condition.fallback, detail };
            (events, condition.followers)
        }
        Err(detail) => (ServiceHealth { name: "events".to_owned(), healthy: false, detail: Some(detail) }, 0),
    };
    let inference = match models {
        Ok(models) => {
            let problems: Vec<String> = models::not_ready(&models).into_iter().chain(unmet_steps(&models)?).collect();
            let detail = (!problems.is_empty()).then(|| problems.join("; "));
            ServiceHealth { name: "inference".to_owned(), healthy: problems.is_empty(), detail }
        }
        Err(problem) => ServiceHealth { name: "inference".to_owned(), healthy: false, detail: Some(problem.detail) },
    };
    let unix_ms = clock::now().unix_ns / 1_000_000;
    let (_, body) = health_json(&[events, inference], streams.into(), unix_ms);
    // A degraded service can still stream; without a store there is nothing to stream.
    Ok(if usable { BufferedResponse::json(body) } else { BufferedResponse::error(503, body) })
}
