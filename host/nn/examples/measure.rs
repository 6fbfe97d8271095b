//! Measures a graph in a bare loop, on any engine: the upper bound that a server around it is compared with.
//!
//! ```text
//! cargo run --release -p weir-nn --example measure -- MODEL [--engine ENGINE] [--precision PRECISION] [--threads N] [--texts FILE | --shapes]
//! ```
//!
//! MODEL is a model's folder, or a graph in it (`model_packed.onnx`). Texts are computed in the best way that the graph allows:
//! sorted by length and padded to the longest of their batch, or, when the graph takes `segment_ids`, packed end to end. For
//! each batch size it prints **microseconds per real token** (the time of padding is included, its tokens are not counted; wall
//! time, so N threads on N free cores show an N-th) and the tokens computed for each real one; then the best batch size, and the
//! microseconds that each of the first texts takes alone.
//!
//! The lengths are synthetic mixes, or those of the lines of FILE as WordPiece splits them with the vocabulary of the model's
//! `tokenizer.json` (lower case, accents are not stripped: the count may be a few per cent off).
//!
//! `--shapes` measures single shapes instead, with tract on its symbolic plan and on fixed-shape plans.
#![allow(clippy::print_stdout, reason = "it is a tool")]

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use weir_nn::{
    Choices, Dimension, ElementType, Engine, EngineChoice, Graph, PrecisionChoice, Registry, RegistryConfig, Selection,
    Tensor, TensorType,
};

/// Batch and tokens.
const SHAPES: [(u32, u32); 6] = [(1, 16), (1, 32), (1, 128), (8, 16), (16, 32), (32, 16)];

/// The most tokens of a batch.
const SIZES: [u32; 6] = [64, 128, 256, 512, 1024, 2048];

/// Packed, the attention of a run grows with the square of its tokens.
const PACKED_SIZE_MAX: u32 = 256;

/// Lengths in tokens, repeated cyclically.
const MIXES: [(&str, &[u32]); 4] = [
    ("16 each", &[16]),
    ("32 each", &[32]),
    ("short", &[6, 9, 11, 14, 16, 19, 23, 28, 35, 47]),
    ("wide", &[8, 13, 20, 31, 48, 70, 96, 128]),
];

/// The tokens of a mix, and the most tokens of a file.
const MIX_TOKENS: u32 = 16_384;
const FILE_TOKENS: u32 = 32_768;

/// The number of texts of a mix that are also measured alone.
const ALONE: usize = 32;

/// The most tokens of a text: the bound of the shipped models.
const TEXT_TOKENS: u32 = 128;

