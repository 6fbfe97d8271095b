//! Repeated executions of a target.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::{mutate::Mutator, targets::Target};

/// Bound of the accepted inputs that are mutated further, in addition to the seed inputs of a target.
const CORPUS_INPUTS_MAX: usize = 64;

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The number of executions.
    pub executions: u64,
    /// The input that violated a property.
    pub failure: Option<Vec<u8>>,
    /// The duration of the slowest execution, and its input.
    pub slowest: (Duration, Vec<u8>),
}

/// Executes a target with its seed inputs and then with mutated ones, up to the first failure.
pub fn run(target: &Target, seed: u64, executions: u64) -> Report {
    let mut mutator = Mutator::new(seed);
    let mut report = Report::default();
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    while report.executions < executions {
        let input = {
            let inputs: Vec<&[u8]> = target.inputs.iter().copied().chain(corpus.iter().map(Vec::as_slice)).collect();
            // The seed inputs come first.
            match usize::try_from(report.executions).ok().and_then(|at| target.inputs.get(at)) {
                Some(input) => input.to_vec(),
                None => mutator.next(&inputs),
            }
        };
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.function)(&input)));
        let elapsed = began.elapsed();
        report.executions += 1;
        if elapsed > report.slowest.0 {
            report.slowest = (elapsed, input.clone());
        }
        match outcome {
            Err(_) => {
                report.failure = Some(input);
                return report;
            }
            // Without coverage data, an accepted input counts as interesting.
            Ok(true) if corpus.len() < CORPUS_INPUTS_MAX => corpus.push(input),
            Ok(true) => {
                let at = report.executions as usize % CORPUS_INPUTS_MAX;
                corpus[at] = input;
            }
            Ok(false) => {}
        }
    }
    report
}
