//! Registry, graphs and plans without a guest: loading once, sharing, fixed-shape plans, and hostile tensors and files.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod graphs;
mod zeros;

use std::path::Path;
use std::sync::{Arc, Barrier};

use expect_test::{Expect, expect};
use graphs::Dt;
use proptest::prelude::*;
use weir_nn::{
    Engine, EngineChoice, ErrorCode, Graph, LoadError, NnError, Registry, RegistryConfig, Tensor, TensorType,
};

fn load(bytes: &[u8], config: RegistryConfig) -> Result<Arc<Graph>, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.onnx");
    std::fs::write(&file, bytes).unwrap();
    Registry::new(config).insert_dir("g", &file, Engine::Tract)
}

fn x(dimensions: &[u32], value: f32) -> Vec<(String, Tensor)> {
    let count = dimensions.iter().product::<u32>() as usize;
    let values: Vec<f32> = (0..count).map(|i| value + i as f32).collect();
    vec![("x".to_owned(), Tensor::from_f32(dimensions, &values))]
}

#[test]
fn concurrent_loads_load_a_graph_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.onnx"), graphs::matmul()).unwrap();
    let registry = Arc::new(Registry::new(RegistryConfig::default()));
    registry.insert_lazy("m", dir.path(), Engine::Tract).unwrap();
    let start = Arc::new(Barrier::new(8));
    let load = || {
        let (registry, start) = (registry.clone(), start.clone());
        std::thread::spawn(move || {
            start.wait();
            registry.graph("m").unwrap()
        })
    };
    let threads: Vec<_> = (0..8).map(|_| load()).collect();
    let loaded: Vec<Arc<Graph>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(loaded.iter().all(|graph| Arc::ptr_eq(graph, &loaded[0])));
    // A loaded graph does not need its file any more.
    dir.close().unwrap();
    assert_eq!(registry.graph("m").unwrap().parameter_bytes(), 32);
}

#[test]
fn registry_errors_name_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new(RegistryConfig::default());
    assert_eq!(registry.graph("m").unwrap_err(), LoadError::UnknownName("m".to_owned()));
    let missing = registry.insert_dir("m", dir.path(), Engine::Tract).unwrap_err();
    let expected = format!("{}: model.onnx (or onnx/model.onnx) is missing", dir.path().display());
    assert_eq!(missing.to_string(), expected);
    // A load that failed registers nothing, so the name is free.
    std::fs::create_dir(dir.path().join("onnx")).unwrap();
    std::fs::write(dir.path().join("onnx/model.onnx"), graphs::matmul()).unwrap();
    registry.insert_dir("m", dir.path(), Engine::Tract).unwrap();
    assert_eq!(registry.insert_lazy("m", dir.path(), Engine::Tract), Err(LoadError::NameTaken("m".to_owned())));
    assert_eq!(registry.names(), ["m"]);
    assert!(registry.remove("m") && !registry.remove("m"));
    assert_eq!(
        "onnx".parse::<EngineChoice>().unwrap_err().to_string(),
        "there is no engine named \"onnx\"; the engines are: auto, builtin, tract, onnxruntime"
    );
    for name in ["auto", "builtin", "tract", "onnxruntime"] {
        assert_eq!(name.parse::<EngineChoice>().unwrap().to_string(), name);
    }
}

#[test]
fn frequent_shape_gets_a_plan_with_equal_results() {
    let config = RegistryConfig { plan_after_uses: 2, plans_max: 2, ..RegistryConfig::default() };
    let graph = load(&graphs::matmul(), config).unwrap();
    let mut context = graph.context().unwrap();
    let symbolic: Vec<_> = (1..5).map(|n| context.compute(x(&[1, n, 4], 0.5)).unwrap()).collect();
    assert_eq!(graph.fixed_plans(), 0);
    // More shapes than plans: two shapes get one, the others use the symbolic plan, and all results stay equal.
    for _ in 0..10 {
        for n in 1..5 {
            assert_eq!(context.compute(x(&[1, n, 4], 0.5)).unwrap(), symbolic[n as usize - 1]);
        }
        graph.settle();
    }
    assert_eq!(graph.fixed_plans(), 2);
    // Plans are shared by all contexts.
    let mut other = graph.context().unwrap();
    assert_eq!(other.compute(x(&[1, 1, 4], 0.5)).unwrap(), symbolic[0]);
}

