//! A short run of every target with a fixed seed; `cargo xtask fuzz` is the long run.

#![allow(clippy::unwrap_used)]

use weir_fuzz::{run::run, targets::TARGETS};

/// Executions of each target, few enough to take seconds in the development profile.
const EXECUTIONS: u64 = 1000;

#[test]
fn each_target_passes_a_short_run() {
    for target in TARGETS {
        let report = run(target, 1, EXECUTIONS);
        assert_eq!(report.failure.map(|input| String::from_utf8_lossy(&input).into_owned()), None, "{}", target.name);
        assert_eq!(report.executions, EXECUTIONS, "{}", target.name);
    }
}

#[test]
fn seed_inputs_are_accepted_by_their_target() {
    for target in TARGETS {
        let accepted = target.inputs.iter().filter(|input| (target.function)(input)).count();
        assert!(accepted > 0, "{} accepts none of its seed inputs", target.name);
    }
}

#[test]
fn each_target_is_a_cargo_fuzz_target() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for name in TARGETS.iter().map(|target| target.name) {
        let file = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(file.contains(&format!("targets::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
