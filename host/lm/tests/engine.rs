//! Sequences, bounds, errors and cancellation of an engine.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use support::Small;
use weir_lm::gguf::TensorType;
use weir_lm::{
    Cancel, Engine, EngineConfig, EngineError, LoadError, Model, Row, Sample, Sampled, Sampler, SamplerError,
    SequenceError, StepError,
};

fn small() -> Small {
    Small::new("llama", TensorType::Q4_1)
}

fn engine(small: &Small, threads: usize, pages_max: u32) -> Engine {
    let model = Arc::new(Model::load(&small.file().write().0).unwrap());
    let config = EngineConfig { threads, pages_max, sequences_max: 64, step_tokens_max: 4000 };
    Engine::new(model, config).unwrap()
}

fn row(sequence: u32, tokens: &[u32]) -> Row {
    Row { sequence, tokens: tokens.to_vec(), sample: Some(Sample { top: 3, ..Sample::default() }) }
}

fn step(engine: &Engine, rows: &[Row]) -> Result<Vec<Sampled>, StepError> {
    engine.step(rows, &Cancel::default())
}

#[test]
fn fork_continues_independently_of_its_source() {
    let engine = engine(&small(), 2, 40);
    let tokens: Vec<u32> = (0..60).map(|token| token * 7 % 67).collect();
    let source = engine.create(Sampler::default()).unwrap();
    step(&engine, &[row(source, &tokens)]).unwrap();
    for length in [0, 1, 16, 21, 59] {
        let fork = engine.fork(source, length, Sampler::default()).unwrap();
        let alone = engine.create(Sampler::default()).unwrap();
        let next = [5, 6, 7];
        let all = [&tokens[..length as usize], &next].concat();
        let sampled = step(&engine, &[row(fork, &next), row(alone, &all)]).unwrap();
        assert_eq!((sampled[0].logprob, &sampled[0].top), (sampled[1].logprob, &sampled[1].top), "{length}");
        engine.remove(fork);
        engine.remove(alone);
    }
    // The tokens of the forks did not change the source.
    let alone = engine.create(Sampler::default()).unwrap();
    let all = [&tokens[..], &[9]].concat();
    let sampled = step(&engine, &[row(source, &[9]), row(alone, &all)]).unwrap();
    assert_eq!(sampled[0].top, sampled[1].top);
    engine.remove(source);
    engine.remove(alone);
    assert_eq!(engine.pages_free(), 40);
}

#[test]
fn trimmed_sequence_continues_like_a_new_one_of_its_tokens() {
    let engine = engine(&small(), 1, 40);
    let tokens: Vec<u32> = (0..50).map(|token| token * 11 % 67).collect();
    let (trimmed, alone) = (engine.create(Sampler::default()).unwrap(), engine.create(Sampler::default()).unwrap());
    step(&engine, &[row(trimmed, &tokens)]).unwrap();
    engine.trim(trimmed, 19).unwrap();
    assert_eq!((engine.length(trimmed), engine.pages_free()), (Ok(19), 38));
    let all = [&tokens[..19], &[3, 4]].concat();
    let sampled = step(&engine, &[row(trimmed, &[3, 4]), row(alone, &all)]).unwrap();
    assert_eq!(sampled[0].top, sampled[1].top);
}

#[test]
fn cancelled_step_appends_nothing_and_frees_its_pages() {
    let small = Small { layers: 12, ..small() };
    let engine = engine(&small, 2, 400);
    let sequences: Vec<u32> = (0..20).map(|_| engine.create(Sampler::default()).unwrap()).collect();
    let rows: Vec<Row> = sequences.iter().map(|sequence| row(*sequence, &[5; 190])).collect();
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The step has begun once it has its pages.
            while engine.pages_free() == 400 {
                std::hint::spin_loop();
            }
            cancel.cancel();
        });
        assert_eq!(engine.step(&rows, &cancel), Err(StepError::Cancelled));
    });
    assert_eq!(engine.pages_free(), 400);
    assert!(sequences.iter().all(|sequence| engine.length(*sequence) == Ok(0)));
    assert_eq!(engine.step(&rows[..1], &cancel), Err(StepError::Cancelled));
    assert_eq!(step(&engine, &rows[..1]).unwrap().len(), 1);
}

