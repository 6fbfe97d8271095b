//! `wasi:nn@0.2.0-rc-2024-10-28` for wasmtime components, over a [`Registry`].
//!
//! No argument of a guest makes it trap or the host panic: a failure is returned as an error of the WIT where it has one. The WIT's
//! constructor of tensors cannot fail, so the error of an invalid tensor is stored and returned when the tensor is used. A guest
//! that exceeds its share of resources gets `too-large` errors and tensors without data; it traps only when the store's resource
//! table is full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use crate::engine::Engine;
use crate::error::{ErrorCode, NnError};
use crate::graph::{Context, Graph};
use crate::registry::Registry;
use crate::stages;
use crate::tensor::{Tensor, TensorType};

mod generated {
    #![allow(missing_docs, reason = "the WIT documents it")]

    wasmtime::component::bindgen!({
        path: "../../wit/deps/nn.wit",
        world: "ml",
        imports: { default: trappable },
        with: {
            "wasi:nn/graph.graph": super::GraphHandle,
            "wasi:nn/tensor.tensor": super::TensorHandle,
            "wasi:nn/inference.graph-execution-context": super::ContextHandle,
            "wasi:nn/errors.error": super::ErrorHandle,
        },
    });
}

use crate::wording::case_name;
use generated::wasi::nn::{errors, graph, inference, tensor};

/// A guest's handle of a graph.
#[derive(Debug)]
pub struct GraphHandle(Arc<Graph>);

/// A guest's handle of an execution context.
#[derive(Debug)]
pub struct ContextHandle(Context);

/// A guest's handle of an error.
#[derive(Debug)]
pub struct ErrorHandle(NnError);

/// A guest's handle of a tensor, valid or not.
#[derive(Debug)]
pub struct TensorHandle {
    tensor: Tensor,
    /// Why the tensor was refused, in which case it has no data.
    refusal: Option<NnError>,
}

/// The graphs that an instance may load by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GraphAccess {
    /// Every graph of the registry.
    All,
    /// Only these.
    Only(BTreeSet<String>),
    /// No graph.
    #[default]
    None,
}

impl GraphAccess {
    /// Access to only these graphs.
    pub fn only<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self::Only(names.into_iter().map(Into::into).collect())
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
            Self::None => false,
        }
    }
}

/// The state of `wasi:nn` in one store.
#[derive(Debug)]
pub struct NnCtx {
    registry: Arc<Registry>,
    allowed: GraphAccess,
    resources: usize,
    tensor_bytes: usize,
    computed: Arc<AtomicU64>,
}

impl NnCtx {
    /// The state of an instance that may load only the `allowed` graphs of the registry.
    pub fn new(registry: Arc<Registry>, allowed: GraphAccess) -> Self {
        Self { registry, allowed, resources: 0, tensor_bytes: 0, computed: Arc::default() }
    }

    /// Counts the computations that have ended, successful or not, so that a watchdog sees that the instance makes progress.
    pub fn counting(self, computed: Arc<AtomicU64>) -> Self {
        Self { computed, ..self }
    }
}

/// A store's [`NnCtx`] and resource table, borrowed for one call.
#[derive(Debug)]
pub struct NnView<'a> {
    /// The state of `wasi:nn`.
    pub ctx: &'a mut NnCtx,
    /// The resources of the store.
    pub table: &'a mut ResourceTable,
}

/// Adds the four interfaces of `wasi:nn` to a linker.
///
/// # Errors
/// When the linker has them already.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> NnView<'_>,
) -> wasmtime::Result<()> {
    graph::add_to_linker::<T, HasNn>(linker, view)?;
    tensor::add_to_linker::<T, HasNn>(linker, view)?;
    inference::add_to_linker::<T, HasNn>(linker, view)?;
    errors::add_to_linker::<T, HasNn>(linker, view)
}

struct HasNn;

impl HasData for HasNn {
    type Data<'a> = NnView<'a>;
}

type HostResult<T> = wasmtime::Result<Result<T, Resource<ErrorHandle>>>;

