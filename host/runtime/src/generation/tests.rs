//! Tests of the built generate component with a fake engine.

mod fake;

use std::future::poll_fn;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use self::fake::FakeEngine;
use super::engine::Engine;
use super::*;
use crate::bindings::generate_types::{
    Chat, Command, Done, Event, EventKind, Format, Prompt, Reason, Request, Sampling,
};
use crate::components::code::{self, ComponentSource};
use crate::components::engine::Host;
use crate::types::{Failure, TooLong, WhenFull};

/// How long to wait for an expected condition.
const PATIENCE: Duration = Duration::from_secs(120);

struct Fixture {
    generations: Generations,
    engine: FakeEngine,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.generations.stop();
    }
}

/// One host for all tests of a process: compiling the component takes seconds if it is not precompiled.
static HOST: LazyLock<Host> = LazyLock::new(|| Host::new().unwrap());
static GENERATE: LazyLock<wasmtime::component::Component> = LazyLock::new(|| component(&HOST, "generate"));

/// A component of the build, precompiled if possible.
fn component(host: &Host, name: &str) -> wasmtime::component::Component {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), std::path::PathBuf::from);
    let dir =
        std::env::var_os("WEIR_COMPONENTS_DIR").map_or_else(|| target.join("components"), std::path::PathBuf::from);
    let compiled = std::fs::read(dir.join(format!("{name}.cwasm.zst"))).ok();
    let compiled = compiled.map(|code| ComponentSource::Builtin(Box::leak(code.into_boxed_slice())));
    let loaded = compiled.and_then(|source| code::load(host.engine(), &source).ok());
    loaded.unwrap_or_else(|| {
        let file = dir.join(format!("{name}.wasm"));
        assert!(file.is_file(), "{} is missing: run `cargo xtask build --guests` first", file.display());
        code::load(host.engine(), &ComponentSource::File(file)).unwrap()
    })
}

async fn start(engine: FakeEngine, settings: &[(&str, &str)]) -> Fixture {
    start_component(&GENERATE, "fake", engine, settings).await
}

async fn start_component(
    component: &wasmtime::component::Component,
    model: &str,
    engine: FakeEngine,
    settings: &[(&str, &str)],
) -> Fixture {
    let environment = settings.iter().map(|(name, value)| (format!("WEIR_GENERATE_{name}"), (*value).to_owned()));
    let factory = GenerateFactory::new(&HOST, component, 1 << 30, environment.collect()).unwrap();
    let loaded = engine.clone();
    let load: Load = Arc::new(move || Ok(Arc::new(loaded.clone()) as Arc<dyn Engine>));
    let bounds = PoolBounds { requests_max: 8, hang_timeout: PATIENCE };
    let generations = Generations::start(BTreeMap::from([(model.to_owned(), load)]), &factory, bounds).unwrap();
    generations.settled(model).await.unwrap().unwrap();
    Fixture { generations, engine }
}

fn request(id: u64, prompt: impl Into<String>) -> Request {
    Request {
        id,
        model: "fake".into(),
        prompt: Prompt::Text(prompt.into()),
        sampling: Sampling {
            temperature: Some(0.0),
            top_k: None,
            top_p: None,
            min_p: None,
            repeat_penalty: None,
            presence_penalty: None,
            frequency_penalty: None,
            biases: Vec::new(),
            seed: Some(1),
        },
        stop: Vec::new(),
        tokens_max: Some(40),
        choices: 1,
        format: None,
        logprobs: None,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        detached: false,
    }
}

fn chat(messages: &str, tools: Option<&str>, choice: Option<&str>) -> Prompt {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Prompt::Chat(Chat { messages: messages.into(), tools: owned(tools), tool_choice: owned(choice) })
}

/// A call of one owner.
struct TestCall {
    sender: CommandSender,
    events: EventReceiver,
}

impl TestCall {
    fn open(fixture: &Fixture, owner: u64) -> Self {
        let (sender, events) = fixture.generations.open_for(owner);
        Self { sender, events }
    }

    async fn start(&self, request: Request) {
        assert!(self.sender.send(Command::Start(request)).await.is_ok());
    }

    async fn next(&mut self) -> Event {
        let next = poll_fn(|cx| self.events.poll_recv_many(cx, 1));
        let mut events = tokio::time::timeout(PATIENCE, next).await.expect("an event in time");
        events.pop().expect("an event before the end")
    }

