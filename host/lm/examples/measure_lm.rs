//! Prints the rates of a model: `cargo run --release -p weir-lm --example measure_lm -- MODEL.gguf [THREADS] [ISA] [PARTS]`. PARTS are
//! the measurements, for example `prefill 512,decode 4,gap`; all by default.
//!
//! A line is the part, tokens per second of wall time, and tokens per second of the processor time of all threads, which is comparable
//! on a busy machine too. `reuse 462` is how many times as fast the first token comes after a prompt of 462 tokens of which 446 are in the
//! cache. `gap` is the time between tokens of four sequences while a prompt of 2,000 tokens is computed beside them,
//! in milliseconds.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use weir_lm::{Cancel, Engine, EngineConfig, Model, Row, Sample, Sampler};

/// Tokens of a prompt in a step beside the tokens of running sequences, as a scheduler would choose them.
const PROMPT_TOKENS: usize = 32;

/// The wall time since `start`, and the processor time of all threads of this process, in seconds.
fn now(start: Instant) -> (f64, f64) {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let processor_ns = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    (start.elapsed().as_secs_f64(), processor_ns.sum::<f64>() / 1e9)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let path = arguments.get(1).ok_or("usage: measure_lm MODEL.gguf [THREADS] [ISA] [PARTS]")?;
    let threads: usize = arguments.get(2).map_or(Ok(1), |threads| threads.parse())?;
    let selects = |part: &str| arguments.get(4).is_none_or(|parts| parts.split(',').any(|other| other == part));
    let isa = arguments.get(3).filter(|name| *name != "best");
    let isa = isa.map_or(Ok(weir_kernels::Isa::best()), |isa| isa.parse())?;
    let start = Instant::now();
    let model = Arc::new(Model::load_for(isa, Path::new(path))?);
    println!("isa {}", model.isa());
    println!("load {:.0}", start.elapsed().as_secs_f64() * 1e3);
    println!("weights {:.1}", model.weight_bytes() as f64 / 1e6);
    let engine = Engine::new(model, EngineConfig { threads, pages_max: 1024, ..EngineConfig::default() })?;
    let prompt: Vec<u32> = (0..2048_u32).map(|index| 1000 + index * 37 % 20_000).collect();
    for tokens in [128, 512, 2000] {
        if !selects(&format!("prefill {tokens}")) {
            continue;
        }
        let (mut wall, mut processor) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..3 {
            let sequence = engine.create(Sampler::default())?;
            let row = Row { sequence, tokens: prompt[..tokens].to_vec(), sample: Some(Sample::default()) };
            let before = now(start);
            engine.step(&[row], &Cancel::default())?;
            let after = now(start);
            (wall, processor) = (wall.min(after.0 - before.0), processor.min(after.1 - before.1));
            engine.remove(sequence);
        }
        println!("prefill {tokens} {:.1} {:.1}", tokens as f64 / wall, tokens as f64 / processor);
    }
    if selects("reuse 462") {
        let (passed, computed) = reuse(&engine, &prompt[..446], &prompt[446..462], start)?;
        println!("reuse 462 {passed:.1} {computed:.1}");
    }
    for count in [1, 4, 16, 32] {
        if !selects(&format!("decode {count}")) {
            continue;
        }
        let mut sequences = begin(&engine, &prompt, count)?;
        let steps = 48;
        let before = now(start);
        for _ in 0..steps {
            decode(&engine, &mut sequences, None)?;
        }
        let after = now(start);
        let tokens = (count * steps) as f64;
        println!("decode {count} {:.1} {:.1}", tokens / (after.0 - before.0), tokens / (after.1 - before.1));
        sequences.iter().for_each(|(sequence, _)| engine.remove(*sequence));
    }
    if selects("gap") {
        let mut sequences = begin(&engine, &prompt, 4)?;
        let long = engine.create(Sampler::default())?;
        let mut gaps = Vec::new();
        for tokens in prompt[..2000].chunks(PROMPT_TOKENS) {
            let before = now(start);
            decode(&engine, &mut sequences, Some(Row { sequence: long, tokens: tokens.to_vec(), sample: None }))?;
            let after = now(start);
            gaps.push((after.0 - before.0, after.1 - before.1));
        }
        let percentile = |share: f64, field: fn(&(f64, f64)) -> f64| {
            let mut times: Vec<f64> = gaps.iter().map(field).collect();
            times.sort_by(f64::total_cmp);
            times[((times.len() - 1) as f64 * share).ceil() as usize] * 1e3
        };
        println!("gap p50 {:.1} {:.1}", percentile(0.5, |gap| gap.0), percentile(0.5, |gap| gap.1));
        println!("gap p99 {:.1} {:.1}", percentile(0.99, |gap| gap.0), percentile(0.99, |gap| gap.1));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    println!("memory {:.0}", rss.and_then(|rss| rss.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0);
    Ok(())
}

/// The time to the first token after a prompt, divided by that after the same prompt whose prefix is in the cache; each the best of three.
fn reuse(engine: &Engine, prefix: &[u32], rest: &[u32], start: Instant) -> Result<(f64, f64), Box<dyn Error>> {
    let cached = engine.create(Sampler::default())?;
    engine.step(&[Row { sequence: cached, tokens: prefix.to_vec(), sample: None }], &Cancel::default())?;
    let mut best = [(f64::INFINITY, f64::INFINITY); 2];
    for _ in 0..3 {
        for (is_cached, best) in [false, true].into_iter().zip(&mut best) {
            let before = now(start);
            let (sequence, tokens) = match is_cached {
                true => (engine.fork(cached, prefix.len() as u32, Sampler::default())?, rest.to_vec()),
                false => (engine.create(Sampler::default())?, [prefix, rest].concat()),
            };
            engine.step(&[Row { sequence, tokens, sample: Some(Sample::default()) }], &Cancel::default())?;
            let after = now(start);
            *best = (best.0.min(after.0 - before.0), best.1.min(after.1 - before.1));
            engine.remove(sequence);
        }
    }
    engine.remove(cached);
    Ok((best[0].0 / best[1].0, best[0].1 / best[1].1))
}

/// Creates sequences with prompts of fifty tokens, each with the token that it appends next.
fn begin(engine: &Engine, prompt: &[u32], count: usize) -> Result<Vec<(u32, u32)>, Box<dyn Error>> {
    let mut sequences = Vec::new();
    for index in 0..count {
        let sequence = engine.create(Sampler::default())?;
        let tokens = prompt[index..index + 50].to_vec();
        engine.step(&[Row { sequence, tokens, sample: None }], &Cancel::default())?;
        sequences.push((sequence, prompt[index]));
    }
    Ok(sequences)
}

/// Computes a step with one token of every sequence, and another row if given.
fn decode(engine: &Engine, sequences: &mut [(u32, u32)], more: Option<Row>) -> Result<(), Box<dyn Error>> {
    let row = |(sequence, token): &(u32, u32)| Row {
        sequence: *sequence,
        tokens: vec![*token],
        sample: Some(Sample::default()),
    };
    let rows: Vec<Row> = sequences.iter().map(row).chain(more).collect();
    for (sampled, (_, token)) in engine.step(&rows, &Cancel::default())?.iter().zip(sequences) {
        *token = sampled.token;
    }
    Ok(())
}
