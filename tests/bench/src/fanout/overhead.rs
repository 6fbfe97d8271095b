//! The overhead of streaming: the same processing requested as a stream of events and as one response, alternating, over one connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::histogram::{Histogram, Quantiles};
use crate::http::Connection;

/// One chunk of text: a batch processes it as a whole, so a stream must too.
const CHUNK_CODE_POINTS: usize = 500;
const SENTENCE: &str = "Maria Keller of Northwind in Berlin said on Monday that the new engine answers sooner, and nobody in \
                        the office was surprised. ";

/// The options of the measurement.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OverheadLoad {
    #[arg(long)]
    pub(crate) address: SocketAddr,
    #[arg(long, default_value_t = 8.0)]
    pub(crate) seconds: f64,
}

/// Times from the request to the end of the response.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Overhead {
    pub(crate) stream_ms: Quantiles,
    pub(crate) batch_ms: Quantiles,
    /// Events of one stream.
    pub(crate) events: usize,
}

pub(crate) async fn run(load: OverheadLoad) -> Result<Overhead> {
    let text: String = SENTENCE.chars().cycle().take(CHUNK_CODE_POINTS).collect();
    let mut connection = Connection::open(load.address).await?;
    let (mut stream, mut batch, mut body) = (Histogram::default(), Histogram::default(), Vec::new());
    let (mut events, began) = (0, Instant::now());
    let requests = ["/process-stream", "/process-batch"].map(|path| request(load.address, path, &text));
    let mut turn = 0_usize;
    while began.elapsed() < Duration::from_secs_f64(load.seconds) || turn < 8 {
        // ABBA, and the first four warm up.
        let streams = matches!(turn % 4, 0 | 3);
        let sent = Instant::now();
        connection.send(&requests[usize::from(!streams)]).await?;
        let status = connection.receive(&mut body).await?;
        let took_ns = sent.elapsed().as_nanos() as u64;
        ensure!(status == 200, "answered {status}: {}", String::from_utf8_lossy(&body));
        if streams {
            events = body.iter().filter(|byte| **byte == b'\n').count();
        }
        if turn >= 4 {
            if streams { &mut stream } else { &mut batch }.record(took_ns);
        }
        turn += 1;
    }
    Ok(Overhead { stream_ms: stream.quantiles(), batch_ms: batch.quantiles(), events })
}

fn request(address: SocketAddr, path: &str, text: &str) -> Vec<u8> {
    let body = json!({
        "text": text, "include_sentiment": true, "include_summary": true, "include_entities": true,
        "chunk_size": CHUNK_CODE_POINTS,
    });
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
