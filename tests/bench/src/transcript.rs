//! Chunks per second over one bidirectional request, of `/v1/transcript` or of a stored session.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Lines that are written at once.
const LINES: usize = 200;

/// The options of the measurement.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// `host:port`
    #[arg(long, default_value = "127.0.0.1:8080")]
    address: SocketAddr,
    /// Into a stored session, and not `/v1/transcript`.
    #[arg(long)]
    stored: bool,
    /// In one request.
    #[arg(long, default_value_t = 500_000)]
    chunks: usize,
    /// Number of runs, of which the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// The median of the runs, in chunks per second.
pub(crate) fn run(options: &Options) -> Result<Value> {
    ensure!(options.runs > 0 && options.chunks > 0, "a run has at least one chunk");
    let mut rates = Vec::new();
    for _ in 0..options.runs {
        let path = match options.stored {
            false => "/v1/transcript".to_owned(),
            true => format!("/sessions/{}/chunks", create(options.address)?),
        };
        let took_s = feed(options.address, &path, options.chunks)?;
        rates.push(options.chunks as f64 / took_s);
    }
    let mut sorted = rates.clone();
    sorted.sort_by(f64::total_cmp);
    Ok(json!({
        "stored": options.stored, "chunks": options.chunks, "runs_per_s": rates,
        "median_per_s": sorted[sorted.len() / 2],
    }))
}

/// A session with rule-based annotations and without summaries.
pub(crate) fn create(address: SocketAddr) -> Result<String> {
    let body = json!({"summary": {"every_finals": 0, "at_end": false}}).to_string();
    let mut stream = TcpStream::connect(address)?;
    let head = format!(
        "POST /sessions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (_, body) = response.split_once("\r\n\r\n").context("no response")?;
    let body: Value = serde_json::from_str(body).with_context(|| response.clone())?;
    Ok(body["session_id"].as_str().with_context(|| body.to_string())?.to_owned())
}

/// Seconds from the first chunk to the response to the last.
fn feed(address: SocketAddr, path: &str, chunks: usize) -> Result<f64> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\
         connection: close\r\n\r\n"
    );
    let began = Instant::now();
    let write = std::thread::spawn(move || -> Result<()> {
        writer.write_all(head.as_bytes())?;
        for from in (0..chunks).step_by(LINES) {
            let lines: String = (from..chunks.min(from + LINES)).map(line).collect();
            writer.write_all(format!("{:x}\r\n{lines}\r\n", lines.len()).as_bytes())?;
        }
        Ok(writer.write_all(b"0\r\n\r\n")?)
    });
    let partials = read(stream)?;
    let took_s = began.elapsed().as_secs_f64();
    match write.join() {
        Ok(written) => written?,
        Err(_) => bail!("the writer panicked"),
    }
    ensure!(partials == chunks, "{partials} partial segments for {chunks} chunks");
    Ok(took_s)
}

/// A dialogue of two speakers, four chunks each.
fn line(seq: usize) -> String {
    let speaker = ["agent", "customer"][seq / 4 % 2];
    format!(
        "{{\"start\":{seq},\"end\":{seq}.9,\"text\":\"and the price was not what we agreed\",\"speaker_id\":\"{speaker}\",\"seq\":{seq}}}\n"
    )
}

/// Reads a response to its end; returns the number of partial segments.
fn read(mut stream: TcpStream) -> Result<usize> {
    const NEEDLE: &[u8] = b"{\"type\":\"partial";
    let mut buffer = vec![0; 1 << 18];
    let (mut carried, mut partials, mut first) = (0, 0, true);
    loop {
        let read = stream.read(&mut buffer[carried..])?;
        if read == 0 {
            return Ok(partials);
        }
        let all = &buffer[..carried + read];
        if std::mem::take(&mut first) {
            ensure!(all.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(all));
        }
        // A needle is located by its first byte; the possible start of one is carried to the next read.
        let mut offset = 0;
        while let Some(position) = all[offset..].iter().position(|byte| *byte == b'{') {
            offset += position;
            if all.len() - offset < NEEDLE.len() {
                break;
            }
            partials += usize::from(all[offset..].starts_with(NEEDLE));
            offset += 1;
        }
        let from =
            if all.len() - offset < NEEDLE.len() && all[offset..].first() == Some(&b'{') { offset } else { all.len() };
        carried = all.len() - from;
        buffer.copy_within(from..from + carried, 0);
    }
}
