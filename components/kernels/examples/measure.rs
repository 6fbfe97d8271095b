//! Rates of products and of encoders' layers, by instruction set, precision and model size. One line for each measurement, fields
//! separated by spaces; `cargo xtask bench engine` reads them.
//!
//! `cargo run --release -p weir-kernels --example measure [ISA [PRECISION [SIZE [THREADS [PARTS]]]]]`, each `all` or a name;
//! PARTS are `all` or `layers`
//!
//! - `peak ISA PRECISION GOPS`: a tile whose operands stay in the first-level cache
//! - `product ISA PRECISION SIZE ROWSxINNERxCOLUMNS GOPS`: in 10^9 operations a second, a multiplication and an addition being two
//! - `layer ISA PRECISION SIZE TEXTSxTOKENS MICROSECONDS SHARE`: a layer's time for a token, and the share of the peak that its products
//!   would have if nothing else took time
//!
//! With one thread, times are processor time, which excludes other programs; each is the median of several rounds. With two or more
//! threads each computes the same batch with shared weights, and times are wall-clock time divided by the number of calls.

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use weir_kernels::{
    Activation, Embeddings, Encoder, EncoderConfig, EncoderWeights, Epilogue, Isa, LayerWeights, Linear, Matrix, Norm,
    Precision, Rows, Scratch, Table, Texts, Values, peak_operations,
};

const WORDS: usize = 1000;
const POSITIONS: usize = 512;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(40);
const PEAK_ROUNDS: usize = 2000;
/// Texts and the tokens of each.
const BATCHES: [(usize, usize); 4] = [(1, 12), (20, 12), (8, 32), (1, 128)];

/// A model's shape.
struct Size {
    name: &'static str,
    hidden: usize,
    heads: usize,
    intermediate: usize,
}

const SIZES: [Size; 3] = [
    Size { name: "minilm", hidden: 384, heads: 12, intermediate: 1536 },
    Size { name: "base", hidden: 768, heads: 12, intermediate: 3072 },
    Size { name: "large", hidden: 1024, heads: 16, intermediate: 4096 },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let selects = |index: usize, name: &str| arguments.get(index).is_none_or(|value| value == name || value == "all");
    let threads =
        arguments.get(3).map_or(1, |threads| threads.parse().expect("the fourth argument is a number of threads"));
    for isa in Isa::available().into_iter().filter(|isa| selects(0, isa.name())) {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let name = format!("{precision:?}").to_lowercase();
            if !selects(1, &name) {
                continue;
            }
            let mut operations = 0;
            let seconds = median(|| operations = peak_operations(isa, precision, PEAK_ROUNDS));
            let peak = operations as f64 / seconds / 1e9;
            println!("peak {isa} {name} {peak:.1}");
            for size in SIZES.iter().filter(|size| selects(2, size.name)) {
                if selects(4, "products") {
                    measure_products(isa, precision, size, &name);
                }
                measure_layer(isa, precision, size, threads, peak, &name);
            }
        }
    }
}

fn measure_products(isa: Isa, precision: Precision, size: &Size, precision_name: &str) {
    let Size { name, hidden, intermediate, .. } = *size;
    for (inner, columns) in [(hidden, 3 * hidden), (hidden, intermediate), (intermediate, hidden)] {
        let weights: Vec<f32> = (0..inner * columns).map(|index| (index % 255) as f32 / 255.0 - 0.5).collect();
        let matrix = Matrix::pack(isa, precision, inner, &[(Values::F32(&weights), &vec![0.0; columns])]);
        for rows in [1, 12, 128] {
            let source: Vec<f32> = (0..rows * inner).map(|index| (index % 127) as f32 / 127.0).collect();
            let (mut out, mut memory) = (vec![0.0; rows * columns], Rows::default());
            let seconds = median(|| matrix.multiply(&source, Epilogue::Store, &mut out, &mut memory));
            let rate = 2.0 * (rows * inner * columns) as f64 / seconds / 1e9;
            println!("product {isa} {precision_name} {name} {rows}x{inner}x{columns} {rate:.1}");
        }
    }
}

