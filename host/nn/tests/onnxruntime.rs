//! tract and ONNX Runtime against Python's ONNX Runtime on the shipped models: every output within 1e-4, padded and packed, with tract
//! on the symbolic plan and on fixed-shape plans.
//!
//! The Python with `onnxruntime` and `numpy` is named by `WEIR_TEST_PYTHON`; `cargo xtask test` makes one.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a failure is a panic")]

mod library;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};
use weir_nn::{Engine, Graph, Registry, RegistryConfig, Tensor, TensorType};

/// Relative to the larger of 1 and the value.
const TOLERANCE: f64 = 1e-4;

/// The bound of token ids; every model's vocabulary is larger.
const VOCABULARY: u64 = 30_000;

#[derive(Clone, Serialize, Deserialize)]
struct Values {
    shape: Vec<u32>,
    values: Vec<f64>,
}

type Run = BTreeMap<String, Values>;

#[derive(Serialize)]
struct Request<'a> {
    model: &'a Path,
    runs: &'a [Run],
}

#[derive(Deserialize)]
struct Response {
    runs: Vec<Run>,
}

struct OnnxRuntime(Child);

impl OnnxRuntime {
    fn start() -> Self {
        let python = std::env::var_os("WEIR_TEST_PYTHON").expect(
            "WEIR_TEST_PYTHON must name a Python that has onnxruntime and numpy: `cargo xtask test` makes one and sets it",
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run_onnx.py");
        let mut command = Command::new(python);
        let child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Self(child.expect("WEIR_TEST_PYTHON names a program that runs"))
    }

    fn run(&mut self, model: &Path, runs: &[Run]) -> Vec<Run> {
        let request = serde_json::to_string(&Request { model, runs }).unwrap();
        let input = self.0.stdin.as_mut().unwrap();
        writeln!(input, "{request}").unwrap();
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let response: Response = serde_json::from_str(&line).expect("ONNX Runtime runs the model");
        response.runs
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Pseudorandom numbers, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Texts of these lengths, padded to the longest.
fn padded(graph: &Graph, lengths: &[u32], random: &mut Random) -> Run {
    let tokens = *lengths.iter().max().unwrap();
    let mut values_of = |name: &str| -> Vec<f64> {
        let mut values = Vec::new();
        for length in lengths {
            for position in 0..tokens {
                values.push(match name {
                    "input_ids" if position < *length => 100.0 + random.below(VOCABULARY - 100) as f64,
                    "attention_mask" => f64::from(u8::from(position < *length)),
                    "position_ids" => f64::from(position),
                    _ => 0.0,
                });
            }
        }
        values
    };
    let shape = vec![lengths.len() as u32, tokens];
    let input = |info: &weir_nn::TensorInfo| {
        (info.name.clone(), Values { shape: shape.clone(), values: values_of(&info.name) })
    };
    graph.inputs().iter().map(input).collect()
}

/// Texts of these lengths, end to end, with some padding at the end.
fn packed(graph: &Graph, lengths: &[u32], padding: u32, random: &mut Random) -> Run {
    let tokens: u32 = lengths.iter().sum::<u32>() + padding;
    let mut run = Run::new();
    for info in graph.inputs() {
        let mut values: Vec<f64> = Vec::new();
        let mut shape = vec![1, tokens];
        if info.name == "pool" {
            shape = vec![lengths.len() as u32, tokens];
            let mut start = 0;
            for length in lengths {
                let inside = |token: u32| token >= start && token < start + length;
                values.extend((0..tokens).map(|p| if inside(p) { f64::from(1.0 / *length as f32) } else { 0.0 }));
                start += length;
            }
        } else {
            for (text, length) in lengths.iter().enumerate() {
                values.extend((0..*length).map(|position| match info.name.as_str() {
                    "input_ids" => 100.0 + random.below(VOCABULARY - 100) as f64,
                    "position_ids" => f64::from(position),
                    "segment_ids" => text as f64,
                    _ => 0.0,
                }));
            }
            let filler = if info.name == "segment_ids" { -1.0 } else { 0.0 };
            values.extend((0..padding).map(|_| filler));
        }
        run.insert(info.name.clone(), Values { shape, values });
    }
    run
}

fn tensors(graph: &Graph, run: &Run) -> Vec<(String, Tensor)> {
    let tensor = |info: &weir_nn::TensorInfo| {
        let Values { shape, values } = &run[&info.name];
        let tensor = match info.element.wit() {
            TensorType::I64 => Tensor::from_i64(shape, &values.iter().map(|v| *v as i64).collect::<Vec<_>>()),
            TensorType::Fp32 => Tensor::from_f32(shape, &values.iter().map(|v| *v as f32).collect::<Vec<_>>()),
            other => panic!("the shipped models take no {other}"),
        };
        (info.name.clone(), tensor)
    };
    graph.inputs().iter().map(tensor).collect()
}

/// The largest difference, relative for values above 1. Rows of padding are undefined in every engine and are not compared.
fn difference(ours: &[(String, Tensor)], theirs: &Run, real: &[bool]) -> f64 {
    let mut largest = 0f64;
    assert_eq!(ours.len(), theirs.len());
    for (name, tensor) in ours {
        let values = tensor.to_f32().unwrap();
        let Values { shape, values: expected } = &theirs[name];
        assert_eq!(&tensor.dimensions, shape, "{name}");
        let per_token = shape.len() == 3 && shape[..2].iter().product::<u32>() as usize == real.len();
        let width = *shape.last().unwrap() as usize;
        for (index, (ours, theirs)) in values.iter().zip(expected).enumerate() {
            if !per_token || real[index / width] {
                assert!(ours.is_finite(), "{name}[{index}] is {ours}");
                largest = largest.max((f64::from(*ours) - theirs).abs() / theirs.abs().max(1.0));
            }
        }
    }
    largest
}

/// `copy` is a copy of `file` without links, which Python's ONNX Runtime does not follow.
fn compare(onnx_runtime: &mut OnnxRuntime, file: &Path, copy: &Path) {
    let config = RegistryConfig { plan_after_uses: 2, ..RegistryConfig::default() };
    let graph = Registry::new(config).insert_dir("m", file, Engine::Tract).unwrap();
    let mut random = Random(2);
    let is_packed = graph.inputs().iter().any(|input| input.name == "segment_ids");
    let batches: [&[u32]; 5] = [&[16], &[128], &[3, 9, 5], &[15; 8], &[1]];
    let mut runs = Vec::new();
    let mut reals: Vec<Vec<bool>> = Vec::new();
    for lengths in batches {
        if is_packed {
            runs.push(packed(&graph, lengths, 5, &mut random));
            let tokens: u32 = lengths.iter().sum();
            reals.push((0..tokens + 5).map(|token| token < tokens).collect());
        } else {
            runs.push(padded(&graph, lengths, &mut random));
            let tokens = *lengths.iter().max().unwrap();
            reals.push(lengths.iter().flat_map(|length| (0..tokens).map(move |token| token < *length)).collect());
        }
    }
    let theirs = onnx_runtime.run(copy, &runs);
    let mut context = graph.context().unwrap();
    for round in 0..3 {
        for ((run, theirs), real) in runs.iter().zip(&theirs).zip(&reals) {
            let ours = context.compute(tensors(&graph, run)).unwrap();
            let largest = difference(&ours, theirs, real);
            println!("{} round {round} {:?}: {largest:.1e}", file.display(), ours[0].1.dimensions);
            assert!(largest <= TOLERANCE, "{} round {round}: differs by {largest:e}", file.display());
        }
        graph.settle();
    }
    assert_eq!(graph.fixed_plans(), runs.len(), "the last round ran on fixed-shape plans");
    // This engine is the same library as Python's: only the reader of the file differs.
    let same = Registry::new(library::config()).insert_dir("m", file, Engine::OnnxRuntime).unwrap();
    assert_eq!((same.inputs(), same.parameter_bytes()), (graph.inputs(), graph.parameter_bytes()));
    let mut context = same.context().unwrap();
    for ((run, theirs), real) in runs.iter().zip(&theirs).zip(&reals) {
        let ours = context.compute(tensors(&same, run)).unwrap();
        let largest = difference(&ours, theirs, real);
        println!("{} onnxruntime {:?}: {largest:.1e}", file.display(), ours[0].1.dimensions);
        assert!(largest <= TOLERANCE / 10.0, "{}: onnxruntime differs by {largest:e}", file.display());
    }
}

#[test]
fn engines_agree_on_the_shipped_models() {
    let mut onnx_runtime = OnnxRuntime::start();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    // ONNX Runtime refuses external data behind a link that leads out of the directory; a pull replaces links by files.
    let copies = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for name in ["sentiment", "entities", "embeddings"] {
        let copy = weir_nn::model::pull(&models.join(name).to_string_lossy(), copies.path(), &mut |_| {});
        let copy = copy.expect("the shipped models are whole");
        for file in ["model.onnx", "model_packed.onnx"].into_iter().filter(|file| copy.join(file).is_file()) {
            compare(&mut onnx_runtime, &models.join(name).join(file), &copy.join(file));
            compared += 1;
        }
    }
    assert!(compared >= 3);
}
