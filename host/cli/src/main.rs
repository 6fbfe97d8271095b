//! The `weir` command.

mod arguments;
mod logs;
mod manual;
mod models;
mod run;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};

include!(concat!(env!("OUT_DIR"), "/builtin.rs"));

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Serve(serve) => serve::main(&serve),
        Command::Run(run) => run::main(&run),
        Command::Models(models) => models::main(&models),
        Command::Config(config) => manual::main(&config),
    };
    match result {
        Ok(code) => code,
        // A reader that went away (`weir … | head`) is no failure of ours to report.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            logs::last_error(&error);
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
