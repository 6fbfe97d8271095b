//! `weir stream`: one adapter without a server.

pub(crate) mod arguments;
mod common;
mod feeds;
mod kafka;
mod nats;

use std::io::IsTerminal;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use weir_adapters::status::{State, Status};
use weir_config::{Adapter, Config};
use weir_runtime::Runtime;

use crate::adapters::RunningAdapters;
use crate::builtin::BUILTIN;
use crate::logs;
use crate::run::progress::{ProgressForm, human_counted, milliseconds};
use arguments::Stream;
pub(crate) use kafka::property;

/// How often the progress bar is updated, and how often a plain line is written.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// How often the state of the adapter is read before its first connection, and while it ends.
const STATE_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn main(arguments: &Stream) -> anyhow::Result<ExitCode> {
    let common = arguments.source.common();
    let batch = common.batch_size.map(|size| ("infer.max_batch_size", size.to_string()));
    let mut config = common.setup.load(batch.as_slice())?;
    if config.log == weir_config::Log::default() {
        config.log.level = "warn".into();
    }
    logs::start(&config.log)?;
    let adapter = arguments.source.adapter();
    retain_models(&mut config, &adapter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let connect_timeout = Duration::from_millis(common::milliseconds(common.connect_timeout));
    let form = ProgressForm::of(common.quiet, common.json);
    let code = runtime.block_on(run(config, adapter, connect_timeout, form));
    // Without waiting for replicas, whose threads may be in the middle of a computation.
    runtime.shutdown_background();
    code
}

/// Reduces the configuration to the models of the adapter.
fn retain_models(config: &mut Config, adapter: &Adapter) -> anyhow::Result<()> {
    let mut names = weir_adapters::build::models(adapter)
        .map_err(|reason| anyhow::anyhow!("adapter `{}`: {reason}", adapter.name))?;
    config.model.retain(|other, _| names.contains(other));
    names.retain(|name| !config.model.contains_key(name));
    if names.is_empty() {
        config.models.dir = std::path::PathBuf::new();
    }
    config.models.names = names;
    Ok(())
}

async fn run(
    config: Config,
    adapter: Adapter,
    connect_timeout: Duration,
    form: ProgressForm,
) -> anyhow::Result<ExitCode> {
    // Registered first, so that no signal is lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let runtime = Arc::new(Runtime::start(&config, BUILTIN)?);
    // The failure ends the command, with its text.
    let mut adapters = RunningAdapters::start(&runtime, std::slice::from_ref(&adapter), |_, _| {})?;
    let status = adapters.statuses().pop().context("the adapter has no status")?;
    let progress = tokio::spawn(show_progress(status.clone(), form));
    let mut connect_failure = pin!(fail_without_connection(&status, connect_timeout, form));
    let drain_timeout = Duration::from_millis(config.http.drain_timeout_ms);
    let mut stopping = false;
    let failures = loop {
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let result = {
            let result = adapters.wait();
            tokio::select! {
                failures = result => Some(failures),
                () = stop => None,
                failure = &mut connect_failure => {
                    progress.abort();
                    let _ = progress.await;
                    return Err(failure);
                }
                () = stalled(&status, drain_timeout), if stopping => {
                    progress.abort();
                    let _ = progress.await;
                    anyhow::bail!(
                        "the adapter has made no progress for {} ms after the signal (http.drain_timeout_ms): its source delivers the records \
                         in flight again, if it has positions",
                        drain_timeout.as_millis()
                    );
                }
            }
        };
        match result {
            Some(failures) => break failures,
            // The second signal ends the command immediately.
            None if stopping => return Ok(ExitCode::FAILURE),
            None => {
                stopping = true;
                adapters.stop();
            }
        }
    };
    progress.abort();
    // An error means that the task was aborted.
    let _ = progress.await;
    let report = status.report();
    if let Some((_, failure)) = failures.into_iter().next() {
        anyhow::bail!("{failure}");
    }
    Ok(if report.errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Resolves when no record was completed for a time.
async fn stalled(status: &Status, timeout: Duration) {
    let completed = || status.counters().completed.load(Ordering::Relaxed);
    let (mut before, mut since) = (completed(), Instant::now());
    while since.elapsed() < timeout {
        tokio::time::sleep(STATE_INTERVAL.min(timeout)).await;
        let now = completed();
        if std::mem::replace(&mut before, now) != now {
            since = Instant::now();
        }
    }
}

/// Resolves with an error if the adapter has not connected within `timeout`; zero: never. Writes the first failure to the standard error.
async fn fail_without_connection(status: &Status, timeout: Duration, form: ProgressForm) -> anyhow::Error {
    let start = Instant::now();
    let mut is_reported = false;
    while !status.was_connected() {
        if let (State::Reconnecting, Some(failure)) = status.state() {
            let limit_s = timeout.as_secs_f64();
            let printable = logs::printable(&failure);
            if !std::mem::replace(&mut is_reported, true) {
                match form {
                    ProgressForm::Json => eprintln!("{}", json!({"connected": false, "failure": failure})),
                    _ if timeout.is_zero() => eprintln!("weir: no connection yet; the attempts continue: {printable}"),
                    _ => eprintln!(
                        "weir: no connection yet; the attempts end {limit_s} s after the start (--connect-timeout): {printable}"
                    ),
                }
            }
            if !timeout.is_zero() && start.elapsed() >= timeout {
                return anyhow::anyhow!("no connection within {limit_s} s (--connect-timeout): {failure}");
            }
        }
        tokio::time::sleep(STATE_INTERVAL).await;
    }
    std::future::pending().await
}

/// Shows the progress until this future is dropped, then the totals.
async fn show_progress(status: Status, form: ProgressForm) {
    if form == ProgressForm::Quiet {
        return;
    }
    let mut view = ProgressView::new(status, form == ProgressForm::Json);
    let interval = if view.bar.is_some() { BAR_INTERVAL } else { PLAIN_INTERVAL };
    loop {
        tokio::time::sleep(interval).await;
        view.update();
    }
}

struct ProgressView {
    status: Status,
    start: Instant,
    bar: Option<ProgressBar>,
    is_json: bool,
}

impl ProgressView {
    fn new(status: Status, is_json: bool) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}")
            .expect("the template is a constant and valid");
        let has_bar = !is_json && std::io::stderr().is_terminal();
        let bar = has_bar.then(|| ProgressBar::new(0).with_style(style));
        Self { status, start: Instant::now(), bar, is_json }
    }

    fn completed(&self) -> u64 {
        self.status.counters().completed.load(Ordering::Relaxed)
    }

    fn json(&self) -> Value {
        let (records, elapsed) = (self.completed(), self.start.elapsed());
        json!({
            "records": records,
            "records_per_s": (records as f64 / elapsed.as_secs_f64().max(1e-6)).round(),
            "elapsed_ms": milliseconds(elapsed),
        })
    }

    /// The rate of records, and the remaining time by the rate of bytes if the length of the source is known.
    fn text(&self) -> String {
        let counters = self.status.counters();
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let rate = self.completed() as f64 / seconds;
        let (read, remaining) =
            (counters.record_bytes.load(Ordering::Relaxed), counters.remaining.load(Ordering::Relaxed));
        let remaining = match remaining {
            u64::MAX => String::new(),
            remaining if read > 0 => {
                let remaining = Duration::from_secs_f64(seconds * remaining as f64 / read as f64);
                format!(", {} left", HumanDuration(remaining))
            }
            _ => String::new(),
        };
        format!("{rate:.0} records/s{remaining}")
    }

    fn update(&mut self) {
        let text = self.text();
        match &self.bar {
            Some(bar) => {
                let counters = self.status.counters();
                let read = counters.record_bytes.load(Ordering::Relaxed);
                if let Some(remaining) =
                    Some(counters.remaining.load(Ordering::Relaxed)).filter(|remaining| *remaining != u64::MAX)
                {
                    bar.set_length(read + remaining);
                    bar.set_position(read);
                }
                bar.set_message(format!("{}, {text}", human_counted(self.completed(), "record")));
            }
            None if self.is_json => eprintln!("{}", self.json()),
            None => eprintln!("{}, {text}", human_counted(self.completed(), "record")),
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let report = self.status.report();
        if self.is_json {
            let mut totals = self.json();
            totals["errors"] = report.errors.into();
            eprintln!("{totals}");
            return;
        }
        let errors =
            if report.errors > 0 { format!(", {}", human_counted(report.errors, "error")) } else { String::new() };
        let seconds = self.start.elapsed().as_secs_f64();
        eprintln!("{} in {seconds:.1} s{errors}", human_counted(self.completed(), "record"));
    }
}
