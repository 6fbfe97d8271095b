//! The `weir` command.

mod adapters;
mod arguments;
mod builtin;
mod chat;
mod examples;
mod generation;
mod init_config;
mod logs;
mod man;
mod manual;
mod models;
mod numbers;
mod pipeline_adapter;
mod pipelines;
#[cfg(test)]
mod reference;
mod remote;
mod run;
mod serve;
mod setup;
mod start_files;
mod start_lines;
mod stream;
mod telemetry;
mod test_connection;

use std::io::Write;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use serde_json::json;

use crate::arguments::{Arguments, Command};

// The allocator of musl has one lock for all threads (docs/guides/deploy.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let parsed = Arguments::command().try_get_matches();
    let parsed = parsed.and_then(|matches| Ok((Arguments::from_arg_matches(&matches)?, is_json(&matches))));
    let (arguments, is_json) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => arguments::exit(&error),
    };
    let result = match arguments.command {
        Command::Serve(serve) => serve::main(&serve),
        Command::Run(run) => run::main(&run),
        Command::Chat(chat) => chat::main(&chat),
        Command::Stream(stream) => stream::main(&stream),
        Command::Models(models) => models::main(&models),
        Command::Pipelines(pipelines) => pipelines::main(&pipelines),
        Command::Config(config) => manual::main(&config),
        Command::InitConfig(init) => init_config::main(&init),
        Command::TestConnection(test) => test_connection::main(&test),
        Command::Status(status) => remote::status(&status),
        Command::Metrics(metrics) => remote::metrics(&metrics),
        Command::Completions { shell, json } => completions(shell, json),
        Command::Man(man) => man::main(&man),
    };
    match result {
        Ok(code) => code,
        // The reader of the output has ended (`weir … | head`), which is not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            logs::last_error(&error, is_json);
            ExitCode::from(2)
        }
    }
}

/// Whether the command of the arguments has `--json`.
fn is_json(matches: &ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, command)) => is_json(command),
        None => matches.try_get_one::<bool>("json").is_ok_and(|json| json.copied().unwrap_or_default()),
    }
}

fn completions(shell: clap_complete::Shell, json: bool) -> anyhow::Result<ExitCode> {
    // Rendered first: `generate` panics on a write error.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut script);
    let mut out = std::io::stdout().lock();
    match json {
        true => {
            let script = String::from_utf8_lossy(&script);
            writeln!(out, "{}", json!({ "shell": shell.to_string(), "script": script }))?;
        }
        false => out.write_all(&script)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use crate::builtin::BUILTIN;

    /// Bytes of a component that are compared.
    const SAMPLE_BYTES: usize = 4096;

    #[test]
    fn program_has_each_component_once() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let weir_runtime::Builtin { gateway, generate, infer, adapter, upstream } = BUILTIN;
        for component in [gateway, generate, infer, adapter, upstream].into_iter().flatten() {
            let start = component.len() / 2;
            let sample = &component[start..start + SAMPLE_BYTES];
            let copies = program.windows(SAMPLE_BYTES).filter(|window| *window == sample).count();
            assert_eq!(copies, 1, "of a component of {} bytes", component.len());
        }
    }
}
