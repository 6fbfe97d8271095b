//! Every architecture that the built-in engine takes from `model.safetensors`, compared with what transformers computes: small models with
//! random weights (`tests/architectures/make.py`). And that a text has the same bits in every batch.

#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod split;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use weir_nn::{
    Choices, Device, DeviceChoice, Engine, EngineChoice, Graph, Precision, PrecisionChoice, Registry, RegistryConfig,
    Selection, Tensor,
};

/// The largest difference from transformers' result.
const DIFFERENCE_MAX: f32 = 1e-4;

const F32: Choices = Choices {
    engine: EngineChoice::Auto,
    precision: PrecisionChoice::Only(Precision::F32),
    device: DeviceChoice::Only(Device::Cpu),
};

/// A text and its expected result.
struct Case {
    ids: Vec<i64>,
    types: Option<Vec<i64>>,
    expected: Vec<f32>,
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/architectures")
}

fn load(dir: &Path) -> Arc<Graph> {
    let selection = Selection::of(dir, F32, &RegistryConfig::default()).unwrap();
    assert_eq!(selection.engine, Engine::Builtin, "{}: {}", dir.display(), selection.reason);
    let registry = Registry::new(RegistryConfig::default());
    registry.insert_selection("g", &selection).unwrap();
    registry.graph("g").unwrap()
}

fn cases(dir: &Path) -> Vec<Case> {
    let vectors: Value = serde_json::from_slice(&std::fs::read(dir.join("vectors.json")).unwrap()).unwrap();
    let integers = |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect::<Vec<_>>();
    let case = |vector: &Value| Case {
        ids: integers(&vector["ids"]),
        types: vector.get("types").map(integers),
        expected: vector["output"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect(),
    };
    vectors.as_array().unwrap().iter().map(case).collect()
}

/// Computes a batch; returns the result of each text.
fn compute(graph: &Arc<Graph>, texts: &[&Case], fillers: usize) -> Vec<Vec<f32>> {
    let tokens = texts.iter().map(|text| text.ids.len()).sum::<usize>() + fillers;
    let line = |values: Vec<i64>, fill: i64| {
        let values: Vec<i64> = values.into_iter().chain(std::iter::repeat_n(fill, fillers)).collect();
        Tensor::from_i64(&[1, tokens as u32], &values)
    };
    let mut inputs = vec![
        ("input_ids".to_owned(), line(texts.iter().flat_map(|text| text.ids.clone()).collect(), 0)),
        ("position_ids".to_owned(), line(texts.iter().flat_map(|text| 0..text.ids.len() as i64).collect(), 0)),
        (
            "segment_ids".to_owned(),
            line((0..).zip(texts).flat_map(|(index, text)| std::iter::repeat_n(index, text.ids.len())).collect(), -1),
        ),
    ];
    if graph.inputs().iter().any(|input| input.name == "token_type_ids") {
        let types = texts.iter().flat_map(|text| text.types.clone().unwrap_or_else(|| vec![0; text.ids.len()]));
        inputs.push(("token_type_ids".to_owned(), line(types.collect(), 0)));
    }
    let outputs = graph.context().unwrap().compute(inputs).unwrap();
    let (_, output) = &outputs[0];
    let width = *output.dimensions.last().unwrap() as usize;
    let per_token = output.dimensions.len() == 3;
    let values = output.to_f32().unwrap();
    let mut rows = values.chunks_exact(width);
    let rows_of =
        |text: &&Case| rows.by_ref().take(if per_token { text.ids.len() } else { 1 }).flatten().copied().collect();
    texts.iter().map(rows_of).collect()
}

fn directories() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> =
        std::fs::read_dir(models()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    directories.sort();
    assert!(directories.len() >= 26, "{} models", directories.len());
    directories
}

#[test]
fn each_architecture_agrees_with_transformers() {
    let mut failures = Vec::new();
    for dir in directories() {
        let graph = load(&dir);
        let mut largest = 0f32;
        for case in cases(&dir) {
            let computed = compute(&graph, &[&case], 0).remove(0);
            assert_eq!(computed.len(), case.expected.len(), "{}", dir.display());
            let differences = computed.iter().zip(&case.expected).map(|(one, other)| (one - other).abs());
            largest =
                differences.fold(largest, |largest, next| if next > largest || next.is_nan() { next } else { largest });
        }
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        println!("{name}: largest difference {largest:e}");
        if largest.is_nan() || largest > DIFFERENCE_MAX {
            failures.push(format!("{name}: {largest:e}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn text_of_every_architecture_has_the_same_bits_in_every_batch() {
    for dir in directories() {
        let (graph, cases) = (load(&dir), cases(&dir));
        let alone: Vec<Vec<f32>> = cases.iter().map(|case| compute(&graph, &[case], 0).remove(0)).collect();
        for (shift, fillers) in [(0, 0), (1, 3), (3, 1)] {
            let order: Vec<usize> = (0..2 * cases.len()).map(|index| (index + shift) % cases.len()).collect();
            let batch: Vec<&Case> = order.iter().map(|index| &cases[*index]).collect();
            for (index, values) in order.iter().zip(compute(&graph, &batch, fillers)) {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&alone[*index]), bits(&values), "{}: text {index}", dir.display());
            }
        }
    }
}

/// A copy of a model with a change to one of its JSON files.
fn changed_copy(model: &str, file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(&models().join(model), to.path());
    let path = to.path().join(file);
    let mut content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut content);
    std::fs::write(&path, serde_json::to_vec(&content).unwrap()).unwrap();
    to
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)
        } else {
            std::fs::copy(entry.path(), &to).map(|_| ()).unwrap()
        }
    }
}

