//! `weir-fuzz TARGET|all EXECUTIONS SEED FOLDER`: executes targets, and writes the input of a failure into the folder.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use weir_fuzz::{run::run, targets::TARGETS};

const USAGE: &str = "usage: weir-fuzz TARGET|all EXECUTIONS SEED FOLDER";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, executions, seed, folder] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let (Ok(executions), Ok(seed)) = (executions.parse::<u64>(), seed.parse::<u64>()) else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let selected: Vec<_> = TARGETS.iter().filter(|target| name == "all" || target.name == name).collect();
    if selected.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("`{name}` is not a target; use one of {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    let (mut total, mut failed) = (0, false);
    for target in selected {
        let began = Instant::now();
        let report = run(target, seed, executions);
        total += report.executions;
        let (slowest, _) = &report.slowest;
        let per_s = report.executions as f64 / began.elapsed().as_secs_f64().max(1e-9);
        println!(
            "{:<14}{:>12} executions {:>10.0} per second, slowest {:.1} ms",
            target.name,
            report.executions,
            per_s,
            slowest.as_secs_f64() * 1000.0
        );
        if let Some(input) = report.failure {
            failed = true;
            let file = Path::new(folder).join(format!("{}-{seed}-{}", target.name, report.executions));
            match std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, &input)) {
                Ok(()) => println!("{}: FAILED with the input in {}", target.name, file.display()),
                Err(error) => {
                    println!("{}: FAILED with the input {input:?} ({}: {error})", target.name, file.display())
                }
            }
        }
    }
    println!("{total} executions");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
