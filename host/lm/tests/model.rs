//! The model of the demo, which `WEIR_TEST_LM` names: its greedy tokens are those of llama-server.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use weir_lm::{Cancel, Engine, EngineConfig, Model, Row, Sample, Sampled, Sampler};

/// Two tokens whose log probabilities differ by less than this may change their order, because the engines round differently.
const TIE: f64 = 0.3;

fn model() -> Option<Arc<Model>> {
    let Some(path) = std::env::var_os("WEIR_TEST_LM").map(PathBuf::from) else {
        eprintln!("WEIR_TEST_LM is not set: `cargo xtask setup` fetches the model");
        return None;
    };
    Some(Arc::new(Model::load(&path).unwrap()))
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

#[test]
fn model_of_the_demo_has_its_parameters_and_tokenizer() {
    let Some(model) = model() else { return };
    assert_eq!(model.parameters().architecture.name(), "llama");
    assert_eq!((model.vocabulary_tokens(), model.context_tokens_max()), (49_152, 8192));
    let tokenizer = model.tokenizer();
    assert_eq!((tokenizer.kind.name(), tokenizer.pre.as_str()), ("gpt2", "smollm"));
    assert_eq!((tokenizer.begin_token(), tokenizer.end_tokens.as_slice()), (None, [0, 2].as_slice()));
    assert!(model.chat_template().unwrap().contains("<|im_start|>"));
}

/// `greedy.json` has the tokens with which llama-server continues prompts, and the most likely tokens at each position. At no position of
/// the first ten prompts do the two most likely tokens have similar probabilities.
fn vectors() -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("vectors/greedy.json")).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

fn step(engine: &Engine, sequence: u32, tokens: Vec<u32>) -> Sampled {
    let sample = Some(Sample { top: 5, ..Sample::default() });
    engine.step(&[Row { sequence, tokens, sample }], &Cancel::default()).unwrap().remove(0)
}

#[test]
fn first_20_greedy_tokens_of_ten_prompts_are_those_of_llama_server() {
    let Some(model) = model() else { return };
    let engine = Engine::new(model, EngineConfig { threads: 2, ..EngineConfig::default() }).unwrap();
    for vector in &vectors()[..10] {
        let sequence = engine.create(Sampler::default()).unwrap();
        let mut next = numbers(&vector["tokens"]);
        let mut tokens = Vec::new();
        for _ in 0..20 {
            tokens.push(step(&engine, sequence, next).token);
            next = tokens[tokens.len() - 1..].to_vec();
        }
        assert_eq!(tokens, numbers(&vector["greedy"]), "{}", vector["prompt"]);
        engine.remove(sequence);
    }
}

/// After the server's tokens, each token is the server's, or one that is nearly as likely for the server.
#[test]
fn log_probabilities_are_those_of_llama_server() {
    let Some(model) = model() else { return };
    let engine = Engine::new(model, EngineConfig { threads: 2, ..EngineConfig::default() }).unwrap();
    let (mut differences, mut equal) = (Vec::new(), 0);
    for vector in vectors() {
        let sequence = engine.create(Sampler::default()).unwrap();
        let mut next = numbers(&vector["tokens"]);
        for (position, token) in numbers(&vector["greedy"]).into_iter().enumerate() {
            let sampled = step(&engine, sequence, next);
            let theirs: Vec<(u32, f64)> = serde_json::from_value(vector["top"][position].clone()).unwrap();
            let logprob = |token: u32| theirs.iter().find(|(other, _)| *other == token).map(|(_, logprob)| *logprob);
            equal += usize::from(sampled.token == token);
            assert!(
                theirs[0].1 - logprob(sampled.token).unwrap() < TIE,
                "{} position {position}: {}",
                vector["prompt"],
                sampled.token
            );
            let both = sampled.top.iter().filter_map(|(token, ours)| Some((f64::from(*ours) - logprob(*token)?).abs()));
            differences.extend(both);
            next = vec![token];
        }
        engine.remove(sequence);
    }
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    // Measured: 0.092 over the five most likely tokens of each position. Both engines round activations to eight bits, differently.
    assert!(mean < 0.11, "the log probabilities differ by {mean} on average");
    assert!(equal >= 370, "{equal} tokens are the server's");
}