#[test]
fn sequence_that_is_removed_during_a_step_frees_its_pages_afterwards() {
    let small = Small { layers: 12, ..small() };
    let engine = engine(&small, 2, 400);
    let sequences: Vec<u32> = (0..20).map(|_| engine.create(Sampler::default()).unwrap()).collect();
    let rows: Vec<Row> = sequences.iter().map(|sequence| row(*sequence, &[5; 190])).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while engine.pages_free() == 400 {
                std::hint::spin_loop();
            }
            engine.remove(sequences[0]);
            engine.trim(sequences[1], 0).unwrap();
        });
        assert_eq!(step(&engine, &rows).unwrap().len(), 20);
    });
    assert_eq!(engine.length(sequences[0]), Err(SequenceError::Unknown { sequence: sequences[0] }));
    assert!([Ok(0), Ok(190)].contains(&engine.length(sequences[1])));
    sequences.iter().for_each(|sequence| engine.remove(*sequence));
    assert_eq!(engine.pages_free(), 400);
}

#[test]
fn same_seed_gives_the_same_tokens_beside_other_sequences() {
    let generate = |engine: &Engine, others: usize, seed: u64| {
        let sampler = Sampler { temperature: 1.0, top_p: 0.9, seed, ..Sampler::default() };
        let sequence = engine.create(sampler).unwrap();
        let others: Vec<u32> = (0..others)
            .map(|seed| engine.create(Sampler { temperature: 1.5, seed: seed as u64, ..Sampler::default() }).unwrap())
            .collect();
        let (mut tokens, mut next) = (Vec::<u32>::new(), vec![1, 2, 3]);
        for turn in 0..20 {
            let mut rows: Vec<Row> = others.iter().map(|other| row(*other, &[turn])).collect();
            rows.push(row(sequence, &next));
            next = vec![step(engine, &rows).unwrap().pop().unwrap().token];
            tokens.extend(&next);
        }
        others.iter().chain([&sequence]).for_each(|sequence| engine.remove(*sequence));
        tokens
    };
    let (one, three) = (engine(&small(), 1, 100), engine(&small(), 3, 100));
    let expected = generate(&one, 0, 11);
    assert_eq!(generate(&one, 5, 11), expected);
    assert_eq!(generate(&three, 9, 11), expected);
    assert_ne!(generate(&one, 0, 12), expected);
}

#[test]
fn invalid_step_is_refused_with_its_error() {
    let engine = engine(&small(), 1, 20);
    let sequence = engine.create(Sampler::default()).unwrap();
    let check = |rows: &[Row], expected: StepError| {
        assert_eq!(step(&engine, rows), Err(expected));
        assert_eq!((engine.pages_free(), engine.length(sequence)), (20, Ok(0)));
    };
    let unknown = SequenceError::Unknown { sequence: 99 };
    check(&[row(sequence, &[1]), row(99, &[1])], StepError::Sequence(unknown));
    check(&[row(sequence, &[1]), row(sequence, &[2])], StepError::Repeated { sequence });
    check(&[row(sequence, &[])], StepError::Empty { sequence });
    check(&[row(sequence, &[67])], StepError::UnknownToken { sequence, token: 67, tokens: 67 });
    check(&[row(sequence, &[1; 201])], StepError::TooLong { sequence, tokens: 201, tokens_max: 200 });
    check(&[row(sequence, &[1; 4001])], StepError::TooManyTokens { tokens: 4001, tokens_max: 4000 });
    let with = |sample: Sample| Row { sequence, tokens: vec![1], sample: Some(sample) };
    let top = Sample { top: 21, ..Sample::default() };
    check(&[with(top)], StepError::TooManyTop { sequence, top: 21, top_max: 20 });
    let mask = |allowed: Vec<u8>| with(Sample { allowed: Some(allowed), ..Sample::default() });
    check(&[mask(vec![255; 8])], StepError::Mask { sequence, problem: "is shorter than the vocabulary" });
    // Bits past the vocabulary are ignored.
    let past = [vec![0; 8], vec![0b1111_1000]].concat();
    check(&[mask(past)], StepError::Mask { sequence, problem: "allows no token" });
    let other = engine.create(Sampler::default()).unwrap();
    let rows = [row(sequence, &[1; 200]), row(other, &[1; 130])];
    check(&rows, StepError::Overloaded { pages_free: 20, pages_max: 20 });
}