impl NnView<'_> {
    fn push<T: Send + 'static>(&mut self, entry: T) -> wasmtime::Result<Resource<T>> {
        let handle = self.table.push(entry)?;
        self.ctx.resources += 1;
        Ok(handle)
    }

    fn delete<T: Send + 'static>(&mut self, handle: Resource<T>) -> wasmtime::Result<T> {
        let entry = self.table.delete(handle)?;
        self.ctx.resources = self.ctx.resources.saturating_sub(1);
        Ok(entry)
    }

    fn delete_tensor(&mut self, handle: Resource<TensorHandle>) -> wasmtime::Result<TensorHandle> {
        let tensor = self.delete(handle)?;
        self.ctx.tensor_bytes = self.ctx.tensor_bytes.saturating_sub(tensor.tensor.data.len());
        Ok(tensor)
    }

    /// Checks that this many more resources and bytes of tensors are within the bounds.
    fn check_room(&self, resources: usize, bytes: usize) -> Result<(), NnError> {
        let config = self.ctx.registry.config();
        if self.ctx.resources.saturating_add(resources) > config.resources_max {
            return Err(NnError::too_large(format!(
                "this instance may hold {} tensors, contexts, graphs and errors at once",
                config.resources_max
            )));
        }
        if self.ctx.tensor_bytes.saturating_add(bytes) > config.resource_bytes_max {
            return Err(NnError::too_large(format!(
                "this instance may hold {} bytes of tensors at once",
                config.resource_bytes_max
            )));
        }
        Ok(())
    }

    fn push_tensor(&mut self, tensor: Tensor, refusal: Option<NnError>) -> wasmtime::Result<Resource<TensorHandle>> {
        let bytes = tensor.data.len();
        let handle = self.push(TensorHandle { tensor, refusal })?;
        self.ctx.tensor_bytes += bytes;
        Ok(handle)
    }

    /// Converts a result to the form of the host functions: an error becomes a resource.
    fn host_result<T>(&mut self, result: Result<T, NnError>) -> HostResult<T> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(error) => {
                tracing::debug!(%error, "wasi:nn call refused");
                Ok(Err(self.push(ErrorHandle(error))?))
            }
        }
    }

    fn push_graph(&mut self, loaded: Result<Arc<Graph>, NnError>) -> HostResult<Resource<GraphHandle>> {
        match loaded.and_then(|graph| self.check_room(1, 0).map(|()| graph)) {
            Ok(graph) => Ok(Ok(self.push(GraphHandle(graph))?)),
            Err(error) => self.host_result(Err(error)),
        }
    }

    fn load_bytes(&self, builders: &[Vec<u8>], encoding: graph::GraphEncoding) -> Result<Arc<Graph>, NnError> {
        use graph::GraphEncoding as E;
        let config = self.ctx.registry.config();
        if !matches!(encoding, E::Onnx | E::Autodetect) {
            let text = format!("graphs are ONNX here, not {}", case_name(&encoding));
            return Err(NnError::new(ErrorCode::InvalidEncoding, text));
        }
        if config.guest_graph_bytes_max == 0 {
            return Err(NnError::new(ErrorCode::Security, "this host loads graphs by name only"));
        }
        let [builder] = builders else {
            return Err(NnError::invalid(format!("an ONNX graph is one builder, not {}", builders.len())));
        };
        if builder.len() as u64 > config.guest_graph_bytes_max {
            return Err(NnError::too_large(format!(
                "the graph has {} bytes, more than the {} allowed",
                builder.len(),
                config.guest_graph_bytes_max
            )));
        }
        Ok(self.ctx.registry.load_bytes(builder, Engine::default())?)
    }
}

impl graph::Host for NnView<'_> {
    fn load(
        &mut self,
        builders: Vec<graph::GraphBuilder>,
        encoding: graph::GraphEncoding,
        target: graph::ExecutionTarget,
    ) -> HostResult<Resource<GraphHandle>> {
        let loaded = match target {
            graph::ExecutionTarget::Cpu => self.load_bytes(&builders, encoding),
            other => Err(NnError::unsupported(format!("graphs run on the CPU here, not on a {}", case_name(&other)))),
        };
        self.push_graph(loaded)
    }

    fn load_by_name(&mut self, name: String) -> HostResult<Resource<GraphHandle>> {
        let loaded = if self.ctx.allowed.contains(&name) {
            self.ctx.registry.graph(&name).map_err(NnError::from)
        } else {
            // The same error as for a name that does not exist, so that an instance learns nothing about other graphs.
            Err(crate::error::LoadError::UnknownName(name.chars().take(64).collect()).into())
        };
        self.push_graph(loaded)
    }
}

impl graph::HostGraph for NnView<'_> {
    fn init_execution_context(&mut self, handle: Resource<GraphHandle>) -> HostResult<Resource<ContextHandle>> {
        let graph = self.table.get(&handle)?.0.clone();
        match self.check_room(1, 0).and_then(|()| graph.context()) {
            Ok(context) => Ok(Ok(self.push(ContextHandle(context))?)),
            Err(error) => self.host_result(Err(error)),
        }
    }

    fn drop(&mut self, handle: Resource<GraphHandle>) -> wasmtime::Result<()> {
        self.delete(handle).map(drop)
    }
}

impl inference::Host for NnView<'_> {}

