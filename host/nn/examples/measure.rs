//! Measures a model: how long it takes to load, and microseconds per token in the shapes that matter, on the symbolic plan
//! and on plans of their own.
//!
//! `cargo run --release -p weir-nn --example measure -- host/nn/models/embeddings`
#![allow(clippy::print_stdout, reason = "it is a tool")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use weir_nn::{Dimension, ElementType, Engine, Graph, Registry, RegistryConfig, Tensor, TensorType};

const SHAPES: [(u32, u32); 5] = [(1, 16), (1, 32), (1, 128), (8, 16), (32, 16)];

fn main() -> anyhow::Result<()> {
    // RUST_LOG=weir_nn=debug shows where the time of loading goes.
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let path = PathBuf::from(std::env::args().nth(1).context("usage: measure MODEL_DIR")?);
    let resident = resident_mib();
    let started = Instant::now();
    let registry = Registry::new(RegistryConfig { plan_after_uses: 0, ..RegistryConfig::default() });
    let graph = registry.insert_dir("symbolic", &path, Engine::Tract)?;
    println!(
        "loaded in {:.0} ms, {:.0} MiB resident",
        started.elapsed().as_secs_f64() * 1e3,
        resident_mib() - resident
    );
    for info in graph.inputs().iter().chain(graph.outputs()) {
        println!("  {info}");
    }
    let fixed = Registry::new(RegistryConfig { plan_after_uses: 1, ..RegistryConfig::default() });
    let fixed = fixed.insert_dir("fixed", &path, Engine::Tract)?;
    for (batch, tokens) in SHAPES {
        let symbolic_us = per_token_us(&graph, batch, tokens)?;
        let before = resident_mib();
        let started = Instant::now();
        fixed.context()?.compute(inputs(&fixed, batch, tokens))?;
        fixed.settle();
        let build_ms = started.elapsed().as_secs_f64() * 1e3;
        let fixed_us = per_token_us(&fixed, batch, tokens)?;
        println!(
            "{batch:>3} x {tokens:<4} symbolic {symbolic_us:6.1} us/token   fixed {fixed_us:6.1} us/token   x{:.2}   plan made in {build_ms:.0} ms, {:+.1} MiB",
            symbolic_us / fixed_us,
            resident_mib() - before,
        );
    }
    Ok(())
}

/// The median over runs, in one thread.
fn per_token_us(graph: &std::sync::Arc<Graph>, batch: u32, tokens: u32) -> anyhow::Result<f64> {
    let mut context = graph.context()?;
    let inputs = inputs(graph, batch, tokens);
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

/// Plausible inputs: distinct tokens, everything attended to.
fn inputs(graph: &Graph, batch: u32, tokens: u32) -> Vec<(String, Tensor)> {
    let input = |info: &weir_nn::TensorInfo| {
        let mut free = [batch, tokens].into_iter();
        let size = |dimension: &Dimension| match dimension {
            Dimension::Fixed(size) => *size as u32,
            _ => free.next().unwrap_or(1),
        };
        let dimensions: Vec<u32> = info.dimensions.iter().flatten().map(size).collect();
        let count = dimensions.iter().product::<u32>();
        let value = |ix: u32| match info.name.as_str() {
            "input_ids" => 1000 + i64::from(ix * 37 % 20_000),
            "attention_mask" => 1,
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

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
