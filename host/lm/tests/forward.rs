//! The forward pass against a scalar reference; its bits depend only on the sequence.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use support::reference::Reference;
use support::{Random, Small};
use weir_kernels::Isa;
use weir_lm::gguf::TensorType;
use weir_lm::{Cancel, Engine, EngineConfig, Model, Row, Sample, Sampled, Sampler};

const TYPES: [TensorType; 11] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q4_K,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::Q8_0,
    TensorType::F16,
    TensorType::BF16,
    TensorType::F32,
];

fn load(isa: Isa, small: &Small) -> Arc<Model> {
    Arc::new(Model::load_for(isa, &small.file().write().0).unwrap())
}

fn engine(model: &Arc<Model>, threads: usize) -> Engine {
    let config = EngineConfig { threads, pages_max: 200, ..EngineConfig::default() };
    Engine::new(Arc::clone(model), config).unwrap()
}

fn row(sequence: u32, tokens: &[u32]) -> Row {
    Row { sequence, tokens: tokens.to_vec(), sample: Some(Sample { top: 20, ..Sample::default() }) }
}

/// Samples after all tokens in one step.
fn sample(engine: &Engine, tokens: &[u32]) -> Sampled {
    let sequence = engine.create(Sampler::default()).unwrap();
    let sampled = engine.step(&[row(sequence, tokens)], &Cancel::default()).unwrap();
    engine.remove(sequence);
    sampled.into_iter().next().unwrap()
}

fn prompt(random: &mut Random, length: usize) -> Vec<u32> {
    (0..length).map(|_| random.below(67) as u32).collect()
}

/// Compares with the reference. `bound` is the largest difference as a share of the range of its log probabilities: the engine adds in
/// f32, and an activation that it rounds to the other side of a step changes everything after it.
fn check_with_reference(small: &Small, bound: f64) {
    let reference = Reference::new(small, &small.file().bytes());
    let mut random = Random::new(3);
    let tokens = prompt(&mut random, 40);
    for isa in Isa::available() {
        let engine = engine(&load(isa, small), 1);
        for length in [1, 15, 16, 17, 40] {
            let expected = reference.log_probabilities(&tokens[..length]);
            let least = expected.iter().copied().fold(0.0, f64::min);
            let sampled = sample(&engine, &tokens[..length]);
            assert_eq!(sampled.top.len(), 20);
            for (token, logprob) in &sampled.top {
                let exact = expected[*token as usize];
                let difference = (f64::from(*logprob) - exact).abs() / -least;
                assert!(difference < bound, "{isa} {small:?} {length}: {logprob} is not {exact}, of {least}");
            }
        }
    }
}

#[test]
fn logits_of_every_type_are_those_of_the_reference() {
    for ty in TYPES {
        // The types whose scales or weights are rounded when they are packed differ more.
        let is_exact = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"].contains(&ty.name);
        check_with_reference(&Small::new("llama", ty), if is_exact { 0.01 } else { 0.04 });
    }
}

#[test]
fn logits_of_every_architecture_are_those_of_the_reference() {
    for architecture in ["llama", "qwen2", "qwen3"] {
        check_with_reference(&Small::new(architecture, TensorType::Q8_0), 0.01);
        let more = Small { has_head: true, head_size: 32, kv_heads: 3, ..Small::new(architecture, TensorType::Q8_0) };
        check_with_reference(&more, 0.01);
    }
    let llama3 = Small { has_divisors: true, ..Small::new("llama", TensorType::Q8_0) };
    check_with_reference(&llama3, 0.01);
}

/// Computes sequences with prompts in random pieces, in steps of random rows; each must have the bits that it has alone.
fn check_mixture(model: &Arc<Model>, alone: &Engine, seed: u64) {
    let mut random = Random::new(seed);
    let engine = engine(model, 1 + random.below(3));
    let count = 1 + random.below(6);
    let mut sequences: Vec<(u32, Vec<u32>, usize)> = (0..count)
        .map(|_| {
            let length = 1 + random.below(60);
            (engine.create(Sampler::default()).unwrap(), prompt(&mut random, length), 0)
        })
        .collect();
    while sequences.iter().any(|(_, tokens, done)| *done < tokens.len()) {
        let mut rows = Vec::new();
        for (sequence, tokens, done) in &mut sequences {
            if *done < tokens.len() && random.below(3) > 0 {
                let piece = 1 + random.below(tokens.len() - *done);
                rows.push(row(*sequence, &tokens[*done..*done + piece]));
                *done += piece;
            }
        }
        for sampled in engine.step(&rows, &Cancel::default()).unwrap() {
            let (_, tokens, done) = sequences.iter().find(|(sequence, ..)| *sequence == sampled.sequence).unwrap();
            let expected = sample(alone, &tokens[..*done]);
            assert_eq!((sampled.token, sampled.logprob.to_bits()), (expected.token, expected.logprob.to_bits()));
            assert_eq!(sampled.top, expected.top, "{seed}");
        }
    }
    sequences.iter().for_each(|(sequence, ..)| engine.remove(*sequence));
    assert_eq!(engine.pages_free(), 200);
}

#[test]
fn bits_of_a_sequence_are_the_same_in_500_mixtures() {
    for (index, isa) in Isa::available().into_iter().enumerate() {
        let model = load(isa, &Small { layers: 1, ..Small::new("llama", TensorType::Q4_1) });
        let alone = engine(&model, 1);
        for seed in 0..if index == 0 { 500 } else { 40 } {
            check_mixture(&model, &alone, seed);
        }
    }
}

#[test]
fn long_prompt_has_the_same_bits_in_one_step_and_token_by_token() {
    let model = load(Isa::best(), &Small::new("qwen3", TensorType::Q4_0));
    let mut random = Random::new(9);
    let tokens = prompt(&mut random, 199);
    let expected = sample(&engine(&model, 1), &tokens);
    for threads in [1, 2, 3, 5] {
        let engine = engine(&model, threads);
        let sequence = engine.create(Sampler::default()).unwrap();
        let mut last = None;
        for token in &tokens {
            last = engine.step(&[row(sequence, &[*token])], &Cancel::default()).unwrap().pop();
        }
        assert_eq!(last, Some(Sampled { sequence, ..expected.clone() }));
        assert_eq!(sample(&engine, &tokens).top, expected.top);
    }
}