#[test]
fn model_without_a_graph_is_computed_by_the_cpu_alone() {
    let dir = models().join("bert-tokens");
    let select = |device: DeviceChoice, engine: EngineChoice| {
        let choices = Choices { device, engine, ..Choices::default() };
        Selection::of(&dir, choices, &RegistryConfig::default())
    };
    let reason = "a model on cuda:0 needs an ONNX graph, and there is none";
    let error = select(DeviceChoice::Only(Device::Cuda(0)), EngineChoice::Auto).unwrap_err().to_string();
    assert!(error.ends_with(reason), "{error}");
    let selection = select(DeviceChoice::Auto, EngineChoice::Auto).unwrap();
    assert_eq!((selection.engine, selection.device), (Engine::Builtin, Device::Cpu));
    assert!(selection.fallback.unwrap().ends_with(reason));
    let selection = select(DeviceChoice::Auto, EngineChoice::Only(Engine::Builtin)).unwrap();
    assert!(selection.fallback.unwrap().contains("the engine builtin computes on the CPU alone"));
    assert_eq!(select(DeviceChoice::default(), EngineChoice::Auto).unwrap().fallback, None);
}

#[test]
fn unsupported_feature_is_refused_with_its_key() {
    const BERT: &str = "nlptown-bert-base-multilingual-uncased-sentiment";
    let check_refusal = |dir: &Path, reason: &str| {
        let error = Selection::of(dir, F32, &RegistryConfig::default()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        // With a graph, tract serves the model, and the selection has the reason.
        std::fs::write(dir.join("model.onnx"), "").unwrap();
        let selection = Selection::of(dir, F32, &RegistryConfig::default()).unwrap();
        assert_eq!(selection.engine, Engine::Tract);
        assert!(selection.reason.contains(reason), "{}", selection.reason);
    };
    for (model, key, value) in [
        (BERT, "hidden_act", "\"quick_gelu\""),
        (BERT, "position_embedding_type", "\"relative_key\""),
        (BERT, "model_type", "\"longformer\""),
        (BERT, "is_decoder", "true"),
        ("albert", "inner_group_num", "2"),
        ("deberta-v3", "conv_kernel_size", "3"),
        ("deberta-v3", "norm_rel_ebd", "\"batch_norm\""),
        ("deberta-v3", "relative_attention", "false"),
    ] {
        let dir = changed_copy(model, "config.json", |config| config[key] = serde_json::from_str(value).unwrap());
        check_refusal(dir.path(), &format!("{key} = {value} is not supported"));
    }
    let dir = changed_copy("modernbert", "config.json", |config| {
        config["rope_parameters"]["full_attention"]["rope_type"] = "yarn".into();
    });
    check_refusal(dir.path(), "rope_type = \"yarn\" is not supported");
    let dir = changed_copy("minilm-mean", "modules.json", |modules| modules[1]["type"] = "a.b.CNN".into());
    check_refusal(dir.path(), "modules.json: CNN at place 1 is not supported");
    let dir = changed_copy("minilm-mean", "modules.json", |modules| modules[1]["path"] = "../elsewhere".into());
    check_refusal(dir.path(), "is not within the model's directory");
    let dir =
        changed_copy("minilm-mean", "1_Pooling/config.json", |pooling| pooling["pooling_mode_lasttoken"] = true.into());
    check_refusal(dir.path(), "pooling_mode_lasttoken is not supported");
    for (model, key) in [
        ("albert", "num_hidden_layers"),
        ("modernbert", "num_hidden_layers"),
        ("deberta-v3", "max_position_embeddings"),
    ] {
        let dir = changed_copy(model, "config.json", |config| config[key] = 4_000_000_000u32.into());
        check_refusal(dir.path(), &format!("{key} = 4000000000 is more than"));
    }
    let dir = changed_copy(BERT, "config.json", |config| config["num_hidden_layers"] = 3.into());
    check_refusal(dir.path(), "there is no tensor bert.encoder.layer.2.attention.self.query.weight");
}

#[test]
fn tensor_of_wrong_shape_is_refused_with_its_name() {
    let dir = changed_copy("bert-tokens", "config.json", |config| config["intermediate_size"] = 41.into());
    let registry = Registry::new(RegistryConfig::default());
    let error =
        registry.insert_dir("g", &dir.path().join("model.safetensors"), Engine::Builtin).unwrap_err().to_string();
    assert!(
        error.contains("bert.encoder.layer.0.intermediate.dense.weight has shape [40, 24], not [41, 24]"),
        "{error}"
    );
}

/// A copy of a model whose weights are in several files.
fn sharded_copy(model: &str, shards: usize) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(&models().join(model), to.path());
    let whole = to.path().join("model.safetensors");
    for (name, content) in split::split(&std::fs::read(&whole).unwrap(), shards) {
        std::fs::write(to.path().join(name), content).unwrap();
    }
    std::fs::remove_file(whole).unwrap();
    to
}

