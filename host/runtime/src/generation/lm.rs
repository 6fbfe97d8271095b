//! `weir:stream/lm` for instances of the generate component. An instance sees one model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::OnceCell;
use wasmtime::component::{Accessor, HasSelf, Resource, ResourceTable};
use weir_lm::Cancel;

use super::engine::{Engine, Load, Sequences};
use super::metrics::{PoolMetrics, RowsShape};
use crate::bindings::lm::weir::stream::lm::{
    Host, HostModel, HostModelWithStore, HostWithStore, ModelInfo, Row, Sampled, Sampler, Tokenizer,
};
use crate::types::{self, Failure};
use weir_wasi::StoreData;

/// The model that an instance sees.
#[derive(Clone)]
pub(crate) struct ServedModel {
    pub(super) name: String,
    pub(super) load: Load,
    pub(super) engine: Arc<OnceCell<Arc<dyn Engine>>>,
    pub(super) metrics: Arc<PoolMetrics>,
    /// The number of computed steps and of event batches, from which hangs are detected.
    pub(super) steps: Arc<AtomicU64>,
}

impl ServedModel {
    /// The engine of the model, which is loaded first if necessary.
    async fn engine(&self) -> Result<Arc<dyn Engine>, String> {
        let load = async || {
            let load = self.load.clone();
            let start = Instant::now();
            let engine = tokio::task::spawn_blocking(move || load()).await;
            let engine = engine.unwrap_or_else(|_| Err("the engine panicked while it loaded the model".into()))?;
            tracing::info!(model = self.name, ms = start.elapsed().as_millis() as u64, "language model loaded");
            Ok(engine)
        };
        self.engine.get_or_try_init(load).await.cloned()
    }

    /// The description of the model. Until it is loaded, `ready` is false and only the name is set.
    fn info(&self) -> ModelInfo {
        let unloaded = || ModelInfo {
            name: self.name.clone(),
            architecture: String::new(),
            vocabulary_tokens: 0,
            context_tokens_max: 0,
            page_tokens: 0,
            pages_max: 0,
            begin_token: None,
            end_tokens: Vec::new(),
            ready: false,
        };
        self.engine.get().map_or_else(unloaded, |engine| ModelInfo { name: self.name.clone(), ..engine.info() })
    }
}

/// The resource `model`: a loaded model, and the sequences of one instance, which are freed with the store of the
/// instance.
pub struct LanguageModel {
    served: ServedModel,
    engine: Arc<dyn Engine>,
    sequences: Arc<dyn Sequences>,
}

/// Stops a step between two layers when its call is dropped.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The state of an instance with a model of this host.
pub(crate) struct InstanceState {
    /// The models that the instance has opened.
    pub(super) table: ResourceTable,
    pub(super) model: ServedModel,
}

impl types::Host for InstanceState {}

impl Host for InstanceState {}

impl HostWithStore<StoreData> for HasSelf<InstanceState> {
    async fn models(accessor: &Accessor<StoreData, Self>) -> wasmtime::Result<Vec<ModelInfo>> {
        Ok(accessor.with(|mut access| vec![access.get().model.info()]))
    }
}

impl HostModelWithStore<StoreData> for HasSelf<InstanceState> {
    async fn open(
        accessor: &Accessor<StoreData, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Resource<LanguageModel>, Failure>> {
        let served = accessor.with(|mut access| access.get().model.clone());
        if name != served.name {
            return Ok(Err(Failure::UnknownModel(name)));
        }
        let engine = match served.engine().await {
            Ok(engine) => engine,
            Err(reason) => return Ok(Err(Failure::Unavailable(reason))),
        };
        let sequences = engine.sequences();
        let model = LanguageModel { served, engine, sequences };
        accessor.with(|mut access| Ok(Ok(access.get().table.push(model)?)))
    }

    async fn step(
        accessor: &Accessor<StoreData, Self>,
        model: Resource<LanguageModel>,
        rows: Vec<Row>,
    ) -> wasmtime::Result<Result<Vec<Sampled>, Failure>> {
        let (sequences, served) = accessor.with(|mut access| -> wasmtime::Result<_> {
            let model = access.get().table.get(&model)?;
            Ok((model.sequences.clone(), model.served.clone()))
        })?;
        let cancel = CancelOnDrop(Cancel::default());
        let token = cancel.0.clone();
        let step = tokio::task::spawn_blocking(move || {
            let (start, shape) = (Instant::now(), RowsShape::of(&rows));
            let sampled = sequences.step(rows, &token);
            served.metrics.handle_step(shape, sequences.pages_free(), start.elapsed());
            served.steps.fetch_add(1, Ordering::Relaxed);
            sampled
        });
        Ok(step.await.unwrap_or_else(|_| Err(Failure::Engine("the engine panicked in a step".into()))))
    }
}

impl HostModel for InstanceState {
    fn info(&mut self, model: Resource<LanguageModel>) -> wasmtime::Result<ModelInfo> {
        Ok(self.table.get(&model)?.served.info())
    }

    fn tokenizer(&mut self, model: Resource<LanguageModel>) -> wasmtime::Result<Tokenizer> {
        Ok(self.table.get(&model)?.engine.tokenizer())
    }

    fn chat_template(&mut self, model: Resource<LanguageModel>) -> wasmtime::Result<Option<String>> {
        Ok(self.table.get(&model)?.engine.chat_template())
    }

    fn pages_free(&mut self, model: Resource<LanguageModel>) -> wasmtime::Result<u32> {
        Ok(self.table.get(&model)?.sequences.pages_free())
    }

    fn create(&mut self, model: Resource<LanguageModel>, sampler: Sampler) -> wasmtime::Result<Result<u32, Failure>> {
        Ok(self.table.get(&model)?.sequences.create(sampler))
    }

    fn fork(
        &mut self,
        model: Resource<LanguageModel>,
        sequence: u32,
        tokens: u32,
        sampler: Sampler,
    ) -> wasmtime::Result<Result<u32, Failure>> {
        Ok(self.table.get(&model)?.sequences.fork(sequence, tokens, sampler))
    }

    fn trim(
        &mut self,
        model: Resource<LanguageModel>,
        sequence: u32,
        tokens: u32,
    ) -> wasmtime::Result<Result<(), Failure>> {
        Ok(self.table.get(&model)?.sequences.trim(sequence, tokens))
    }

    fn remove(&mut self, model: Resource<LanguageModel>, sequence: u32) -> wasmtime::Result<()> {
        self.table.get(&model)?.sequences.remove(sequence);
        Ok(())
    }

    fn drop(&mut self, model: Resource<LanguageModel>) -> wasmtime::Result<()> {
        self.table.delete(model)?;
        Ok(())
    }
}
