//! Models in this process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use weir_config::{Config, Model};
use weir_runtime::Runtime;
use weir_runtime::types::ModelKind;

use crate::builtin::BUILTIN;
use crate::call::{self, Call, TextPair};
use crate::convert::{self, TaskRequest};
use crate::generate::{GenerateRequest, Generation};
use crate::process::{self, Owned};
use crate::stream::{Stream, StreamSettings};

/// Models and their replicas. They load in the background.
#[pyclass(frozen, module = "weir_stream._engine")]
pub(crate) struct Engine {
    runtime: Owned<Arc<Runtime>>,
}

/// `(name, kind, labels, tokens_max)`
type ModelTuple = (String, &'static str, Vec<String>, u32);

#[pymethods]
impl Engine {
    /// Starts the models, by name and folder. `replicas` 0: one for each core.
    #[new]
    #[pyo3(signature = (models, *, precision = None, engine = None, replicas = 0))]
    fn new(
        py: Python<'_>,
        models: BTreeMap<String, PathBuf>,
        precision: Option<String>,
        engine: Option<String>,
        replicas: u32,
    ) -> PyResult<Self> {
        let threads = process::threads()?;
        let mut config = Config::default();
        config.models.dir = PathBuf::new();
        config.models.replicas = replicas;
        for (name, path) in models {
            let model = Model { path, engine: engine.clone(), precision: precision.clone(), ..Model::default() };
            config.model.insert(name, model);
        }
        let start = || {
            let _context = threads.enter();
            Runtime::start(&config, BUILTIN)
        };
        let runtime = py.detach(start).map_err(|error| PyValueError::new_err(convert::chain(&error)))?;
        Ok(Self { runtime: Owned::new(Arc::new(runtime)) })
    }

    /// The models as `(name, kind, labels, tokens_max)`, language models (kind `text-generation`) after the others.
    fn models(&self) -> PyResult<Vec<ModelTuple>> {
        let runtime = self.runtime.get()?;
        let models = runtime.models().into_iter().map(|model| {
            let kind = match model.kind {
                ModelKind::TextClassification => "text-classification",
                ModelKind::TokenClassification => "token-classification",
                ModelKind::FeatureExtraction => "feature-extraction",
            };
            (model.name, kind, model.labels, model.tokens_max)
        });
        let language_models = runtime
            .language_models()
            .into_iter()
            .map(|model| (model.name, "text-generation", Vec::new(), model.context_tokens_max.unwrap_or_default()));
        Ok(models.chain(language_models).collect())
    }

    /// Waits until a model can answer.
    fn wait_ready(&self, py: Python<'_>, model: &str) -> PyResult<()> {
        let runtime = self.runtime.get()?.clone();
        let settled = process::wait(py, async move { runtime.settled(model).await })?;
        settled.map_err(|reason| PyRuntimeError::new_err(format!("model `{model}` cannot answer: {reason}")))
    }

    /// Sends texts to a model and waits for their results, in the order of the texts: `(True, output)` or `(False, failure)`.
    fn run(
        &self,
        py: Python<'_>,
        model: &str,
        task: TaskRequest,
        texts: Vec<TextPair>,
    ) -> PyResult<Vec<(bool, Py<PyAny>)>> {
        call::run(py, model, task, texts, self.runtime.get()?.call().open())
    }

    /// Opens a call for texts that come one after another.
    fn call(&self, model: String, task: TaskRequest) -> PyResult<Call> {
        Call::new(model, task, self.runtime.get()?.call().open())
    }

    /// Opens a stream, and waits until its model is ready.
    fn stream(&self, py: Python<'_>, model: &str, settings: StreamSettings) -> PyResult<Stream> {
        Stream::open(py, self.runtime.get()?.clone(), model, settings)
    }

    /// Starts to generate a text.
    fn generate(&self, py: Python<'_>, request: GenerateRequest) -> PyResult<Generation> {
        Generation::start(py, self.runtime.get()?, request)
    }
}
