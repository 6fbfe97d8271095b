//! The interfaces of `wasi:nn` over [`Graphs`].

use std::cell::{Cell, RefCell};

use weir_nn::{ErrorCode as Code, NnError};

use crate::bindings::{
    self,
    exports::wasi::nn::{errors, graph, inference, tensor},
};
use crate::graphs::{Graphs, Loaded, RESOURCE_BYTES_MAX, RESOURCES_MAX};

/// The most dimensions of a tensor, as in the native host.
const RANK_MAX: usize = 64;
/// The largest dimension of an input, such as the tokens of a batch: a computation takes some ten KiB for each token.
const DIMENSION_MAX: u32 = 16 << 10;

thread_local! {
    static GRAPHS: Graphs = Graphs::new();
    static IN_USE: Resources = const { Resources { resources: Cell::new(0), bytes: Cell::new(0) } };
}

/// The resources of all callers.
struct Resources {
    resources: Cell<usize>,
    bytes: Cell<usize>,
}

/// A resource of a caller, counted until it is dropped.
struct Counted<T> {
    value: T,
    bytes: usize,
}

impl<T> Counted<T> {
    /// Counts a resource and its bytes.
    fn new(value: T, bytes: usize) -> Self {
        IN_USE.with(|in_use| {
            in_use.resources.set(in_use.resources.get() + 1);
            in_use.bytes.set(in_use.bytes.get() + bytes);
        });
        Self { value, bytes }
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        IN_USE.with(|in_use| {
            in_use.resources.set(in_use.resources.get().saturating_sub(1));
            in_use.bytes.set(in_use.bytes.get().saturating_sub(self.bytes));
        });
    }
}

/// Fails if another resource with this number of bytes would exceed the bounds.
fn check_room(bytes: usize) -> Result<(), NnError> {
    IN_USE.with(|in_use| {
        if in_use.resources.get() >= RESOURCES_MAX {
            let text = format!("at most {RESOURCES_MAX} tensors, contexts, graphs and errors exist at once; drop some");
            return Err(NnError::too_large(text));
        }
        if in_use.bytes.get().saturating_add(bytes) > RESOURCE_BYTES_MAX {
            return Err(NnError::too_large(format!(
                "at most {RESOURCE_BYTES_MAX} bytes of tensors exist at once; drop some"
            )));
        }
        Ok(())
    })
}

struct Nn;

bindings::export!(Nn with_types_in bindings);

impl bindings::Guest for Nn {
    fn wizer_initialize() {
        if let Err(reason) = GRAPHS.with(Graphs::load_all) {
            // The function has no result, and a trap is what ends the tool.
            panic!("the graphs cannot be loaded: {reason}");
        }
    }
}

/// The resource `error`.
struct Error(Counted<NnError>);

fn failed(error: NnError) -> errors::Error {
    errors::Error::new(Error(Counted::new(error, 0)))
}

impl errors::Guest for Nn {
    type Error = Error;
}

impl errors::GuestError for Error {
    fn code(&self) -> errors::ErrorCode {
        use errors::ErrorCode as Wit;
        match self.0.value.code {
            Code::InvalidArgument => Wit::InvalidArgument,
            Code::InvalidEncoding => Wit::InvalidEncoding,
            Code::Timeout => Wit::Timeout,
            Code::RuntimeError => Wit::RuntimeError,
            Code::UnsupportedOperation => Wit::UnsupportedOperation,
            Code::TooLarge => Wit::TooLarge,
            Code::NotFound => Wit::NotFound,
            Code::Security => Wit::Security,
            Code::Unknown => Wit::Unknown,
        }
    }

    fn data(&self) -> String {
        self.0.value.text.clone()
    }
}

/// The resource `tensor`. Its constructor cannot fail, so an invalid tensor is refused when it is used.
struct Tensor {
    tensor: RefCell<Counted<weir_nn::Tensor>>,
    refused: Option<NnError>,
}

impl Tensor {
    fn of(tensor: weir_nn::Tensor, refused: Option<NnError>) -> Self {
        let bytes = tensor.data.len();
        Self { tensor: RefCell::new(Counted::new(tensor, bytes)), refused }
    }
}

impl tensor::Guest for Nn {
    type Tensor = Tensor;
}

impl tensor::GuestTensor for Tensor {
    fn new(dimensions: Vec<u32>, ty: tensor::TensorType, data: Vec<u8>) -> Self {
        let refused = match check_room(data.len()) {
            Ok(()) if dimensions.len() > RANK_MAX => {
                Some(NnError::invalid(format!("a tensor has at most {RANK_MAX} dimensions, not {}", dimensions.len())))
            }
            other => other.err(),
        };
        let ty = element(ty);
        match refused {
            None => Self::of(weir_nn::Tensor { dimensions, ty, data }, None),
            refused => Self::of(weir_nn::Tensor { dimensions: Vec::new(), ty, data: Vec::new() }, refused),
        }
    }