fn main() -> anyhow::Result<()> {
    // RUST_LOG=weir_nn=debug shows where the time of loading goes.
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut path = None;
    let mut precision = PrecisionChoice::Auto;
    let (mut engine, mut threads, mut texts, mut shapes) = (Engine::default(), 1usize, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} takes a value"));
        match argument.as_str() {
            "--engine" => match value()?.parse()? {
                EngineChoice::Only(named) => engine = named,
                EngineChoice::Auto => bail!("--engine takes builtin, tract or onnxruntime"),
            },
            "--precision" => precision = value()?.parse()?,
            "--threads" => threads = value()?.parse()?,
            "--texts" => texts = Some(PathBuf::from(value()?)),
            "--shapes" => shapes = true,
            _ if !argument.starts_with('-') && path.is_none() => path = Some(PathBuf::from(argument)),
            _ => bail!(
                "usage: measure MODEL [--engine ENGINE] [--precision PRECISION] [--threads N] [--texts FILE | --shapes]"
            ),
        }
    }
    let path = path.context("name a model's folder or graph")?;
    // Makes a plan for every shape while the loop warms up.
    let config = RegistryConfig { plan_after_uses: 1, plans_max: 64, ..RegistryConfig::default() };
    let (resident, started) = (resident_mib(), Instant::now());
    let registry = Registry::new(config);
    let graph = if engine == Engine::Builtin {
        let folder = if path.is_file() { path.parent().unwrap_or(Path::new(".")) } else { &path };
        let choices = Choices { engine: EngineChoice::Only(engine), precision, ..Choices::default() };
        let selection = Selection::of(folder, choices, registry.config())?;
        registry.insert_selection("measured", &selection)?;
        registry.graph("measured")?
    } else {
        registry.insert_dir("measured", &path, engine)?
    };
    let (ms, mib) = (started.elapsed().as_secs_f64() * 1e3, resident_mib() - resident);
    println!("{} with {engine}: loaded in {ms:.0} ms, {mib:.0} MiB resident", path.display());
    for info in graph.inputs().iter().chain(graph.outputs()) {
        println!("  {info}");
    }
    if shapes {
        return measure_shapes(&path, engine, &graph);
    }
    let mixes: Vec<(String, Vec<u32>)> = match texts {
        Some(file) => vec![(file.display().to_string(), lengths_of(&file, &path)?)],
        None => MIXES.iter().map(|(name, mix)| ((*name).to_owned(), until(mix, MIX_TOKENS))).collect(),
    };
    for (name, lengths) in mixes {
        let (tokens, most) = (lengths.iter().sum::<u32>(), lengths.iter().max().copied().unwrap_or(0));
        println!("{name}: {} texts, {tokens} tokens, at most {most} in one", lengths.len());
        let mut best = (f64::INFINITY, 0);
        let packed = graph.inputs().iter().any(|input| input.name == "segment_ids");
        for size in SIZES.into_iter().filter(|size| *size >= most && (!packed || *size <= PACKED_SIZE_MAX)) {
            let batches = batches(&graph, &lengths, size);
            let computed: u32 = batches.iter().map(|batch| batch.tokens).sum();
            let us = run(&graph, &batches, threads)? * 1e6 / f64::from(tokens);
            println!(
                "  at most {size:4} in a batch: {us:6.1} us/token, {:.2} computed",
                f64::from(computed) / f64::from(tokens)
            );
            best = if us < best.0 { (us, size) } else { best };
        }
        println!("  best: {:.1} us/token, {:.0} tokens/s, at {} in a batch", best.0, 1e6 / best.0, best.1);
        let alone = lengths.iter().take(ALONE).map(|length| alone_us(&graph, *length));
        println!("  alone_us: {:.0?}", alone.collect::<anyhow::Result<Vec<_>>>()?);
    }
    println!("{:.0} MiB resident", resident_mib());
    Ok(())
}

/// The inputs of one run.
struct Batch {
    inputs: Vec<(String, Tensor)>,
    /// Tokens, padding included.
    tokens: u32,
}

/// The texts by length, cut into batches of at most `size` tokens.
fn batches(graph: &Graph, lengths: &[u32], size: u32) -> Vec<Batch> {
    let packed = graph.inputs().iter().any(|input| input.name == "segment_ids");
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let mut batches: Vec<Vec<u32>> = Vec::new();
    for length in sorted {
        let fits = |batch: &Vec<u32>| match packed {
            true => batch.iter().sum::<u32>() + length <= size,
            // The last is the longest.
            false => (batch.len() as u32 + 1) * length <= size,
        };
        match batches.last_mut().filter(|batch| fits(batch)) {
            Some(batch) => batch.push(length),
            None => batches.push(vec![length]),
        }
    }
    let longest = |batch: &[u32]| batch.last().copied().unwrap_or(0);
    let make = |batch: &Vec<u32>| match packed {
        true => Batch { inputs: packed_inputs(graph, batch), tokens: batch.iter().sum() },
        false => {
            Batch { inputs: padded_inputs(graph, batch, longest(batch)), tokens: batch.len() as u32 * longest(batch) }
        }
    };
    batches.iter().map(make).collect()
}

