//! Many executions of a target.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::{mutate::Mutator, targets::Target};

/// Inputs kept as material for more, besides those that a target begins with.
const KEPT_MAX: usize = 64;

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// How often the target was executed.
    pub executions: u64,
    /// The input for which a property did not hold.
    pub failure: Option<Vec<u8>>,
    /// The time of the slowest execution, and its input.
    pub slowest: (Duration, Vec<u8>),
}

/// Executes a target with mutated inputs, up to the first failure.
pub fn run(target: &Target, seed: u64, executions: u64) -> Report {
    let mut mutator = Mutator::new(seed);
    let mut report = Report::default();
    let mut kept: Vec<Vec<u8>> = Vec::new();
    while report.executions < executions {
        let made = {
            let inputs: Vec<&[u8]> = target.inputs.iter().copied().chain(kept.iter().map(Vec::as_slice)).collect();
            // The inputs themselves first.
            match usize::try_from(report.executions).ok().and_then(|at| target.inputs.get(at)) {
                Some(input) => input.to_vec(),
                None => mutator.next(&inputs),
            }
        };
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.function)(&made)));
        let elapsed = began.elapsed();
        report.executions += 1;
        if elapsed > report.slowest.0 {
            report.slowest = (elapsed, made.clone());
        }
        match outcome {
            Err(_) => {
                report.failure = Some(made);
                return report;
            }
            // Without coverage there is no better measure than that the input was accepted.
            Ok(true) if kept.len() < KEPT_MAX => kept.push(made),
            Ok(true) => {
                let at = report.executions as usize % KEPT_MAX;
                kept[at] = made;
            }
            Ok(false) => {}
        }
    }
    report
}
