//! `weir run --task transcript`: each file is a transcript, processed by the gateway and session components as a
//! request to `POST /v1/transcript`, without a socket.

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
use serde_json::Value;
use tokio::sync::mpsc;
use weir_codec::transcripts::captions::{Content, sniff};
use weir_runtime::Runtime;
use weir_runtime::gateway::{self, BodyError, Gateway};

use super::progress::{Progress, ProgressForm};
use crate::arguments::Run;
use crate::builtin::BUILTIN;
use crate::logs;

/// The longest captions file, bytes: the gateway reads it completely.
const CAPTIONS_BYTES_MAX: u64 = 64 << 20;
/// Memory of the component that reads captions, bytes.
const CAPTIONS_MEMORY_BYTES: u64 = 1 << 30;
/// Most bytes of a file that are read to detect captions.
const SNIFFED_BYTES_MAX: usize = 64 << 10;
/// Bytes of a transcript that are sent at once.
const PART_BYTES: usize = 16 << 10;
/// Most bytes of a line that are sent at once. The length of a line is bounded by the gateway.
const LINE_PART_BYTES: u64 = 64 << 10;
/// The statuses of an invalid file: it is not text, or too long.
const FAULTS_OF_A_FILE: [u16; 2] = [400, 413];
/// How long standard input may be silent, ms.
const INPUT_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

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
    // No other client is served, so channels and authentication are not configured.
    (config.events, config.auth) = (weir_config::Events::default(), weir_config::Auth::default());
    config.http.listen = weir_config::Config::default().http.listen;
    // Input may be typed on a terminal.
    config.http.body_timeout_ms = INPUT_TIMEOUT_MS;
    // Captions are read completely, possibly from a slow program.
    config.http.request_timeout_ms = INPUT_TIMEOUT_MS;
    config.http.body_bytes_max = CAPTIONS_BYTES_MAX;
    config.gateway.memory_bytes_max = config.gateway.memory_bytes_max.max(CAPTIONS_MEMORY_BYTES);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(run(arguments, &config));
    // Dropping the runtime would log the loss of waiting instances; they end with the process.
    std::mem::forget(runtime);
    code
}

async fn run(arguments: &Run, config: &weir_config::Config) -> anyhow::Result<ExitCode> {
    let bytes_total = super::input::check(&arguments.files)?;
    let progress = Arc::new(Progress::new(ProgressForm::of(arguments.quiet, arguments.json), bytes_total));
    let runtime = Runtime::serve(config, BUILTIN).await?;
    let gateway = runtime.gateway().context("the runtime has no gateway")?;
    let mut failed = 0;
    for file in &arguments.files {
        let one = transcript(gateway, file, arguments.max_gap_sec, &progress);
        failed += u64::from(one.await.with_context(|| display_name(file))?);
    }
    progress.finish(failed);
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the events of one transcript; returns true if a part of it was refused.
async fn transcript(
    gateway: &Gateway,
    file: &Path,
    max_gap_sec: Option<f64>,
    progress: &Arc<Progress>,
) -> anyhow::Result<bool> {
    let path = file.to_owned();
    let InputFile { reader, content } =
        tokio::task::spawn_blocking(move || InputFile::open(&path)).await.context("opening")??;
    let (sink, lines) = mpsc::channel(16);
    let sink = LineSink { lines: sink, progress: progress.clone() };
    let reader_task = tokio::task::spawn_blocking(move || match content {
        Content::Captions => read_captions(reader, &sink),
        Content::Lines => read_lines(reader, &sink),
    });

    let query = max_gap_sec.map(|seconds| format!("?max_gap_sec={seconds}")).unwrap_or_default();
    let content_type = match content {
        Content::Captions => "text/vtt",
        Content::Lines => "application/x-ndjson",
    };
    let request = http::Request::post(format!("http://localhost/v1/transcript{query}"))
        .header("content-type", content_type)
        .body(gateway::request_body(Lines(lines)))?;
    let response = gateway.handle(request, 0).await.map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let response_body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        // If reading the file failed, that error is reported instead of the gateway's error about the part that it
        // received.
        reader_task.await.context("reading")??;
        let problem: Value = serde_json::from_slice(&response_body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or("it was refused");
        // An invalid file does not stop the others; any other status is an error of the command line.
        anyhow::ensure!(FAULTS_OF_A_FILE.contains(&status.as_u16()), "{detail}");
        eprintln!("weir: {}: {}", display_name(file), logs::printable(detail));
        return Ok(true);
    }
    let mut out = Events { out: std::io::stdout(), line_start: Vec::new(), failed: false };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| anyhow::anyhow!("the stream of events ended early: {error}"))?;
        if let Ok(bytes) = frame.into_data() {
            out.write(&bytes)?;
        }
    }
    reader_task.await.context("reading")??;
    Ok(out.failed)
}

