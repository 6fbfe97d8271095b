//! A loaded graph and its execution contexts, independent of the engine. This module checks all inputs of a guest and catches panics
//! of engines.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::builtin::Builtin;
use crate::config::RegistryConfig;
use crate::engine::{Backend, BackendContext, BackendGraph, Dimension, Engine, GraphOptions, GraphSource, TensorInfo};
use crate::error::{LoadError, NnError, panic_text};
#[cfg(not(target_arch = "wasm32"))]
use crate::onnxruntime::OnnxRuntime;
use crate::tensor::Tensor;
#[cfg(not(target_arch = "wasm32"))]
use crate::tract::Tract;
use crate::wording::{listed, quoted};

/// A graph, loaded once and shared: cheap to clone inside its `Arc`, safe to use from every thread.
pub struct Graph {
    name: String,
    engine: Engine,
    backend: Arc<dyn BackendGraph>,
    tensor_bytes_max: usize,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("name", &self.name).field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// The implementation of an engine.
pub(crate) fn backend(engine: Engine) -> &'static dyn Backend {
    match engine {
        Engine::Builtin => &Builtin,
        #[cfg(not(target_arch = "wasm32"))]
        Engine::Tract => &Tract,
        #[cfg(not(target_arch = "wasm32"))]
        Engine::OnnxRuntime => &OnnxRuntime,
        #[cfg(target_arch = "wasm32")]
        Engine::Tract => &Absent("tract"),
        #[cfg(target_arch = "wasm32")]
        Engine::OnnxRuntime => &Absent("onnxruntime"),
    }
}

/// An engine that a component does not have.
#[cfg(target_arch = "wasm32")]
struct Absent(&'static str);

#[cfg(target_arch = "wasm32")]
impl Backend for Absent {
    fn load(
        &self,
        _: GraphSource<'_>,
        _: GraphOptions,
        _: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError> {
        Err(LoadError::NoEngine { engine: self.0, reason: "a component has the engine builtin alone".to_owned() })
    }
}

impl Graph {
    /// Loads a graph with an engine.
    ///
    /// # Errors
    /// When it is malformed, past a bound, or not supported by the engine. A panic of the engine is returned as an error.
    pub(crate) fn load(
        name: &str,
        source: GraphSource<'_>,
        engine: Engine,
        options: GraphOptions,
        config: &RegistryConfig,
    ) -> Result<Self, LoadError> {
        let backend = catch_unwind(AssertUnwindSafe(|| backend(engine).load(source, options, config))).unwrap_or_else(
            |panic| {
                let reason = format!("{engine} cannot make sense of it: {}", panic_text(panic.as_ref()));
                Err(LoadError::Broken { origin: source.origin(), reason })
            },
        )?;
        Ok(Self { name: name.to_owned(), engine, backend, tensor_bytes_max: config.tensor_bytes_max })
    }

    /// The name it was registered under; empty for a graph that a guest loaded from bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The engine that runs it.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Its inputs, in the graph's order.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.backend.info().inputs
    }

    /// Its outputs, in the graph's order.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.backend.info().outputs
    }

    /// Its weights, in bytes as the graph stores them.
    pub fn parameter_bytes(&self) -> u64 {
        self.backend.info().parameter_bytes
    }

    /// Waits until the plans that are being built in the background are ready. For benchmarks and tests.
    pub fn settle(&self) {
        self.backend.settle();
    }

    /// The number of fixed-shape plans it holds now.
    pub fn fixed_plans(&self) -> usize {
        self.backend.fixed_plans()
    }

    /// The number of fixed-shape plans it has made since it was loaded.
    pub fn plans_made(&self) -> u64 {
        self.backend.plans_made()
    }

    /// Creates a context for one caller; each replica has its own.
    ///
    /// # Errors
    /// When the engine cannot create one.
    pub fn context(self: &Arc<Self>) -> Result<Context, NnError> {
        Ok(Context { graph: self.clone(), backend: Some(self.backend_context()?) })
    }

    fn backend_context(&self) -> Result<Box<dyn BackendContext>, NnError> {
        let result = catch_unwind(AssertUnwindSafe(|| self.backend.context()));
        result.unwrap_or_else(|panic| Err(self.panic_error(panic.as_ref())))
    }

    fn panic_error(&self, panic: &(dyn Any + Send)) -> NnError {
        NnError::runtime(format!("{} failed inside: {}", self.engine, panic_text(panic)))
    }

    /// Puts the named tensors in the graph's order and checks them.
    fn arrange(&self, tensors: Vec<(String, Tensor)>) -> Result<Vec<Tensor>, NnError> {
        let infos = self.inputs();
        let mut slots: Vec<Option<Tensor>> = infos.iter().map(|_| None).collect();
        for (name, tensor) in tensors {
            let Some(index) = infos.iter().position(|info| info.name == name) else {
                let known: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
                let name = quoted(&name);
                return Err(NnError::invalid(format!(
                    "there is no input {name}; the inputs are: {}",
                    known.join(", ")
                )));
            };
            if slots[index].replace(tensor).is_some() {
                return Err(NnError::invalid(format!("input {} is given more than once", quoted(&name))));
            }
        }
        let mut symbols = HashMap::new();
        let mut arranged = Vec::with_capacity(infos.len());
        for (info, slot) in infos.iter().zip(slots) {
            let tensor = slot.ok_or_else(|| NnError::invalid(format!("input {} is missing", quoted(&info.name))))?;
            check_input(info, &tensor, self.tensor_bytes_max, &mut symbols)?;
            arranged.push(tensor);
        }
        Ok(arranged)
    }
}

