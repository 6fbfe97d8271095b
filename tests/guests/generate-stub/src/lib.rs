//! A stand-in for the generate component with canned texts, for composing with the gateway.
//!
//! It has one model, `stub`, which generates `One two three four five.`, a word at a time; every other name is
//! `unknown-model`. The second choice of a request begins with `Uno`, and so on. A piece has the log probability -0.5.
//!
//! A prompt injects a fault: `!fail` fails in the engine after two words, `!overloaded` is refused for 2500 ms, `!down` finds
//! the model unavailable, `!template` finds the request invalid, `!too-long` finds the prompt too long, `!slow` waits 300 ms before
//! each word, `!never` generates nothing until it is cancelled, `!tool` calls the tool `weather` twice, `!filtered` ends as filtered,
//! `!umlaut` generates `Grüße 😀`, `!end` ends the events early, `!trap` ends the instance after a word.
//!
//! A prompt with a summary of the stand-in for infer (`stub summary of N code points`) is answered by a shorter one that is true where N divided
//! by 3 leaves 0, has a name of its own where it leaves 1, and a number where it leaves 2.
//!
//! The reason of the listed model `counts` has counters: the generations that this instance has begun, ended and abandoned.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:generate-stub;
            world generate-stub {
                import wasi:clocks/monotonic-clock@0.3.0;
                export weir:%stream/generate@0.1.0;
            }
        ",
        path: "../../../wit",
        world: "weir:generate-stub/generate-stub",
        generate_all,
    });
}

use bindings::{
    exports::weir::stream::generate::{Command, Event, GenerateModel, Guest},
    wasi::clocks::monotonic_clock,
    weir::stream::generate_types::{Begun, Done, EventKind, Piece, Prompt, Reason, Request, Token, ToolDelta},
    weir::stream::types::{Failure, TooLong},
    wit_stream,
};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;

use wit_bindgen::rt::async_support::{StreamReader, StreamResult, StreamWriter, spawn};

/// Most commands read at once.
const COMMANDS_MAX: usize = 64;
const SLOW_NS: u64 = 300_000_000;
/// Pause of a round without an event, after which commands are read again.
const IDLE_NS: u64 = 5_000_000;
/// Size of the context in tokens, for `!too-long`.
const CONTEXT_TOKENS: u32 = 2048;

static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);
static ABANDONED: AtomicU64 = AtomicU64::new(0);

struct Stub;
bindings::export!(Stub with_types_in bindings);

impl Guest for Stub {
    async fn run(commands: StreamReader<Command>) -> StreamReader<Event> {
        let (writer, reader) = wit_stream::new::<Event>();
        spawn(serve(commands, writer));
        reader
    }

    async fn models() -> Vec<GenerateModel> {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let counts = format!("begun {} ended {} abandoned {}", read(&BEGUN), read(&ENDED), read(&ABANDONED));
        let model = |name: &str, ready: bool, reason: Option<String>| GenerateModel {
            name: name.to_owned(),
            context_tokens_max: Some(CONTEXT_TOKENS),
            ready,
            reason,
        };
        vec![model("counts", false, Some(counts)), model("stub", true, None)]
    }
}

/// A generation, with the events that are not yet written.
struct Generation {
    id: u64,
    events: VecDeque<EventKind>,
    is_slow: bool,
    /// Whether it runs until it is cancelled.
    is_endless: bool,
    choices: u32,
}

async fn serve(mut commands: StreamReader<Command>, mut events: StreamWriter<Event>) {
    let mut running: Vec<Generation> = Vec::new();
    let mut ended = false;
    while !ended || !running.is_empty() {
        if !ended {
            let (result, batch) = read(&mut commands, running.is_empty()).await;
            ended = !matches!(result, StreamResult::Complete(_) | StreamResult::Cancelled);
            for command in batch {
                match command {
                    Command::Start(request) => {
                        BEGUN.fetch_add(1, Relaxed);
                        running.push(start(&request));
                    }
                    Command::Cancel(id) => running.iter_mut().filter(|one| one.id == id).for_each(cancel),
                }
            }
        }
        let mut wrote = false;
        for generation in &mut running {
            if generation.is_endless && generation.events.is_empty() {
                continue;
            }
            if generation.is_slow {
                monotonic_clock::wait_for(SLOW_NS).await;
            }
            let Some(kind) = generation.events.pop_front() else { continue };
            match &kind {
                EventKind::Failed(Failure::Other(text)) if text == "!end" => return,
                EventKind::Failed(Failure::Other(text)) => assert_ne!(text, "!trap", "stub: asked to trap"),
                _ => {}
            }
            wrote = true;
            if events.write_one(Event { id: generation.id, kind }).await.is_some() {
                ABANDONED.fetch_add(running.len() as u64, Relaxed);
                return;
            }
        }
        let before = running.len();
        running.retain(|generation| generation.is_endless || !generation.events.is_empty());
        ENDED.fetch_add((before - running.len()) as u64, Relaxed);
        if !wrote && !running.is_empty() {
            monotonic_clock::wait_for(IDLE_NS).await;
        }
    }
}

/// Reads commands: waits for at least one, or returns those that have arrived.
async fn read(commands: &mut StreamReader<Command>, wait: bool) -> (StreamResult, Vec<Command>) {
    let mut reading = pin!(commands.read(Vec::with_capacity(COMMANDS_MAX)));
    if wait {
        return reading.await;
    }
    match poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await {
        Poll::Ready(read) => read,
        Poll::Pending => reading.as_mut().cancel(),
    }
}