/// Seconds for all batches, after a warm-up with every batch on tract, which makes its plans, and with the largest batch otherwise.
fn run(graph: &Arc<Graph>, batches: &[Batch], threads: usize) -> anyhow::Result<f64> {
    let mut context = graph.context()?;
    let cold = if graph.engine() == Engine::Tract { batches } else { &batches[batches.len().saturating_sub(1)..] };
    for batch in cold {
        context.compute(batch.inputs.clone())?;
        graph.settle();
    }
    // Copies are made before the measurement, since a guest's tensors are moved, not copied.
    let copies: Vec<_> = batches.iter().map(|batch| std::sync::Mutex::new(Some(batch.inputs.clone()))).collect();
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    let compute_all = || -> anyhow::Result<()> {
        let mut context = graph.context()?;
        while let Some(copy) = copies.get(next.fetch_add(1, Ordering::Relaxed)) {
            let inputs = copy.lock().ok().and_then(|mut copy| copy.take());
            context.compute(inputs.context("each batch is taken once")?)?;
        }
        Ok(())
    };
    let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(compute_all)).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined.map(|result| result.unwrap_or_else(|_| bail!("a thread panicked"))).collect()
    });
    let seconds = started.elapsed().as_secs_f64();
    results.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(seconds)
}

/// Microseconds of a call with one text: the median of several.
fn alone_us(graph: &Arc<Graph>, length: u32) -> anyhow::Result<f64> {
    let batches = batches(graph, &[length], length);
    let times: anyhow::Result<Vec<f64>> = (0..6).map(|_| run(graph, &batches, 1)).collect();
    let mut times = times?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2] * 1e6)
}

/// The mix repeated cyclically, up to a number of tokens.
fn until(mix: &[u32], tokens: u32) -> Vec<u32> {
    let mut sum = 0;
    let within = |length: &u32| {
        sum += length;
        sum <= tokens
    };
    mix.iter().copied().cycle().take_while(within).collect()
}

/// The tokens of each line, up to a bound of their sum.
fn lengths_of(file: &Path, model: &Path) -> anyhow::Result<Vec<u32>> {
    let folder = if model.is_file() { model.parent().unwrap_or(Path::new(".")) } else { model };
    let tokenizer = folder.join("tokenizer.json");
    let tokenizer = std::fs::read(&tokenizer).with_context(|| tokenizer.display().to_string())?;
    let tokenizer: serde_json::Value = serde_json::from_slice(&tokenizer)?;
    let vocabulary =
        tokenizer["model"]["vocab"].as_object().context("tokenizer.json has no vocabulary of WordPiece")?;
    let vocabulary: HashSet<&str> = vocabulary.keys().map(String::as_str).collect();
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(until(&lines.map(|line| word_pieces(line, &vocabulary)).collect::<Vec<_>>(), FILE_TOKENS))
}

/// The tokens of a text, including the two special ones around it: the longest piece first, as in BERT.
fn word_pieces(text: &str, vocabulary: &HashSet<&str>) -> u32 {
    let mut count = 2;
    let text = text.to_lowercase();
    let is_mark = |c: char| !c.is_alphanumeric();
    for word in text.split_inclusive(is_mark).flat_map(|part| part.split(char::is_whitespace)) {
        let (word, mark) = word.split_at(word.find(is_mark).unwrap_or(word.len()));
        count += u32::from(!mark.is_empty());
        let mut rest = word;
        while !rest.is_empty() {
            let prefix = if rest.len() < word.len() { "##" } else { "" };
            let ends = rest.char_indices().map(|(start, c)| start + c.len_utf8()).collect::<BTreeSet<_>>();
            let known = |end: &&usize| vocabulary.contains(format!("{prefix}{}", &rest[..**end]).as_str());
            count += 1;
            // A word with an unknown piece is one unknown token.
            let Some(end) = ends.iter().rev().find(known) else { break };
            rest = &rest[*end..];
        }
    }
    count.min(TEXT_TOKENS)
}

