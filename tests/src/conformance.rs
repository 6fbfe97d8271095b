//! Conformance cases for hosts of the components, over HTTP. The table in `docs/guides/hosts.md` is generated from [`HOSTS`]; a test of each
//! host checks its row.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::client::{NDJSON, post, post_lines};
use crate::follow::Follower;
use crate::{Duplex, PATIENCE, Server, ndjson, statuses, until};

/// The largest difference of a score from that of `weir serve`.
pub const SCORE_DIFFERENCE_MAX: f64 = 1e-4;

/// A conformance case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// Probes succeed, and every model is ready.
    Ready,
    /// `/v1/classify` gives the scores of `weir serve`.
    Scores,
    /// `/v1/tokens` gives its entities.
    Entities,
    /// `/v1/embed` gives its vectors.
    Embeddings,
    /// `/process-stream` runs every step.
    Process,
    /// Results are sent while others are computed.
    Progress,
    /// The result of a line arrives before the next line is sent.
    Duplex,
    /// Server-sent events.
    Events,
    /// Clients that disconnect do not affect others.
    Disconnect,
    /// A transcript session in one request.
    Transcript,
    /// Events of a channel are stored, followed and resumed across requests.
    Channels,
    /// Invalid requests have the same problems.
    Problems,
}

/// Every case with its title in the table.
pub const CASES: [(Case, &str); 12] = [
    (Case::Ready, "`/livez`, `/readyz`"),
    (Case::Scores, "`/v1/classify`: the scores of `weir serve`, within 1e-4"),
    (Case::Entities, "`/v1/tokens`: its entities"),
    (Case::Embeddings, "`/v1/embed`: its vectors"),
    (Case::Process, "`/process-stream`: every step"),
    (Case::Progress, "`/process-stream`: results are sent while others are computed"),
    (Case::Duplex, "NDJSON in both directions: a line is answered before the next one is sent"),
    (Case::Events, "server-sent events"),
    (Case::Disconnect, "other requests after a client has disconnected"),
    (Case::Transcript, "`/v1/transcript`"),
    (Case::Channels, "channels across requests: publish, follow, resume"),
    (Case::Problems, "problems of invalid requests"),
];

/// A host, and the cases that it does not pass.
pub struct Host {
    /// Its title in the table.
    pub name: &'static str,
    /// The cases that it does not pass, with the reasons.
    pub fails: &'static [(Case, &'static str)],
    /// The cases that it passes only at times, with the reasons; they are not run.
    pub unsteady: &'static [(Case, &'static str)],
}

/// A call between components of one module, in JavaScript.
const JCO_TASK: &str =
    "jco confuses the tasks of calls between components while another call is open, which ends the process.";
/// A client that disconnects before the end of a response, or right after it.
const JCO_CLOSE: &str = "A client that closes its connection during a response ends the process, and one that closes it right after may: the \
                         server of jco's shims does not catch its own error.";
/// Events that wait in JavaScript.
const JCO_LATE: &str = "Most results are sent at the end of the computation, which blocks the event loop.";

/// The hosts of the table.
pub const HOSTS: &[Host] = &[
    Host { name: "`weir serve`", fails: &[], unsteady: &[] },
    Host { name: "`wasmtime serve` 49", fails: &[], unsteady: &[] },
    Host { name: "`wash dev` of wasmCloud 2.10", fails: &[], unsteady: &[] },
    Host { name: "Spin 4.1", fails: &[], unsteady: &[] },
    Host {
        name: "Node.js 24 with jco 1.35",
        fails: &[
            (Case::Ready, JCO_TASK),
            (Case::Process, JCO_TASK),
            (Case::Disconnect, JCO_CLOSE),
            (Case::Channels, JCO_CLOSE),
            (Case::Problems, JCO_CLOSE),
        ],
        unsteady: &[(Case::Progress, JCO_LATE)],
    },
];

/// Time for a case whose host may have ended.
const CASE_MAX: Duration = PATIENCE;

/// Runs every case; an error names the cases that differ from the table.
pub async fn check(host: &str, server: &Server, reference: &Server) -> Result<()> {
    check_host(in_table(host)?, server, reference).await
}

/// As [`check`], for a host that need not be in the table.
pub async fn check_host(host: &Host, server: &Server, reference: &Server) -> Result<()> {
    check_channels_by(host, server, reference, channels(server)).await
}

/// As [`check`], with new servers for the case of channels: for a host that creates a second instance while the first one computes. From then
/// on its requests alternate between them.
pub async fn check_with_new(
    host: &str,
    server: &Server,
    reference: &Server,
    start: impl AsyncFn() -> Result<Server>,
) -> Result<()> {
    let channels = in_one_instance(async |_| Ok(passes_channels(&start().await?, "w").await));
    check_channels_by(in_table(host)?, server, reference, channels).await
}