#[test]
fn idle_plan_is_evicted() {
    let config = RegistryConfig { plan_after_uses: 1, plans_max: 1, ..RegistryConfig::default() };
    let graph = load(&graphs::matmul(), config).unwrap();
    let mut context = graph.context().unwrap();
    context.compute(x(&[1, 1, 4], 0.0)).unwrap();
    graph.settle();
    let first = graph.plans_made();
    for _ in 0..100 {
        context.compute(x(&[1, 2, 4], 0.0)).unwrap();
        graph.settle();
    }
    assert_eq!((first, graph.plans_made(), graph.fixed_plans()), (1, 2, 1));
}

#[test]
fn graph_used_by_many_threads_computes_correctly() {
    let config = RegistryConfig { plan_after_uses: 3, ..RegistryConfig::default() };
    let graph = load(&graphs::matmul(), config).unwrap();
    let start = |seed: u32| {
        let graph = graph.clone();
        std::thread::spawn(move || {
            let mut context = graph.context().unwrap();
            for run in 0..200 {
                let n = 1 + (run + seed) % 5;
                let out = context.compute(x(&[1, n, 4], 1.0)).unwrap();
                // The first row is 1 2 3 4.
                assert_eq!(out[0].1.to_f32().unwrap()[..2], [30.0, -30.0]);
            }
        })
    };
    let threads: Vec<_> = (0..4).map(start).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn check_external(w: graphs::Weights, file: Option<&[u8]>, expected: Expect) {
    let dir = tempfile::tempdir().unwrap();
    if let Some(content) = file {
        std::fs::write(dir.path().join("w.bin"), content).unwrap();
    }
    std::fs::write(dir.path().join("model.onnx"), graphs::matmul_by(w)).unwrap();
    let registry = Registry::new(RegistryConfig::default());
    let shown = match registry.insert_dir("m", dir.path(), Engine::Tract) {
        Ok(graph) => {
            let out = graph.context().unwrap().compute(x(&[1, 1, 4], 1.0)).unwrap();
            format!("{:?}", out[0].1.to_f32().unwrap())
        }
        Err(error) => error.to_string().replace(&dir.path().display().to_string(), "DIR"),
    };
    expected.assert_eq(&shown);
}

#[test]
fn external_data_outside_the_model_directory_is_refused() {
    let weights: Vec<u8> = [1f32, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let shifted = [&[0; 4], weights.as_slice()].concat();
    let w = |entries: &[(&str, &str)]| graphs::external("w", &[4, 2], entries);
    check_external(w(&[("location", "w.bin")]), Some(&weights), expect!["[30.0, -30.0]"]);
    check_external(
        w(&[("location", "w.bin"), ("offset", "4"), ("length", "32")]),
        Some(&shifted),
        expect!["[30.0, -30.0]"],
    );
    check_external(w(&[("location", "w.bin")]), None, expect!["DIR: w.bin is missing"]);
    check_external(
        w(&[("location", "w.bin"), ("length", "32")]),
        Some(&weights[..31]),
        expect![[r#"DIR/model.onnx: external data "w.bin" has 31 bytes but tensor "w" takes 32 from byte 0"#]],
    );
    check_external(
        w(&[("location", "w.bin"), ("offset", "18446744073709551615"), ("length", "32")]),
        Some(&weights),
        expect![[
            r#"DIR/model.onnx: external data "w.bin" has 32 bytes but tensor "w" takes 32 from byte 18446744073709551615"#
        ]],
    );
    check_external(
        w(&[("location", "w.bin"), ("offset", "-1")]),
        Some(&weights),
        expect![[r#"DIR/model.onnx: tensor "w": offset is no number"#]],
    );
    check_external(
        w(&[]),
        Some(&weights),
        expect![[r#"DIR/model.onnx: tensor "w" is external but does not say where"#]],
    );
    for outside in ["../w.bin", "/etc/passwd", "a/../../w.bin", ""] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.onnx"), graphs::matmul_by(w(&[("location", outside)]))).unwrap();
        let error = Registry::new(RegistryConfig::default()).insert_dir("m", dir.path(), Engine::Tract).unwrap_err();
        assert!(error.to_string().contains("is not inside the model's directory"), "{error}");
    }
}

#[test]
#[cfg(unix)]
fn link_in_the_models_directory_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(root.path().join("shared.bin"), [0; 32]).unwrap();
    std::os::unix::fs::symlink("../shared.bin", model.join("w.bin")).unwrap();
    let w = graphs::external("w", &[4, 2], &[("location", "w.bin")]);
    std::fs::write(model.join("model.onnx"), graphs::matmul_by(w)).unwrap();
    Registry::new(RegistryConfig::default()).insert_dir("m", &model, Engine::Tract).unwrap();
}

#[test]
fn graph_or_output_past_its_bound_is_refused() {
    let config = RegistryConfig { graph_bytes_max: 10, ..RegistryConfig::default() };
    let error = load(&graphs::matmul(), config).unwrap_err();
    assert!(matches!(error, LoadError::TooLarge { .. }), "{error}");
    // The input is within the bound, the output (twice as large) is not.
    let config = RegistryConfig { tensor_bytes_max: 16, ..RegistryConfig::default() };
    let graph = load(&graphs::cast(Dt::Float, Dt::Double, &["n"]), config).unwrap();
    let mut context = graph.context().unwrap();
    assert!(context.compute(x(&[2], 0.0)).is_ok());
    let error = context.compute(x(&[4], 0.0)).unwrap_err();
    let text = "output \"y\" has dimensions [4] of fp64, more than the 16 bytes allowed";
    assert_eq!(error, NnError::new(ErrorCode::TooLarge, text));
}

/// An independent implementation of the checks of inputs.
fn is_acceptable(inputs: &[(String, Tensor)]) -> bool {
    let [(a_name, a), (b_name, b)] = inputs else { return false };
    let is_valid = |t: &Tensor| {
        let product: u128 = t.dimensions.iter().map(|d| u128::from(*d)).product();
        t.ty == TensorType::Fp32 && t.dimensions.len() == 2 && product > 0 && product * 4 == t.data.len() as u128
    };
    let names = (a_name == "x" && b_name == "y") || (a_name == "y" && b_name == "x");
    names && is_valid(a) && is_valid(b) && a.dimensions == b.dimensions
}

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let dimension = prop_oneof![6 => 1u32..4, 1 => Just(0u32), 1 => any::<u32>()];
    let ty = prop_oneof![4 => Just(TensorType::Fp32), 1 => prop::sample::select(TensorType::ALL.to_vec())];
    let fitting = |dimensions: &[u32], ty: TensorType| {
        let product = dimensions.iter().try_fold(ty.size_bytes(), |n, d| n.checked_mul(*d as usize));
        product.filter(|bytes| *bytes < 1024).unwrap_or(0)
    };
    (
        prop_oneof![4 => prop::collection::vec(dimension.clone(), 2), 1 => prop::collection::vec(dimension, 0..6)],
        ty,
        -4i32..5,
    )
        .prop_map(move |(dimensions, ty, off)| {
            // Mostly of the right length, sometimes a few bytes shorter or longer.
            let off = if off.abs() < 4 { 0 } else { off };
            let len = (fitting(&dimensions, ty) as i32 + off).max(0) as usize;
            Tensor { dimensions, ty, data: (0..len).map(|i| (i * 37) as u8).collect() }
        })
}

fn any_inputs() -> impl Strategy<Value = Vec<(String, Tensor)>> {
    let same = any_tensor().prop_map(|t| vec![("x".to_owned(), t.clone()), ("y".to_owned(), t)]);
    let name = prop_oneof![3 => Just("x".to_owned()), 3 => Just("y".to_owned()), 1 => ".{0,8}"];
    prop_oneof![same, prop::collection::vec((name, any_tensor()), 0..4)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_tensors_do_not_panic(runs in prop::collection::vec(any_inputs(), 1..4)) {
        static GRAPH: std::sync::LazyLock<Arc<Graph>> =
            std::sync::LazyLock::new(|| load(&graphs::add(Dt::Float), RegistryConfig::default()).unwrap());
        let mut context = GRAPH.context().unwrap();
        for inputs in runs {
            let is_acceptable = is_acceptable(&inputs);
            match context.compute(inputs.clone()) {
                Ok(outputs) => {
                    prop_assert!(is_acceptable);
                    prop_assert_eq!(&outputs[0].1.dimensions, &inputs[0].1.dimensions);
                }
                Err(error) => {
                    prop_assert!(!is_acceptable, "{}", error);
                    prop_assert!(matches!(error.code, ErrorCode::InvalidArgument | ErrorCode::TooLarge));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_files_do_not_panic(
        which in 0usize..4,
        cut in 0usize..400,
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
    ) {
        // A file may load or not; if it does, it must run or fail without a panic.
        if let Ok(graph) = load(&graphs::damaged(which, cut, flips), RegistryConfig::default()) {
            zeros::compute_zeros(&graph);
        }
    }
}

#[test]
fn directory_without_a_graph_is_an_error() {
    let registry = Registry::new(RegistryConfig::default());
    assert!(registry.insert_dir("none", Path::new("/does/not/exist"), Engine::Tract).is_err());
}
