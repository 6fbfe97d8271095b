//! The built-in engine on the shipped models: agreement with tract, equal bits in every batch, and refusals.

#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use tract_onnx::pb::ModelProto;
use weir_nn::{Engine, Graph, LoadError, NnError, Registry, RegistryConfig, Tensor};

const MODELS: [&str; 3] = ["sentiment", "entities", "embeddings"];
/// Ids below this are in every vocabulary here.
const IDS: u64 = 30_522;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn load(file: &Path, engine: Engine) -> Result<Arc<Graph>, LoadError> {
    Registry::new(RegistryConfig::default()).insert_dir("g", file, engine)
}

/// A generator of texts of random ids, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }

    fn text(&mut self, tokens_max: u64) -> Vec<i64> {
        (0..=self.below(tokens_max)).map(|_| self.below(IDS) as i64).collect()
    }
}

/// The inputs of a packed batch with `fillers` tokens of no text at its end.
fn packed(texts: &[&Vec<i64>], fillers: usize, pooled: bool) -> Vec<(String, Tensor)> {
    let tokens = texts.iter().map(|text| text.len()).sum::<usize>() + fillers;
    let line = |values: Vec<i64>| Tensor::from_i64(&[1, tokens as u32], &values);
    let fill = |value: i64| std::iter::repeat_n(value, fillers);
    let ids = texts.iter().flat_map(|text| text.iter().copied()).chain(fill(0)).collect();
    let positions = texts.iter().flat_map(|text| 0..text.len() as i64).chain(fill(0)).collect();
    let segments = (0..).zip(texts).flat_map(|(segment, text)| std::iter::repeat_n(segment, text.len()));
    let segments = segments.chain(fill(-1)).collect();
    let mut inputs = vec![
        ("input_ids".to_owned(), line(ids)),
        ("position_ids".to_owned(), line(positions)),
        ("segment_ids".to_owned(), line(segments)),
    ];
    if pooled {
        let mut pool = vec![0.0; texts.len() * tokens];
        let mut start = 0;
        for (row, text) in pool.chunks_exact_mut(tokens).zip(texts) {
            row[start..start + text.len()].fill(1.0 / text.len() as f32);
            start += text.len();
        }
        inputs.push(("pool".to_owned(), Tensor::from_f32(&[texts.len() as u32, tokens as u32], &pool)));
    }
    inputs
}

/// Computes a batch; returns the result of each text.
fn compute(graph: &Arc<Graph>, texts: &[&Vec<i64>], fillers: usize) -> Vec<Vec<f32>> {
    let pooled = graph.inputs().len() == 4;
    let outputs = graph.context().unwrap().compute(packed(texts, fillers, pooled)).unwrap();
    let (_, output) = &outputs[0];
    let values = output.to_f32().unwrap();
    let width = *output.dimensions.last().unwrap() as usize;
    let mut rows = values.chunks_exact(width);
    texts
        .iter()
        .map(|text| rows.by_ref().take(if pooled { 1 } else { text.len() }).flatten().copied().collect())
        .collect()
}

#[test]
fn shipped_models_agree_with_tract() {
    let mut random = Random(7);
    for name in MODELS {
        let file = model(name).join("model_packed.onnx");
        let (builtin, tract) = (load(&file, Engine::Builtin).unwrap(), load(&file, Engine::Tract).unwrap());
        assert_eq!(builtin.inputs(), tract.inputs());
        assert_eq!(builtin.outputs(), tract.outputs());
        assert_eq!(builtin.parameter_bytes(), tract.parameter_bytes());
        for (count, tokens_max, fillers) in [(1, 1, 0), (1, 12, 4), (7, 20, 3), (3, 100, 0), (1, 250, 0)] {
            let texts: Vec<Vec<i64>> = (0..count).map(|_| random.text(tokens_max)).collect();
            let texts: Vec<&Vec<i64>> = texts.iter().collect();
            let (ours, theirs) = (compute(&builtin, &texts, fillers), compute(&tract, &texts, fillers));
            for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
                assert!((ours - theirs).abs() < 1e-4, "{name}: {ours} is not {theirs}");
            }
        }
    }
}

#[test]
fn text_has_the_same_bits_alone_and_in_any_batch() {
    let mut random = Random(11);
    for name in MODELS {
        let graph = load(&model(name).join("model_packed.onnx"), Engine::Builtin).unwrap();
        let texts: Vec<Vec<i64>> = (0..24).map(|_| random.text(24)).collect();
        let alone: Vec<Vec<f32>> = texts.iter().map(|text| compute(&graph, &[text], 0).remove(0)).collect();
        for _ in 0..40 {
            let picks: Vec<usize> = (0..=random.below(8)).map(|_| random.below(24) as usize).collect();
            let batch: Vec<&Vec<i64>> = picks.iter().map(|pick| &texts[*pick]).collect();
            let together = compute(&graph, &batch, random.below(5) as usize);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            for (pick, values) in picks.iter().zip(together) {
                assert_eq!(bits(&alone[*pick]), bits(&values), "{name}: text {pick} among {picks:?}");
            }
        }
    }
}