async fn check_channels_by(
    host: &Host,
    server: &Server,
    reference: &Server,
    channels: impl Future<Output = Result<()>>,
) -> Result<()> {
    let mut channels = Some(channels);
    let mut wrong = Vec::new();
    for (case, title) in CASES {
        let passed = match channels.take_if(|_| case == Case::Channels) {
            Some(channels) => channels.await,
            None => run(case, server, reference).await,
        };
        wrong.extend(difference(host, case, title, passed));
    }
    ensure!(wrong.is_empty(), "{}:\n{}\n{}", host.name, wrong.join("\n"), server.log());
    Ok(())
}

/// As [`check`], with a server for each case: for a host that a failed case ends.
pub async fn check_each(host: &str, reference: &Server, start: impl AsyncFn() -> Result<Server>) -> Result<()> {
    let host = in_table(host)?;
    let mut wrong = Vec::new();
    for (case, title) in CASES.into_iter().filter(|(case, _)| host.unsteady.iter().all(|(other, _)| other != case)) {
        let server = start().await?;
        // A host that has ended may leave a connection without an end.
        let passed = tokio::time::timeout(CASE_MAX, run(case, &server, reference)).await;
        let passed = passed.unwrap_or_else(|_| Err(anyhow!("no end after {CASE_MAX:?}")));
        wrong.extend(difference(host, case, title, passed).map(|wrong| format!("{wrong}\n{}", server.log())));
    }
    ensure!(wrong.is_empty(), "{}:\n{}", host.name, wrong.join("\n"));
    Ok(())
}

fn in_table(name: &str) -> Result<&'static Host> {
    HOSTS.iter().find(|it| it.name == name).with_context(|| format!("{name} is not in the table"))
}

/// How the result of a case differs from the table's.
fn difference(host: &Host, case: Case, title: &str, passed: Result<()>) -> Option<String> {
    let fails = host.fails.iter().any(|(other, _)| *other == case);
    match passed {
        Ok(()) if fails => Some(format!("{title}: passes, and the table says that it does not")),
        Err(error) if !fails => Some(format!("{title}: {error:#}")),
        _ => None,
    }
}

/// The table in Markdown.
pub fn table() -> String {
    let mut table = String::from("| |");
    HOSTS.iter().for_each(|host| table += &format!(" {} |", host.name));
    table += "\n|---|";
    HOSTS.iter().for_each(|_| table += "---|");
    table.push('\n');
    let mut notes: Vec<&str> = Vec::new();
    for (case, title) in CASES {
        table += &format!("| {title} |");
        for host in HOSTS {
            let note =
                |cases: &[(Case, &'static str)]| cases.iter().find(|(other, _)| *other == case).map(|(_, why)| *why);
            let (word, why) = match (note(host.fails), note(host.unsteady)) {
                (Some(why), _) => ("no", why),
                (None, Some(why)) => ("at times", why),
                (None, None) => ("yes", ""),
            };
            let cell = if why.is_empty() {
                word.to_owned()
            } else {
                let at = notes.iter().position(|note| *note == why).unwrap_or_else(|| {
                    notes.push(why);
                    notes.len() - 1
                });
                format!("{word} ({})", at + 1)
            };
            table += &format!(" {cell} |");
        }
        table.push('\n');
    }
    for (at, note) in notes.iter().enumerate() {
        table += &format!("\n{}. {note}", at + 1);
    }
    table
}

/// Runs a case; the error says why it does not pass.
pub async fn run(case: Case, server: &Server, reference: &Server) -> Result<()> {
    match case {
        Case::Ready => ready(server).await,
        Case::Scores => same(server, reference, "/v1/classify", TEXTS).await,
        Case::Entities => same(server, reference, "/v1/tokens", TEXTS).await,
        Case::Embeddings => same(server, reference, "/v1/embed", TEXTS).await,
        Case::Process => process(server, reference).await,
        Case::Progress => progress(server).await,
        Case::Duplex => duplex(server).await,
        Case::Events => events(server).await,
        Case::Disconnect => disconnect(server).await,
        Case::Transcript => transcript(server).await,
        Case::Channels => channels(server).await,
        Case::Problems => problems(server, reference).await,
    }
}

const TEXTS: &[&str] = &[
    "What a wonderful evening, and what a view!",
    "The tea was cold and nobody said sorry.",
    "The train leaves at nine from Geneva.",
    "Maria Schmidt of Siemens met the mayor of Paris in Rome; they were not impressed.",
    "",
    "Ω, 日本語, and some plain words after them.",
];

const DOCUMENT: &str = "Weir is a wonderful piece of work, and the team in Geneva is proud of it. The train from Paris was late \
    again and the coffee was terrible. Maria Schmidt of Siemens said that she would come back next year. ";

async fn ready(server: &Server) -> Result<()> {
    for path in ["/livez", "/readyz"] {
        let answer = reqwest::get(server.url(path)).await?;
        ensure!(answer.status() == 200, "{path}: {}", answer.text().await?);
    }
    let models: Value = reqwest::get(server.url("/v1/models")).await?.json().await?;
    let names: Vec<&str> =
        models["models"].as_array().context("models")?.iter().filter_map(|m| m["name"].as_str()).collect();
    ensure!(names == ["embeddings", "entities", "sentiment"], "{models}");
    Ok(())
}

/// Checks that a response equals that of the reference, except for small differences of numbers.
async fn same(server: &Server, reference: &Server, path: &str, texts: &[&str]) -> Result<()> {
    let body = json!({"inputs": texts});
    let (ours, theirs) = (post(server, path, &body).await?, post(reference, path, &body).await?);
    ensure!(ours.0 == theirs.0, "{} against {}", ours.0, theirs.0);
    compare(&ours.1, &theirs.1, path)
}

/// Compares two values; `at` names the place in errors.
fn compare(ours: &Value, theirs: &Value, at: &str) -> Result<()> {
    match (ours, theirs) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            ensure!((a - b).abs() <= SCORE_DIFFERENCE_MAX, "{at}: {a} against {b}");
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs.into_iter().try_for_each(|(index, (a, b))| compare(a, b, &format!("{at}[{index}]")))?;
        }
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().try_for_each(|(key, value)| compare(value, &b[key], &format!("{at}.{key}")))?;
        }
        _ => ensure!(ours == theirs, "{at}: {ours} against {theirs}"),
    }
    Ok(())
}

