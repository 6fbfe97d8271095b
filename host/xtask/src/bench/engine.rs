//! `cargo xtask bench engine`: the kernels alone beside ONNX Runtime (tests/bench/peers/onnxruntime_layer.py), on one layer of three
//! model sizes. Both are measured in turns on the same core, by the time of the processor.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::house::House;
use crate::ui::{Step, finish};
use crate::{python, sh};

const REPORT: &str = "tests/bench/ENGINE.md";
const PEER: &str = "tests/bench/peers/onnxruntime_layer.py";
const ROUNDS: usize = 3;

/// A model's shape, as the example `measure` names it.
struct Size {
    name: &'static str,
    title: &'static str,
    hidden: usize,
    heads: usize,
    intermediate: usize,
}

const SIZES: [Size; 3] = [
    Size { name: "minilm", title: "MiniLM", hidden: 384, heads: 12, intermediate: 1536 },
    Size { name: "base", title: "BERT-base", hidden: 768, heads: 12, intermediate: 3072 },
    Size { name: "large", title: "BERT-large", hidden: 1024, heads: 16, intermediate: 4096 },
];

/// Texts and tokens, as the example `measure` has them.
const BATCHES: [&str; 4] = ["1x12", "20x12", "8x32", "1x128"];

/// The goals of the products and of a whole layer, as shares of the peak.
const PRODUCT_SHARE: f64 = 0.70;
const LAYER_SHARE: f64 = 0.55;

/// What was measured: a line's words but the numbers, and the numbers of each round.
type Measured = BTreeMap<String, Vec<f64>>;

pub(super) fn task(house: &House, mut args: Args) -> Result<()> {
    let rounds = if args.flag("--quick") { 1 } else { ROUNDS };
    args.finish()?;
    let peer = match std::env::var_os("WEIR_TEST_PYTHON") {
        Some(program) => PathBuf::from(program),
        None => python::ensure(house)?.python,
    };
    let mut step = Step::begin("build", "the example `measure` of weir-kernels");
    let mut build = sh::cargo(house);
    build.args(["build", "--release", "-p", "weir-kernels", "--example", "measure"]);
    let built = sh::check(&mut step, &mut build);
    finish(step, built.map(|_| "measure".to_owned()))?;
    let example = house.target.join("release/examples/measure");
    let best = best_isa(house, &example)?;
    let isas: Vec<&str> = if best == "avx2" { vec!["avx2"] } else { vec![&best, "avx2"] };

    let mut measured = Measured::new();
    let mut step = Step::begin("measure", &format!("{rounds} rounds"));
    for round in 1..=rounds {
        for size in &SIZES {
            for threads in [1, 2] {
                if threads > 1 && size.name != "base" {
                    continue;
                }
                let label =
                    |what: &str| format!("round {round} of {rounds}: {}, {threads} threads, {what}", size.title);
                for isa in &isas {
                    step.show_progress(&label(isa));
                    // Products do not depend on the threads.
                    let parts = if threads == 1 { "all" } else { "layers" };
                    let mut command = pinned(house, &example, threads);
                    command.args([isa, "all", size.name, &threads.to_string(), parts]);
                    read(&sh::stdout_of(&mut command)?, &format!("{threads} "), &mut measured)?;
                }
                for precision in ["f32", "int8"] {
                    step.show_progress(&label(&format!("ONNX Runtime {precision}")));
                    let mut command = pinned(house, &peer, threads);
                    let shape = [size.hidden, size.heads, size.intermediate].map(|number| number.to_string());
                    command.arg(PEER).args(shape).args([precision, &threads.to_string()]).args(BATCHES);
                    let prefix = format!("{threads} layer onnxruntime {precision} {} ", size.name);
                    read(&sh::stdout_of(&mut command)?, &prefix, &mut measured)?;
                }
            }
        }
    }
    step.done(&format!("{rounds} rounds"));
    let report = render(&measured, &isas, &machine(), rounds);
    std::fs::write(house.root.join(REPORT), &report).with_context(|| format!("cannot write {REPORT}"))?;
    println!("{report}\nwritten to {REPORT}");
    Ok(())
}

/// The program on the last core, or on the last ones.
fn pinned(house: &House, program: &Path, threads: usize) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let has_taskset = Command::new("taskset").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_taskset || cores < threads {
        return sh::program(house, program);
    }
    let mut command = sh::program(house, "taskset");
    command.args(["-c", &format!("{}-{}", cores - threads, cores - 1)]).arg(program);
    command
}

fn best_isa(house: &House, example: &Path) -> Result<String> {
    let lines = sh::stdout_of(sh::program(house, example).args(["all", "f32", "none"]))?;
    let first = lines.lines().next().and_then(|line| line.split(' ').nth(1));
    first.map(str::to_owned).context("the example `measure` has no instruction set")
}

/// Lines of words that end in a number, or in two: a time and a share.
fn read(lines: &str, prefix: &str, measured: &mut Measured) -> Result<()> {
    for line in lines.lines() {
        let mut words: Vec<&str> = line.split(' ').collect();
        let mut numbers = Vec::new();
        while let Some(number) = words.last().and_then(|word| word.parse::<f64>().ok()) {
            numbers.insert(0, number);
            words.pop();
        }
        let number = numbers.first().with_context(|| format!("no number in `{line}`"))?;
        measured.entry(format!("{prefix}{}", words.join(" "))).or_default().push(*number);
    }
    Ok(())
}

fn median(measured: &Measured, key: &str) -> Option<f64> {
    let mut rounds = measured.get(key)?.clone();
    rounds.sort_by(f64::total_cmp);
    rounds.get(rounds.len() / 2).copied()
}

pub(super) fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let [model, family] = ["model name", "cpu family"].map(|name| field(name).unwrap_or("?"));
    format!("{model} (family {family}), {cores} cores")
}