#[test]
fn padded_graph_is_refused_with_the_engine_to_use() {
    let error = load(&model("sentiment"), Engine::Builtin).unwrap_err().to_string();
    assert!(error.contains("is no encoder that the built-in engine knows"), "{error}");
    assert!(error.contains("use the engine tract"), "{error}");
}

#[test]
fn graph_that_differs_in_one_place_is_refused() {
    let check_refusal = |change: &dyn Fn(&mut ModelProto), reason: &str| {
        let dir = tempfile::tempdir().unwrap();
        for file in ["model.onnx.data", "word_embeddings.i8"] {
            std::os::unix::fs::symlink(model("sentiment").join(file), dir.path().join(file)).unwrap();
        }
        let content = std::fs::read(model("sentiment").join("model_packed.onnx")).unwrap();
        let mut changed = ModelProto::decode(content.as_slice()).unwrap();
        change(&mut changed);
        let file = dir.path().join("model_packed.onnx");
        std::fs::write(&file, changed.encode_to_vec()).unwrap();
        let error = load(&file, Engine::Builtin).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    let graph = |model: &mut ModelProto| model.graph.take().unwrap();
    check_refusal(
        &|model| {
            let mut changed = graph(model);
            changed.node.iter_mut().find(|node| node.op_type == "Erf").unwrap().op_type = "Tanh".to_owned();
            model.graph = Some(changed);
        },
        "it has Tanh encoder.layer.0.gelu.scaled -> encoder.layer.0.gelu.erf where Erf",
    );
    check_refusal(
        &|model| {
            let mut changed = graph(model);
            let softmax = changed.node.iter_mut().find(|node| node.op_type == "Softmax").unwrap();
            softmax.attribute[0].i = 1;
            model.graph = Some(changed);
        },
        "axis=1 where Softmax",
    );
    check_refusal(
        &|model| {
            let mut changed = graph(model);
            let half = changed.initializer.iter_mut().find(|tensor| tensor.name == "half").unwrap();
            half.raw_data = 0.25_f32.to_le_bytes().to_vec();
            model.graph = Some(changed);
        },
        "its constant half is not 0.5",
    );
    check_refusal(
        &|model| {
            let mut changed = graph(model);
            changed.node.pop();
            model.graph = Some(changed);
        },
        "nodes where",
    );
    check_refusal(
        &|model| {
            let mut changed = graph(model);
            let scale = "encoder.layer.1.output.dense.scale";
            changed.initializer.retain(|tensor| tensor.name != scale);
            model.graph = Some(changed);
        },
        "there is no f32 tensor encoder.layer.1.output.dense.scale",
    );
}

#[test]
fn invalid_input_is_refused_and_the_context_stays_usable() {
    let graph = load(&model("entities").join("model_packed.onnx"), Engine::Builtin).unwrap();
    let mut context = graph.context().unwrap();
    let good = vec![101, 2023, 102];
    let before = context.compute(packed(&[&good], 0, false)).unwrap();
    let mut check_refusal = |ids: &[i64], positions: &[i64], segments: &[i64], reason: &str| {
        let line = |values: &[i64]| Tensor::from_i64(&[1, values.len() as u32], values);
        let names = ["input_ids", "position_ids", "segment_ids"].map(str::to_owned);
        let inputs = names.into_iter().zip([ids, positions, segments].map(line)).collect();
        let NnError { text, .. } = context.compute(inputs).unwrap_err();
        assert!(text.contains(reason), "{text}");
    };
    check_refusal(&[101, 30_522], &[0, 1], &[0, 0], "token id 30522 is not below 30522");
    check_refusal(&[101, -1], &[0, 1], &[0, 0], "-1");
    check_refusal(&[101, 1 << 40], &[0, 1], &[0, 0], "1099511627776");
    check_refusal(&[101, 102], &[0, 2], &[0, 0], "segment 0 has 2 where 1 is expected");
    check_refusal(&[101, 102, 103], &[0, 0, 1], &[0, 1, 0], "segment 0 has 1 where 0 is expected");
    let long = vec![101; 513];
    check_refusal(&long, &(0..513).collect::<Vec<_>>(), &vec![0; 513], "a text has 513 tokens");
    assert_eq!(context.compute(packed(&[&good], 0, false)).unwrap(), before);
    let fillers = context.compute(packed(&[], 3, false)).unwrap();
    assert_eq!(fillers[0].1.dimensions, [1, 3, 9]);
}