async fn process(server: &Server, reference: &Server) -> Result<()> {
    let body = json!({"text": DOCUMENT, "include_entities": true, "chunk_size": 100});
    let stream =
        async |server: &Server| post_lines(server, "/process-stream", "application/json", body.to_string()).await;
    let (mut ours, mut theirs) = (stream(server).await?, stream(reference).await?);
    ensure!(statuses(&ours) == statuses(&theirs), "{:?} against {:?}", statuses(&ours), statuses(&theirs));
    for event in ours.iter_mut().chain(&mut theirs) {
        for time in ["timestamp", "total_processing_time", "processing_time"] {
            event.as_object_mut().context("an object")?.remove(time);
        }
    }
    compare(&Value::Array(ours), &Value::Array(theirs), "events")
}

/// How often the case is tried: a client that the machine delays finds many results at once, too.
const PROGRESS_TRIES: u32 = 5;

async fn progress(server: &Server) -> Result<()> {
    let mut passed = progress_once(server).await;
    for _ in 1..PROGRESS_TRIES {
        if passed.is_err() {
            passed = progress_once(server).await;
        }
    }
    passed
}

/// Many small chunks: the first results must arrive without most of the others, and long before the last one. A host that buffers results
/// delivers all at once, and one that computes while results wait to be sent delivers many with the first.
async fn progress_once(server: &Server) -> Result<()> {
    let text: String = DOCUMENT.chars().cycle().take(5000).collect();
    let body = json!({"text": text, "include_summary": false, "chunk_size": 50});
    let began = Instant::now();
    let mut answer = reqwest::Client::new().post(server.url("/process-stream")).json(&body).send().await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let (mut first, mut last, mut text) = (None, None, String::new());
    let count = |text: &str| text.matches("\"sentiment_progress\"").count();
    while let Some(piece) = answer.chunk().await? {
        text += std::str::from_utf8(&piece)?;
        let at = began.elapsed();
        if first.is_none() && count(&text) > 0 {
            ensure!(count(&text) <= 25, "{} of 100 results came with the first", count(&text));
            first = Some(at);
        }
        if text.contains("\"sentiment_complete\"") {
            last = last.or(Some(at));
        }
    }
    let (first, last) = (first.context("a result")?, last.context("the last result")?);
    ensure!(count(&text) == 100, "{text}");
    ensure!(last - first >= last / 4, "the first result came after {first:?}, the last after {last:?}");
    Ok(())
}