fn measure_layer(isa: Isa, precision: Precision, size: &Size, threads: usize, peak: f64, precision_name: &str) {
    let Size { name, hidden, intermediate, .. } = *size;
    let encoder = encoder(isa, precision, size);
    for (texts, tokens) in BATCHES {
        let ids: Vec<u32> = (0..(texts * tokens) as u32).map(|index| index % WORDS as u32).collect();
        let lengths = vec![tokens; texts];
        let compute = |scratch: &mut Scratch| {
            let batch = Texts { ids: &ids, types: &[], lengths: &lengths };
            encoder.states(batch, scratch).expect("the batch is within the tables");
        };
        let seconds = if threads == 1 {
            let mut scratch = Scratch::default();
            median(|| compute(&mut scratch))
        } else {
            parallel(threads, compute)
        };
        let microseconds = seconds * 1e6 / (texts * tokens) as f64;
        let operations = 2.0 * (4 * hidden * hidden + 2 * hidden * intermediate) as f64;
        let share = operations / (microseconds * 1e3) / peak;
        println!("layer {isa} {precision_name} {name} {texts}x{tokens} {microseconds:.3} {share:.3}");
    }
}

/// The processor time of this thread; time in which other programs ran is not included.
fn processor_time() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this runs on Linux");
    let nanoseconds = statistics.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first field is the time on a processor"))
}

/// The median time of a call over the rounds, in seconds of processor time.
fn median(mut call: impl FnMut()) -> f64 {
    call();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (mut calls, start, mut clock) = (0_u32, processor_time(), Instant::now());
            // The kernel counts a thread's time at its ticks, so a round is much longer than one.
            loop {
                call();
                calls += 1;
                if clock.elapsed() >= ROUND {
                    let elapsed = processor_time() - start;
                    if elapsed >= ROUND {
                        return elapsed.as_secs_f64() / f64::from(calls);
                    }
                    clock = Instant::now() - elapsed;
                }
            }
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// The median wall-clock time of a round in seconds, divided by the calls of all threads in it.
fn parallel(threads: usize, call: impl Fn(&mut Scratch) + Sync) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let clock = Instant::now();
            let calls: u32 = std::thread::scope(|scope| {
                let repeat = || {
                    let (mut scratch, mut calls) = (Scratch::default(), 0);
                    while clock.elapsed() < ROUND {
                        call(&mut scratch);
                        calls += 1;
                    }
                    calls
                };
                let handles: Vec<_> = (0..threads).map(|_| scope.spawn(repeat)).collect();
                handles.into_iter().map(|handle| handle.join().expect("no call panics")).sum()
            });
            clock.elapsed().as_secs_f64() / f64::from(calls)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// An encoder of one layer with arbitrary weights.
fn encoder(isa: Isa, precision: Precision, size: &Size) -> Encoder {
    let Size { hidden, heads, intermediate, .. } = *size;
    let numbers = |count: usize| -> Vec<f32> {
        (0..count).map(|index| ((index * 7919) % 1001) as f32 / 10_010.0 - 0.05).collect()
    };
    let (square, wide, words) = (numbers(hidden * hidden), numbers(hidden * intermediate), numbers(WORDS * hidden));
    let (bias, wide_bias, gain) = (numbers(hidden), numbers(intermediate), vec![1.0; hidden]);
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
    let positions = &words[..POSITIONS * hidden];
    let embeddings = Embeddings { words: Table::F32(&words), positions, types: &[], norm };
    let config = EncoderConfig {
        hidden,
        heads,
        intermediate,
        activation: Activation::Gelu,
        epsilon: 1e-12,
        first_position: 0,
        score_factor: 1.0 / ((hidden / heads) as f32).sqrt(),
    };
    Encoder::new(isa, precision, config, &EncoderWeights { embeddings, layers: vec![layer] })
        .expect("the weights have the lengths of the configuration")
}
