//! `weir run`: runs a model over the lines of files, in order, on every core; or processes transcripts
//! ([`transcript`]).

mod generate;
mod input;
mod output;
pub(crate) mod progress;
mod transcript;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use weir_codec::inference::output::Id;
use weir_codec::inference::request::Input;
use weir_runtime::types::{
    self, ClassifyOptions, EmbedOptions, Failure, Item, ModelKind, Outcome, Overflow, SummaryOptions, TokenOptions,
    WhenFull,
};
use weir_runtime::{CallSender, Outcomes, Runtime};

use crate::arguments::{Aggregation, Run, SummaryMode, Task};
use crate::{BUILTIN, logs};
use input::{Line, Reader};
use output::{Form, OutputLine};
use progress::{Progress, ProgressForm};

/// Most lines that were read and are not printed. Results arrive in any order and are printed in the order of the
/// lines, so this bounds the waiting results.
const WINDOW_LINES: usize = 4096;
/// Most lines that one task sends to another at once. No line waits for others.
const LIST_LINES_MAX: usize = 64;
/// Most lists that wait between two tasks.
const LISTS_MAX: usize = 16;

/// The bounds of a summary, in tokens.
const SUMMARY_TOKENS: std::ops::RangeInclusive<u32> = 30..=130;

pub(crate) fn main(arguments: &Run) -> anyhow::Result<ExitCode> {
    if arguments.task == Task::Generate || arguments.mode == SummaryMode::Abstractive {
        return generate::main(arguments);
    }
    let Some(task) = ModelTask::of(arguments.task) else { return transcript::main(arguments) };
    let name = arguments.model.clone().unwrap_or_else(|| task.bundled_model().to_string());
    let replicas = arguments.replicas.map(|replicas| ("models.replicas", replicas.to_string()));
    let mut config = arguments.setup.load(replicas.as_slice())?;
    // Errors of a line are in its result, so only errors of the program are logged.
    if config.log == weir_config::Log::default() {
        config.log.level = "error".into();
    }
    logs::start(&config.log)?;
    let model = choose(&mut config, &name)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let code = runtime.block_on(run(arguments, task, config, &model));
    runtime.shutdown_background();
    code
}

/// A task of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelTask {
    Sentiment,
    Entities,
    Embed,
    Summary,
}

impl ModelTask {
    fn of(task: Task) -> Option<Self> {
        match task {
            Task::Sentiment => Some(Self::Sentiment),
            Task::Entities => Some(Self::Entities),
            Task::Embed => Some(Self::Embed),
            Task::Summary => Some(Self::Summary),
            Task::Transcript | Task::Generate => None,
        }
    }

    /// The task of the HTTP interface whose lines have the same fields.
    fn input_task(self) -> weir_codec::inference::task::Task {
        match self {
            Self::Sentiment => weir_codec::inference::task::Task::Classify,
            Self::Entities => weir_codec::inference::task::Task::Tokens,
            Self::Embed | Self::Summary => weir_codec::inference::task::Task::Embed,
        }
    }

    /// The bundled model of the task.
    fn bundled_model(self) -> &'static str {
        match self {
            Self::Sentiment => "sentiment",
            Self::Entities => "entities",
            Self::Embed | Self::Summary => "embeddings",
        }
    }
}

/// Reduces the configuration to one model: a configured one, one in the models folder, or a folder.
fn choose(config: &mut weir_config::Config, name: &str) -> anyhow::Result<String> {
    let beside = config.models.dir.join(name);
    let configured = config.model.remove(name);
    config.models.names.clear();
    let model = match configured {
        Some(model) => model,
        None if !config.models.dir.as_os_str().is_empty() && !name.contains('/') && beside.is_dir() => {
            weir_config::Model { path: beside, ..Default::default() }
        }
        None if PathBuf::from(name).is_dir() => weir_config::Model { path: name.into(), ..Default::default() },
        None => bail!("no model `{name}`: not a folder, and not in {}", folder_text(&config.models.dir, name)),
    };
    let name = PathBuf::from(name).file_name().and_then(|n| n.to_str()).unwrap_or("model").to_string();
    config.models.dir = PathBuf::new();
    config.model = BTreeMap::from([(name.clone(), model)]);
    Ok(name)
}

