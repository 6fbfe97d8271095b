//! One NDJSON request of many items over HTTP/1.1: written and read at the same time.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{Load, Measured, Streamed, Tally, watched};
use crate::http::Connection;
use crate::rng::Rng;

/// Lines are written in chunks of about this many bytes, as by a client with a buffer.
const CHUNK_BYTES: usize = 4096;

/// Sends `items` lines; `limit` bounds the whole.
pub(crate) async fn run(load: Rc<Load>, items: usize, limit: Duration) -> Measured {
    let pid = load.pid;
    watched(pid, Instant::now(), whole(load, items, limit)).await
}

async fn whole(load: Rc<Load>, items: usize, limit: Duration) -> Measured {
    let order = Rng::new(load.seed).order(load.texts.len());
    let began = Instant::now();
    let seen = Seen { answered: vec![false; items], ..Seen::default() };
    let progress = Cell::new(seen);
    let result = tokio::time::timeout(limit, exchange(&load, &order, items, began, &progress)).await;
    let seen = progress.take();
    let mut tally = Tally::default();
    let measured = &mut tally.measured;
    measured.requests = items as u64;
    measured.answered = seen.count;
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => measured.first_failure = Some(format!("{error:#}")),
        Err(_) => measured.first_failure = Some(format!("not all answers within {} s", limit.as_secs())),
    }
    measured.failed = seen.failures;
    measured.unanswered = items as u64 - seen.count - seen.failures;
    let elapsed = seen.last.map_or(0.0, |last| (last - began).as_secs_f64()).max(1e-9);
    let of = |ix: &usize| u64::from(load.texts[order[ix % order.len()] as usize].tokens);
    let answered: Vec<usize> = (0..items).filter(|ix| seen.answered[*ix]).collect();
    measured.texts_per_s = seen.count as f64 / elapsed;
    measured.tokens_per_s = answered.iter().map(of).sum::<u64>() as f64 / elapsed;
    measured.stream = Some(Streamed {
        first_ms: seen.first.map_or(0.0, |first| (first - began).as_secs_f64() * 1e3),
        silence_max_ms: seen.silence.as_secs_f64() * 1e3,
        item_failures: seen.failures,
        done: seen.done,
    });
    tally.finish(items as f64, Duration::from_secs_f64(elapsed))
}

#[derive(Debug, Default)]
struct Seen {
    answered: Vec<bool>,
    count: u64,
    failures: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    silence: Duration,
    done: bool,
}

async fn exchange(load: &Rc<Load>, order: &[u32], items: usize, began: Instant, progress: &Cell<Seen>) -> Result<()> {
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
            let mut seen = progress.take();
            let said = lines(&body[..whole], &mut seen);
            if whole > 0 {
                seen.first.get_or_insert(now);
                seen.silence = seen.silence.max(now - before);
                seen.last = Some(now);
                before = now;
            }
            progress.set(seen);
            said?;
            body.drain(..whole);
        }
        Ok::<_, anyhow::Error>(())
    };
    // A server that responds early and closes makes the writer fail; the reader then has the reason.
    let (written, read) = tokio::join!(writing, reading);
    read.and(written.context("cannot send the items"))?;
    let seen = progress.take();
    let (count, failures, done) = (seen.count, seen.failures, seen.done);
    progress.set(seen);
    ensure!(done, "the stream ended without its last line");
    ensure!(count + failures == items as u64, "{count} answers and {failures} failures for {items} items");
    Ok(())
}

/// Takes whole lines: `{"index": …, "scores": …}`, failures of items, and the last line `{"done": true, …}`.
fn lines(bytes: &[u8], seen: &mut Seen) -> Result<()> {
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let value: Value =
            serde_json::from_slice(line).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(line)))?;
        let Some(index) = value["index"].as_u64() else {
            ensure!(value["done"] == true, "neither an answer nor the end: {value}");
            seen.done = true;
            continue;
        };
        ensure!(!seen.done, "an answer after the last line: {value}");
        let place = seen.answered.get_mut(index as usize).with_context(|| format!("no item {index} was sent"))?;
        if value.get("error").is_some() || value.get("failure").is_some() {
            seen.failures += 1;
        } else {
            ensure!(!std::mem::replace(place, true), "item {index} was answered twice");
            seen.count += 1;
        }
    }
    Ok(())
}
