//! Prints the rates of a model: `cargo run --release -p weir-lm --example measure -- MODEL.gguf [THREADS] [ISA]`.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use weir_lm::{Cancel, Engine, EngineConfig, Model, Row, Sample, Sampler};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let path = arguments.get(1).ok_or("usage: measure MODEL.gguf [THREADS] [ISA]")?;
    let threads = arguments.get(2).map_or(Ok(1), |threads| threads.parse())?;
    let isa = arguments.get(3).map_or(Ok(weir_kernels::Isa::best()), |isa| isa.parse())?;
    let start = Instant::now();
    let model = Arc::new(Model::load_for(isa, Path::new(path))?);
    println!(
        "loaded in {:.0} ms for {}, {:.1} MB of weights, {threads} threads",
        start.elapsed().as_secs_f64() * 1e3,
        model.isa(),
        model.weight_bytes() as f64 / 1e6
    );
    let engine = Engine::new(model, EngineConfig { threads, pages_max: 512, ..EngineConfig::default() })?;
    let prompt: Vec<u32> = (0..2048_u32).map(|index| 1000 + index * 37 % 20_000).collect();
    for tokens in [128, 512, 2048] {
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let sequence = engine.create(Sampler::default())?;
            let row = Row { sequence, tokens: prompt[..tokens].to_vec(), sample: Some(Sample::default()) };
            let start = Instant::now();
            engine.step(&[row], &Cancel::default())?;
            best = best.min(start.elapsed().as_secs_f64());
            engine.remove(sequence);
        }
        println!("prefill {tokens:4}: {:6.0} tokens/s, {:.1} ms", tokens as f64 / best, best * 1e3);
    }
    for count in [1, 2, 4, 8, 16, 32] {
        let mut sequences = Vec::new();
        for index in 0..count {
            let sequence = engine.create(Sampler::default())?;
            let tokens = prompt[index..index + 50].to_vec();
            engine.step(&[Row { sequence, tokens, sample: None }], &Cancel::default())?;
            sequences.push((sequence, prompt[index]));
        }
        let steps = if count >= 16 { 24 } else { 48 };
        let start = Instant::now();
        for _ in 0..steps {
            let rows: Vec<Row> = sequences
                .iter()
                .map(|(sequence, token)| Row {
                    sequence: *sequence,
                    tokens: vec![*token],
                    sample: Some(Sample::default()),
                })
                .collect();
            for (sampled, (_, token)) in engine.step(&rows, &Cancel::default())?.iter().zip(&mut sequences) {
                *token = sampled.token;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let rate = (count * steps) as f64 / seconds;
        println!("decode {count:2}: {rate:7.1} tokens/s, {:.2} ms a step", seconds * 1e3 / steps as f64);
        sequences.iter().for_each(|(sequence, _)| engine.remove(*sequence));
    }
    Ok(())
}
