//! The rate of products at the shapes of the shipped models, in Gop/s (a multiplication and an addition are two), and the time of
//! an encoder of three layers in microseconds per token, for every instruction set and precision.
//!
//! `cargo run --release -p weir-kernels --example measure [ISA [PRECISION]]`

#![allow(clippy::print_stdout)]

use std::time::Duration;

use weir_kernels::{
    Activation, Embeddings, Encoder, EncoderConfig, EncoderWeights, Epilogue, Isa, LayerWeights, Linear, Matrix, Norm,
    Precision, Rows, Scratch, Table, Texts, Values,
};

const HIDDEN: usize = 384;
const INTERMEDIATE: usize = 1536;
const LAYERS: usize = 3;
const ROUNDS: usize = 5;
/// Calls between two looks at the clock.
const CALLS: u32 = 4;
const ROUND: Duration = Duration::from_millis(100);

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    for isa in Isa::available().into_iter().filter(|isa| is_chosen(isa.name())) {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            if !is_chosen(isa.name()) || !(chosen.len() < 2 || is_chosen(&format!("{precision:?}"))) {
                continue;
            }
            for (inner, columns) in [(HIDDEN, 3 * HIDDEN), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN)] {
                for rows in [1, 12, 30, 128] {
                    println!(
                        "{isa} {precision:?} [{rows}, {inner}] x [{inner}, {columns}]: {:.1} Gop/s",
                        product(isa, precision, rows, inner, columns)
                    );
                }
            }
            let encoder = encoder(isa, precision);
            for (length, texts) in [(3, 1), (12, 1), (12, 10), (30, 1), (30, 4), (112, 1), (500, 1)] {
                println!(
                    "{isa} {precision:?} {texts} texts of {length} tokens: {:.1} us per token",
                    tokens(&encoder, length, texts)
                );
            }
        }
    }
}

/// What this thread has computed so far: time that other programs took is not in it.
fn processor_time() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this runs on Linux");
    let nanoseconds = statistics.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first field is the time on a processor"))
}

/// The shortest processor time of one call, in seconds.
fn shortest(mut call: impl FnMut()) -> f64 {
    let mut shortest = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (started, mut calls) = (processor_time(), 0);
        let mut elapsed = Duration::ZERO;
        while elapsed < ROUND {
            (0..CALLS).for_each(|_| call());
            calls += CALLS;
            elapsed = processor_time() - started;
        }
        shortest = f64::min(shortest, elapsed.as_secs_f64() / f64::from(calls));
    }
    shortest
}

fn product(isa: Isa, precision: Precision, rows: usize, inner: usize, columns: usize) -> f64 {
    let weights: Vec<f32> = (0..inner * columns).map(|index| (index % 255) as f32 / 255.0 - 0.5).collect();
    let matrix = Matrix::pack(isa, precision, inner, &[(Values::F32(&weights), &vec![0.0; columns])]);
    let source: Vec<f32> = (0..rows * inner).map(|index| (index % 127) as f32 / 127.0).collect();
    let (mut out, mut memory) = (vec![0.0; rows * columns], Rows::default());
    let seconds = shortest(|| matrix.multiply(&source, Epilogue::Store, &mut out, &mut memory));
    2.0 * (rows * inner * columns) as f64 / seconds / 1e9
}

fn encoder(isa: Isa, precision: Precision) -> Encoder {
    let numbers = |count: usize| -> Vec<f32> {
        (0..count).map(|index| ((index * 7919) % 1001) as f32 / 10_010.0 - 0.05).collect()
    };
    let (square, wide, words) = (numbers(HIDDEN * HIDDEN), numbers(HIDDEN * INTERMEDIATE), numbers(1000 * HIDDEN));
    let (bias, wide_bias, gain) = (numbers(HIDDEN), numbers(INTERMEDIATE), vec![1.0; HIDDEN]);
    let norm = Norm { gain: &gain, bias: &bias };
    let attention = Linear { values: Values::F32(&square), bias: &bias };
    let layer = LayerWeights {
        query: attention,
        key: attention,
        value: attention,
        attention_output: attention,
        attention_norm: norm,
        intermediate: Linear { values: Values::F32(&wide), bias: &wide_bias },
        output: Linear { values: Values::F32(&wide), bias: &bias },
        output_norm: norm,
    };
    let embeddings = Embeddings { words: Table::F32(&words), positions: &words, types: &[], norm };
    let config = EncoderConfig {
        hidden: HIDDEN,
        heads: 12,
        intermediate: INTERMEDIATE,
        activation: Activation::Gelu,
        epsilon: 1e-12,
        first_position: 0,
        score_factor: 1.0 / 32_f32.sqrt(),
    };
    Encoder::new(isa, precision, config, &EncoderWeights { embeddings, layers: vec![layer; LAYERS] })
        .expect("the weights have the lengths of the configuration")
}

fn tokens(encoder: &Encoder, length: usize, texts: usize) -> f64 {
    let ids: Vec<u32> = (0..(length * texts) as u32).map(|index| index % 1000).collect();
    let lengths = vec![length; texts];
    let mut scratch = Scratch::default();
    let seconds = shortest(|| {
        let batch = Texts { ids: &ids, types: &[], lengths: &lengths };
        encoder.states(batch, &mut scratch).expect("the batch is within the tables");
    });
    seconds * 1e6 / (length * texts) as f64
}