fn render(measured: &Measured, isas: &[&str], machine: &str, rounds: usize) -> String {
    let mut out = format!(
        "# The engine's kernels alone\n\nWritten by `cargo xtask bench engine`; machine: {machine}; alternating rounds: {rounds}, \
         whose medians are listed. With one thread, pinned to one core, times are those of the processor, so other programs do not \
         count; but they share caches and memory with it. With two threads they are those of the clock.\n"
    );
    let precisions = ["f32", "bf16", "int8"];
    out += "\n## Products\n\nIn 10^9 operations a second (a multiplication and an addition are two): the processor's peak, which \
            is a tile whose operands stay in the first-level cache; then the least of the three products of a layer, and its share.\n\n";
    out += "| | peak |";
    for size in &SIZES {
        for rows in [1, 12, 128] {
            let _ = write!(out, " {}, {rows} rows |", size.title);
        }
    }
    out += "\n|---|---|";
    out += &"---|".repeat(3 * SIZES.len());
    let mut least_product = (f64::MAX, String::new());
    for isa in isas {
        for precision in precisions {
            let Some(peak) = median(measured, &format!("1 peak {isa} {precision}")) else { continue };
            let _ = write!(out, "\n| {isa} {precision} | {peak:.0} |");
            for size in &SIZES {
                for rows in [1, 12, 128] {
                    let Size { name, hidden, intermediate, .. } = size;
                    let shapes = [(*hidden, 3 * hidden), (*hidden, *intermediate), (*intermediate, *hidden)];
                    let rate = |(inner, columns)| {
                        median(measured, &format!("1 product {isa} {precision} {name} {rows}x{inner}x{columns}"))
                    };
                    let least = shapes.into_iter().filter_map(rate).fold(f64::MAX, f64::min);
                    if rows > 1 && least / peak < least_product.0 {
                        least_product = (least / peak, format!("{isa} {precision}, {}, {rows} rows", size.title));
                    }
                    let _ = write!(out, " {least:.0} ({:.0} %) |", 100.0 * least / peak);
                }
            }
        }
    }
    out += "\n\n## A whole layer\n\nMicroseconds for a token, by batch (texts x tokens); in brackets, of ours the share of the peak that \
            its products would have if nothing else took time, of ONNX Runtime how often ours on the best instruction set is as fast \
            in that precision.\n";
    let mut least_layer = (f64::MAX, String::new());
    for size in &SIZES {
        for threads in [1, 2] {
            if !measured.keys().any(|key| key.starts_with(&format!("{threads} layer {} f32 {} ", isas[0], size.name))) {
                continue;
            }
            let _ = write!(out, "\n### {}, {threads} thread{}\n\n|", size.title, if threads == 1 { "" } else { "s" });
            BATCHES.iter().for_each(|batch| out += &format!(" | {batch}"));
            out += " |\n|---|";
            out += &"---|".repeat(BATCHES.len());
            let time = |engine: &str, precision: &str, batch: &str| {
                median(measured, &format!("{threads} layer {engine} {precision} {} {batch}", size.name))
            };
            let operations = 2.0 * (4 * size.hidden * size.hidden + 2 * size.hidden * size.intermediate) as f64;
            for isa in isas {
                for precision in precisions {
                    let Some(peak) = median(measured, &format!("1 peak {isa} {precision}")) else { continue };
                    let _ = write!(out, "\n| {isa} {precision} |");
                    for batch in BATCHES {
                        let Some(time) = time(isa, precision, batch) else { continue };
                        let share = operations / (time * 1e3) / peak / f64::from(threads);
                        if threads == 1 && size.name == "base" && batch != "1x12" && share < least_layer.0 {
                            least_layer = (share, format!("{isa} {precision}, {batch}"));
                        }
                        let _ = write!(out, " {time:.1} ({:.0} %) |", 100.0 * share);
                    }
                }
            }
            for precision in ["f32", "int8"] {
                let _ = write!(out, "\n| ONNX Runtime {precision} |");
                for batch in BATCHES {
                    let (Some(peer), Some(ours)) =
                        (time("onnxruntime", precision, batch), time(isas[0], precision, batch))
                    else {
                        continue;
                    };
                    let _ = write!(out, " {peer:.1} ({:.2} x) |", peer / ours);
                }
            }
            out += "\n";
        }
    }
    out += "\n## Goals\n\n| goal | least | |\n|---|---|---|";
    for (goal, share, (least, at)) in [
        ("products of 12 rows and more", PRODUCT_SHARE, least_product),
        ("a BERT-base layer, 128 tokens and more", LAYER_SHARE, least_layer),
    ] {
        let verdict = if least >= share { "hit" } else { "**miss**" };
        let (share, least) = (100.0 * share, 100.0 * least);
        let _ = write!(out, "\n| {goal}: {share:.0} % of the peak | {least:.0} % ({at}) | {verdict} |");
    }
    out += "\n\nA product of few rows reads more weights for each operation than the memory delivers where they do not fit in the \
            caches. An instruction set without a product of bf16 computes it in f32, with instructions more to widen the numbers.\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_by_their_words_and_first_number() {
        let mut measured = Measured::new();
        read("peak avx2 f32 130.5\nlayer avx2 f32 base 1x12 60.0 0.55", "1 ", &mut measured).unwrap();
        read("peak avx2 f32 120.5\npeak avx2 f32 110.5", "1 ", &mut measured).unwrap();
        assert_eq!(median(&measured, "1 peak avx2 f32"), Some(120.5));
        assert_eq!(median(&measured, "1 layer avx2 f32 base 1x12"), Some(60.0));
        assert!(read("no number", "", &mut measured).is_err());
    }
}
