//! `POST /models/{name}` and `POST /predict`: the dialects of other servers, answered whole.

use std::{cell::RefCell, collections::BTreeMap};

use weir_codec::{
    http::problem::Problem,
    inference::{
        hub::{self, HubRequest, Target},
        task::Task,
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
    let known = |name: &str| TASKS.with_borrow(|tasks| tasks.get(name).copied());
    if let Some(task) = known(name) {
        return Ok(task);
    }
    let models = served_models(began).await?;
    let names = models.iter().map(|model| model.name.clone()).collect();
    for model in models {
        if let Some(task) = Task::of_kind(model.kind) {
            TASKS.with_borrow_mut(|tasks| tasks.insert(model.name, task));
        }
    }
    known(name).ok_or_else(|| Problem::item(&Failure::UnknownModel { name: name.to_owned(), served: names }))
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
