//! One NDJSON request of many items over HTTP/1.1: written and read at the same time.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{Load, Measured, StreamResult, Tally, sample_server};
use crate::http::Connection;
use crate::rng::Rng;

/// Lines are written in chunks of about this many bytes, as by a client with a buffer.
const CHUNK_BYTES: usize = 4096;

/// Sends `items` lines; `limit` bounds the whole.
pub(crate) async fn run(load: Rc<Load>, items: usize, limit: Duration) -> Measured {
    let pid = load.pid;
    sample_server(pid, Instant::now(), measure(load, items, limit)).await
}

async fn measure(load: Rc<Load>, items: usize, limit: Duration) -> Measured {
    let order = Rng::new(load.seed).order(load.texts.len());
    let began = Instant::now();
    let progress = StreamProgress { answered: vec![false; items], ..StreamProgress::default() };
    let shared_progress = Cell::new(progress);
    let result = tokio::time::timeout(limit, exchange(&load, &order, items, began, &shared_progress)).await;
    let progress = shared_progress.take();
    let mut tally = Tally::default();
    let measured = &mut tally.measured;
    measured.requests = items as u64;
    measured.answered = progress.count;
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => measured.first_failure = Some(format!("{error:#}")),
        Err(_) => measured.first_failure = Some(format!("not all answers within {} s", limit.as_secs())),
    }
    measured.failed = progress.failures;
    measured.unanswered = items as u64 - progress.count - progress.failures;
    let elapsed = progress.last.map_or(0.0, |last| (last - began).as_secs_f64()).max(1e-9);
    let of = |ix: &usize| u64::from(load.texts[order[ix % order.len()] as usize].tokens);
    let answered: Vec<usize> = (0..items).filter(|ix| progress.answered[*ix]).collect();
    measured.texts_per_s = progress.count as f64 / elapsed;
    measured.tokens_per_s = answered.iter().map(of).sum::<u64>() as f64 / elapsed;
    measured.stream = Some(StreamResult {
        first_ms: progress.first.map_or(0.0, |first| (first - began).as_secs_f64() * 1e3),
        silence_max_ms: progress.silence.as_secs_f64() * 1e3,
        item_failures: progress.failures,
        done: progress.done,
    });
    tally.finish(items as f64, Duration::from_secs_f64(elapsed))
}

#[derive(Debug, Default)]
struct StreamProgress {
    answered: Vec<bool>,
    count: u64,
    failures: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    silence: Duration,
    done: bool,
}

async fn exchange(
    load: &Rc<Load>,
    order: &[u32],
    items: usize,
    began: Instant,
    shared_progress: &Cell<StreamProgress>,
) -> Result<()> {
    let mut connection = Connection::open(load.target.address).await?;
    let more = "content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n";
    connection.send(load.target.head("POST", more).as_bytes()).await?;
    let mut write = connection.write.take().context("a connection without a writer")?;
    let writing = async {
        let mut lines = Vec::with_capacity(2 * CHUNK_BYTES);
        for item in 0..items {
            serde_json::to_writer(&mut lines, &load.texts[order[item % order.len()] as usize].text)?;
            lines.push(b'\n');
            if lines.len() >= CHUNK_BYTES || item + 1 == items {
                write.write_all(format!("{:x}\r\n", lines.len()).as_bytes()).await?;
                lines.extend_from_slice(b"\r\n");
                write.write_all(&lines).await?;
                lines.clear();
            }
        }
        write.write_all(b"0\r\n\r\n").await?;
        Ok::<_, anyhow::Error>(())
    };
    let reading = async {
        let head = connection.head().await?;
        if head.status != 200 {
            bail!("status {}", head.status);
        }
        let (mut body, mut more) = (Vec::new(), true);
        let mut before = began;
        while more {
            more = connection.chunk(&mut body).await?;
            let whole = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let now = Instant::now();
            let mut progress = shared_progress.take();
            let result = lines(&body[..whole], &mut progress);
            if whole > 0 {
                progress.first.get_or_insert(now);
                progress.silence = progress.silence.max(now - before);
                progress.last = Some(now);
                before = now;
            }
            shared_progress.set(progress);
            result?;
            body.drain(..whole);
        }
        Ok::<_, anyhow::Error>(())
    };
    // A server that responds early and closes makes the writer fail; the reader then has the reason.
    let (written, read) = tokio::join!(writing, reading);
    read.and(written.context("cannot send the items"))?;
    let progress = shared_progress.take();
    let (count, failures, done) = (progress.count, progress.failures, progress.done);
    shared_progress.set(progress);
    ensure!(done, "the stream ended without its last line");
    ensure!(count + failures == items as u64, "{count} answers and {failures} failures for {items} items");
    Ok(())
}

/// Takes whole lines: `{"index": …, "scores": …}`, failures of items, and the last line `{"done": true, …}`.
fn lines(bytes: &[u8], progress: &mut StreamProgress) -> Result<()> {
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let value: Value =
            serde_json::from_slice(line).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(line)))?;
        let Some(index) = value["index"].as_u64() else {
            ensure!(value["done"] == true, "neither an answer nor the end: {value}");
            progress.done = true;
            continue;
        };
        ensure!(!progress.done, "an answer after the last line: {value}");
        let is_answered =
            progress.answered.get_mut(index as usize).with_context(|| format!("no item {index} was sent"))?;
        if value.get("error").is_some() || value.get("failure").is_some() {
            progress.failures += 1;
        } else {
            ensure!(!std::mem::replace(is_answered, true), "item {index} was answered twice");
            progress.count += 1;
        }
    }
    Ok(())
}