fn folder_text(dir: &std::path::Path, name: &str) -> String {
    if dir.as_os_str().is_empty() {
        return "any models folder (none was given or found): give one with --models-dir".into();
    }
    format!("{}, which has {}", dir.display(), crate::models::names_in(dir, name))
}

async fn run(arguments: &Run, task: ModelTask, config: weir_config::Config, model: &str) -> anyhow::Result<ExitCode> {
    let mut reader = Reader::open(&arguments.files, task.input_task())?;
    let runtime = Runtime::start(&config, BUILTIN)?;
    runtime.settled(model).await.map_err(|reason| anyhow::anyhow!("model {model} cannot answer: {reason}"))?;
    check_kind(task, model, &runtime)?;
    let request = Request::new(arguments, task, model);
    let form = Form::of(task, arguments.top_k.is_some());

    let progress = Arc::new(Progress::new(ProgressForm::of(arguments.quiet, arguments.json), reader.bytes_total()));
    let (sender, outcomes) = runtime.call().open();
    let (output_sender, results) = mpsc::channel(LISTS_MAX);
    let window = Arc::new(tokio::sync::Semaphore::new(WINDOW_LINES));

    let ids = Arc::new(Ids::default());
    let collect = tokio::spawn(collect(outcomes, form, ids.clone(), output_sender.clone()));
    let feed_window = window.clone();
    let (lines, read) = mpsc::channel(LISTS_MAX);
    let reader_task = tokio::task::spawn_blocking(move || {
        while let Some(line) = reader.next() {
            let mut list = vec![line];
            while list.len() < LIST_LINES_MAX
                && reader.has_line()
                && let Some(line) = reader.next()
            {
                list.push(line);
            }
            if lines.blocking_send(list).is_err() {
                return;
            }
        }
    });
    let destinations = Feed { sender, request, output_sender, ids, window: feed_window, progress: progress.clone() };
    let feed = tokio::spawn(feed(read, destinations));
    let print_result = print(results, &window, &progress).await;
    // If the output cannot be written, the other tasks end with the runtime.
    let (printed_count, failed) = print_result?;
    reader_task.await.context("reading")?;
    let read = feed.await.context("feeding")?;
    collect.await.context("collecting")?;
    anyhow::ensure!(read == printed_count, "lines that were read: {read}; lines with a result: {printed_count}");
    progress.finish(failed);
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Checks that the model is of the kind that the task needs.
fn check_kind(task: ModelTask, model: &str, runtime: &Runtime) -> anyhow::Result<()> {
    let kind = runtime.models().into_iter().find(|info| info.name == model).map(|info| info.kind);
    let (needed, description) = match task {
        ModelTask::Sentiment => (ModelKind::TextClassification, "text classification"),
        ModelTask::Entities => (ModelKind::TokenClassification, "token classification"),
        ModelTask::Embed | ModelTask::Summary => (ModelKind::FeatureExtraction, "sentence embeddings"),
    };
    if kind != Some(needed) {
        bail!("model {model} is not for this task, which needs one for {description}");
    }
    Ok(())
}

/// The request for every line.
struct Request {
    model: String,
    overflow: Overflow,
    task: types::Task,
}

impl Request {
    fn new(arguments: &Run, task: ModelTask, model: &str) -> Self {
        let overflow_policy = if arguments.no_truncation { Overflow::Fail } else { Overflow::Truncate };
        let (overflow, task) = match task {
            ModelTask::Sentiment => (
                overflow_policy,
                types::Task::Classify(ClassifyOptions { top_k: Some(arguments.top_k.unwrap_or(1)), activation: None }),
            ),
            ModelTask::Entities => {
                let aggregation = match arguments.aggregation {
                    Aggregation::None => types::Aggregation::None,
                    Aggregation::Simple => types::Aggregation::Simple,
                    Aggregation::First => types::Aggregation::First,
                    Aggregation::Average => types::Aggregation::Average,
                    Aggregation::Max => types::Aggregation::Max,
                };
                (
                    Overflow::Split,
                    types::Task::Tokens(TokenOptions { aggregation, ignore_labels: vec!["O".into()], stride: None }),
                )
            }
            ModelTask::Embed => (overflow_policy, types::Task::Embed(EmbedOptions { normalize: true })),
            ModelTask::Summary => {
                let (tokens_min, tokens_max) = SUMMARY_TOKENS.into_inner();
                (Overflow::Split, types::Task::Summarize(SummaryOptions { tokens_min, tokens_max }))
            }
        };
        Self { model: model.to_string(), overflow, task }
    }

    fn item(&self, index: u64, text: String, text_pair: Option<String>) -> Item {
        Item {
            id: index,
            model: self.model.clone(),
            text,
            text_pair,
            overflow: self.overflow,
            deadline_ms: None,
            when_full: WhenFull::Wait,
            traceparent: None,
            task: self.task.clone(),
        }
    }
}

/// The destinations of lines.
struct Feed {
    sender: CallSender,
    request: Request,
    output_sender: mpsc::Sender<Vec<OutputLine>>,
    ids: Arc<Ids>,
    window: Arc<tokio::sync::Semaphore>,
    progress: Arc<Progress>,
}

/// The ids of inputs, by index, until their results are rendered.
#[derive(Default)]
struct Ids(Mutex<BTreeMap<u64, Id>>);

impl Ids {
    fn add(&self, index: u64, id: Id) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(index, id);
    }

    fn take(&self, index: u64) -> Option<Id> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&index)
    }
}

