//! `weir pipelines`: checks definitions, and lists and starts the pipelines of a running server.

mod check;
mod requests;
mod run;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;

use crate::remote::{ServerAddress, block_on};
use requests::{TIMEOUT_S, json};
use run::Run;

/// `weir pipelines`.
#[derive(Debug, Args)]
#[command(after_help = crate::examples::PIPELINES)]
pub(crate) struct Pipelines {
    #[command(subcommand)]
    command: PipelinesCommand,
}

#[derive(Debug, Subcommand)]
enum PipelinesCommand {
    /// List the pipelines of a running server
    List {
        #[command(flatten)]
        server: ServerAddress,
        /// Print a JSON object for each pipeline
        #[arg(long)]
        json: bool,
    },
    /// Start a pipeline of a running server, wait for its end, and print its output
    ///
    /// The exit status is 1 if the execution fails or is cancelled. Ctrl-C does not cancel it.
    Run(Run),
    /// Check definitions without a server
    ///
    /// The exit status is 1 if a definition is invalid.
    Check {
        /// Files, or folders whose `.json` files are checked
        #[arg(value_name = "FILE|DIR", required = true)]
        paths: Vec<PathBuf>,
        /// Print a JSON object for each file
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn main(arguments: &Pipelines) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        PipelinesCommand::List { server, json } => block_on(list(server, *json)),
        PipelinesCommand::Run(arguments) => block_on(run::run(arguments)),
        PipelinesCommand::Check { paths, json } => check::check(paths, *json),
    }
}

async fn list(server: &ServerAddress, as_json: bool) -> anyhow::Result<ExitCode> {
    let answer = json(&server.client(TIMEOUT_S)?, &Method::GET, "/pipelines", &[], None).await?;
    let pipelines = answer["pipelines"].as_array().context("the response has no list of pipelines")?;
    let mut out = std::io::stdout().lock();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let width = pipelines.iter().map(|pipeline| text(&pipeline["name"]).len()).max().unwrap_or(0);
    for pipeline in pipelines {
        if as_json {
            writeln!(out, "{pipeline}")?;
            continue;
        }
        let steps = pipeline["steps"].as_array().into_iter().flatten();
        let steps: Vec<String> = steps.map(|step| format!("{} ({})", text(&step["id"]), text(&step["kind"]))).collect();
        let description = match pipeline["valid"] == true {
            true => steps.join(", "),
            false => format!("invalid: {}", text(&pipeline["error"])),
        };
        writeln!(out, "{:width$}  {description}", text(&pipeline["name"]))?;
    }
    if pipelines.is_empty() && !as_json {
        writeln!(
            std::io::stderr(),
            "the server has no pipelines: `weir serve --set pipelines.dir=DIR` reads a folder"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
