//! The load of the fan-out: subscribers and publishers in one thread of one process, so that one clock measures when an event was due
//! and when it arrived. A subscriber holds a socket, a few words, and a bit for each event.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinSet, LocalSet};

use super::decoder::Decoder;
use crate::histogram::{Histogram, Quantiles};
use crate::http::Connection;
use crate::process;

/// Connections that are being made at once.
const CONNECTING_MAX: usize = 64;
/// Connections for publishing to one channel; if all are busy an event waits, and the wait counts.
const PUBLISHERS: usize = 4;
/// Bytes of an event's text, about.
const TEXT_BYTES: usize = 100;
/// Bytes read at once, for all subscribers together.
const READ_BYTES: usize = 64 * 1024;
/// How long subscribers may take to be open.
const OPEN_MAX: Duration = Duration::from_secs(120);
/// How long to wait without a new event before the missing ones are given up.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// The interval between samples of the server's memory, and how many equal ones are required.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
const STABLE_SAMPLES: usize = 6;
const SAMPLES_MAX: usize = 60;

/// The server whose paths and bodies are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dialect {
    Weir,
    Nchan,
}

/// The load for one server.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FanoutLoad {
    #[arg(long)]
    pub(crate) address: SocketAddr,
    #[arg(long, value_enum)]
    pub(crate) dialect: Dialect,
    /// The server's process, whose memory and processor time are reported.
    #[arg(long)]
    pub(crate) pid: u32,
    #[arg(long)]
    pub(crate) subscribers: usize,
    /// The number of channels of the subscribers.
    #[arg(long, default_value_t = 1)]
    pub(crate) channels: usize,
    /// Events per second on each channel; 0: one event on each, after the memory of the idle subscribers was measured.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,
    /// Duration of publishing, s; latencies of the first `warm` s do not count.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warm: f64,
    /// The prefix of the channels' names.
    #[arg(long, default_value = "bench")]
    pub(crate) name: String,
}

/// The results of one fan-out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FanoutResult {
    pub(crate) subscribers: usize,
    pub(crate) channels: usize,
    pub(crate) rate: f64,
    /// Events that the server accepted.
    pub(crate) published: u64,
    /// Events that the server refused.
    pub(crate) refused: u64,
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicates: u64,
    /// Subscribers that the server closed.
    pub(crate) closed: u64,
    /// From the due time of an event to its arrival at a subscriber.
    pub(crate) latency_ms: Quantiles,
    pub(crate) resident_before_bytes: u64,
    pub(crate) resident_open_bytes: u64,
    pub(crate) resident_end_bytes: u64,
    /// Processor time of the server and of the load while events went, in seconds for each second.
    pub(crate) server_cpu: f64,
    pub(crate) load_cpu: f64,
    pub(crate) seconds: f64,
}

/// The state of subscribers and publishers.
struct Shared {
    load: FanoutLoad,
    clock: Instant,
    /// Events of each channel before this one do not count as latencies.
    first: usize,
    events: usize,
    opened: Cell<usize>,
    received: Cell<u64>,
    duplicates: Cell<u64>,
    closed: Cell<u64>,
    latencies: RefCell<Histogram>,
    buffer: RefCell<Vec<u8>>,
    changed: Notify,
}

/// Runs it on this thread.
pub(crate) async fn run(load: FanoutLoad) -> Result<FanoutResult> {
    LocalSet::new().run_until(measure(load)).await
}