    /// The events until a generation of this number of choices has ended.
    async fn rest(&mut self, choices: u32) -> Vec<EventKind> {
        let (mut kinds, mut done) = (Vec::new(), 0);
        while done < choices {
            let kind = self.next().await.kind;
            done += u32::from(matches!(kind, EventKind::Done(_)));
            let failed = matches!(kind, EventKind::Failed(_));
            kinds.push(kind);
            if failed {
                break;
            }
        }
        kinds
    }
}

async fn run(fixture: &Fixture, owner: u64, request: Request) -> Vec<EventKind> {
    let mut call = TestCall::open(fixture, owner);
    let choices = request.choices;
    call.start(request).await;
    call.rest(choices).await
}

fn text(kinds: &[EventKind], index: u32) -> String {
    let piece = |kind: &EventKind| match kind {
        EventKind::Piece(piece) if piece.index == index => Some(piece.text.clone()),
        _ => None,
    };
    kinds.iter().filter_map(piece).collect()
}

fn done(kinds: &[EventKind]) -> Done {
    match kinds.last() {
        Some(EventKind::Done(done)) => done.clone(),
        other => panic!("no end: {other:?}"),
    }
}

async fn until(description: &str, condition: impl Fn() -> bool) {
    let start_time = Instant::now();
    while !condition() {
        assert!(start_time.elapsed() < PATIENCE, "{description} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn fast() -> FakeEngine {
    FakeEngine::new(256, Duration::from_micros(200))
}

#[tokio::test(flavor = "multi_thread")]
async fn text_has_whole_characters_and_no_stop_strings() {
    let fixture = start(fast(), &[]).await;
    let kinds = run(&fixture, 1, request(1, "<<Grüße 😀 aus 日本>>")).await;
    assert_eq!(text(&kinds, 0), "Grüße 😀 aus 日本");
    assert_eq!((done(&kinds).reason, done(&kinds).tokens), (Reason::Stop, 23));
    let Some(EventKind::Begun(begun)) = kinds.first() else { panic!("{kinds:?}") };
    assert_eq!((begun.prompt_tokens, begun.cached_tokens, begun.seed), (27, 0, 1));

    // A stop string that spans several tokens, after a text that only starts like it.
    let stop = vec!["two\n".to_owned(), "x".to_owned()];
    let kinds = run(&fixture, 1, Request { stop, ..request(2, "<<one tw two tw\ntwo\nthree>>") }).await;
    assert_eq!(text(&kinds, 0), "one tw two tw\n");
    assert_eq!((done(&kinds).reason, done(&kinds).stop.as_deref()), (Reason::Stop, Some("two\n")));

    // The text ends within a character.
    let kinds = run(&fixture, 1, Request { tokens_max: Some(3), ..request(3, "<<a😀>>") }).await;
    assert_eq!((text(&kinds, 0).as_str(), done(&kinds).reason), ("a\u{fffd}", Reason::Length));

    let kinds = run(&fixture, 1, Request { logprobs: Some(2), ..request(4, "<<é>>") }).await;
    let tokens = kinds.iter().filter_map(|kind| match kind {
        EventKind::Piece(piece) => Some((piece.text.as_str(), piece.tokens.as_slice())),
        _ => None,
    });
    let tokens: Vec<_> = tokens.collect();
    assert_eq!(tokens.iter().map(|(text, _)| *text).collect::<Vec<_>>(), ["", "é"]);
    let bytes: Vec<u8> = tokens.iter().flat_map(|(_, tokens)| tokens[0].bytes.clone()).collect();
    assert_eq!((bytes, tokens[0].1[0].top.len(), tokens[0].1[0].logprob), ("é".into(), 2, -0.25));
}

#[tokio::test(flavor = "multi_thread")]
async fn same_seed_gives_the_same_text_beside_other_generations() {
    let fixture = start(fast(), &[]).await;
    let seeded = |id| {
        let mut request = request(id, "Tell me more about it, please.");
        request.sampling.temperature = Some(1.0);
        request.sampling.seed = Some(42);
        request
    };
    let alone = text(&run(&fixture, 1, seeded(1)).await, 0);
    assert_eq!(alone.len(), 40);
    let mut others = TestCall::open(&fixture, 2);
    for id in 0..5 {
        others.start(request(id, "x".repeat(1 + 40 * id as usize))).await;
    }
    let beside = run(&fixture, 1, seeded(2)).await;
    assert_eq!(text(&beside, 0), alone);
    // The prompt fills one page without its last token, and the same owner computed it before.
    assert!(matches!(beside.first(), Some(EventKind::Begun(begun)) if begun.cached_tokens == 16), "{beside:?}");
    let other = run(&fixture, 3, seeded(3)).await;
    assert!(matches!(other.first(), Some(EventKind::Begun(begun)) if begun.cached_tokens == 0), "{other:?}");
    assert_eq!(text(&other, 0), alone);
    for _ in 0..5 {
        others.rest(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_share_the_prompt_and_differ() {
    let fixture = start(fast(), &[]).await;
    let mut many = Request { choices: 3, ..request(1, "A prompt of more than one page of sixteen tokens.") };
    many.sampling.temperature = Some(1.0);
    let kinds = run(&fixture, 1, many).await;
    let begun = kinds.iter().filter(|kind| matches!(kind, EventKind::Begun(_))).count();
    let texts: std::collections::BTreeSet<String> = (0..3).map(|index| text(&kinds, index)).collect();
    assert_eq!((begun, texts.len()), (1, 3), "{texts:?}");
    assert!(texts.iter().all(|text| text.len() == 40));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_generations_free_their_pages_within_a_step() {
    let fixture = start(FakeEngine::new(256, Duration::from_millis(5)), &[("RUNNING_MAX", "1")]).await;
    let engine = &fixture.engine;
    let endless = |id| Request { tokens_max: Some(1500), ..request(id, "short") };

    // While it is decoded.
    let mut call = TestCall::open(&fixture, 1);
    call.start(endless(1)).await;
    while !matches!(call.next().await.kind, EventKind::Piece(_)) {}
    assert!(engine.pages_used() > 0);
    assert!(call.sender.send(Command::Cancel(1)).await.is_ok());
    assert_eq!(done(&call.rest(1).await).reason, Reason::Cancelled);
    assert_eq!(engine.pages_used(), 0);

    // While it is queued behind another: it never starts, and its permit is released.
    let mut first = TestCall::open(&fixture, 1);
    first.start(endless(2)).await;
    while !matches!(first.next().await.kind, EventKind::Piece(_)) {}
    let second = TestCall::open(&fixture, 2);
    second.start(endless(3)).await;
    drop(second);
    let room = fixture.generations.0.local["fake"].room().clone();
    until("the removal of the queued request", || room.available_permits() == 7).await;

    // By dropping the events.
    let steps = engine.steps();
    drop(first);
    until("its pages are free", || engine.pages_used() == 0).await;
    assert!(engine.steps() <= steps + 3, "{} steps after it was dropped", engine.steps() - steps);
    until("the release of its permit", || room.available_permits() == 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generation_ends_with_its_request_unless_it_is_detached() {
    let fixture = start(FakeEngine::new(256, Duration::from_millis(2)), &[]).await;
    let mut call = TestCall::open(&fixture, 1);
    call.start(Request { tokens_max: Some(1500), ..request(1, "attached") }).await;
    call.start(Request { tokens_max: Some(100), detached: true, ..request(2, "detached") }).await;
    while !matches!(call.next().await.kind, EventKind::Piece(_)) {}
    call.events.handle().end_attached();
    let (mut ends, start_time) = (BTreeMap::new(), Instant::now());
    while ends.len() < 2 && start_time.elapsed() < PATIENCE {
        let event = call.next().await;
        if let EventKind::Done(done) = event.kind {
            ends.insert(event.id, done.reason);
        }
    }
    assert_eq!(ends, BTreeMap::from([(1, Reason::Cancelled), (2, Reason::Length)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_in_progress_is_freed_when_its_call_is_dropped() {
    let engine = FakeEngine::new(256, Duration::from_millis(1)).with_token_time(Duration::from_millis(1));
    let fixture = start(engine, &[]).await;
    let engine = &fixture.engine;
    let call = TestCall::open(&fixture, 1);
    call.start(request(1, "p".repeat(1500))).await;
    until("its computation", || engine.pages_used() > 0).await;
    let steps = engine.steps();
    drop(call);
    until("its pages are free", || engine.pages_used() == 0).await;
    assert!(engine.steps() <= steps + 3, "{} steps after it was dropped", engine.steps() - steps);
    // A prompt is computed in parts, so that others wait no longer than a step.
    assert!(engine.longest_step_tokens() <= 512);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_follows_its_format_and_invalid_formats_are_refused() {
    let fixture = start(fast(), &[]).await;
    let schema = r#"{"type":"object","properties":{"mood":{"enum":["good","bad"]},"n":{"type":"integer","minimum":1,"maximum":1}},"required":["mood","n"],"additionalProperties":false}"#;
    let form = |id, format| Request { format: Some(format), tokens_max: Some(200), ..request(id, "form") };
    let kinds = run(&fixture, 1, form(1, Format::JsonSchema(schema.into()))).await;
    let output = text(&kinds, 0);
    assert!(output == "{\"mood\": \"good\", \"n\": 1}" || output == "{\"mood\": \"bad\", \"n\": 1}", "{output}");
    assert_eq!(done(&kinds).reason, Reason::Stop);

    let kinds = run(&fixture, 1, form(2, Format::Regex("(ab){3}c".into()))).await;
    assert_eq!(text(&kinds, 0), "abababc");
    let kinds = run(&fixture, 1, form(3, Format::Grammar("start: \"x\" (\"y\" | \"z\") \"!\"".into()))).await;
    assert!(["xy!", "xz!"].contains(&text(&kinds, 0).as_str()), "{kinds:?}");

    let broken = [
        Format::JsonSchema("{".into()),
        Format::JsonSchema(r#"{"type":"object","unevaluatedProperties":false,"if":{}}"#.into()),
        Format::Regex("(".into()),
        Format::Grammar("start: nowhere".into()),
    ];
    for (id, format) in (10..).zip(broken) {
        let kinds = run(&fixture, 1, form(id, format.clone())).await;
        assert!(matches!(kinds.as_slice(), [EventKind::Failed(Failure::InvalidInput(_))]), "{format:?}: {kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_are_rendered_and_tools_called() {
    let fixture = start(fast(), &[]).await;
    // Control tokens in the text of a user are tokenized as ordinary text.
    let messages = r#"[{"role":"developer","content":[{"type":"text","text":"Be <|im_end|> brief."}]},{"role":"user","content":"<<ok>>"}]"#;
    let kinds = run(&fixture, 1, Request { prompt: chat(messages, None, None), ..request(1, "") }).await;
    assert_eq!(text(&kinds, 0), "ok");
    let rendered = "|system\nBe <|im_end|> brief.|\n|user\n<<ok>>|\n|assistant\n".len() as u32;
    assert!(matches!(kinds.first(), Some(EventKind::Begun(begun)) if begun.prompt_tokens == rendered), "{kinds:?}");

    for (id, messages, expected) in [
        (2, r#"[{"role":"wizard","content":"x"}]"#, "messages[0].role `wizard`"),
        (
            3,
            r#"[{"role":"user","content":"x"},{"role":"tool","content":"x"}]"#,
            "user, tool: tool messages are not known",
        ),
        (4, r#"[{"role":"user","content":[{"type":"image_url"}]}]"#, "the type `image_url`"),
        (5, "[]", "messages is empty"),
    ] {
        let kinds = run(&fixture, 1, Request { prompt: chat(messages, None, None), ..request(id, "") }).await;
        let [EventKind::Failed(Failure::InvalidInput(reason))] = kinds.as_slice() else { panic!("{kinds:?}") };
        assert!(reason.contains(expected), "{reason}");
    }

    let tools = r#"[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"enum":["Bern"]}},"required":["city"],"additionalProperties":false}}}]"#;
    let prompt = chat(r#"[{"role":"user","content":"Weather?"}]"#, Some(tools), Some("\"required\""));
    let kinds = run(&fixture, 1, Request { prompt, tokens_max: Some(200), ..request(6, "") }).await;
    let calls: Vec<_> = kinds
        .iter()
        .filter_map(|kind| match kind {
            EventKind::Tool(delta) => Some(delta),
            _ => None,
        })
        .collect();
    assert_eq!(calls[0].name.as_deref(), Some("weather"));
    assert!(calls[0].id.is_some() && calls[1..].iter().all(|delta| delta.call > 0 || delta.id.is_none()));
    let arguments: String =
        calls.iter().filter(|delta| delta.call == 0).map(|delta| delta.arguments.as_str()).collect();
    assert_eq!((arguments.as_str(), text(&kinds, 0).as_str()), ("{\"city\": \"Bern\"}", ""));
    assert!(matches!(done(&kinds).reason, Reason::ToolCalls | Reason::Length));
}

#[tokio::test(flavor = "multi_thread")]
async fn request_out_of_bounds_fails_with_the_reason() {
    let fixture = start(fast(), &[("RUNNING_MAX", "1"), ("PROMPT_BYTES_MAX", "4000")]).await;
    let kinds = run(&fixture, 1, request(1, "p".repeat(2100))).await;
    let counts = TooLong { tokens: 2100, tokens_max: 2047 };
    assert_eq!(kinds, [EventKind::Failed(Failure::TooLong(counts))]);
    let kinds = run(&fixture, 1, request(2, "p".repeat(4001))).await;
    assert!(matches!(kinds.as_slice(), [EventKind::Failed(Failure::InvalidInput(text))] if text.contains("4000")));
    // A generation that reaches the end of the context ends with the reason `length`.
    let kinds = run(&fixture, 1, Request { tokens_max: None, ..request(3, "p".repeat(2040)) }).await;
    assert_eq!((done(&kinds).reason, done(&kinds).tokens), (Reason::Length, 8));
    let other = Request { model: "other".into(), ..request(4, "x") };
    assert_eq!(run(&fixture, 1, other).await, [EventKind::Failed(Failure::UnknownModel("other".into()))]);

    let mut first = TestCall::open(&fixture, 1);
    first.start(Request { tokens_max: Some(1500), ..request(5, "long") }).await;
    while !matches!(first.next().await.kind, EventKind::Piece(_)) {}
    let late = Request { deadline_ms: Some(20), ..request(6, "late") };
    assert_eq!(run(&fixture, 2, late).await, [EventKind::Failed(Failure::DeadlineExceeded)]);
    let waiting = TestCall::open(&fixture, 2);
    for id in 0..7 {
        waiting.start(Request { tokens_max: Some(1500), ..request(id, "waits") }).await;
    }
    let refused = Request { when_full: WhenFull::Fail, ..request(8, "refused") };
    assert!(matches!(run(&fixture, 2, refused).await.as_slice(), [EventKind::Failed(Failure::Overloaded(_))]));
}

/// One generation runs and one is queued; the others wait for room in the queue, each for many steps of less than a
/// millisecond.
#[tokio::test(flavor = "multi_thread")]
async fn blocked_requests_begin_in_their_order_and_keep_their_deadlines() {
    let fixture = start(fast(), &[("RUNNING_MAX", "1"), ("QUEUE_REQUESTS_MAX", "1")]).await;
    let mut call = TestCall::open(&fixture, 1);
    call.start(Request { tokens_max: Some(2000), ..request(1, "long") }).await;
    while !matches!(call.next().await.kind, EventKind::Piece(_)) {}
    let order = [5, 2, 4, 3, 6];
    for id in order {
        call.start(Request { tokens_max: Some(3), ..request(id, "short") }).await;
    }
    call.start(Request { deadline_ms: Some(60), ..request(7, "late") }).await;
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    while ended.len() < 7 {
        let Event { id, kind } = call.next().await;
        match kind {
            EventKind::Begun(_) => begun.push(id),
            EventKind::Done(_) => ended.push(id),
            EventKind::Failed(failure) => {
                assert_eq!((id, failure), (7, Failure::DeadlineExceeded));
                ended.push(id);
            }
            _ => {}
        }
    }
    assert_eq!(begun, order);
    assert_eq!(ended[..2], [7, 1], "the deadline passes while the first generation runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_fails_the_running_requests_and_no_later_ones() {
    let fixture = start_component(&component(&HOST, "generate_stub"), "stub", fast(), &[]).await;
    let stub = |id, text: &str| Request { model: "stub".into(), tokens_max: None, ..request(id, text) };
    let mut call = TestCall::open(&fixture, 1);
    call.start(stub(1, "!never")).await;
    assert!(matches!(call.next().await.kind, EventKind::Begun(_)));
    call.start(stub(2, "!trap")).await;
    let mut failed = std::collections::BTreeSet::new();
    while failed.len() < 2 {
        let event = call.next().await;
        if let EventKind::Failed(failure) = event.kind {
            assert!(matches!(failure, Failure::Unavailable(_)), "{failure:?}");
            failed.insert(event.id);
        }
    }
    let kinds = run(&fixture, 1, stub(3, "again")).await;
    assert_eq!(text(&kinds, 0), "One two three four five.");
}
