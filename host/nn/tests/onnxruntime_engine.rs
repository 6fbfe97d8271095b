//! ONNX Runtime as an engine: every type, many callers, hostile tensors and files, and the installed library.
//!
//! The library is that of the Python that `WEIR_TEST_PYTHON` names; `cargo xtask test` makes one.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod graphs;
mod library;
mod zeros;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use expect_test::{Expect, expect};
use graphs::Dt;
use proptest::prelude::*;
use weir_nn::{Engine, ErrorCode, Graph, LoadError, Registry, RegistryConfig, Tensor, TensorType};

static CONFIG: LazyLock<RegistryConfig> = LazyLock::new(library::config);

fn load(bytes: &[u8], config: RegistryConfig) -> Result<Arc<Graph>, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.onnx");
    std::fs::write(&file, bytes).unwrap();
    Registry::new(config).insert_dir("g", &file, Engine::OnnxRuntime)
}

fn graph(bytes: &[u8]) -> Arc<Graph> {
    load(bytes, CONFIG.clone()).unwrap()
}

fn x(tensor: Tensor) -> Vec<(String, Tensor)> {
    vec![("x".to_owned(), tensor)]
}

fn tensor(ty: TensorType, dimensions: &[u32], data: &[u8]) -> Tensor {
    Tensor { dimensions: dimensions.to_vec(), ty, data: data.to_vec() }
}

#[test]
fn graph_computes_any_number_of_tokens() {
    let graph = graph(&graphs::matmul());
    assert_eq!((graph.engine().to_string(), graph.parameter_bytes()), ("onnxruntime".to_owned(), 32));
    assert_eq!(graph.inputs()[0].to_string(), "x fp32[batch, tokens, 4]");
    assert_eq!(graph.outputs()[0].to_string(), "y fp32[batch, tokens, 2]");
    let mut context = graph.context().unwrap();
    for tokens in [1, 3, 2] {
        let values: Vec<f32> = (0..4 * tokens).map(|i| (i % 4 + 1) as f32).collect();
        let outputs = context.compute(x(Tensor::from_f32(&[1, tokens, 4], &values))).unwrap();
        let expected: Vec<f32> = [30.0, -30.0].into_iter().cycle().take(2 * tokens as usize).collect();
        assert_eq!(outputs, [("y".to_owned(), Tensor::from_f32(&[1, tokens, 2], &expected))]);
    }
}

