//! Fuzz targets: functions that take any bytes, read them as one kind of input, and panic when a property does not hold.
//!
//! - [`targets`]: the functions, and inputs to begin with.
//! - [`mutate`]: inputs made of others, by a seeded generator.
//! - [`run`]: many executions of a target; what `cargo xtask fuzz` does where cargo-fuzz is not installed.
//!
//! The same functions are the targets of cargo-fuzz (`fuzz/fuzz_targets`), which is guided by coverage.

pub mod mutate;
pub mod run;
pub mod targets;
