//! Fuzz targets: functions that parse any bytes as one kind of input, and panic when a property is violated.
//!
//! - [`targets`]: the functions, and their seed inputs.
//! - [`mutate`]: a seeded generator of mutated inputs.
//! - [`run`]: repeated executions of a target, which `cargo xtask fuzz` uses where cargo-fuzz is not installed.
//!
//! The same functions are the targets of cargo-fuzz (`fuzz/fuzz_targets`), which is guided by coverage.

pub mod mutate;
pub mod run;
pub mod targets;