#[test]
fn each_wit_tensor_type_is_accepted() {
    let same = |declared: Dt, ty: TensorType, data: &[u8]| {
        let input = tensor(ty, &[2], data);
        let outputs = graph(&graphs::identity(declared, &["n"])).context().unwrap().compute(x(input.clone())).unwrap();
        assert_eq!(outputs, [("y".to_owned(), input)], "{declared:?}");
    };
    same(Dt::Float16, TensorType::Fp16, &[0, 0x3c, 0, 0xc0]);
    same(Dt::Float, TensorType::Fp32, &[0, 0, 128, 63, 0, 0, 0, 192]);
    same(Dt::Double, TensorType::Fp64, &[1.5f64.to_le_bytes(), (-2.5f64).to_le_bytes()].concat());
    same(Dt::Bfloat16, TensorType::Bf16, &[128, 63, 0, 192]);
    same(Dt::Uint8, TensorType::U8, &[7, 255]);
    same(Dt::Int32, TensorType::I32, &[1, 0, 0, 0, 255, 255, 255, 255]);
    same(Dt::Int64, TensorType::I64, &[1i64.to_le_bytes(), (-2i64).to_le_bytes()].concat());
    // Types that the WIT lacks.
    same(Dt::Bool, TensorType::U8, &[0, 1]);
    same(Dt::Int8, TensorType::I32, &[128, 255, 255, 255, 127, 0, 0, 0]);
    same(Dt::Int16, TensorType::I32, &[0, 128, 255, 255, 1, 0, 0, 0]);
    same(Dt::Uint16, TensorType::I32, &[255, 255, 0, 0, 1, 0, 0, 0]);
    same(Dt::Uint32, TensorType::I64, &[255, 255, 255, 255, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    same(Dt::Uint64, TensorType::I64, &[i64::MAX.to_le_bytes(), 1i64.to_le_bytes()].concat());
    let wrong = |declared: Dt, tensor: Tensor, expected: Expect| {
        let error = graph(&graphs::identity(declared, &["n"])).context().unwrap().compute(x(tensor)).unwrap_err();
        expected.assert_eq(&format!("{:?}: {error}", error.code));
    };
    wrong(
        Dt::Bool,
        tensor(TensorType::U8, &[1], &[2]),
        expect![[r#"InvalidArgument: input "x" is of truth values: 0 or 1 only"#]],
    );
    wrong(
        Dt::Int8,
        tensor(TensorType::I32, &[1], &[128, 0, 0, 0]),
        expect![[r#"InvalidArgument: input "x" holds 128, which is no i8"#]],
    );
    wrong(
        Dt::Float,
        Tensor::from_i64(&[1], &[1]),
        expect![[r#"InvalidArgument: input "x" is i64 but the graph takes fp32"#]],
    );
    let text = load(&graphs::identity(Dt::String, &["n"]), CONFIG.clone()).unwrap_err();
    assert!(matches!(text, LoadError::Unsupported { .. }), "{text}");
}

#[test]
fn failed_computation_leaves_the_context_usable() {
    let gather = graph(&graphs::gather());
    let mut context = gather.context().unwrap();
    let check_usable = |context: &mut weir_nn::Context| {
        let outputs = context.compute(x(Tensor::from_i64(&[2], &[3, 0]))).unwrap();
        assert_eq!(outputs[0].1, Tensor::from_f32(&[2], &[13.0, 10.0]));
    };
    check_usable(&mut context);
    let error = context.compute(x(Tensor::from_i64(&[2], &[1, 4_000_000]))).unwrap_err();
    assert_eq!(error.code, ErrorCode::RuntimeError);
    assert!(error.text.contains("4000000") && error.text.len() < 2500, "{error}");
    check_usable(&mut context);
    let error = context.compute(x(Tensor::from_i64(&[1, 2], &[1, 2]))).unwrap_err();
    expect![[r#"input "x" has dimensions [1, 2] but the graph takes x i64[n] of rank 1"#]].assert_eq(&error.text);
    check_usable(&mut context);
    // The input is within the bound, the output (twice as large) is not.
    let config = RegistryConfig { tensor_bytes_max: 16, ..CONFIG.clone() };
    let double = load(&graphs::cast(Dt::Float, Dt::Double, &["n"]), config).unwrap();
    let mut context = double.context().unwrap();
    assert!(context.compute(x(Tensor::from_f32(&[2], &[0.0; 2]))).is_ok());
    let error = context.compute(x(Tensor::from_f32(&[4], &[0.0; 4]))).unwrap_err();
    assert_eq!(error.code, ErrorCode::TooLarge);
    expect![[r#"output "y" has dimensions [4] of fp64, more than the 16 bytes allowed"#]].assert_eq(&error.text);
}

#[test]
fn graph_used_by_many_threads_computes_correctly() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment");
    let graph = Registry::new(CONFIG.clone()).insert_dir("sentiment", &dir, Engine::OnnxRuntime).unwrap();
    let inputs = |tokens: u32, seed: i64| -> Vec<(String, Tensor)> {
        let value = |name: &str, position: i64| match name {
            "input_ids" => 1000 + (position * 37 + seed * 101) % 20_000,
            "attention_mask" => 1,
            "position_ids" => position,
            _ => 0,
        };
        let values = |name: &str| (0..i64::from(tokens)).map(|position| value(name, position)).collect::<Vec<_>>();
        let input =
            |info: &weir_nn::TensorInfo| (info.name.clone(), Tensor::from_i64(&[1, tokens], &values(&info.name)));
        graph.inputs().iter().map(input).collect()
    };
    let cases: Vec<(u32, i64)> = (0..12).map(|i| (3 + 7 * i as u32, i)).collect();
    let mut alone = graph.context().unwrap();
    let expected: Vec<_> = cases.iter().map(|(n, seed)| alone.compute(inputs(*n, *seed)).unwrap()).collect();
    std::thread::scope(|scope| {
        for first in 0..8 {
            let (graph, cases, expected, inputs) = (&graph, &cases, &expected, &inputs);
            scope.spawn(move || {
                let mut context = graph.context().unwrap();
                for run in 0..40 {
                    let index = (first + run) % cases.len();
                    let (tokens, seed) = cases[index];
                    // Equal bits: another caller's run must not affect the result.
                    assert_eq!(context.compute(inputs(tokens, seed)).unwrap(), expected[index]);
                    if run % 10 == 0 {
                        let poison = inputs(tokens, 0).into_iter().map(|(name, tensor)| match name.as_str() {
                            "input_ids" => (name, Tensor::from_i64(&[1, tokens], &vec![1 << 40; tokens as usize])),
                            _ => (name, tensor),
                        });
                        assert_eq!(context.compute(poison.collect()).unwrap_err().code, ErrorCode::RuntimeError);
                    }
                }
            });
        }
    });
}

#[test]
fn external_weights_behind_a_link_are_loaded() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let values: Vec<f32> = (0..4 * 600).map(|i| (i % 600) as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(root.path().join("shared.bin"), &bytes).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../shared.bin", model.join("w.bin")).unwrap();
    let xs = graphs::value("x", Dt::Float, &["n", "4"]);
    let ys = graphs::value("y", Dt::Float, &["n", "600"]);
    let node = graphs::node("MatMul", &["x", "w"], &["y"]);
    let w = graphs::external("w", &[4, 600], &[("location", "w.bin")]);
    std::fs::write(model.join("model.onnx"), graphs::graph(vec![xs], vec![node], vec![ys], vec![w])).unwrap();
    let graph = Registry::new(CONFIG.clone()).insert_dir("m", &model, Engine::OnnxRuntime).unwrap();
    assert_eq!(graph.parameter_bytes(), 9600);
    // A loaded graph does not need its files any more.
    root.close().unwrap();
    let outputs = graph.context().unwrap().compute(x(Tensor::from_f32(&[1, 4], &[1.0; 4]))).unwrap();
    let expected: Vec<f32> = (0..600).map(|i| (4 * i) as f32).collect();
    assert_eq!(outputs[0].1, Tensor::from_f32(&[1, 600], &expected));
}

#[test]
fn external_data_outside_the_directory_is_refused() {
    use prost::Message;
    use tract_onnx::pb::{
        AttributeProto, FunctionProto, ModelProto, SparseTensorProto, attribute_proto::AttributeType,
    };
    let outside = || graphs::external("w", &[4, 2], &[("location", "/etc/passwd")]);
    let check_refusal = |edit: &dyn Fn(&mut ModelProto)| {
        let mut model = ModelProto::decode(graphs::matmul().as_slice()).unwrap();
        edit(&mut model);
        let error = load(&model.encode_to_vec(), CONFIG.clone()).unwrap_err().to_string();
        assert!(error.contains("which is not inside the model's directory"), "{error}");
    };
    let sparse = || SparseTensorProto { values: Some(outside()), ..Default::default() };
    let constant = |attribute: AttributeProto| {
        let mut node = graphs::node("Constant", &[], &["c"]);
        node.attribute.push(attribute);
        node
    };
    let dense = || AttributeProto {
        name: "value".to_owned(),
        r#type: AttributeType::Tensor as i32,
        t: Some(outside()),
        ..Default::default()
    };
    check_refusal(&|model| model.graph.as_mut().unwrap().initializer[0] = outside());
    check_refusal(&|model| model.graph.as_mut().unwrap().sparse_initializer.push(sparse()));
    check_refusal(&|model| model.graph.as_mut().unwrap().node.push(constant(dense())));
    check_refusal(&|model| {
        let attribute = AttributeProto { sparse_tensor: Some(sparse()), ..Default::default() };
        model.graph.as_mut().unwrap().node.push(constant(attribute));
    });
    check_refusal(&|model| model.functions.push(FunctionProto { node: vec![constant(dense())], ..Default::default() }));
}

#[test]
fn broken_files_are_errors() {
    let check = |bytes: &[u8], expected: Expect| {
        let error = load(bytes, CONFIG.clone()).unwrap_err().to_string();
        let (_, reason) = error.split_once("model.onnx: ").unwrap();
        expected.assert_eq(reason);
    };
    check(b"", expect!["is empty"]);
    check(
        &graphs::matmul()[..40],
        expect!["truncated or not ONNX: failed to decode Protobuf message: ModelProto.graph: buffer underflow"],
    );
    let ty = graphs::value("y", Dt::Float, &["n"]);
    let unknown = graphs::node("NoSuchOperator", &["x"], &["y"]);
    let unknown = graphs::graph(vec![graphs::value("x", Dt::Float, &["n"])], vec![unknown], vec![ty.clone()], vec![]);
    let error = load(&unknown, CONFIG.clone()).unwrap_err().to_string();
    assert!(error.contains("NoSuchOperator"), "{error}");
    let nothing = graphs::graph(vec![], vec![graphs::node("Identity", &["nowhere"], &["y"])], vec![ty], vec![]);
    let error = load(&nothing, CONFIG.clone()).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_files_do_not_panic(
        which in 0usize..4,
        cut in 0usize..400,
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
    ) {
        // A file may load or not; if it does, it must run or fail without a panic.
        if let Ok(graph) = load(&graphs::damaged(which, cut, flips), CONFIG.clone()) {
            zeros::compute_zeros(&graph);
        }
    }
}

#[test]
fn library_is_installed_and_replaced() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("data/weir/onnxruntime");
    for _ in 0..2 {
        let path = weir_nn::model::pull_onnxruntime(Some(&library::folder()), &folder, &mut |_| {}).unwrap();
        assert_eq!(path.parent(), Some(folder.as_path()));
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with("libonnxruntime.so"));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }
}
