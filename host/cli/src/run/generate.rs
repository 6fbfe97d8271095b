//! `weir run --task generate`, and `--task summary --mode abstractive`: a language model over the lines of files, several at once, printed in
//! the order of the lines.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::task::JoinHandle;
use weir_codec::generation::event::Finish;
use weir_codec::generation::request::{GenerateRequest, Prompt};
use weir_codec::generation::rewrite;
use weir_codec::inference::task::Task as InputTask;
use weir_core::inference::rewrite::{RewriteRefusal, SummaryText};
use weir_runtime::Runtime;
use weir_runtime::inference::failure;
use weir_runtime::types::{Failure, Output};

use super::input::{Line, Reader};
use super::model::{ModelTask, choose};
use super::output::OutputLine;
use super::progress::{Progress, ProgressForm};
use super::request::Request;
use crate::arguments::{Run, Task};
use crate::builtin::BUILTIN;
use crate::generation::{self, Generation};
use crate::logs;

/// The most lines in progress: more than a model generates at once by default.
const LINES_MAX: usize = 96;

pub(crate) fn main(arguments: &Run) -> anyhow::Result<ExitCode> {
    let is_summary = arguments.task == Task::Summary;
    anyhow::ensure!(is_summary || arguments.task == Task::Generate, "--mode abstractive needs --task summary");
    let mut config = arguments.setup.load(&[])?;
    if config.log == weir_config::Log::default() {
        config.log.level = "error".into();
    }
    logs::start(&config.log)?;
    let named = arguments.model.as_deref().filter(|_| !is_summary);
    let (name, dir) = generation::choose(&config, named)?;
    let mut models: BTreeMap<String, PathBuf> = BTreeMap::from([(name.clone(), dir)]);
    let mut sentences = None;
    if is_summary {
        let name = arguments.model.as_deref().unwrap_or(ModelTask::Summary.bundled_model());
        let mut one = config.clone();
        let name = choose(&mut one, name)?;
        models.extend(one.model.into_iter().map(|(name, model)| (name, model.path)));
        sentences = Some(name);
    }
    config.models.dir = PathBuf::new();
    config.models.names.clear();
    let model = |(name, path)| (name, weir_config::Model { path, ..Default::default() });
    config.model = models.into_iter().map(model).collect();
    config.upstream.clear();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let code = runtime.block_on(run(arguments, config, name, sentences));
    runtime.shutdown_background();
    code
}

/// The models of the lines.
struct LineTask {
    runtime: Arc<Runtime>,
    language_model: String,
    /// The request to the model that selects the sentences of summaries.
    sentences: Option<Request>,
}

async fn run(
    arguments: &Run,
    config: weir_config::Config,
    language_model: String,
    sentences: Option<String>,
) -> anyhow::Result<ExitCode> {
    let mut reader = Reader::open(&arguments.files, InputTask::Embed)?;
    let runtime = Arc::new(Runtime::start(&config, BUILTIN)?);
    for name in std::iter::once(&language_model).chain(&sentences) {
        runtime.settled(name).await.map_err(|reason| anyhow::anyhow!("model {name} cannot answer: {reason}"))?;
    }
    let progress = Progress::new(ProgressForm::of(arguments.quiet, arguments.json), reader.bytes_total());
    let (lines, mut read) = tokio::sync::mpsc::channel(LINES_MAX);
    let reading = tokio::task::spawn_blocking(move || {
        while let Some(line) = reader.next() {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let sentences = sentences.map(|name| Request::new(arguments, ModelTask::Summary, &name));
    let work = Arc::new(LineTask { runtime, language_model, sentences });
    let mut running: VecDeque<JoinHandle<OutputLine>> = VecDeque::new();
    let (mut index, mut failed) = (0, 0);
    loop {
        let has_room = running.len() < LINES_MAX;
        tokio::select! {
            line = read.recv(), if has_room => {
                let Some((line, bytes)) = line else { break };
                progress.read(bytes);
                let (work, request) = (work.clone(), prepare(arguments, &line));
                running.push_back(tokio::spawn(async move { work.line(index, line, request).await }));
                index += 1;
            }
            done = async { running.front_mut().expect("the branch needs a line that runs").await }, if !running.is_empty() => {
                running.pop_front();
                failed += u64::from(print(&done?)?);
                progress.done();
            }
        }
    }
    for line in running {
        failed += u64::from(print(&line.await?)?);
        progress.done();
    }
    progress.finish(failed);
    reading.await?;
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints a line; returns whether it is a failure.
fn print(line: &OutputLine) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", line.json)?;
    out.flush()?;
    Ok(line.failed)
}

/// The generation request for a line whose text is a message.
fn prepare(arguments: &Run, line: &Line) -> Option<GenerateRequest> {
    let Line::Input(input) = line else { return None };
    let prompt = Prompt::chat(arguments.generation.system.as_deref(), &input.text);
    (arguments.task == Task::Generate).then(|| arguments.generation.request(prompt))
}

impl LineTask {
    async fn line(&self, index: u64, line: Line, request: Option<GenerateRequest>) -> OutputLine {
        let input = match line {
            Line::Input(input) => input,
            Line::Refused(id, error) => return OutputLine::refused(index, id, &error),
            Line::Broken(reason) => return OutputLine::failure(index, None, &Failure::Other(reason)),
        };
        let line = match request {
            Some(request) => self
                .generate(request)
                .await
                .map(|(text, finish)| OutputLine::generated(index, input.id.clone(), &text, finish)),
            None => {
                self.summarize(input.text).await.map(|summary| OutputLine::rewritten(index, input.id.clone(), &summary))
            }
        };
        line.unwrap_or_else(|failure| OutputLine::failure(index, input.id, &failure))
    }

    async fn generate(&self, request: GenerateRequest) -> Result<(String, Finish), Failure> {
        Generation::start(&self.runtime, &self.language_model, request).await.whole().await
    }

    async fn summarize(&self, text: String) -> Result<SummaryText, Failure> {
        let sentences = self.extract(text).await?;
        let rewriting = match self.generate(rewrite::request(&sentences)).await {
            Ok((text, finish)) => rewrite::rewriting(&text, finish),
            Err(reason) => Err(RewriteRefusal::NoAnswer(failure::text(&reason))),
        };
        Ok(SummaryText::rewritten(sentences, rewriting))
    }

    /// Extracts the sentences of a summary.
    async fn extract(&self, text: String) -> Result<String, Failure> {
        let Some(request) = &self.sentences else { return Err(Failure::Other("no model selects sentences".into())) };
        let (sender, mut outcomes) = self.runtime.call().open();
        // It cannot fail, since the receiver of the outcomes exists.
        let _ = sender.send(request.item(0, text, None)).await;
        drop(sender);
        match outcomes.recv_many(1).await.pop().map(|outcome| outcome.result) {
            Some(Ok(Output::Summary(sentences))) => Ok(sentences),
            Some(Err(failure)) => Err(failure),
            Some(Ok(_)) | None => Err(Failure::Other("the model gave no summary".into())),
        }
    }
}
