#![allow(dead_code, reason = "each test program uses a part")]
//! An adapter component for tests, which answers every record with its payload, and an adapter that runs with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use weir_adapters::build::Plan;
use weir_adapters::driver::BoxFuture;
use weir_adapters::status::Status;
use weir_adapters::supervisor::{AdapterFailure, Component, ComponentCall, ComponentError, Supervisor};
use weir_config::Adapter;
use weir_core::adapter::{Destination, ErrorCategory, ResultRecord, SourceRecord};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Answers every record with its payload; one whose payload begins with `bad` is an error.
pub(crate) struct Echo;

impl Component for Echo {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        let (records, mut incoming) = mpsc::channel::<Vec<SourceRecord>>(16);
        let (outgoing, results) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            while let Some(records) = incoming.recv().await {
                if outgoing.send(records.into_iter().map(answer).collect()).await.is_err() {
                    return;
                }
            }
        });
        call(records, results, task)
    }
}

/// The call of a component that is a task.
pub(crate) fn call(
    records: mpsc::Sender<Vec<SourceRecord>>,
    results: mpsc::Receiver<Vec<ResultRecord>>,
    task: JoinHandle<()>,
) -> BoxFuture<'static, Result<ComponentCall, ComponentError>> {
    let end = Box::pin(async move { task.await.err().map(|error| error.to_string()) });
    Box::pin(async move { Ok(ComponentCall { records, results, end }) })
}

pub(crate) fn answer(record: SourceRecord) -> ResultRecord {
    if record.payload.starts_with(b"bad") {
        return ResultRecord::error(record, ErrorCategory::Client, "bad", "it is bad");
    }
    let SourceRecord { payload, key, headers, origin, position } = record;
    ResultRecord { payload, key, headers, destination: Destination::Output, origin, completes: vec![position] }
}

/// A running adapter.
pub(crate) struct Running {
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) status: Status,
    task: JoinHandle<Result<(), AdapterFailure>>,
}

/// Starts an adapter.
pub(crate) fn start(adapter: &Adapter) -> Result<Running> {
    start_plan(Plan::new(adapter, 1).map_err(anyhow::Error::msg)?)
}

/// Starts an adapter that was checked.
pub(crate) fn start_plan(plan: Plan) -> Result<Running> {
    let status = Status::new(&plan.name, plan.source, plan.sink);
    let supervisor = Supervisor::new(plan.driver, Arc::new(Echo), plan.bounds, status.clone());
    let (stop, stopped) = watch::channel(false);
    Ok(Running { stop, status, task: tokio::spawn(supervisor.run(stopped)) })
}

impl Running {
    /// Waits for the end of the source.
    pub(crate) async fn ended(self) -> Result<Status> {
        tokio::time::timeout(PATIENCE, self.task).await.context("it does not end")???;
        drop(self.stop);
        Ok(self.status)
    }

    /// Waits until it fails.
    pub(crate) async fn failed(self) -> Result<AdapterFailure> {
        let ended = tokio::time::timeout(PATIENCE, self.task).await.context("it does not end")??;
        ended.err().context("it has not failed")
    }

    /// Ends it as a killed process does: nothing is written or committed any more.
    pub(crate) async fn kill(self) {
        self.task.abort();
        // It was aborted.
        let _ = self.task.await;
    }

    /// Stops it, and waits until everything in flight is written.
    pub(crate) async fn stop(self) -> Result<Status> {
        self.stop.send(true)?;
        self.ended().await
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, is_true: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_true().await? {
        ensure!(began.elapsed() < PATIENCE, "not {what} after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
