//! The guest `tests/guests/nn-probe`, run under wasmtime against this crate: the round trip of every tensor type, and every error
//! with its code and text. The guest must never trap.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod graphs;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use expect_test::{Expect, expect};
use graphs::Dt;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use weir_nn::{GraphAccess, NnCtx, NnView, Registry, RegistryConfig};

mod bindings {
    #![allow(missing_docs, reason = "the WIT documents it")]

    wasmtime::component::bindgen!({
        path: ["../../wit/deps/nn.wit", "../../tests/guests/nn-probe/wit"],
        world: "weir:nn-probe/probe",
    });
}

use bindings::wasi::nn::graph::{ExecutionTarget, GraphEncoding};
use bindings::wasi::nn::tensor::TensorType as Ty;
use bindings::{Builder, Failure, Source, Value};

const TYPES: [(Ty, Dt, usize); 7] = [
    (Ty::Fp16, Dt::Float16, 2),
    (Ty::Fp32, Dt::Float, 4),
    (Ty::Fp64, Dt::Double, 8),
    (Ty::Bf16, Dt::Bfloat16, 2),
    (Ty::U8, Dt::Uint8, 1),
    (Ty::I32, Dt::Int32, 4),
    (Ty::I64, Dt::Int64, 8),
];

struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    nn: NnCtx,
}

impl State {
    fn nn(&mut self) -> NnView<'_> {
        NnView { ctx: &mut self.nn, table: &mut self.table }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// The guest, compiled once for all tests of this process.
fn component() -> &'static (Engine, Component) {
    static COMPONENT: OnceLock<(Engine, Component)> = OnceLock::new();
    COMPONENT.get_or_init(|| {
        let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let named = std::env::var_os("WEIR_COMPONENTS_DIR").map(|dir| PathBuf::from(dir).join("nn_probe.wasm"));
        let built = ["components/nn_probe.wasm", "wasm32-wasip2/component/nn_probe.wasm"].map(|file| target.join(file));
        let file = named.into_iter().chain(built).find(|file| file.is_file());
        let file = file.expect("the guest nn_probe.wasm is not built: run `cargo xtask build`");
        let engine = Engine::default();
        let component = Component::from_file(&engine, file).expect("the guest is a component");
        (engine, component)
    })
}

struct Probe {
    store: Store<State>,
    guest: bindings::Probe,
}

impl Probe {
    fn new(registry: Arc<Registry>, names: GraphAccess) -> Self {
        let (engine, component) = component();
        let mut linker: Linker<State> = Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
        weir_nn::add_to_linker(&mut linker, State::nn).unwrap();
        let wasi = WasiCtx::builder().build();
        let state = State { table: ResourceTable::new(), wasi, nn: NnCtx::new(registry, names) };
        let mut store = Store::new(engine, state);
        let guest = bindings::Probe::instantiate(&mut store, component, &linker).unwrap();
        Self { store, guest }
    }

    /// Runs a graph once. Fails the test if the guest traps.
    fn run(&mut self, graph: Source, inputs: Vec<Value>) -> Result<Vec<Value>, Failure> {
        self.runs(graph, vec![inputs]).map(|mut runs| runs.remove(0)).and_then(|run| run)
    }

    fn runs(&mut self, graph: Source, runs: Vec<Vec<Value>>) -> Result<Vec<Result<Vec<Value>, Failure>>, Failure> {
        self.guest.call_compute(&mut self.store, &graph, &runs).expect("no input makes the guest trap")
    }

    fn check(&mut self, graph: Source, inputs: Vec<Value>, expected: &Expect) {
        expected.assert_eq(&show(&self.run(graph, inputs)));
    }
}

/// A registry of graphs, each in a file of its own.
fn registry(config: RegistryConfig, graphs: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Arc<Registry>) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new(config);
    for (name, graph) in graphs {
        let file = dir.path().join(format!("{name}.onnx"));
        std::fs::write(&file, graph).unwrap();
        registry.insert_dir(name, &file, weir_nn::Engine::Tract).unwrap();
    }
    (dir, Arc::new(registry))
}

fn probe(graphs: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Probe) {
    let (dir, registry) = registry(RegistryConfig::default(), graphs);
    (dir, Probe::new(registry, GraphAccess::All))
}

fn named(name: &str) -> Source {
    Source::ByName(name.to_owned())
}

fn bytes(part: &[u8]) -> Source {
    from_builder(vec![part.to_vec()], GraphEncoding::Onnx, ExecutionTarget::Cpu)
}

