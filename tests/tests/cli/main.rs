//! The command line, the commands of the documentation, and the examples.

mod commands;
mod documents;
mod examples;
mod generate;
mod pipelines;
mod run;
