//! `components/nn` under wasmtime: graphs passed as bytes, good, damaged and too large, wrong tensors, and what callers hold. Nothing makes
//! the instance trap, which would end it, and its memory stays bounded.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use std::path::{Path, PathBuf};

use prost::Message as _;
use tract_onnx::pb::{ModelProto, TensorProto};
use wasmtime::component::{Component, Linker, ResourceAny, ResourceTable};
use wasmtime::{Engine, ResourceLimiter, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use weir_nn::{Registry, RegistryConfig};

mod bindings {
    #![allow(missing_docs, reason = "the WIT documents it")]

    wasmtime::component::bindgen!({
        inline: "
            package weir:test;
            world nn {
                export wasi:nn/errors@0.2.0-rc-2024-10-28;
                export wasi:nn/tensor@0.2.0-rc-2024-10-28;
                export wasi:nn/inference@0.2.0-rc-2024-10-28;
                export wasi:nn/graph@0.2.0-rc-2024-10-28;
            }
        ",
        path: "../../wit/deps/nn.wit",
        world: "weir:test/nn",
    });
}

use bindings::exports::wasi::nn::errors::ErrorCode;
use bindings::exports::wasi::nn::graph::{ExecutionTarget, GraphEncoding};
use bindings::exports::wasi::nn::tensor::TensorType;

/// The words of the small graph's vocabulary.
const WORDS: usize = 512;
/// The most bytes of a graph, and of the weights of all graphs.
const GRAPH_BYTES_MAX: usize = 64 << 20;
const WEIGHT_BYTES_MAX: usize = 512 << 20;

struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    /// The most memory that the instance has had.
    memory: usize,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.memory = self.memory.max(desired);
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, _: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(true)
    }
}