async fn measure(load: FanoutLoad) -> Result<FanoutResult> {
    ensure!(load.channels > 0 && load.subscribers >= load.channels, "a channel has at least one subscriber");
    ensure!(
        (0.0..=10_000.0).contains(&load.rate) && (0.0..=600.0).contains(&load.seconds),
        "a rate or time out of range"
    );
    let idle = load.rate == 0.0;
    let shared = Rc::new(Shared {
        clock: Instant::now(),
        first: (load.rate * load.warm) as usize,
        events: if idle { 1 } else { (load.rate * load.seconds) as usize },
        opened: Cell::new(0),
        received: Cell::new(0),
        duplicates: Cell::new(0),
        closed: Cell::new(0),
        latencies: RefCell::default(),
        buffer: RefCell::new(vec![0; READ_BYTES]),
        changed: Notify::new(),
        load,
    });
    let load = &shared.load;
    // A first subscriber: memory that the server allocates once does not belong to a connection.
    let before = stable_resident_bytes(load.pid).await;
    let mut subscribers = subscribe(&shared).await?;
    let open = stable_resident_bytes(load.pid).await;
    let pids = process::tree(load.pid);
    let own = [std::process::id()];
    let (server_cpu, load_cpu, began) = (process::cpu_s(&pids), process::cpu_s(&own), Instant::now());
    let accepted = publish(&shared).await?;
    let seconds = began.elapsed().as_secs_f64();
    let (server_cpu, load_cpu) = (process::cpu_s(&pids) - server_cpu, process::cpu_s(&own) - load_cpu);
    let of_channel: Vec<u64> = accepted.iter().map(|bits| count(bits)).collect();
    let expected: u64 = (0..load.subscribers).map(|subscriber| of_channel[subscriber % load.channels]).sum();
    let (mut last_received, mut progress) = (shared.received.get(), Instant::now());
    while shared.received.get() < expected && progress.elapsed() < QUIET_MAX {
        let _ = tokio::time::timeout(QUIET_MAX, shared.changed.notified()).await;
        if shared.received.get() > last_received {
            (last_received, progress) = (shared.received.get(), Instant::now());
        }
    }
    let end = process::resident_bytes(&pids);
    subscribers.ended.notify_waiters();
    let mut lost = 0;
    while let Some(subscriber) = subscribers.tasks.join_next().await {
        let (channel, received_bits) = subscriber.context("a subscriber panicked")?;
        lost += accepted[channel]
            .iter()
            .zip(&received_bits)
            .map(|(sent, received_bits)| u64::from((sent & !received_bits).count_ones()))
            .sum::<u64>();
    }
    let events = (shared.events * load.channels) as u64;
    let published: u64 = of_channel.iter().sum();
    Ok(FanoutResult {
        subscribers: load.subscribers,
        channels: load.channels,
        rate: load.rate,
        published,
        refused: events - published,
        received: shared.received.get(),
        lost,
        duplicates: shared.duplicates.get(),
        closed: shared.closed.get(),
        latency_ms: shared.latencies.borrow().quantiles(),
        resident_before_bytes: before,
        resident_open_bytes: open,
        resident_end_bytes: end,
        server_cpu: server_cpu / seconds,
        load_cpu: load_cpu / seconds,
        seconds,
    })
}