fn check_input<'a>(
    info: &'a TensorInfo,
    tensor: &Tensor,
    bytes_max: usize,
    symbols: &mut HashMap<&'a str, (u32, &'a str)>,
) -> Result<(), NnError> {
    let name = &info.name;
    tensor.check(&format_args!("input {name}", name = quoted(&name)), bytes_max)?;
    if tensor.ty != info.element.wit() {
        return Err(NnError::invalid(format!(
            "input {name} is {} but the graph takes {}",
            tensor.ty,
            info.element.wit(),
            name = quoted(&name)
        )));
    }
    let Some(dimensions) = &info.dimensions else { return Ok(()) };
    let wrong = |why: String| {
        NnError::invalid(format!(
            "input {name} has dimensions {} but the graph takes {info}{why}",
            listed(&tensor.dimensions),
            name = quoted(&name)
        ))
    };
    if tensor.dimensions.len() != dimensions.len() {
        return Err(wrong(format!(" of rank {}", dimensions.len())));
    }
    for (given, declared) in tensor.dimensions.iter().zip(dimensions) {
        match declared {
            Dimension::Fixed(size) if *size != *given as usize => return Err(wrong(String::new())),
            Dimension::Symbol(symbol) => {
                let (bound, first) = *symbols.entry(symbol.as_str()).or_insert((*given, name.as_str()));
                if bound != *given {
                    return Err(wrong(format!(", and {symbol} is {bound} in input {first}", first = quoted(&first))));
                }
            }
            Dimension::Fixed(_) | Dimension::Unknown => {}
        }
    }
    Ok(())
}

/// The execution context of one caller. Contexts of one graph share its weights and plans.
pub struct Context {
    graph: Arc<Graph>,
    /// `None` after a failure, until the next call creates a new one.
    backend: Option<Box<dyn BackendContext>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("graph", &self.graph).finish_non_exhaustive()
    }
}

impl Context {
    /// The graph of this context.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Computes every output from the named inputs. After an error the context can be used again.
    ///
    /// # Errors
    /// `invalid-argument` when a name, type, shape or length is wrong, `too-large` past a bound, `runtime-error` when the
    /// engine fails or panics, `unsupported-operation` when an output has a type that the WIT cannot carry.
    pub fn compute(&mut self, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, NnError> {
        let inputs = self.graph.arrange(inputs)?;
        let mut backend = match self.backend.take() {
            Some(backend) => backend,
            None => self.graph.backend_context()?,
        };
        let computed = catch_unwind(AssertUnwindSafe(|| backend.compute(&inputs)));
        let outputs = computed.unwrap_or_else(|panic| Err(self.graph.panic_error(panic.as_ref())))?;
        self.backend = Some(backend);
        Ok(self.graph.outputs().iter().map(|info| info.name.clone()).zip(outputs).collect())
    }
}