type Failure = (ErrorCode, String);
type Input = (&'static str, Vec<u32>, TensorType, Vec<u8>);

/// An instance of the component. A trap of it fails the test.
struct Nn {
    store: Store<State>,
    nn: bindings::Nn,
}

impl Nn {
    fn new() -> Self {
        let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/components");
        let file = std::env::var_os("WEIR_COMPONENTS_DIR").map_or(built, PathBuf::from).join("nn.wasm");
        assert!(file.is_file(), "the component nn.wasm is not built: run `cargo xtask build --portable`");
        let engine = Engine::default();
        let component = Component::from_file(&engine, file).unwrap();
        let mut linker: Linker<State> = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
        let wasi = WasiCtx::builder().inherit_stderr().build();
        let mut store = Store::new(&engine, State { table: ResourceTable::new(), wasi, memory: 0 });
        store.limiter(|state| state);
        let nn = bindings::Nn::instantiate(&mut store, &component, &linker).unwrap();
        Self { store, nn }
    }

    /// The content of an error, which is dropped.
    fn failure(&mut self, error: ResourceAny) -> Failure {
        let errors = self.nn.wasi_nn_errors();
        let code = errors.error().call_code(&mut self.store, error).unwrap();
        let text = errors.error().call_data(&mut self.store, error).unwrap();
        error.resource_drop(&mut self.store).unwrap();
        (code, text)
    }

    fn load(&mut self, content: &[u8]) -> Result<ResourceAny, Failure> {
        self.load_from(&[content.to_vec()], GraphEncoding::Onnx, ExecutionTarget::Cpu)
    }

    fn load_from(
        &mut self,
        builders: &[Vec<u8>],
        encoding: GraphEncoding,
        target: ExecutionTarget,
    ) -> Result<ResourceAny, Failure> {
        let loaded = self.nn.wasi_nn_graph().call_load(&mut self.store, builders, encoding, target);
        loaded.expect("no graph makes the instance trap").map_err(|error| self.failure(error))
    }

    fn context(&mut self, graph: ResourceAny) -> Result<ResourceAny, Failure> {
        let context = self.nn.wasi_nn_graph().graph().call_init_execution_context(&mut self.store, graph);
        context.unwrap().map_err(|error| self.failure(error))
    }

    fn tensor(&mut self, (_, dimensions, ty, data): &Input) -> ResourceAny {
        self.nn.wasi_nn_tensor().tensor().call_constructor(&mut self.store, dimensions, *ty, data).unwrap()
    }

    /// Computes in a context; returns the numbers of the output.
    fn compute(&mut self, context: ResourceAny, inputs: &[Input]) -> Result<Vec<f32>, Failure> {
        let inputs: Vec<(String, ResourceAny)> =
            inputs.iter().map(|input| (input.0.to_owned(), self.tensor(input))).collect();
        let contexts = self.nn.wasi_nn_inference().graph_execution_context();
        let computed = contexts.call_compute(&mut self.store, context, &inputs);
        let outputs = computed.expect("no input makes the instance trap").map_err(|error| self.failure(error))?;
        let data = self.nn.wasi_nn_tensor().tensor().call_data(&mut self.store, outputs[0].1).unwrap();
        self.release(outputs.into_iter().map(|(_, tensor)| tensor));
        Ok(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn release(&mut self, resources: impl IntoIterator<Item = ResourceAny>) {
        for resource in resources {
            resource.resource_drop(&mut self.store).unwrap();
        }
    }

    /// Loads a graph and computes a text with it; drops both.
    fn answer(&mut self, content: &[u8]) -> Result<Vec<f32>, Failure> {
        let graph = self.load(content)?;
        let context = self.context(graph)?;
        let result = self.compute(context, &text(&[101, 7, 102]));
        self.release([graph, context]);
        result
    }

    fn refusal(&mut self, content: &[u8]) -> Failure {
        self.answer(content).unwrap_err()
    }
}

fn i64s(name: &'static str, values: &[i64]) -> Input {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    (name, vec![1, values.len() as u32], TensorType::I64, data)
}

/// The inputs for one text.
fn text(ids: &[i64]) -> Vec<Input> {
    let positions: Vec<i64> = (0..ids.len() as i64).collect();
    let pool = std::iter::repeat_n((1.0 / ids.len() as f32).to_le_bytes(), ids.len()).flatten().collect();
    vec![
        i64s("input_ids", ids),
        i64s("position_ids", &positions),
        i64s("segment_ids", &vec![0; ids.len()]),
        ("pool", vec![1, ids.len() as u32], TensorType::Fp32, pool),
    ]
}

/// The shipped classifier of sentiment with its weights inside and a vocabulary of [`WORDS`].
fn small_graph() -> ModelProto {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment");
    let mut model = ModelProto::decode(std::fs::read(folder.join("model_packed.onnx")).unwrap().as_slice()).unwrap();
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        if let Some(file) = entry("location") {
            let number = |key| entry(key).unwrap().parse::<usize>().unwrap();
            let content = std::fs::read(folder.join(file)).unwrap();
            tensor.raw_data = content[number("offset")..][..number("length")].to_vec();
            (tensor.external_data, tensor.data_location) = (Vec::new(), None);
        }
        if ["embeddings.words", "embeddings.scales"].contains(&tensor.name.as_str()) {
            tensor.raw_data.truncate(tensor.raw_data.len() / tensor.dims[0] as usize * WORDS);
            tensor.dims[0] = WORDS as i64;
        }
    }
    model
}

/// The graph with a change.
fn changed(model: &ModelProto, change: impl FnOnce(&mut ModelProto)) -> Vec<u8> {
    let mut model = model.clone();
    change(&mut model);
    model.encode_to_vec()
}

fn weights(model: &mut ModelProto) -> &mut Vec<TensorProto> {
    &mut model.graph.as_mut().unwrap().initializer
}

/// What the engine computes natively.
fn native(content: &[u8]) -> Vec<f32> {
    let graph = Registry::new(RegistryConfig::default()).load_bytes(content, weir_nn::Engine::Builtin).unwrap();
    let tensor = |(name, dimensions, ty, data): Input| {
        let ty = if ty == TensorType::I64 { weir_nn::TensorType::I64 } else { weir_nn::TensorType::Fp32 };
        (name.to_owned(), weir_nn::Tensor { dimensions, ty, data })
    };
    let inputs = text(&[101, 7, 102]).into_iter().map(tensor).collect();
    graph.context().unwrap().compute(inputs).unwrap()[0].1.to_f32().unwrap()
}

fn assert_near(given: &[f32], expected: &[f32]) {
    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
    assert!(given.len() == expected.len() && given.iter().zip(expected).all(is_near), "{given:?} {expected:?}");
}

#[test]
fn invalid_graphs_are_errors_and_the_next_graph_is_computed() {
    let model = small_graph();
    let good = model.encode_to_vec();
    let expected = native(&good);
    assert_eq!(expected.len(), 3);
    let mut nn = Nn::new();
    assert_near(&nn.answer(&good).unwrap(), &expected);

    let with_external = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment/model_packed.onnx");
    let external = nn.refusal(&std::fs::read(with_external).unwrap());
    assert!(external.1.contains("a graph passed as bytes cannot have external data"), "{external:?}");
    for length in [0, 1, 10, 1000, good.len() / 2, good.len() - 1000, good.len() - 1] {
        let (code, text) = nn.refusal(&good[..length]);
        // No bytes are a message of ONNX without a graph.
        let expected = if length == 0 { ErrorCode::UnsupportedOperation } else { ErrorCode::InvalidEncoding };
        assert_eq!(code, expected, "{length}: {text}");
    }
    let (code, text) = nn.refusal(&vec![0; GRAPH_BYTES_MAX + 1]);
    assert_eq!(code, ErrorCode::TooLarge);
    assert_eq!(text, "the graph has 67108865 bytes, more than the 67108864 allowed");
    for (encoding, target, builders, expected) in [
        (GraphEncoding::Pytorch, ExecutionTarget::Cpu, 1, ErrorCode::InvalidEncoding),
        (GraphEncoding::Onnx, ExecutionTarget::Gpu, 1, ErrorCode::UnsupportedOperation),
        (GraphEncoding::Onnx, ExecutionTarget::Cpu, 0, ErrorCode::InvalidArgument),
        (GraphEncoding::Onnx, ExecutionTarget::Cpu, 2, ErrorCode::InvalidArgument),
    ] {
        let (code, text) = nn.load_from(&vec![good.clone(); builders], encoding, target).unwrap_err();
        assert_eq!(code, expected, "{text}");
    }

    // Sizes that do not agree, one weight after the other.
    let count = weights(&mut model.clone()).len();
    assert!(count > 20, "{count} weights");
    let mut refused = 0;
    for at in 0..count {
        let damages: [fn(&mut TensorProto); 4] = [
            |weight| weight.raw_data.truncate(weight.raw_data.len() / 2),
            |weight| weight.raw_data.extend([1; 12]),
            |weight| weight.dims = vec![i64::MAX, -1],
            |weight| weight.data_type = 99,
        ];
        let damage = damages[at % damages.len()];
        refused += u32::from(nn.answer(&changed(&model, |model| damage(&mut weights(model)[at]))).is_err());
        refused += u32::from(nn.answer(&changed(&model, |model| drop(weights(model).remove(at)))).is_err());
    }
    assert!(refused as usize > count, "{refused} of {} refused", 2 * count);
    let nodes = model.graph.as_ref().unwrap().node.len();
    for at in (0..nodes).step_by(3) {
        let node = |model: &mut ModelProto| model.graph.as_mut().unwrap().node.remove(at);
        let (_, text) = nn.refusal(&changed(&model, |model| drop(node(model))));
        assert!(text.contains("is no encoder that the built-in engine knows"), "{text}");
    }
    assert_near(&nn.answer(&good).unwrap(), &expected);
    let memory = nn.store.data().memory;
    eprintln!("{} MiB of memory", memory >> 20);
    assert!(memory < 400 << 20, "{memory} bytes of memory");
}

#[test]
fn invalid_tensors_are_errors_and_the_context_stays_usable() {
    let good = small_graph().encode_to_vec();
    let expected = native(&good);
    let mut nn = Nn::new();
    let graph = nn.load(&good).unwrap();
    let context = nn.context(graph).unwrap();
    // The context has the graph as long as it needs it.
    nn.release([graph]);
    let replaced = |at: usize, input: Input| {
        let mut inputs = text(&[101, 7, 102]);
        inputs[at] = input;
        inputs
    };
    let long = 16 << 10;
    let cases: Vec<(Vec<Input>, ErrorCode, &str)> = vec![
        (vec![], ErrorCode::InvalidArgument, "\"input_ids\" is missing"),
        (replaced(0, i64s("input_ids", &[101, WORDS as i64, 102])), ErrorCode::InvalidArgument, "is not below"),
        (replaced(0, i64s("input_ids", &[101, -1, 102])), ErrorCode::InvalidArgument, "-1"),
        (replaced(1, i64s("position_ids", &[0, 2, 1])), ErrorCode::InvalidArgument, "where 1 is expected"),
        (replaced(2, i64s("segment_ids", &[0, 0])), ErrorCode::InvalidArgument, "dimensions"),
        (replaced(3, ("pool", vec![1, 3], TensorType::Fp16, vec![0; 6])), ErrorCode::InvalidArgument, "fp16"),
        (replaced(3, ("pool", vec![1, 3], TensorType::Fp32, vec![0; 8])), ErrorCode::InvalidArgument, "8 bytes"),
        (replaced(3, ("pool", vec![1; 65], TensorType::Fp32, vec![0; 4])), ErrorCode::InvalidArgument, "64 dimensions"),
        (replaced(3, ("pool", vec![0, 3], TensorType::Fp32, vec![])), ErrorCode::InvalidArgument, "is empty"),
        // Computing with these would take several GiB.
        (text(&vec![5; long + 1]), ErrorCode::TooLarge, "has a dimension of 16385, more than the 16384 allowed"),
        (
            replaced(3, ("pool", vec![5 << 20, 3], TensorType::Fp32, vec![0; 60 << 20])),
            ErrorCode::TooLarge,
            "an input has a dimension of 5242880",
        ),
        (text(&vec![5; long]), ErrorCode::InvalidArgument, "a text has 16384 tokens"),
    ];
    for (inputs, code, reason) in cases {
        let failure = nn.compute(context, &inputs).unwrap_err();
        assert!(failure.0 == code && failure.1.contains(reason), "{reason}: {failure:?}");
        assert_near(&nn.compute(context, &text(&[101, 7, 102])).unwrap(), &expected);
    }
    let unknown = nn.nn.wasi_nn_graph().call_load_by_name(&mut nn.store, "../models").unwrap().unwrap_err();
    assert_eq!(nn.failure(unknown).0, ErrorCode::NotFound);
}

#[test]
fn what_a_caller_holds_is_bounded() {
    let model = small_graph();
    let good = model.encode_to_vec();
    let mut nn = Nn::new();
    // Most of this graph is a weight that no node uses, so that few of them reach the bound.
    let filler =
        TensorProto { name: "filler".to_owned(), data_type: 3, raw_data: vec![1; 56 << 20], ..Default::default() };
    let large = changed(&model, |model| weights(model).push(filler));
    assert!(large.len() < GRAPH_BYTES_MAX);
    let mut held = Vec::new();
    let failure = loop {
        match nn.load(&large) {
            Ok(graph) => {
                held.push(nn.context(graph).unwrap());
                nn.release([graph]);
            }
            Err(failure) => break failure,
        }
    };
    assert_eq!(held.len(), WEIGHT_BYTES_MAX / large.len());
    assert!(
        failure.0 == ErrorCode::TooLarge && failure.1.contains("more than the 536870912 of a component"),
        "{failure:?}"
    );
    assert!(nn.compute(held[0], &text(&[101, 7, 102])).is_ok());
    nn.release(held.drain(..));
    assert!(nn.answer(&large).is_ok());

    let tensor: Input = ("pool", vec![1, 8 << 20], TensorType::Fp32, vec![0; 32 << 20]);
    let tensors: Vec<ResourceAny> = (0..20).map(|_| nn.tensor(&tensor)).collect();
    let failure = nn.answer(&good).unwrap_err();
    assert!(failure.1.contains("at most 268435456 bytes of tensors exist at once"), "{failure:?}");
    nn.release(tensors);
    let graph = nn.load(&good).unwrap();
    let mut contexts = Vec::new();
    let failure = loop {
        match nn.context(graph) {
            Ok(context) => contexts.push(context),
            Err(failure) => break failure,
        }
    };
    assert_eq!(contexts.len(), 9_999);
    assert!(failure.1.contains("at most 10000 tensors, contexts, graphs and errors exist at once"), "{failure:?}");
    nn.release(contexts);
    nn.release([graph]);
    assert_near(&nn.answer(&good).unwrap(), &native(&good));
    let memory = nn.store.data().memory;
    eprintln!("{} MiB of memory", memory >> 20);
    assert!(memory < 512 << 20, "{memory} bytes of memory");
}