/// The server's memory once it is stable.
async fn stable_resident_bytes(pid: u32) -> u64 {
    let (mut last, mut same) = (0, 0);
    for _ in 0..SAMPLES_MAX {
        let now = process::resident_bytes(&process::tree(pid));
        same = if now.abs_diff(last) <= now / 200 { same + 1 } else { 0 };
        last = now;
        if same == STABLE_SAMPLES {
            break;
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
    last
}

struct Subscribers {
    tasks: JoinSet<(usize, Vec<u64>)>,
    /// Ends all of them.
    ended: Rc<Notify>,
}

/// Opens all subscribers, and waits for the first line of each.
async fn subscribe(shared: &Rc<Shared>) -> Result<Subscribers> {
    let connecting = Rc::new(Semaphore::new(CONNECTING_MAX));
    let (mut tasks, ended) = (JoinSet::new(), Rc::new(Notify::new()));
    let failure: Rc<RefCell<Option<anyhow::Error>>> = Rc::default();
    for subscriber in 0..shared.load.subscribers {
        let (shared, connecting, ended, failure) = (shared.clone(), connecting.clone(), ended.clone(), failure.clone());
        tasks.spawn_local(async move {
            let channel = subscriber % shared.load.channels;
            let mut received_bits = vec![0_u64; shared.events.div_ceil(64)];
            let read = follow(&shared, &connecting, channel, &mut received_bits);
            let ended = ended.notified();
            tokio::select! {
                read = read => {
                    shared.closed.set(shared.closed.get() + 1);
                    if let Err(error) = read {
                        failure.borrow_mut().get_or_insert(error);
                    }
                    shared.changed.notify_one();
                }
                () = ended => {}
            }
            (channel, received_bits)
        });
    }
    let wait = async {
        while shared.opened.get() < shared.load.subscribers {
            shared.changed.notified().await;
            if let Some(error) = failure.borrow_mut().take() {
                return Err(error);
            }
        }
        Ok(())
    };
    match tokio::time::timeout(OPEN_MAX, wait).await {
        Ok(opened) => opened?,
        Err(_) => bail!("{} of {} subscribers are open", shared.opened.get(), shared.load.subscribers),
    }
    Ok(Subscribers { tasks, ended })
}

/// One subscriber, until the server ends it.
async fn follow(shared: &Shared, connecting: &Semaphore, channel: usize, received_bits: &mut [u64]) -> Result<()> {
    let load = &shared.load;
    let path = match load.dialect {
        Dialect::Weir => format!("/stream/workflow/{}{channel}", load.name),
        Dialect::Nchan => format!("/sub/{}{channel}", load.name),
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\naccept: text/event-stream\r\n\r\n", load.address);
    let mut permit = Some(connecting.acquire().await?);
    let mut stream = TcpStream::connect(load.address).await.context("cannot connect")?;
    stream.write_all(request.as_bytes()).await.context("cannot send")?;
    drop(request);
    let mut decoder = Decoder::default();
    loop {
        stream.readable().await?;
        let mut buffer = shared.buffer.borrow_mut();
        let read = match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("cannot read"),
        };
        let now_ns = shared.clock.elapsed().as_nanos() as u64;
        let mut any = false;
        let open = decoder.take(&buffer[..read], &mut |line| {
            any = true;
            if let Some((event, due_ns)) = line.starts_with(b"data:").then(|| parse_marker(line)).flatten() {
                shared.record_event(received_bits, event, now_ns.saturating_sub(due_ns));
            }
        })?;
        drop(buffer);
        if any && permit.take().is_some() {
            shared.opened.set(shared.opened.get() + 1);
        }
        shared.changed.notify_one();
        if !open {
            return Ok(());
        }
    }
}

impl Shared {
    fn record_event(&self, received_bits: &mut [u64], event: usize, took_ns: u64) {
        let Some(word) = received_bits.get_mut(event / 64) else { return };
        let bit = 1 << (event % 64);
        if *word & bit != 0 {
            self.duplicates.set(self.duplicates.get() + 1);
            return;
        }
        *word |= bit;
        self.received.set(self.received.get() + 1);
        if event >= self.first {
            self.latencies.borrow_mut().record(took_ns);
        }
    }
}

/// Publishes to all channels; returns the accepted events of each.
async fn publish(shared: &Rc<Shared>) -> Result<Vec<Vec<u64>>> {
    let began = shared.clock.elapsed();
    let mut tasks = JoinSet::new();
    for channel in 0..shared.load.channels {
        for publisher in 0..PUBLISHERS.min(shared.events) {
            let shared = shared.clone();
            tasks.spawn_local(async move { publish_some(&shared, channel, publisher, began).await });
        }
    }
    let mut accepted = vec![vec![0; shared.events.div_ceil(64)]; shared.load.channels];
    while let Some(done) = tasks.join_next().await {
        let (channel, bits) = done.context("a publisher panicked")??;
        accepted[channel].iter_mut().zip(bits).for_each(|(all, some): (&mut u64, u64)| *all |= some);
    }
    Ok(accepted)
}

/// A publisher's share of the events of a channel, each at its due time.
async fn publish_some(shared: &Shared, channel: usize, from: usize, began: Duration) -> Result<(usize, Vec<u64>)> {
    let load = &shared.load;
    let mut connection = Connection::open(load.address).await?;
    let (mut accepted, mut response) = (vec![0_u64; shared.events.div_ceil(64)], Vec::new());
    // The channels are spread over a period.
    let phase = channel as f64 / load.channels as f64;
    for event in (from..shared.events).step_by(PUBLISHERS) {
        let mut due = shared.clock.elapsed();
        if load.rate > 0.0 {
            let scheduled = began + Duration::from_secs_f64((event as f64 + phase) / load.rate);
            // An idle connection sends when the timer fires, with a resolution of 1 ms; one that waits for the
            // server's last response is late because of the server, which counts.
            if due < scheduled {
                tokio::time::sleep_until((shared.clock + scheduled).into()).await;
                due = shared.clock.elapsed();
            } else {
                due = scheduled;
            }
        }
        connection.send(&request(load, channel, event, due.as_nanos())).await?;
        let status = connection.receive(&mut response).await?;
        if (200..300).contains(&status) {
            accepted[event / 64] |= 1 << (event % 64);
        }
    }
    Ok((channel, accepted))
}

fn request(load: &FanoutLoad, channel: usize, event: usize, due_ns: u128) -> Vec<u8> {
    let name = &load.name;
    let message = format!("{:x<TEXT_BYTES$}", format!("@{event} {due_ns}@"));
    let (path, body) = match load.dialect {
        Dialect::Weir => (
            format!("/stream/publish/workflow/{name}{channel}"),
            format!(r#"{{"step":"bench","progress":0,"message":"{message}"}}"#),
        ),
        // The same bytes that Weir's subscribers get.
        Dialect::Nchan => (
            format!("/pub/{name}{channel}"),
            format!(
                r#"{{"workflow_id":"{name}{channel}","step":"bench","progress":0,"message":"{message}","timestamp":"2026-01-01T00:00:00.000Z"}}"#
            ),
        ),
    };
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        load.address,
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// An event's number and when it was due, from between two `@`.
fn parse_marker(line: &[u8]) -> Option<(usize, u64)> {
    let mut parts = line.split(|byte| *byte == b'@');
    let (event, due_ns) = std::str::from_utf8(parts.nth(1)?).ok()?.split_once(' ')?;
    Some((event.parse().ok()?, due_ns.parse().ok()?))
}

fn count(bits: &[u64]) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_read_from_either_body() {
        let load = |dialect| FanoutLoad {
            address: ([127, 0, 0, 1], 1).into(),
            dialect,
            pid: 1,
            subscribers: 1,
            channels: 1,
            rate: 1.0,
            seconds: 1.0,
            warm: 0.0,
            name: "b".to_owned(),
        };
        for dialect in [Dialect::Weir, Dialect::Nchan] {
            assert_eq!(parse_marker(&request(&load(dialect), 0, 17, 123_456_789)), Some((17, 123_456_789)));
        }
        assert_eq!(parse_marker(b"data: {}"), None);
        assert_eq!(parse_marker(b"data: @x@"), None);
    }
}
