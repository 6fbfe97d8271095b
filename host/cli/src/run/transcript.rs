//! `weir run --task transcript`: each file is a transcript, taken through the gateway and session components as
//! `POST /v1/transcript` does it, without a socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use weir_codec::transcript::captions::{self, Captions};
use weir_runtime::Runtime;
use weir_runtime::gateway::{self, BodyError, Gateway};

use super::progress::Progress;
use crate::arguments::Run;
use crate::{BUILTIN, logs};

/// The longest captions file, bytes: it is read as a whole.
const CAPTIONS_BYTES_MAX: u64 = 64 << 20;
/// How much of a transcript is handed over at once, bytes.
const PART_BYTES: usize = 16 << 10;
/// A line is handed over in parts of this size: how long it may be is the gateway's to say.
const LINE_PART_BYTES: u64 = 64 << 10;
/// How long standard input may say nothing, ms.
const PATIENCE_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) fn main(arguments: &Run) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(arguments.model.is_none(), "--model: a transcript needs none");
    let mut config = arguments.setup.load(&[])?;
    if config.log == weir_config::Log::default() {
        config.log.level = "error".into();
    }
    logs::start(&config.log)?;
    config.models.dir = PathBuf::new();
    config.models.names.clear();
    config.model.clear();
    // Nobody else is served: no channels, and nobody to be kept out.
    (config.events, config.auth) = (weir_config::Events::default(), weir_config::Auth::default());
    config.http.listen = weir_config::Config::default().http.listen;
    // Who types has time.
    config.http.body_timeout_ms = PATIENCE_MS;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(run(arguments, &config));
    // Instances that wait for more end with the process, and have nothing to say about it.
    std::mem::forget(runtime);
    code
}

async fn run(arguments: &Run, config: &weir_config::Config) -> anyhow::Result<ExitCode> {
    let reader = super::input::Reader::open(&arguments.files)?;
    let progress = Arc::new(Progress::new(arguments.quiet, reader.bytes_total()));
    let runtime = Runtime::serve(config, BUILTIN).await?;
    let gateway = runtime.gateway().context("the runtime has no gateway")?;
    let mut failed = false;
    for file in &arguments.files {
        let one = transcript(gateway, file, arguments.max_gap_sec, &progress);
        failed |= one.await.with_context(|| match file.as_os_str() == "-" {
            true => "standard input".to_owned(),
            false => file.display().to_string(),
        })?;
    }
    progress.finish();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the events of one transcript; true when some of it was refused.
async fn transcript(
    gateway: &Gateway,
    file: &Path,
    max_gap_sec: Option<f64>,
    progress: &Arc<Progress>,
) -> anyhow::Result<bool> {
    let (to, lines) = mpsc::channel(16);
    let (path, progress) = (file.to_owned(), progress.clone());
    let reading = tokio::task::spawn_blocking(move || read(&path, &To { lines: to, progress }));

    let query = max_gap_sec.map(|seconds| format!("?max_gap_sec={seconds}")).unwrap_or_default();
    let request = http::Request::post(format!("http://localhost/v1/transcript{query}"))
        .header("content-type", "application/x-ndjson")
        .body(gateway::request_body(Lines(lines)))?;
    let response = gateway.handle(request, 0).await.map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let said = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let problem: Value = serde_json::from_slice(&said).unwrap_or_default();
        anyhow::bail!("{}", problem["detail"].as_str().unwrap_or("it was refused"));
    }
    let mut out = Events { out: std::io::stdout(), begun: Vec::new(), failed: false };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| anyhow::anyhow!("the events broke off: {error}"))?;
        if let Ok(bytes) = frame.into_data() {
            out.write(&bytes)?;
        }
    }
    for error in reading.await.context("reading")?? {
        out.write(format!("{error}\n").as_bytes())?;
    }
    Ok(out.failed)
}

/// Where lines go.
struct To {
    lines: mpsc::Sender<Bytes>,
    progress: Arc<Progress>,
}

/// Reads a transcript: captions by their times, anything else as lines of JSON. Returns what is to be said of captions that
/// cannot be read.
fn read(path: &Path, to: &To) -> anyhow::Result<Vec<String>> {
    let source: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path)?),
    };
    let mut reader = BufReader::with_capacity(PART_BYTES, source);
    let begin = String::from_utf8_lossy(reader.fill_buf()?).into_owned();
    match Captions::of_file(&path.display().to_string(), &begin) {
        None => read_lines(&mut reader, to).map(|()| Vec::new()),
        Some(format) => read_captions(&mut reader, format, to),
    }
}

fn read_lines(reader: &mut BufReader<Box<dyn Read>>, to: &To) -> anyhow::Result<()> {
    let mut part = Vec::with_capacity(PART_BYTES);
    loop {
        let read = reader.take(LINE_PART_BYTES).read_until(b'\n', &mut part)?;
        to.progress.read(read as u64);
        to.progress.done();
        // Lines that are there go together; none waits for one that is not.
        let more = part.len() < PART_BYTES && !reader.buffer().is_empty();
        if !more && !part.is_empty() && to.lines.blocking_send(Bytes::from(std::mem::take(&mut part))).is_err() {
            return Ok(());
        }
        if read == 0 {
            return Ok(());
        }
    }
}

fn read_captions(reader: &mut dyn Read, format: Captions, to: &To) -> anyhow::Result<Vec<String>> {
    let mut bytes = Vec::new();
    reader.take(CAPTIONS_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() as u64 <= CAPTIONS_BYTES_MAX, "captions longer than {CAPTIONS_BYTES_MAX} bytes");
    let text = String::from_utf8_lossy(&bytes);
    let (mut part, mut errors) = (Vec::with_capacity(PART_BYTES), Vec::new());
    for cue in captions::read(&text, format) {
        match cue {
            Ok(chunk) => {
                let line = json!({
                    "start": chunk.start, "end": chunk.end, "text": chunk.text, "speaker_id": chunk.speaker_id
                });
                serde_json::to_writer(&mut part, &line)?;
                part.push(b'\n');
            }
            Err(error) => {
                // In the order of the fields that the gateway's events have.
                let said = json!({"code": "invalid_cue", "message": error.reason.to_string()});
                errors.push(format!(r#"{{"type":"error","error":{said},"line":{}}}"#, error.line));
            }
        }
        to.progress.read(0);
        to.progress.done();
        if part.len() >= PART_BYTES && to.lines.blocking_send(Bytes::from(std::mem::take(&mut part))).is_err() {
            return Ok(errors);
        }
    }
    // A reader that is gone has said why.
    let _ = to.lines.blocking_send(Bytes::from(part));
    Ok(errors)
}

/// The body of the request.
struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Prints events, and sees whether any is an error.
struct Events<W> {
    out: W,
    /// How the line that is being written begins.
    begun: Vec<u8>,
    failed: bool,
}

impl<W: Write> Events<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        const ERROR: &[u8] = br#"{"type":"error""#;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = ERROR.len().saturating_sub(self.begun.len()).min(part.len());
            self.begun.extend_from_slice(&part[..room]);
            self.failed |= self.begun == ERROR;
            if part.ends_with(b"\n") {
                self.begun.clear();
            }
        }
        self.out.write_all(bytes)?;
        self.out.flush()
    }
}