    fn dimensions(&self) -> Vec<u32> {
        self.tensor.borrow().value.dimensions.clone()
    }

    fn ty(&self) -> tensor::TensorType {
        use weir_nn::TensorType as Ours;
        match self.tensor.borrow().value.ty {
            Ours::Fp16 => tensor::TensorType::Fp16,
            Ours::Fp32 => tensor::TensorType::Fp32,
            Ours::Fp64 => tensor::TensorType::Fp64,
            Ours::Bf16 => tensor::TensorType::Bf16,
            Ours::U8 => tensor::TensorType::U8,
            Ours::I32 => tensor::TensorType::I32,
            Ours::I64 => tensor::TensorType::I64,
        }
    }

    fn data(&self) -> Vec<u8> {
        self.tensor.borrow().value.data.clone()
    }
}

fn element(ty: tensor::TensorType) -> weir_nn::TensorType {
    use weir_nn::TensorType as Ours;
    match ty {
        tensor::TensorType::Fp16 => Ours::Fp16,
        tensor::TensorType::Fp32 => Ours::Fp32,
        tensor::TensorType::Fp64 => Ours::Fp64,
        tensor::TensorType::Bf16 => Ours::Bf16,
        tensor::TensorType::U8 => Ours::U8,
        tensor::TensorType::I32 => Ours::I32,
        tensor::TensorType::I64 => Ours::I64,
    }
}

/// The resource `graph`.
struct Graph(Counted<Loaded>);

impl graph::Guest for Nn {
    type Graph = Graph;

    fn load(
        builders: Vec<Vec<u8>>,
        encoding: graph::GraphEncoding,
        target: graph::ExecutionTarget,
    ) -> Result<graph::Graph, errors::Error> {
        if !matches!(target, graph::ExecutionTarget::Cpu) {
            return Err(failed(NnError::unsupported("graphs run on the CPU here")));
        }
        if !matches!(encoding, graph::GraphEncoding::Onnx | graph::GraphEncoding::Autodetect) {
            return Err(failed(NnError::new(Code::InvalidEncoding, "graphs are ONNX here")));
        }
        let [builder] = builders.as_slice() else {
            return Err(failed(NnError::invalid(format!("an ONNX graph is one builder, not {}", builders.len()))));
        };
        graph_resource(GRAPHS.with(|graphs| graphs.by_content(builder)))
    }

    fn load_by_name(name: String) -> Result<graph::Graph, errors::Error> {
        graph_resource(GRAPHS.with(|graphs| graphs.by_name(&name)))
    }
}

fn graph_resource(loaded: Result<Loaded, NnError>) -> Result<graph::Graph, errors::Error> {
    let loaded = loaded.and_then(|graph| check_room(0).map(|()| graph)).map_err(failed)?;
    Ok(graph::Graph::new(Graph(Counted::new(loaded, 0))))
}

impl graph::GuestGraph for Graph {
    fn init_execution_context(&self) -> Result<inference::GraphExecutionContext, errors::Error> {
        check_room(0).map_err(failed)?;
        Ok(inference::GraphExecutionContext::new(Context(Counted::new(self.0.value.clone(), 0))))
    }
}

/// The resource `graph-execution-context`. The memory of a computation ends with it, so that thousands of contexts do not have thousands
/// of batches.
struct Context(Counted<Loaded>);

impl inference::Guest for Nn {
    type GraphExecutionContext = Context;
}

impl inference::GuestGraphExecutionContext for Context {
    fn compute(&self, inputs: Vec<(String, tensor::Tensor)>) -> Result<Vec<(String, tensor::Tensor)>, errors::Error> {
        let mut tensors = Vec::with_capacity(inputs.len());
        let mut refused = None;
        for (name, input) in inputs {
            let Tensor { tensor, refused: why } = input.into_inner::<Tensor>();
            refused = refused.or(why).or_else(|| check_dimensions(&tensor.borrow().value.dimensions).err());
            let empty = weir_nn::Tensor { dimensions: Vec::new(), ty: weir_nn::TensorType::U8, data: Vec::new() };
            tensors.push((name, std::mem::replace(&mut tensor.borrow_mut().value, empty)));
        }
        if let Some(error) = refused {
            return Err(failed(error));
        }
        let context = self.0.value.graph.context();
        let outputs = context.and_then(|mut context| context.compute(tensors)).map_err(failed)?;
        let bytes = outputs.iter().map(|(_, output)| output.data.len()).sum();
        check_room(bytes).map_err(failed)?;
        let handle = |(name, output)| (name, tensor::Tensor::new(Tensor::of(output, None)));
        Ok(outputs.into_iter().map(handle).collect())
    }
}

fn check_dimensions(dimensions: &[u32]) -> Result<(), NnError> {
    match dimensions.iter().find(|dimension| **dimension > DIMENSION_MAX) {
        Some(dimension) => Err(NnError::too_large(format!(
            "an input has a dimension of {dimension}, more than the {DIMENSION_MAX} allowed"
        ))),
        None => Ok(()),
    }
}