fn measure_shapes(path: &Path, engine: Engine, fixed: &Arc<Graph>) -> anyhow::Result<()> {
    let symbolic = RegistryConfig { plan_after_uses: 0, ..RegistryConfig::default() };
    let symbolic = Registry::new(symbolic).insert_dir("symbolic", path, engine)?;
    for (batch, tokens) in SHAPES {
        let (before, started) = (resident_mib(), Instant::now());
        fixed.context()?.compute(padded_inputs(fixed, &vec![tokens; batch as usize], tokens))?;
        fixed.settle();
        let (ms, mib) = (started.elapsed().as_secs_f64() * 1e3, resident_mib() - before);
        let us = per_token_us(fixed, batch, tokens)?;
        print!("{batch:>3} x {tokens:<4} {us:6.1} us/token");
        if engine == Engine::Tract {
            let symbolic_us = per_token_us(&symbolic, batch, tokens)?;
            print!("   symbolic {symbolic_us:6.1}   x{:.2}   plan made in {ms:.0} ms, {mib:+.1} MiB", symbolic_us / us);
        }
        println!();
    }
    Ok(())
}

/// The median over runs, in one thread.
fn per_token_us(graph: &Arc<Graph>, batch: u32, tokens: u32) -> anyhow::Result<f64> {
    let mut context = graph.context()?;
    let inputs = padded_inputs(graph, &vec![tokens; batch as usize], tokens);
    let mut times = Vec::new();
    let started = Instant::now();
    while times.len() < 5 || started.elapsed().as_millis() < 1500 {
        let inputs = inputs.clone();
        let run = Instant::now();
        context.compute(inputs)?;
        times.push(run.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2] / f64::from(batch * tokens))
}

/// A token id within every model's vocabulary, distinct for each of the first 20,000 indices.
fn token(ix: u32) -> i64 {
    1000 + i64::from(ix * 37 % 20_000)
}

/// Texts of these lengths side by side, padded to `tokens`.
fn padded_inputs(graph: &Graph, lengths: &[u32], tokens: u32) -> Vec<(String, Tensor)> {
    let input = |info: &weir_nn::TensorInfo| {
        let mut free = [lengths.len() as u32, tokens].into_iter();
        let size = |dimension: &Dimension| match dimension {
            Dimension::Fixed(size) => *size as u32,
            _ => free.next().unwrap_or(1),
        };
        let dimensions: Vec<u32> = info.dimensions.iter().flatten().map(size).collect();
        let count = dimensions.iter().product::<u32>();
        let value = |ix: u32| match info.name.as_str() {
            "input_ids" => token(ix),
            "attention_mask" => {
                i64::from(lengths.get((ix / tokens) as usize).is_none_or(|length| ix % tokens < *length))
            }
            "position_ids" => i64::from(ix % tokens),
            _ => 0,
        };
        let tensor = match info.element {
            ElementType::Wit(TensorType::Fp32) => Tensor::from_f32(&dimensions, &vec![1.0; count as usize]),
            _ => Tensor::from_i64(&dimensions, &(0..count).map(value).collect::<Vec<_>>()),
        };
        (info.name.clone(), tensor)
    };
    graph.inputs().iter().map(input).collect()
}

/// Texts of these lengths end to end.
fn packed_inputs(graph: &Graph, lengths: &[u32]) -> Vec<(String, Tensor)> {
    let tokens: u32 = lengths.iter().sum();
    // For each token, its text and its position in it.
    let positions =
        || (0u32..).zip(lengths).flat_map(|(text, length)| (0..*length).map(move |position| (text, position)));
    let input = |info: &weir_nn::TensorInfo| {
        let tensor = if info.name == "pool" {
            let weight = |of: u32, text: u32| if of == text { 1.0 / lengths[text as usize] as f32 } else { 0.0 };
            let values = (0..lengths.len() as u32).flat_map(|of| positions().map(move |(text, _)| weight(of, text)));
            Tensor::from_f32(&[lengths.len() as u32, tokens], &values.collect::<Vec<_>>())
        } else {
            let value = |(ix, (text, position)): (u32, (u32, u32))| match info.name.as_str() {
                "input_ids" => token(ix),
                "position_ids" => i64::from(position),
                "segment_ids" => i64::from(text),
                _ => 0,
            };
            Tensor::from_i64(&[1, tokens], &(0..).zip(positions()).map(value).collect::<Vec<_>>())
        };
        (info.name.clone(), tensor)
    };
    graph.inputs().iter().map(input).collect()
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
