//! `POST /models/{name}`, `/predict`, `/embed`, `/rerank`, `/v1/embeddings` and `/v1/moderations`: the dialects of
//! other servers, each with one response.

use std::{cell::RefCell, collections::BTreeMap};

use weir_codec::{
    http::problem::Problem,
    inference::{
        embeddings::{self, EmbedRequest, EmbeddingsRequest},
        hub::{self, HubRequest, Target},
        models::Model,
        moderation::{self, ModerationRequest},
        rerank::{self, RerankRequest},
        task::{Parameters, Task},
        tei::{self, PredictRequest},
    },
};
use weir_core::{failure::Failure, time::Now};

use crate::{
    http::response::BufferedResponse,
    inference::{batch, client::served_models, requests::Plan},
    platform::settings::Settings,
};

thread_local! {
    /// The tasks of the models by name. The models do not change while the host runs, so this is bounded by their number.
    static TASKS: RefCell<BTreeMap<String, Task>> = const { RefCell::new(BTreeMap::new()) };
}

/// The task of a model.
async fn task_of(name: &str, began: Now) -> Result<Task, Problem> {
    let cached = |name: &str| TASKS.with_borrow(|tasks| tasks.get(name).copied());
    if let Some(task) = cached(name) {
        return Ok(task);
    }
    let models = served_models(began).await?;
    let names = models.iter().map(|model| model.name.clone()).collect();
    for model in models {
        if let Some(task) = Task::of_kind(model.kind) {
            TASKS.with_borrow_mut(|tasks| tasks.insert(model.name, task));
        }
    }
    cached(name).ok_or_else(|| Problem::item(&Failure::UnknownModel { name: name.to_owned(), served: names }))
}

/// Answers in the dialect of the Hugging Face inference API. `path` is the path after `/models/`.
pub(crate) async fn hub(path: &str, body: &[u8], settings: &Settings, began: Now) -> Result<BufferedResponse, Problem> {
    let Target { model, pipeline } = Target::read(path);
    let task = task_of(&model, began).await?;
    if let Some(wanted) = pipeline
        && Task::of_kind(&wanted) != Some(task)
    {
        let reason = format!("the model `{model}` does not do {wanted}");
        return Err(Problem::item(&Failure::InvalidInput(reason)));
    }
    let request = HubRequest::from_json(body, task)?;
    let plan = Plan::new(task, Some(model), request.parameters, settings).within(settings, began).or_fail();
    let outputs = batch::all(&plan, request.inputs, settings, began).await?;
    Ok(BufferedResponse::json(hub::answer_json(task, &outputs, request.single)))
}

/// Answers in the dialect of text-embeddings-inference, with the model of the sentiment step.
pub(crate) async fn predict(body: &[u8], settings: &Settings, began: Now) -> Result<BufferedResponse, Problem> {
    let request = PredictRequest::from_json(body)?;
    if request.has_empty() {
        let (status, body) = tei::EMPTY;
        return Ok(BufferedResponse::error(status, body.as_bytes()));
    }
    let plan = Plan::new(Task::Classify, None, request.parameters, settings).within(settings, began).or_fail();
    let outputs = batch::all(&plan, request.inputs, settings, began).await?;
    Ok(BufferedResponse::json(tei::answer_json(&outputs, request.single)))
}

/// Embeddings in the dialect of text-embeddings-inference, with the model of embeddings.
pub(crate) async fn embed(body: &[u8], settings: &Settings, began: Now) -> Result<BufferedResponse, Problem> {
    let request = EmbedRequest::from_json(body)?;
    if request.inputs.iter().any(|input| input.text.is_empty()) {
        let (status, body) = tei::EMPTY;
        return Ok(BufferedResponse::error(status, body.as_bytes()));
    }
    let plan = Plan::new(Task::Embed, None, request.parameters, settings).within(settings, began).or_fail();
    let outputs = batch::all(&plan, request.inputs, settings, began).await?;
    Ok(BufferedResponse::json(embeddings::embed_json(&outputs)))
}

/// Embeddings in the dialect of OpenAI.
pub(crate) async fn embeddings(body: &[u8], settings: &Settings, began: Now) -> Result<BufferedResponse, Problem> {
    let request = EmbeddingsRequest::from_json(body)?;
    let parameters = Parameters { truncation: Some(false), ..Parameters::default() };
    let plan = Plan::new(Task::Embed, request.model, parameters, settings).within(settings, began).or_fail();
    let (outputs, tokens) = batch::all_counted(&plan, request.inputs, settings, began).await?;
    Ok(BufferedResponse::json(embeddings::embeddings_json(&outputs, &plan.model, tokens, request.is_base64)))
}

/// Moderation in the dialect of OpenAI, by the classifier that the request names.
pub(crate) async fn moderations(
    body: &[u8],
    settings: &Settings,
    began: Now,
    request_id: &str,
) -> Result<BufferedResponse, Problem> {
    let request = ModerationRequest::from_json(body)?;
    let parameters = Parameters { truncation: Some(true), ..Parameters::default() };
    let plan = Plan::new(Task::Classify, Some(request.model), parameters, settings).within(settings, began).or_fail();
    let outputs = batch::all(&plan, request.inputs, settings, began).await?;
    Ok(BufferedResponse::json(moderation::answer_json(&outputs, &plan.model, request_id)))
}

/// Ranks texts by relevance, in the dialect of text-embeddings-inference, with the first classifier that has one label:
/// a cross-encoder.
pub(crate) async fn rerank(body: &[u8], settings: &Settings, began: Now) -> Result<BufferedResponse, Problem> {
    let request = RerankRequest::from_json(body)?;
    let is_ranker = |model: &Model| Task::of_kind(model.kind) == Some(Task::Classify) && model.labels.len() == 1;
    let Some(model) = served_models(began).await?.into_iter().find(is_ranker) else {
        let detail = "no cross-encoder is served: a model of the kind text-classification with one label";
        return Err(Problem::refused(424, "inference_failed", "No model ranks texts", detail, None));
    };
    let texts: Vec<String> = request.inputs.iter().filter_map(|input| input.text_pair.clone()).collect();
    let plan = Plan::new(Task::Classify, Some(model.name), request.parameters, settings);
    let plan = plan.within(settings, began).or_fail();
    let outputs = batch::all(&plan, request.inputs, settings, began).await?;
    Ok(BufferedResponse::json(rerank::answer_json(&outputs, &texts, request.return_text)))
}
