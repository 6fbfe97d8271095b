//! `weir run`: runs a model over the lines of files, in order, on every core; or processes transcripts
//! ([`transcript`]).

mod generate;
mod input;
mod model;
mod output;
pub(crate) mod progress;
mod request;
mod transcript;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::sync::mpsc;
use weir_codec::inference::output::Id;
use weir_codec::inference::request::Input;
use weir_runtime::types::{Failure, Outcome};
use weir_runtime::{CallSender, Outcomes, Runtime};

use crate::arguments::{Run, SummaryMode, Task};
use crate::builtin::BUILTIN;
use crate::logs;
use input::{Line, Reader};
use model::{ModelTask, check_kind, choose};
use output::{Form, OutputLine};
use progress::{Progress, ProgressForm};
use request::Request;

/// Most lines that were read and are not printed. Results arrive in any order and are printed in the order of the
/// lines, so this bounds the waiting results.
const WINDOW_LINES: usize = 4096;
/// Most lines that one task sends to another at once. No line waits for others.
const LIST_LINES_MAX: usize = 64;
/// Most lists that wait between two tasks.
const LISTS_MAX: usize = 16;

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
