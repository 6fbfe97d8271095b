//! Weir's pure state machines: no IO, no clock, no randomness.
//!
//! - [`inference`]: items: queues, batches, retries, circuit breakers, the stream of the embedding API.
//! - [`generation`]: text generation, token by token: steps, cached prompts, whole characters, stop strings.
//! - [`channels`]: logs of events that are retained, replayed and followed: the exact sequence, or an explicit gap.
//! - [`transcripts`]: chunks of a transcript in, segments and annotations out.
//! - [`pipelines`]: a graph of steps that run, fail, are retried and compensated, as events and checkpoints.
//! - [`adapter`]: records of other systems: positions, attempts, reconnection.
//! - [`failure`]: why an item has no output.
//! - [`quota`]: rates and connections by user; [`turns`]: slices of one thread, fair by user.
//! - [`time`]: readings of the clocks; [`random`]: a seeded generator; [`text_file`]: text files of the operator;
//!   [`nearest`]: suggestions for misspelled names.
//!
//! # How to drive a state machine
//!
//! Time is an argument, in nanoseconds of a monotonic clock. Methods are of four kinds: `handle_*` for events, commands
//! of a caller, `poll_*` for the next action, and getters. After each `handle_*` or command, a driver polls until
//! nothing is returned, and waits until the earliest `poll_timeout`.

pub mod adapter;
pub mod channels;
pub mod failure;
pub mod generation;
pub mod inference;
mod named;
pub mod nearest;
pub mod pipelines;
pub mod quota;
pub mod random;
pub mod text_file;
pub mod time;
pub mod transcripts;
pub mod turns;
pub mod wording;