/// The name of a file in messages.
fn display_name(file: &Path) -> String {
    match file.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    }
}

type Reader = BufReader<Box<dyn Read + Send>>;

/// An open file and its kind of content.
struct InputFile {
    reader: Reader,
    content: Content,
}

impl InputFile {
    /// Opens a file, and reads as much as is needed to detect its content. It is opened only once, since a pipe can be
    /// read only once.
    fn open(path: &Path) -> anyhow::Result<Self> {
        let mut source: Box<dyn Read + Send> = match path.as_os_str() == "-" {
            true => Box::new(std::io::stdin()),
            false => Box::new(File::open(path)?),
        };
        let mut begin = Vec::new();
        let content = loop {
            let length = begin.len();
            if length >= SNIFFED_BYTES_MAX {
                break Content::Lines;
            }
            if let Some(content) = sniff(&begin, false) {
                break content;
            }
            begin.resize(SNIFFED_BYTES_MAX, 0);
            let read = loop {
                match source.read(&mut begin[length..]) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    read => break read?,
                }
            };
            begin.truncate(length + read);
            if read == 0 {
                break sniff(&begin, true).unwrap_or(Content::Lines);
            }
        };
        anyhow::ensure!(
            content == Content::Captions || !begin.starts_with(b"\xff\xfe") && !begin.starts_with(b"\xfe\xff"),
            "it is UTF-16; lines of JSON are UTF-8"
        );
        let whole: Box<dyn Read + Send> = Box::new(std::io::Cursor::new(begin).chain(source));
        Ok(Self { reader: BufReader::with_capacity(PART_BYTES, whole), content })
    }
}

/// The destinations of the bytes of a file.
struct LineSink {
    lines: mpsc::Sender<Bytes>,
    progress: Arc<Progress>,
}

/// Sends lines as they arrive. Returns without an error when the receiver is dropped, which then reports its own error.
fn read_lines(mut reader: Reader, sink: &LineSink) -> anyhow::Result<()> {
    let mut part = Vec::with_capacity(PART_BYTES);
    loop {
        let read = (&mut reader).take(LINE_PART_BYTES).read_until(b'\n', &mut part)?;
        sink.progress.read(read as u64);
        sink.progress.done();
        // Buffered lines are sent together; no line waits for a later one that is not read yet.
        let more = part.len() < PART_BYTES && !reader.buffer().is_empty();
        if !more && !part.is_empty() && sink.lines.blocking_send(Bytes::from(std::mem::take(&mut part))).is_err() {
            return Ok(());
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// Sends captions, which the gateway reads completely.
fn read_captions(mut reader: Reader, sink: &LineSink) -> anyhow::Result<()> {
    loop {
        let part = reader.fill_buf()?.to_vec();
        let read = part.len();
        reader.consume(read);
        if read == 0 {
            return Ok(());
        }
        sink.progress.read(read as u64);
        sink.progress.done();
        if sink.lines.blocking_send(Bytes::from(part)).is_err() {
            return Ok(());
        }
    }
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

/// Prints events, and detects errors among them.
struct Events<W> {
    out: W,
    /// The first bytes of the current line.
    line_start: Vec<u8>,
    failed: bool,
}

impl<W: Write> Events<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        const ERROR: &[u8] = br#"{"type":"error""#;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = ERROR.len().saturating_sub(self.line_start.len()).min(part.len());
            self.line_start.extend_from_slice(&part[..room]);
            self.failed |= self.line_start == ERROR;
            if part.ends_with(b"\n") {
                self.line_start.clear();
            }
        }
        self.out.write_all(bytes)?;
        self.out.flush()
    }
}