fn cancel(generation: &mut Generation) {
    generation.is_endless = false;
    let cancelled = |index| EventKind::Done(done(index, Reason::Cancelled, 0));
    generation.events = (0..generation.choices).map(cancelled).collect();
}

fn done(index: u32, reason: Reason, tokens: u32) -> Done {
    Done { index, reason, stop: None, tokens, prompt_tokens: None }
}

fn start(request: &Request) -> Generation {
    let text = match &request.prompt {
        Prompt::Chat(chat) => chat.messages.clone(),
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => format!("{tokens:?}"),
    };
    let says = |word: &str| text.contains(word);
    let is_endless = says("!never");
    let events = match refusal(request, &text) {
        Some(failure) => VecDeque::from([EventKind::Failed(failure)]),
        None => answer(request, &text),
    };
    Generation { id: request.id, events, is_slow: says("!slow"), is_endless, choices: request.choices }
}

fn refusal(request: &Request, text: &str) -> Option<Failure> {
    let says = |word: &str| text.contains(word);
    if request.model != "stub" {
        return Some(Failure::UnknownModel(request.model.clone()));
    }
    Some(if says("!overloaded") {
        Failure::Overloaded(2500)
    } else if says("!down") {
        Failure::Unavailable("stub: asked to be down".to_owned())
    } else if says("!template") {
        Failure::InvalidInput("stub: the role `wizard` is not one of the template's".to_owned())
    } else if says("!too-long") {
        Failure::TooLong(TooLong { tokens: 5000, tokens_max: CONTEXT_TOKENS })
    } else {
        return None;
    })
}

fn answer(request: &Request, text: &str) -> VecDeque<EventKind> {
    let says = |word: &str| text.contains(word);
    let prompt_tokens = text.split_whitespace().count() as u32;
    let seed = request.sampling.seed.unwrap_or(7);
    let mut events = VecDeque::from([EventKind::Begun(Begun { prompt_tokens, cached_tokens: 0, seed })]);
    if says("!never") {
        return events;
    }
    if says("!tool") {
        for index in 0..request.choices {
            for call in 0..2 {
                let delta = |id: Option<&str>, name: Option<&str>, arguments: &str| {
                    let id = id.map(|id| format!("{id}{index}{call}"));
                    let name = name.map(str::to_owned);
                    EventKind::Tool(ToolDelta { index, call, id, name, arguments: arguments.to_owned() })
                };
                events.push_back(delta(Some("call_stub"), Some("weather"), ""));
                events.push_back(delta(None, None, "{\"city\":"));
                events.push_back(delta(None, None, "\"Bern\"}"));
            }
            events.push_back(EventKind::Done(done(index, Reason::ToolCalls, 12)));
        }
        return events;
    }
    let first = ["One", "Uno", "Un", "Eins", "Ichi", "Yksi", "Odin", "Bir"];
    let words: &[&str] = match summarized(text) {
        _ if says("!umlaut") => &["Grüße", " 😀"],
        Some(points) if points % 3 == 0 => &["A stub", " summary."],
        Some(points) if points % 3 == 1 => &["A summary", " of Paris."],
        Some(_) => &["A summary", " of 2019."],
        None => &["One", " two", " three", " four", " five."],
    };
    let tokens_max = request.tokens_max.map_or(words.len(), |tokens| tokens as usize);
    for (at, word) in words.iter().enumerate().take(tokens_max) {
        if says("!fail") && at == 2 {
            events.push_back(EventKind::Failed(Failure::Engine("stub: asked to fail".to_owned())));
            return events;
        }
        for trouble in ["!end", "!trap"] {
            if says(trouble) && at == 1 {
                events.push_back(EventKind::Failed(Failure::Other(trouble.to_owned())));
            }
        }
        for index in 0..request.choices {
            let word = if at == 0 && *word == "One" { first[index as usize % first.len()] } else { word };
            events.push_back(EventKind::Piece(piece(index, word, at as u32, request.logprobs)));
        }
    }
    let (reason, stop) = if words.len() > tokens_max {
        (Reason::Length, None)
    } else if says("!filtered") {
        (Reason::Filtered, None)
    } else {
        (Reason::Stop, request.stop.first().filter(|stop| says(stop)).cloned())
    };
    let tokens = words.len().min(tokens_max) as u32;
    for index in 0..request.choices {
        events.push_back(EventKind::Done(Done { stop: stop.clone(), ..done(index, reason, tokens) }));
    }
    events
}

/// The code points that a summary of the stand-in for infer names.
fn summarized(text: &str) -> Option<u32> {
    text.split_once("stub summary of ")?.1.split(' ').next()?.parse().ok()
}

fn piece(index: u32, word: &str, id: u32, logprobs: Option<u32>) -> Piece {
    let bytes = word.as_bytes().to_vec();
    let tokens = logprobs.map(|top| Token {
        id,
        bytes: bytes.clone(),
        logprob: -0.5,
        top: (0..top).map(|rank| (id + rank, bytes.clone(), -0.5 - rank as f32)).collect(),
    });
    Piece { index, text: word.to_owned(), tokens: tokens.into_iter().collect() }
}
