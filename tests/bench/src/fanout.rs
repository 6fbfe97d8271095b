//! One publisher, many subscribers: what a quiet subscriber costs the server, and how long an event takes to all who are busy.
//!
//! Both ends are this process, with one clock: an event carries when it was sent. Subscribers connect in advance, so what is
//! measured is a server that holds connections, not one that accepts them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::histogram::Histogram;
use crate::http::{Form, Target};
use crate::process;

/// What stands before and behind the time of an event.
const BEFORE: &[u8] = b"t=";
const BEHIND: u8 = b';';
/// Most bytes of a time with what stands about it.
const TIME_BYTES_MAX: usize = 24;

pub(crate) struct Fanout {
    /// Where the channels are subscribed to and published to: URLs.
    pub(crate) quiet: String,
    pub(crate) busy: String,
    pub(crate) publish: String,
    /// Publishes the text alone, for servers that are not Weir.
    pub(crate) plain: bool,
    pub(crate) idle: usize,
    pub(crate) subscribers: usize,
    /// Events in a second.
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    pub(crate) pid: u32,
}

pub(crate) async fn run(fanout: Fanout) -> Result<Value> {
    let pids = || process::tree(fanout.pid);
    let before = process::resident_bytes(&pids());
    let quiet = subscribe(&fanout.quiet, fanout.idle).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = process::resident_bytes(&pids());
    let idle_bytes = after.saturating_sub(before) as f64 / fanout.idle.max(1) as f64;
    let busy = subscribe(&fanout.busy, fanout.subscribers).await?;
    let cpu_s = process::cpu_s(&pids());
    let (histogram, sent) = publish(&fanout, busy).await?;
    let cpu_s = process::cpu_s(&pids()) - cpu_s;
    drop(quiet);
    Ok(json!({
        "idle": fanout.idle, "resident_before_bytes": before, "resident_after_bytes": after,
        "bytes_each": idle_bytes, "subscribers": fanout.subscribers, "events": sent,
        "latency_s": histogram.quantiles(), "server_cpu_s": cpu_s,
    }))
}

/// Opens subscriptions, and waits until each has had something.
async fn subscribe(url: &str, count: usize) -> Result<Vec<TcpStream>> {
    let target = Target::parse(url, Form::Text, vec!["Accept: text/event-stream".to_owned()])?;
    let request = target.head("GET", "");
    let mut open = Vec::with_capacity(count);
    let mut head = [0; 1024];
    for _ in 0..count {
        let mut stream = TcpStream::connect(target.address).await?;
        stream.write_all(request.as_bytes()).await?;
        let read = stream.read(&mut head).await?;
        ensure!(head[..read].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head[..read]));
        open.push(stream);
    }
    Ok(open)
}

async fn publish(fanout: &Fanout, busy: Vec<TcpStream>) -> Result<(Histogram, usize)> {
    let began = Instant::now();
    let (count, readers) = ((fanout.rate * fanout.seconds) as usize, busy.len());
    let mut reading = JoinSet::new();
    for stream in busy {
        reading.spawn_local(read(stream, began, count));
    }
    let target = Target::parse(&fanout.publish, Form::Text, Vec::new())?;
    let mut publisher = TcpStream::connect(target.address).await?;
    publisher.set_nodelay(true)?;
    let mut answer = vec![0; 4096];
    for n in 0..count {
        tokio::time::sleep_until((began + Duration::from_secs_f64(n as f64 / fanout.rate)).into()).await;
        let text = format!("t={};", began.elapsed().as_nanos());
        let body = match fanout.plain {
            true => text,
            false => json!({"step": "work", "progress": n % 100, "message": text, "last": false}).to_string(),
        };
        let more = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let request = target.head("POST", &more) + &body;
        publisher.write_all(request.as_bytes()).await?;
        let read = publisher.read(&mut answer).await?;
        ensure!(answer[..read].starts_with(b"HTTP/1.1 20"), "{}", String::from_utf8_lossy(&answer[..read]));
    }
    let mut all = Histogram::default();
    while let Some(read) = reading.join_next().await {
        read??.iter().for_each(|ns| all.record(*ns));
    }
    ensure!(all.quantiles().count == (readers * count) as u64, "an event was lost");
    Ok((all, count))
}

/// Reads events; how long each took, in nanoseconds.
async fn read(mut stream: TcpStream, began: Instant, count: usize) -> Result<Vec<u64>> {
    let (mut took, mut kept) = (Vec::with_capacity(count), Vec::new());
    let mut buffer = vec![0; 16 * 1024];
    while took.len() < count {
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buffer)).await??;
        if read == 0 {
            bail!("the stream ended after {} of {count}", took.len());
        }
        let now = began.elapsed().as_nanos() as u64;
        kept.extend_from_slice(&buffer[..read]);
        // What may be the beginning of a time stays.
        let mut from = 0;
        while let Some(at) = kept[from..].windows(BEFORE.len()).position(|window| window == BEFORE) {
            let digits = from + at + BEFORE.len();
            let Some(end) = kept[digits..].iter().position(|byte| *byte == BEHIND) else { break };
            let sent: u64 = std::str::from_utf8(&kept[digits..digits + end])?.parse().context("a time")?;
            took.push(now.saturating_sub(sent));
            from = digits + end;
        }
        kept.drain(..from.max(kept.len().saturating_sub(TIME_BYTES_MAX)));
    }
    Ok(took)
}