async fn duplex(server: &Server) -> Result<()> {
    let mut duplex = Duplex::open(server, "/v1/classify").await?;
    for id in 0..5 {
        duplex.send(format!("{{\"text\":\"a good day\",\"id\":{id}}}\n").as_bytes()).await?;
        duplex.raw.read_until(&format!("\"id\":{id},\"scores\"")).await?;
    }
    duplex.send(b"nonsense\n").await?;
    duplex.raw.read_until("malformed_json").await?;
    duplex.end().await?;
    duplex.raw.read_until(r#"{"done":true,"ok":5,"failed":1}"#).await?;
    Ok(())
}

async fn events(server: &Server) -> Result<()> {
    let answer = reqwest::Client::new().post(server.url("/v1/classify")).header("accept", "text/event-stream");
    let answer = answer.json(&json!({"inputs": ["good", "bad"]})).send().await?;
    ensure!(answer.headers()["content-type"] == "text/event-stream", "{answer:?}");
    let mut follower = Follower::from_response(answer, None)?;
    let mut names = VecDeque::new();
    while let Some(event) = follower.next().await? {
        names.push_back(event.name);
    }
    ensure!(names == ["result", "result", "done"], "{names:?}");
    Ok(())
}

async fn disconnect(server: &Server) -> Result<()> {
    for _ in 0..10 {
        let mut duplex = Duplex::open(server, "/v1/classify").await?;
        duplex.send(b"\"a good day\"\n").await?;
        duplex.raw.read_until("\"index\":0").await?;
        duplex.send(b"\"another good day\"\n\"and another\"\n").await?;
    }
    let (status, answer) = post(server, "/v1/classify", &json!({"inputs": "a good day"})).await?;
    ensure!(status == 200, "{answer}");
    Ok(())
}

async fn transcript(server: &Server) -> Result<()> {
    let chunks = "{\"start\":0,\"end\":1,\"text\":\"I'll check\"}\n{\"op\":\"end\"}\n";
    let events = post_lines(server, "/v1/transcript", NDJSON, chunks).await?;
    let types: Vec<&Value> = events.iter().map(|event| &event["type"]).collect();
    ensure!(types == ["partial_segment", "final_segment"], "{events:?}");
    Ok(())
}

/// The content of the store is lost with its instance, and a host may create a second one: then another channel is tried.
pub async fn channels(server: &Server) -> Result<()> {
    in_one_instance(async |tries| Ok(passes_channels(server, &format!("w{tries}")).await)).await
}

/// Tries the case of channels, given the number of tries before, until one instance serves all of its requests.
async fn in_one_instance(attempt: impl AsyncFn(u32) -> Result<bool>) -> Result<()> {
    let tries = AtomicU32::new(0);
    let tried = until("all in one instance", || attempt(tries.fetch_add(1, Ordering::Relaxed)));
    tried.await.context("never in one instance")
}

async fn passes_channels(server: &Server, id: &str) -> bool {
    // A follower in another instance waits for ever.
    let done = tokio::time::timeout(Duration::from_secs(10), publish_and_resume(server, id)).await;
    done.is_ok_and(|done| done.is_ok())
}

/// Follows a channel and its user's, publishes, and resumes.
pub async fn publish_and_resume(server: &Server, id: &str) -> Result<()> {
    let (workflow, user) = (format!("/stream/workflow/{id}"), format!("/stream/user/{id}"));
    let mut live = Follower::open(server, &workflow, None).await?;
    ensure!(live.next_event().await?.name == "connected");
    for n in 0..10 {
        let body = json!({"step": "s", "progress": n, "user_id": id});
        let (status, answer) = post(server, &format!("/stream/publish/workflow/{id}"), &body).await?;
        ensure!(status == 200, "{answer}");
        let event = live.next_stored_event().await?;
        ensure!((&event.data["progress"], &json!(event.id)) == (&json!(n), &answer["id"]), "{event:?}");
    }
    let mut whole = Follower::open(server, &user, None).await?;
    let third =
        (whole.next_stored_event().await?, whole.next_stored_event().await?, whole.next_stored_event().await?).2;
    let mut again = Follower::open(server, &user, Some(&third.id)).await?;
    ensure!(again.next_stored_event().await?.data["progress"] == 3);
    Ok(())
}

async fn problems(server: &Server, reference: &Server) -> Result<()> {
    for (path, body) in [
        ("/v1/classify", json!({"inputs": 5})),
        ("/v1/classify", json!({"inputs": "a", "model": "none"})),
        ("/process-stream", json!({"text": "short"})),
        ("/v1/chat/completions", json!({"model": "none", "messages": [{"role": "user", "content": "a"}]})),
        ("/nothing", json!({})),
    ] {
        let ours = post(server, path, &body).await?;
        let theirs = post(reference, path, &body).await?;
        ensure!((ours.0, &ours.1["code"]) == (theirs.0, &theirs.1["code"]), "{path}: {ours:?} against {theirs:?}");
    }
    let answer =
        reqwest::Client::new().post(server.url("/v1/classify")).body("{").header("content-type", "application/json");
    let answer = answer.send().await?;
    ensure!(answer.status() == 400, "{answer:?}");
    ensure!(ndjson(&answer.text().await?)?[0]["code"] == "malformed_json");
    Ok(())
}