fn from_builder(parts: Vec<Vec<u8>>, encoding: GraphEncoding, target: ExecutionTarget) -> Source {
    Source::FromBytes(Builder { parts, encoding, target })
}

fn value(name: &str, dimensions: &[u32], ty: Ty, data: Vec<u8>) -> Value {
    Value { name: name.to_owned(), dimensions: dimensions.to_vec(), ty, data }
}

fn f32s(name: &str, dimensions: &[u32], values: &[f32]) -> Value {
    value(name, dimensions, Ty::Fp32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn i64s(name: &str, dimensions: &[u32], values: &[i64]) -> Value {
    value(name, dimensions, Ty::I64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn show(result: &Result<Vec<Value>, Failure>) -> String {
    match result {
        Ok(values) => {
            let show = |v: &Value| format!("{} {:?}{:?} = {:?}", v.name, v.ty, v.dimensions, v.data);
            values.iter().map(show).collect::<Vec<_>>().join("; ")
        }
        Err(failure) => format!("{:?} {:?}: {}", failure.stage, failure.code, failure.text),
    }
}

#[test]
fn tensor_resource_returns_its_content() {
    let (_dir, mut probe) = probe(&[]);
    for (ty, _, size) in TYPES {
        for given in [
            value("t", &[2, 3], ty, (0..6 * size as u8).collect()),
            value("t", &[], ty, vec![7; size]),
            value("t", &[0], ty, vec![]),
            value("t", &[u32::MAX, u32::MAX], ty, vec![1, 2, 3]),
        ] {
            let back = probe.guest.call_echo(&mut probe.store, &given).unwrap();
            assert_eq!(show(&Ok(vec![back])), show(&Ok(vec![given])));
        }
    }
}

#[test]
fn each_type_passes_a_graph_bit_for_bit() {
    for (ty, onnx, size) in TYPES {
        let (_dir, mut probe) = probe(&[
            ("fixed", graphs::identity(onnx, &["2", "3"])),
            ("free", graphs::identity(onnx, &["a", "b", "c"])),
        ]);
        // Many byte patterns: negative numbers, infinities and subnormals are among them.
        let patterns: Vec<u8> = (0..6 * size).map(|i| (i * 43 + 11) as u8).collect();
        let out = probe.run(named("fixed"), vec![value("x", &[2, 3], ty, patterns.clone())]);
        assert_eq!(show(&out), show(&Ok(vec![value("y", &[2, 3], ty, patterns.clone())])), "{ty:?}");
        let out = probe.run(named("free"), vec![value("x", &[1, 6, 1], ty, patterns.clone())]);
        assert_eq!(show(&out), show(&Ok(vec![value("y", &[1, 6, 1], ty, patterns)])), "{ty:?}");
    }
}

#[test]
fn each_numeric_type_is_computed() {
    // 1 + 2 = 3 in each, little-endian.
    let number = |ty: Ty, n: u8| -> Vec<u8> {
        let f = f32::from(n);
        match ty {
            Ty::Fp16 => half::f16::from_f32(f).to_le_bytes().to_vec(),
            Ty::Bf16 => half::bf16::from_f32(f).to_le_bytes().to_vec(),
            Ty::Fp32 => f.to_le_bytes().to_vec(),
            Ty::Fp64 => f64::from(n).to_le_bytes().to_vec(),
            Ty::U8 => vec![n],
            Ty::I32 => i32::from(n).to_le_bytes().to_vec(),
            Ty::I64 => i64::from(n).to_le_bytes().to_vec(),
        }
    };
    for (ty, onnx, _) in TYPES {
        let (_dir, mut probe) = probe(&[("add", graphs::add(onnx))]);
        let inputs = vec![value("y", &[1, 1], ty, number(ty, 2)), value("x", &[1, 1], ty, number(ty, 1))];
        let out = probe.run(named("add"), inputs);
        assert_eq!(show(&out), show(&Ok(vec![value("z", &[1, 1], ty, number(ty, 3))])), "{ty:?}");
    }
}

#[test]
fn types_outside_the_wit_become_the_nearest_wider_type() {
    let from_f32 = |to: Dt| graphs::cast(Dt::Float, to, &["3"]);
    let (_dir, mut probe) = probe(&[
        ("bool", from_f32(Dt::Bool)),
        ("i8", from_f32(Dt::Int8)),
        ("i16", from_f32(Dt::Int16)),
        ("u16", from_f32(Dt::Uint16)),
        ("u32", from_f32(Dt::Uint32)),
        ("u64", from_f32(Dt::Uint64)),
        ("of_bool", graphs::identity(Dt::Bool, &["3"])),
        ("of_i8", graphs::identity(Dt::Int8, &["3"])),
        ("of_u64", graphs::identity(Dt::Uint64, &["1"])),
    ]);
    let x = || vec![f32s("x", &[3], &[0.0, 1.0, 100.0])];
    probe.check(named("bool"), x(), &expect!["y TensorType::U8[3] = [0, 1, 1]"]);
    probe.check(named("i8"), x(), &expect!["y TensorType::I32[3] = [0, 0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0]"]);
    probe.check(named("i16"), x(), &expect!["y TensorType::I32[3] = [0, 0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0]"]);
    probe.check(named("u16"), x(), &expect!["y TensorType::I32[3] = [0, 0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0]"]);
    let eight =
        expect!["y TensorType::I64[3] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0]"];
    probe.check(named("u32"), x(), &eight);
    probe.check(named("u64"), x(), &eight);
    probe.check(
        named("of_bool"),
        vec![value("x", &[3], Ty::U8, vec![1, 0, 1])],
        &expect!["y TensorType::U8[3] = [1, 0, 1]"],
    );
    probe.check(
        named("of_bool"),
        vec![value("x", &[3], Ty::U8, vec![1, 0, 2])],
        &expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "x" is of truth values: 0 or 1 only"#]],
    );
    let ints =
        |values: [i32; 3]| vec![value("x", &[3], Ty::I32, values.iter().flat_map(|v| v.to_le_bytes()).collect())];
    probe.check(
        named("of_i8"),
        ints([-1, 0, 1]),
        &expect!["y TensorType::I32[3] = [255, 255, 255, 255, 0, 0, 0, 0, 1, 0, 0, 0]"],
    );
    probe.check(
        named("of_i8"),
        ints([0, 0, 128]),
        &expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "x" holds 128, which is no i8"#]],
    );
    probe.check(
        named("of_u64"),
        vec![i64s("x", &[1], &[-1])],
        &expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "x" holds -1, which is no u64"#]],
    );
}

#[test]
fn wrong_inputs_are_errors_with_a_code_and_a_sentence() {
    let (_dir, mut probe) =
        probe(&[("add", graphs::add(Dt::Float)), ("fixed", graphs::identity(Dt::Float, &["2", "3"]))]);
    let x = || f32s("x", &[1, 2], &[1.0, 2.0]);
    let y = || f32s("y", &[1, 2], &[3.0, 4.0]);
    let mut check = |inputs: Vec<Value>, expected: Expect| probe.check(named("add"), inputs, &expected);
    check(vec![x(), y()], expect!["z TensorType::Fp32[1, 2] = [0, 0, 128, 64, 0, 0, 192, 64]"]);
    check(vec![], expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "x" is missing"#]]);
    check(vec![x()], expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "y" is missing"#]]);
    check(
        vec![x(), y(), x()],
        expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "x" is given more than once"#]],
    );
    check(
        vec![x(), f32s("w", &[1, 2], &[0.0; 2])],
        expect![[r#"Stage::Compute ErrorCode::InvalidArgument: there is no input "w"; the inputs are: x, y"#]],
    );
    check(
        vec![x(), f32s(&"w".repeat(100), &[1, 2], &[0.0; 2])],
        expect![[
            r#"Stage::Compute ErrorCode::InvalidArgument: there is no input "wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww"…; the inputs are: x, y"#
        ]],
    );
    check(
        vec![x(), i64s("y", &[1, 2], &[0; 2])],
        expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "y" is i64 but the graph takes fp32"#]],
    );
    check(
        vec![x(), value("y", &[1, 2], Ty::Bf16, vec![0; 4])],
        expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "y" is bf16 but the graph takes fp32"#]],
    );
    check(
        vec![x(), f32s("y", &[2], &[0.0; 2])],
        expect![[
            r#"Stage::Compute ErrorCode::InvalidArgument: input "y" has dimensions [2] but the graph takes y fp32[batch, width] of rank 2"#
        ]],
    );
    check(
        vec![x(), f32s("y", &[], &[0.0])],
        expect![[
            r#"Stage::Compute ErrorCode::InvalidArgument: input "y" has dimensions [] but the graph takes y fp32[batch, width] of rank 2"#
        ]],
    );
    check(
        vec![x(), f32s("y", &[1, 3], &[0.0; 3])],
        expect![[
            r#"Stage::Compute ErrorCode::InvalidArgument: input "y" has dimensions [1, 3] but the graph takes y fp32[batch, width], and width is 2 in input "x""#
        ]],
    );
    check(
        vec![x(), f32s("y", &[1, 2], &[0.0; 3])],
        expect![[
            r#"Stage::Compute ErrorCode::InvalidArgument: input "y" has 12 bytes of data but its dimensions [1, 2] of fp32 take 8"#
        ]],
    );
    check(
        vec![x(), f32s("y", &[1, 0], &[])],
        expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "y" is empty: dimension 1 of [1, 0] is 0"#]],
    );
    check(
        vec![x(), f32s("y", &[u32::MAX, u32::MAX], &[])],
        expect![[
            r#"Stage::Compute ErrorCode::TooLarge: input "y" has dimensions [4294967295, 4294967295], whose product overflows"#
        ]],
    );
    check(
        vec![x(), f32s("y", &[1 << 20, 1 << 10], &[])],
        expect![[
            r#"Stage::Compute ErrorCode::TooLarge: input "y" takes 4294967296 bytes, more than the 268435456 allowed"#
        ]],
    );
    check(
        vec![x(), f32s("y", &[1; 65], &[0.0])],
        expect!["Stage::Compute ErrorCode::InvalidArgument: a tensor has at most 64 dimensions, not 65"],
    );
    probe.check(
        named("fixed"),
        vec![f32s("x", &[3, 2], &[0.0; 6])],
        &expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "x" has dimensions [3, 2] but the graph takes x fp32[2, 3]"#]],
    );
}

#[test]
fn context_stays_usable_after_an_error() {
    let (_dir, mut probe) = probe(&[("gather", graphs::gather())]);
    let indices = |values: &[i64]| vec![i64s("x", &[values.len() as u32], values)];
    let runs = vec![indices(&[0, 3]), indices(&[9]), vec![], indices(&[i64::MIN]), indices(&[1])];
    let runs = probe.runs(named("gather"), runs).unwrap();
    expect!["y TensorType::Fp32[2] = [0, 0, 32, 65, 0, 0, 80, 65]"].assert_eq(&show(&runs[0]));
    for failed in [&runs[1], &runs[3]] {
        let shown = show(failed);
        assert!(shown.starts_with("Stage::Compute ErrorCode::RuntimeError: "), "{shown}");
    }
    expect![[r#"Stage::Compute ErrorCode::InvalidArgument: input "x" is missing"#]].assert_eq(&show(&runs[2]));
    expect!["y TensorType::Fp32[1] = [0, 0, 48, 65]"].assert_eq(&show(&runs[4]));
}

#[test]
fn guest_may_load_its_own_graph() {
    let (_dir, mut probe) = probe(&[]);
    let graph = graphs::matmul();
    let x = || vec![f32s("x", &[1, 1, 4], &[1.0; 4])];
    let expected = expect!["y TensorType::Fp32[1, 1, 2] = [0, 0, 32, 65, 0, 0, 32, 193]"];
    probe.check(bytes(&graph), x(), &expected);
    probe.check(from_builder(vec![graph.clone()], GraphEncoding::Autodetect, ExecutionTarget::Cpu), x(), &expected);
    let mut check = |source: Source, expected: Expect| probe.check(source, x(), &expected);
    check(bytes(b""), expect!["Stage::Load ErrorCode::InvalidEncoding: graph: is empty"]);
    check(
        from_builder(vec![graph.clone()], GraphEncoding::Pytorch, ExecutionTarget::Cpu),
        expect!["Stage::Load ErrorCode::InvalidEncoding: graphs are ONNX here, not pytorch"],
    );
    check(
        from_builder(vec![graph.clone()], GraphEncoding::Onnx, ExecutionTarget::Gpu),
        expect!["Stage::Load ErrorCode::UnsupportedOperation: graphs run on the CPU here, not on a gpu"],
    );
    check(
        from_builder(vec![], GraphEncoding::Onnx, ExecutionTarget::Cpu),
        expect!["Stage::Load ErrorCode::InvalidArgument: an ONNX graph is one builder, not 0"],
    );
    check(
        from_builder(vec![graph.clone(), graph.clone()], GraphEncoding::Onnx, ExecutionTarget::Cpu),
        expect!["Stage::Load ErrorCode::InvalidArgument: an ONNX graph is one builder, not 2"],
    );
    check(
        bytes(&graphs::matmul_by(graphs::external("w", &[4, 2], &[("location", "weights.bin")]))),
        expect![[
            r#"Stage::Load ErrorCode::InvalidEncoding: graph: tensor "w" lies in "weights.bin"; a graph passed as bytes cannot have external data: load it by name or put the weights inside"#
        ]],
    );
    check(
        bytes(&graphs::graph(
            vec![graphs::value("x", Dt::Float, &["1"])],
            vec![graphs::node("Frobnicate", &["x"], &["y"])],
            vec![graphs::value("y", Dt::Float, &["1"])],
            vec![],
        )),
        expect!["Stage::Load ErrorCode::UnsupportedOperation: graph: tract has no operator Frobnicate"],
    );
    for length in 1..graph.len() {
        let shown = show(&probe.run(bytes(&graph[..length]), x()));
        assert!(shown.starts_with("Stage::Load ErrorCode::InvalidEncoding: graph: "), "{length}: {shown}");
    }
}

#[test]
fn guest_graphs_and_resources_are_bounded() {
    let config = RegistryConfig { guest_graph_bytes_max: 100, ..RegistryConfig::default() };
    let (_dir, graphs_bounded) = registry(config, &[]);
    let shown = show(&Probe::new(graphs_bounded, GraphAccess::All).run(bytes(&[0; 101]), vec![]));
    expect!["Stage::Load ErrorCode::TooLarge: the graph has 101 bytes, more than the 100 allowed"].assert_eq(&shown);

    let config = RegistryConfig { guest_graph_bytes_max: 0, ..RegistryConfig::default() };
    let (_dir, by_name_only) = registry(config, &[]);
    let shown = show(&Probe::new(by_name_only, GraphAccess::All).run(bytes(&graphs::matmul()), vec![]));
    expect!["Stage::Load ErrorCode::Security: this host loads graphs by name only"].assert_eq(&shown);

    let config = RegistryConfig { resources_max: 20, resource_bytes_max: 100, ..RegistryConfig::default() };
    let (_dir, bounded) = registry(config, &[("id", graphs::identity(Dt::Uint8, &["n"]))]);
    let mut probe = Probe::new(bounded, GraphAccess::All);
    let mut hoard = |count: u32, size: u32| {
        let value = value("x", &[size], Ty::U8, vec![1; size as usize]);
        show(&probe.guest.call_hoard(&mut probe.store, "id", count, &value).expect("the guest does not trap"))
    };
    expect!["y TensorType::U8[2] = [1, 1]"].assert_eq(&hoard(10, 2));
    expect![
        "Stage::Compute ErrorCode::TooLarge: this instance may hold 20 tensors, contexts, graphs and errors at once"
    ]
    .assert_eq(&hoard(30, 1));
    expect!["Stage::Compute ErrorCode::TooLarge: this instance may hold 100 bytes of tensors at once"]
        .assert_eq(&hoard(10, 20));
    expect!["y TensorType::U8[2] = [1, 1]"].assert_eq(&hoard(10, 2));
}

#[test]
fn instance_loads_only_its_graphs() {
    let graphs = [("a", graphs::identity(Dt::Uint8, &["n"])), ("b", graphs::identity(Dt::Uint8, &["n"]))];
    let (_dir, registry) = registry(RegistryConfig::default(), &graphs);
    let x = || vec![value("x", &[1], Ty::U8, vec![5])];
    let mut given_a = Probe::new(registry.clone(), GraphAccess::only(["a"]));
    given_a.check(named("a"), x(), &expect!["y TensorType::U8[1] = [5]"]);
    given_a.check(named("b"), x(), &expect![[r#"Stage::Load ErrorCode::NotFound: there is no graph named "b""#]]);
    given_a.check(named("c"), x(), &expect![[r#"Stage::Load ErrorCode::NotFound: there is no graph named "c""#]]);
    let mut given_none = Probe::new(registry.clone(), GraphAccess::None);
    given_none.check(named("a"), x(), &expect![[r#"Stage::Load ErrorCode::NotFound: there is no graph named "a""#]]);
    Probe::new(registry, GraphAccess::All).check(named("b"), x(), &expect!["y TensorType::U8[1] = [5]"]);
}
