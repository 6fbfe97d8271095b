//! A session that runs from its checkpoint and the later events of its channel.

use weir_codec::{
    http::problem::Problem,
    transcripts::{config::SessionRequest, stored::Phase},
};
use weir_core::{channels::Cursor, time::Now};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult, StreamWriter};

use super::registry::{Entry, SessionRegistry};
use crate::platform::{
    bindings::{
        weir::stream::{
            events,
            session::{self, Input, InputBody, Output, OutputBody, Rested, Start},
        },
        wit_stream,
    },
    clock, store, turns,
};

/// Events of a channel in one page.
const PAGE: u32 = 256;
const NS_PER_MS: u64 = 1_000_000;

/// A running session.
pub(crate) struct RunningSession {
    pub(crate) inputs: StreamWriter<Input>,
    pub(crate) outputs: StreamReader<Output>,
    /// The cursor of the last event of its channel that it has read.
    pub(crate) after: Cursor,
    /// The phase in which it ended, if its channel already has its last event.
    pub(crate) finished: Option<Phase>,
}

/// Milliseconds since 1970: the wall clock at the first call, advanced by the monotonic clock since, so that setting
/// the wall clock expires no session.
pub(crate) fn now_ms() -> u64 {
    thread_local! {
        static BEGAN: Now = clock::now();
    }
    let passed_ns = |began: &Now| clock::monotonic_ns().saturating_sub(began.monotonic_ns);
    BEGAN.with(|began| began.unix_ns.saturating_add(passed_ns(began)) / NS_PER_MS)
}

/// An input that does not come from a line.
pub(crate) fn control_input(body: InputBody) -> Input {
    Input { line: 0, seq: None, body }
}

/// The checkpoint of a new session.
pub(crate) async fn begin(session_request: &SessionRequest) -> Result<Vec<u8>, Problem> {
    let config = String::from_utf8(session_request.to_json())
        .map_err(|_| Problem::internal("a configuration that is not UTF-8"))?;
    match query_session(Start::Config(config), InputBody::Checkpoint).await? {
        OutputBody::Checkpoint(bytes) => Ok(bytes),
        _ => Err(lost()),
    }
}

/// The output of a session at rest for one input, computed in a turn of the user.
pub(crate) async fn query(
    registry: &SessionRegistry,
    entry: &Entry,
    body: InputBody,
    user: &str,
) -> Result<OutputBody, Problem> {
    let bytes = registry.checkpoint(entry).await?;
    // The session component computes without awaiting, so the turn covers all of it.
    let _turn = turns::take(user).await;
    query_session(Start::Checkpoint(rested(entry, bytes)), body).await
}

/// Runs a session that a request holds.
pub(crate) async fn open(registry: &SessionRegistry, entry: &Entry) -> Result<RunningSession, Problem> {
    let bytes = registry.checkpoint(entry).await?;
    let user = entry.owner().unwrap_or_default();
    // The session component reads the checkpoint without awaiting.
    let turn = turns::take(&user).await;
    let (mut inputs, mut outputs) = run(Start::Checkpoint(rested(entry, bytes))).await?;
    drop(turn);
    let (epoch, seq) = entry.head().after;
    let mut after = Cursor { epoch, seq };
    let mut finished = None;
    if !entry.is_clean() {
        loop {
            let page = events::read(entry.channel.to_string(), after, PAGE).await.map_err(store::problem)?;
            if page.entries.is_empty() {
                break;
            }
            after = page.next;
            for stored in &page.entries {
                if stored.event.finishes {
                    finished = Some(match stored.event.name.as_str() {
                        "session_expired" => Phase::Expired,
                        _ => Phase::Ended,
                    });
                }
            }
            // A store that has lost its newest events reuses cursors that the checkpoint already covers.
            let new = page.entries.into_iter().filter(|stored| (stored.at.epoch, stored.at.seq) > (epoch, seq));
            let stored = new.map(|stored| control_input(InputBody::Stored(stored.event.data)));
            if !inputs.write_all(stored.collect()).await.is_empty() {
                return Err(lost());
            }
        }
        // A new checkpoint, so that these events are not read again.
        if !inputs.write_all(vec![control_input(InputBody::Checkpoint)]).await.is_empty() {
            return Err(lost());
        }
        let bytes = match outputs.next().await {
            Some(Output { body: OutputBody::Checkpoint(bytes), .. }) => bytes,
            _ => return Err(lost()),
        };
        registry.set_checkpoint(entry, bytes, |head| {
            head.after = (after.epoch, after.seq);
            head.kept_ms = now_ms();
            head.phase = finished.unwrap_or(head.phase);
        });
    }
    Ok(RunningSession { inputs, outputs, after, finished })
}

fn rested(entry: &Entry, bytes: Vec<u8>) -> Rested {
    Rested { bytes, rested_ms: now_ms().saturating_sub(entry.head().kept_ms) }
}

async fn run(start: Start) -> Result<(StreamWriter<Input>, StreamReader<Output>), Problem> {
    let (inputs, reader) = wit_stream::new::<Input>();
    match session::run(start, reader).await {
        Ok(outputs) => Ok((inputs, outputs)),
        Err(failure) => Err(Problem::internal(&format!(
            "the session did not begin: {}",
            crate::platform::wording::in_words(&failure)
        ))),
    }
}

/// Runs a session with one input and returns its first output.
async fn query_session(start: Start, body: InputBody) -> Result<OutputBody, Problem> {
    let (mut inputs, mut outputs) = run(start).await?;
    if inputs.write_one(control_input(body)).await.is_some() {
        return Err(lost());
    }
    drop(inputs);
    let (result, mut batch) = outputs.read(Vec::with_capacity(1)).await;
    match (result, batch.pop()) {
        (StreamResult::Complete(_), Some(output)) => Ok(output.body),
        _ => Err(lost()),
    }
}

fn lost() -> Problem {
    Problem::internal("the session ended without an output")
}
