//! Many stored sessions at once: the memory of an idle one, and a soak test in which all receive chunks in turn.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    histogram::Histogram,
    http::{Connection, Form, Target},
    process,
};

/// Sessions before the first measurement of memory.
const WARM_SESSIONS: usize = 1_000;

/// The options of the measurement.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// `host:port`
    #[arg(long, default_value = "127.0.0.1:8080")]
    address: SocketAddr,
    /// Sessions at once.
    #[arg(long, default_value_t = 10_000)]
    sessions: usize,
    /// Connections that send chunks to them in turn.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Chunks of each request.
    #[arg(long, default_value_t = 4)]
    chunks: usize,
    /// Duration of the soak test, s.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The server's process, whose memory is reported.
    #[arg(long)]
    pid: Option<u32>,
}

/// The results.
pub(crate) async fn run(options: Options) -> Result<Value> {
    ensure!(options.sessions > 0 && options.connections > 0 && options.chunks > 0, "there is at least one of each");
    let resident = || options.pid.map(|pid| process::resident_bytes(&[pid]));
    // Memory that the server allocates for the first sessions and connections does not belong to a session.
    create(&options, WARM_SESSIONS).await?;
    let before = resident();
    let ids = Rc::new(create(&options, options.sessions).await?);
    let idle = resident();
    let (chunks, times) = soak(&options, &ids).await?;
    let after = resident();
    for id in ids.iter() {
        let state = request(&options, "GET", &format!("/sessions/{id}"), "").await?;
        ensure!(state["state"] == "open" && state["feeding"] == false, "{state}");
    }
    let of_each = |then: Option<u64>| {
        let (then, before) = (then?, before?);
        Some(then.saturating_sub(before) / options.sessions as u64)
    };
    Ok(json!({
        "sessions": options.sessions, "seconds": options.seconds,
        "chunks_per_s": chunks as f64 / options.seconds,
        "request": times.quantiles(),
        "resident_bytes_before": before, "resident_bytes_of_an_empty_session": of_each(idle),
        "resident_bytes_of_a_session_after": of_each(after),
    }))
}

/// Creates sessions; returns their ids.
async fn create(options: &Options, sessions: usize) -> Result<Vec<String>> {
    let local = tokio::task::LocalSet::new();
    let each = sessions.div_ceil(options.connections);
    let creations = (0..options.connections).map(|connection| {
        let options = options.clone();
        let count = each.min(sessions.saturating_sub(connection * each));
        async move {
            let mut connection = Connection::open(options.address).await?;
            let config = json!({"summary": {"every_finals": 0, "at_end": false}}).to_string();
            let mut ids = Vec::new();
            for _ in 0..count {
                let (status, response) =
                    exchange(&mut connection, &options, "POST", "/sessions", "application/json", &config).await?;
                let response: Value = serde_json::from_slice(&response)?;
                ensure!(status == 201, "{response}");
                ids.push(response["session_id"].as_str().context("no id")?.to_owned());
            }
            Ok::<_, anyhow::Error>(ids)
        }
    });
    local
        .run_until(async {
            let mut tasks = JoinSet::new();
            for task in creations {
                tasks.spawn_local(task);
            }
            let mut ids = Vec::new();
            while let Some(created) = tasks.join_next().await {
                ids.extend(created??);
            }
            Ok(ids)
        })
        .await
}

/// Sends chunks to all in turn until the time is over; returns the number of answered chunks, and the time of each request.
async fn soak(options: &Options, ids: &Rc<Vec<String>>) -> Result<(u64, Histogram)> {
    let local = tokio::task::LocalSet::new();
    let times = Rc::new(RefCell::new(Histogram::default()));
    let began = Instant::now();
    let time = Duration::from_secs_f64(options.seconds);
    local
        .run_until(async {
            let mut tasks = JoinSet::new();
            for first in 0..options.connections {
                let (options, ids, times) = (options.clone(), ids.clone(), times.clone());
                tasks.spawn_local(async move {
                    let mut connection = Connection::open(options.address).await?;
                    let (mut chunks, mut round) = (0, 0);
                    while began.elapsed() < time {
                        for id in ids.iter().skip(first).step_by(options.connections) {
                            if began.elapsed() >= time {
                                break;
                            }
                            let body: String =
                                (0..options.chunks).map(|index| line(round, index, options.chunks)).collect();
                            let sent = Instant::now();
                            let path = format!("/sessions/{id}/chunks");
                            let (status, response) =
                                exchange(&mut connection, &options, "POST", &path, "application/x-ndjson", &body)
                                    .await?;
                            let response = String::from_utf8_lossy(&response);
                            let partials = response.matches("{\"type\":\"partial_segment\"").count();
                            ensure!(status == 200 && partials == options.chunks, "{status} {response}");
                            times.borrow_mut().record(u64::try_from(sent.elapsed().as_nanos())?);
                            chunks += partials as u64;
                        }
                        round += 1;
                    }
                    Ok::<u64, anyhow::Error>(chunks)
                });
            }
            let mut chunks = 0;
            while let Some(answered) = tasks.join_next().await {
                chunks += answered??;
            }
            Ok((chunks, times.take()))
        })
        .await
}

fn line(round: usize, index: usize, chunks: usize) -> String {
    let (seq, speaker) = (round * chunks + index, ["agent", "customer"][round % 2]);
    format!(
        "{{\"start\":{seq},\"end\":{seq}.9,\"text\":\"and the price was not what we agreed\",\"speaker_id\":\"{speaker}\",\"seq\":{seq}}}\n"
    )
}

async fn request(options: &Options, method: &str, path: &str, body: &str) -> Result<Value> {
    let mut connection = Connection::open(options.address).await?;
    let (status, response) = exchange(&mut connection, options, method, path, "application/json", body).await?;
    ensure!(status == 200, "{status} {}", String::from_utf8_lossy(&response));
    Ok(serde_json::from_slice(&response)?)
}

async fn exchange(
    connection: &mut Connection,
    options: &Options,
    method: &str,
    path: &str,
    content_type: &str,
    body: &str,
) -> Result<(u16, Vec<u8>)> {
    let target = Target { address: options.address, path: path.to_owned(), form: Form::Text, headers: Vec::new() };
    let more = format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len());
    connection.send(format!("{}{body}", target.head(method, &more)).as_bytes()).await?;
    let mut response = Vec::new();
    let status = connection.receive(&mut response).await?;
    Ok((status, response))
}
