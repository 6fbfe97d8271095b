//! `weir pipelines`: checks definitions, and lists and starts the pipelines of a running server.

mod check;
mod run;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;
use weir_adapters::http::HttpResponse;

use crate::remote::{Client, ServerAddress, block_on};

/// The default timeout of a response, in seconds.
const TIMEOUT_S: f64 = 30.0;

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

#[derive(Debug, Args)]
struct Run {
    /// Name of the pipeline
    #[arg(value_name = "NAME")]
    name: String,
    /// Input: JSON that begins with `{`, `[` or `"`, a file with JSON, or `-` for standard input
    #[arg(long, value_name = "JSON|FILE|-", default_value = "{}")]
    input: String,
    /// Input: `{"text": TEXT}`
    #[arg(long, value_name = "TEXT", conflicts_with = "input")]
    text: Option<String>,
    /// Print each event, and the output at the end
    #[arg(long, conflicts_with = "detach")]
    follow: bool,
    /// Print the id of the execution, and do not wait for its end
    #[arg(long)]
    detach: bool,
    /// The same key starts one execution
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    server: ServerAddress,
    /// Print a JSON object for each event, and the whole execution at the end
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(arguments: &Pipelines) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        PipelinesCommand::List { server, json } => block_on(list(server, *json)),
        PipelinesCommand::Run(arguments) => block_on(run::run(arguments)),
        PipelinesCommand::Check { paths, json } => check::check(paths, *json),
    }
}

/// Sends a request. Its response has a status below 400.
async fn send(
    client: &Client,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> anyhow::Result<HttpResponse> {
    let response = client.send(method, path, headers, body).await?;
    let status = response.status();
    if status.as_u16() < 400 {
        return Ok(response);
    }
    let problem: Value = serde_json::from_str(&response.text(client.timeout()).await?).unwrap_or_default();
    let message = problem["detail"].as_str().or(problem["error"].as_str()).unwrap_or_default();
    let fields = problem["errors"].as_array().into_iter().flatten().filter_map(|error| error["message"].as_str());
    let fields: Vec<&str> = fields.filter(|field| !message.contains(field)).collect();
    let fields = if fields.is_empty() { String::new() } else { format!(": {}", fields.join("; ")) };
    bail!("{method} {path}: the server answers {status}: {message}{fields}")
}

/// Sends a request and reads the JSON of its response.
async fn json(
    client: &Client,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> anyhow::Result<Value> {
    let response = send(client, method, path, headers, body).await?;
    let text = response.text(client.timeout()).await?;
    serde_json::from_str(&text).with_context(|| format!("the response of {path} is not JSON"))
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