#[test]
fn mask_of_one_token_gives_that_token() {
    let engine = engine(&small(), 1, 20);
    for (token, temperature) in [(0, 0.0), (41, 1.0), (66, 2.0)] {
        let sequence = engine.create(Sampler { temperature, ..Sampler::default() }).unwrap();
        let mut allowed = vec![0; 9];
        allowed[token / 8] = 1 << (token % 8);
        let sample = Some(Sample { allowed: Some(allowed), ..Sample::default() });
        let sampled = step(&engine, &[Row { sequence, tokens: vec![1, 2], sample }]).unwrap();
        assert_eq!(sampled[0].token as usize, token);
        assert!(sampled[0].logprob < 0.0 && sampled[0].logprob.is_finite());
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let model = Arc::new(Model::load(&small().file().write().0).unwrap());
    let zero = EngineConfig { pages_max: 0, ..EngineConfig::default() };
    let refused = Engine::new(Arc::clone(&model), zero);
    assert!(matches!(refused, Err(EngineError::OutOfRange { name: "pages_max", value: 0, .. })));
    let engine = Engine::new(model, EngineConfig { sequences_max: 1, ..EngineConfig::default() }).unwrap();
    for sampler in [
        Sampler { temperature: f32::NAN, ..Sampler::default() },
        Sampler { temperature: -1.0, ..Sampler::default() },
        Sampler { top_p: 1.5, ..Sampler::default() },
        Sampler { repeat_penalty: 0.0, ..Sampler::default() },
        Sampler { frequency_penalty: f32::INFINITY, ..Sampler::default() },
    ] {
        let refused = engine.create(sampler);
        assert!(matches!(refused, Err(SequenceError::Sampler(SamplerError::OutOfRange { .. }))), "{refused:?}");
    }
    let bias = Sampler { biases: vec![(67, 1.0)], ..Sampler::default() };
    let unknown = SamplerError::UnknownToken { token: 67, tokens: 67 };
    assert_eq!(engine.create(bias), Err(SequenceError::Sampler(unknown)));
    engine.create(Sampler::default()).unwrap();
    assert_eq!(engine.create(Sampler::default()), Err(SequenceError::TooMany { sequences_max: 1 }));
}

fn refusal(file: &support::GgufFile) -> String {
    let error = Model::load(&file.write().0).unwrap_err();
    assert!(!matches!(error, LoadError::Io(_)), "{error}");
    error.to_string()
}

#[test]
fn unsupported_model_is_refused_with_the_reason() {
    let mut file = small().file();
    file.tensor("blk.0.attn_sinks.weight", &[1], TensorType::F32, vec![0; 4]);
    assert!(refusal(&file).contains("\"blk.0.attn_sinks.weight\" is not part of the architecture"));
    let mut file = small().file();
    file.integer("llama.expert_count", 8);
    assert!(refusal(&file).contains("mixtures of experts are not supported"));
    let mut file = small().file();
    file.text("llama.rope.scaling.type", "yarn");
    assert!(refusal(&file).contains("\"yarn\"; none and linear are supported"));
    let refused = refusal(&Small { architecture: "mamba", ..small() }.file());
    assert_eq!(refused, "the architecture \"mamba\" is not supported; supported are llama, qwen2, qwen3");
    let mut file = small().file();
    file.integer("general.alignment", 24);
    assert!(refusal(&file).contains("general.alignment"));
}

#[test]
fn tensor_of_an_unsupported_type_is_refused_with_its_name() {
    let file = small().file().with_tensor("token_embd.weight", TensorType::IQ4_NL, 96 * 67 / 32 * 18);
    let refused = refusal(&file);
    assert!(refused.contains("\"token_embd.weight\" has the type IQ4_NL, which is not supported"), "{refused}");
}