/// Sends the lines to the model, and renders the errors of invalid ones. Returns the number of lines.
async fn feed(mut lists: mpsc::Receiver<Vec<(Line, u64)>>, destinations: Feed) -> u64 {
    let Feed { sender, request, output_sender, ids, window, progress } = destinations;
    let mut index = 0;
    while let Some(list) = lists.recv().await {
        for (line, bytes) in list {
            let Ok(permit) = window.acquire().await else { return index };
            permit.forget();
            progress.read(bytes);
            let sent = match line {
                Line::Input(Input { text, text_pair, id }) => {
                    if let Some(id) = id {
                        ids.add(index, id);
                    }
                    sender.send(request.item(index, text, text_pair)).await.is_ok()
                }
                Line::Refused(id, error) => {
                    output_sender.send(vec![OutputLine::refused(index, id, &error)]).await.is_ok()
                }
                Line::Broken(reason) => {
                    let line = OutputLine::failure(index, None, &Failure::Other(reason));
                    output_sender.send(vec![line]).await.is_ok()
                }
            };
            if !sent {
                return index;
            }
            index += 1;
        }
    }
    index
}

/// Renders outcomes as they arrive.
async fn collect(mut outcomes: Outcomes, form: Form, ids: Arc<Ids>, output_sender: mpsc::Sender<Vec<OutputLine>>) {
    loop {
        let list = outcomes.recv_many(LIST_LINES_MAX).await;
        if list.is_empty() {
            return;
        }
        let render = |Outcome { id: index, result, .. }| {
            let id = ids.take(index);
            match result {
                Ok(output) => form.render(index, id, output),
                Err(failure) => OutputLine::failure(index, id, &failure),
            }
        };
        if output_sender.send(list.into_iter().map(render).collect()).await.is_err() {
            return;
        }
    }
}

/// Prints results in the order of the lines; returns the number of results, and the number of errors among them.
async fn print(
    mut results: mpsc::Receiver<Vec<OutputLine>>,
    window: &tokio::sync::Semaphore,
    progress: &Progress,
) -> anyhow::Result<(u64, u64)> {
    let mut out = BufWriter::new(std::io::stdout());
    let mut waiting: BTreeMap<u64, OutputLine> = BTreeMap::new();
    let (mut next, mut failed) = (0, 0);
    loop {
        let list = match results.try_recv() {
            Ok(list) => Some(list),
            Err(_) => {
                // No further result is ready, so the buffered ones are written now.
                out.flush()?;
                results.recv().await
            }
        };
        let Some(list) = list else { break };
        waiting.extend(list.into_iter().map(|line| (line.index, line)));
        while let Some(line) = waiting.remove(&next) {
            failed += u64::from(line.failed);
            out.write_all(line.json.as_bytes())?;
            out.write_all(b"\n")?;
            window.add_permits(1);
            progress.done();
            next += 1;
        }
    }
    out.flush()?;
    anyhow::ensure!(waiting.is_empty(), "line {next} has no result");
    Ok((next, failed))
}