#[test]
fn weights_in_several_files_give_the_same_bits() {
    for (model, shards) in [("bert-tokens", 2), ("distilbert-dense", 3), ("modernbert", 4)] {
        let dir = sharded_copy(model, shards);
        let (whole, sharded) = (load(&models().join(model)), load(dir.path()));
        assert_eq!(whole.parameter_bytes(), sharded.parameter_bytes());
        for case in cases(dir.path()) {
            let bits = |graph: &Arc<Graph>| -> Vec<u32> {
                compute(graph, &[&case], 0).remove(0).into_iter().map(f32::to_bits).collect()
            };
            assert_eq!(bits(&whole), bits(&sharded), "{model}");
        }
    }
}

#[test]
fn invalid_shards_are_refused_with_the_reason() {
    const INDEX: &str = "model.safetensors.index.json";
    const ONE: &str = "model-00001-of-00002.safetensors";
    const TWO: &str = "model-00002-of-00002.safetensors";
    let check_with = |config: RegistryConfig, change: &dyn Fn(&Path), reason: &str| {
        let dir = sharded_copy("bert-tokens", 2);
        change(dir.path());
        let error = Selection::of(dir.path(), F32, &config).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    let check = |change: &dyn Fn(&Path), reason: &str| check_with(RegistryConfig::default(), change, reason);
    let change_index = |dir: &Path, change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut index: Value = serde_json::from_slice(&std::fs::read(dir.join(INDEX)).unwrap()).unwrap();
        change(index["weight_map"].as_object_mut().unwrap());
        std::fs::write(dir.join(INDEX), serde_json::to_vec(&index).unwrap()).unwrap();
    };
    check(&|dir| std::fs::remove_file(dir.join(TWO)).unwrap(), &format!("{TWO} is missing"));
    check(&|dir| std::fs::write(dir.join(TWO), b"short").unwrap(), &format!("{TWO}: a header begins with 8 bytes"));
    let both = format!("is in {ONE} and in {TWO}");
    check(&|dir| std::fs::copy(dir.join(ONE), dir.join(TWO)).map(|_| ()).unwrap(), &both);
    check(
        &|dir| change_index(dir, &|map| drop(map.insert("absent".to_owned(), TWO.into()))),
        &format!("tensor \"absent\" is not in {TWO}"),
    );
    check(
        &|dir| change_index(dir, &|map| map.values_mut().for_each(|file| *file = "../outside.safetensors".into())),
        "\"../outside.safetensors\" is no safetensors file in the model's directory",
    );
    check(&|dir| std::fs::write(dir.join(INDEX), b"[]").unwrap(), &format!("{INDEX}: the index is not as it must be"));
    // The bound on bytes applies to the files together.
    let dir = sharded_copy("bert-tokens", 2);
    let first = std::fs::metadata(dir.path().join(ONE)).unwrap().len();
    check_with(
        RegistryConfig { graph_bytes_max: first + 100, ..RegistryConfig::default() },
        &|_| {},
        "bytes, more than the 100 allowed",
    );
}