impl inference::HostGraphExecutionContext for NnView<'_> {
    fn compute(
        &mut self,
        handle: Resource<ContextHandle>,
        inputs: Vec<(String, Resource<TensorHandle>)>,
    ) -> HostResult<Vec<(String, Resource<TensorHandle>)>> {
        let mut tensors = Vec::with_capacity(inputs.len());
        let mut refusal = None;
        for (name, input) in inputs {
            let input = self.delete_tensor(input)?;
            refusal = refusal.or(input.refusal);
            tensors.push((name, input.tensor));
        }
        let computed = match refusal {
            Some(error) => Err(error),
            None => {
                let context = &mut self.table.get_mut(&handle)?.0;
                stages::compute(|| context.compute(tensors))
            }
        };
        self.ctx.computed.fetch_add(1, Ordering::Relaxed);
        let bytes = |outputs: &[(String, Tensor)]| outputs.iter().map(|(_, output)| output.data.len()).sum();
        match computed.and_then(|outputs| self.check_room(outputs.len(), bytes(&outputs)).map(|()| outputs)) {
            Ok(outputs) => {
                let mut handles = Vec::with_capacity(outputs.len());
                for (name, output) in outputs {
                    handles.push((name, self.push_tensor(output, None)?));
                }
                Ok(Ok(handles))
            }
            Err(error) => self.host_result(Err(error)),
        }
    }

    fn drop(&mut self, handle: Resource<ContextHandle>) -> wasmtime::Result<()> {
        self.delete(handle).map(drop)
    }
}

impl tensor::Host for NnView<'_> {}

impl tensor::HostTensor for NnView<'_> {
    fn new(
        &mut self,
        dimensions: Vec<u32>,
        ty: tensor::TensorType,
        data: Vec<u8>,
    ) -> wasmtime::Result<Resource<TensorHandle>> {
        /// The most dimensions of a tensor; no model has as many.
        const RANK_MAX: usize = 64;
        let refusal = match self.check_room(1, data.len()) {
            Ok(()) if dimensions.len() > RANK_MAX => {
                Some(NnError::invalid(format!("a tensor has at most {RANK_MAX} dimensions, not {}", dimensions.len())))
            }
            other => other.err(),
        };
        let tensor = match refusal {
            None => Tensor { dimensions, ty: ty.into(), data },
            Some(_) => Tensor { dimensions: Vec::new(), ty: ty.into(), data: Vec::new() },
        };
        self.push_tensor(tensor, refusal)
    }

    fn dimensions(&mut self, handle: Resource<TensorHandle>) -> wasmtime::Result<Vec<u32>> {
        Ok(self.table.get(&handle)?.tensor.dimensions.clone())
    }

    fn ty(&mut self, handle: Resource<TensorHandle>) -> wasmtime::Result<tensor::TensorType> {
        Ok(self.table.get(&handle)?.tensor.ty.into())
    }

    fn data(&mut self, handle: Resource<TensorHandle>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&handle)?.tensor.data.clone())
    }

    fn drop(&mut self, handle: Resource<TensorHandle>) -> wasmtime::Result<()> {
        self.delete_tensor(handle).map(drop)
    }
}

impl errors::Host for NnView<'_> {}

impl errors::HostError for NnView<'_> {
    fn code(&mut self, handle: Resource<ErrorHandle>) -> wasmtime::Result<errors::ErrorCode> {
        use errors::ErrorCode as Wit;
        Ok(match self.table.get(&handle)?.0.code {
            ErrorCode::InvalidArgument => Wit::InvalidArgument,
            ErrorCode::InvalidEncoding => Wit::InvalidEncoding,
            ErrorCode::Timeout => Wit::Timeout,
            ErrorCode::RuntimeError => Wit::RuntimeError,
            ErrorCode::UnsupportedOperation => Wit::UnsupportedOperation,
            ErrorCode::TooLarge => Wit::TooLarge,
            ErrorCode::NotFound => Wit::NotFound,
            ErrorCode::Security => Wit::Security,
            ErrorCode::Unknown => Wit::Unknown,
        })
    }

    fn data(&mut self, handle: Resource<ErrorHandle>) -> wasmtime::Result<String> {
        Ok(self.table.get(&handle)?.0.text.clone())
    }

    fn drop(&mut self, handle: Resource<ErrorHandle>) -> wasmtime::Result<()> {
        self.delete(handle).map(drop)
    }
}

impl From<tensor::TensorType> for TensorType {
    fn from(ty: tensor::TensorType) -> Self {
        use tensor::TensorType as Wit;
        match ty {
            Wit::Fp16 => Self::Fp16,
            Wit::Fp32 => Self::Fp32,
            Wit::Fp64 => Self::Fp64,
            Wit::Bf16 => Self::Bf16,
            Wit::U8 => Self::U8,
            Wit::I32 => Self::I32,
            Wit::I64 => Self::I64,
        }
    }
}

impl From<TensorType> for tensor::TensorType {
    fn from(ty: TensorType) -> Self {
        match ty {
            TensorType::Fp16 => Self::Fp16,
            TensorType::Fp32 => Self::Fp32,
            TensorType::Fp64 => Self::Fp64,
            TensorType::Bf16 => Self::Bf16,
            TensorType::U8 => Self::U8,
            TensorType::I32 => Self::I32,
            TensorType::I64 => Self::I64,
        }
    }
}
