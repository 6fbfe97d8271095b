//! Components that stall, and components that give results without end.

mod echo;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use echo::Echo;
use tokio::sync::{mpsc, watch};
use weir_adapters::build::Plan;
use weir_adapters::driver::BoxFuture;
use weir_adapters::status::Status;
use weir_adapters::supervisor::{Component, ComponentCall, ComponentError, Supervisor};
use weir_config::{Adapter, AdapterSink, AdapterSource, FileSink, FileSource};
use weir_core::adapter::{ResultRecord, SourceRecord};

/// Takes the records of its first calls and gives no result; later calls are those of [`Echo`].
struct Stalling {
    calls: AtomicUsize,
    stalls: usize,
}

impl Component for Stalling {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.stalls {
            return Echo.open();
        }
        let (records, mut incoming) = mpsc::channel(16);
        let (outgoing, results) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            while incoming.recv().await.is_some() {}
            drop(outgoing);
        });
        echo::call(records, results, task)
    }
}

#[tokio::test]
async fn component_without_results_is_replaced_and_its_records_are_read_again() -> Result<()> {
    // Long enough that a busy machine gives a result within it.
    const STALL_TIMEOUT_MS: u64 = 1000;
    let dir = tempfile::tempdir()?;
    let (input, out) = (dir.path().join("in.ndjson"), dir.path().join("out"));
    std::fs::write(&input, "1\n2\n3\n")?;
    let adapter = Adapter {
        name: "stalling".into(),
        format: "ndjson".into(),
        reconnect_delay_ms: 1,
        stall_timeout_ms: STALL_TIMEOUT_MS,
        source: AdapterSource::File(FileSource {
            paths: vec![input.display().to_string()],
            follow: true,
            checkpoint: dir.path().join("checkpoint"),
        }),
        sink: AdapterSink::File(FileSink { path: out.clone(), ..FileSink::default() }),
        ..Adapter::default()
    };
    let plan = Plan::new(&adapter, 1).map_err(anyhow::Error::msg)?;
    let status = Status::new(&plan.name, plan.source, plan.sink);
    let component = Arc::new(Stalling { calls: AtomicUsize::new(0), stalls: 2 });
    let (stop, stopped) = watch::channel(false);
    let supervisor = Supervisor::new(plan.driver, component.clone(), plan.bounds, status.clone());
    let task = tokio::spawn(supervisor.run(stopped));
    echo::until("written", async || Ok(std::fs::read_to_string(&out).unwrap_or_default() == "1\n2\n3\n")).await?;
    assert_eq!((status.report().reconnects, component.calls.load(Ordering::Relaxed)), (2, 3));
    // An adapter without records is not stalled: it stays connected.
    tokio::time::sleep(std::time::Duration::from_millis(STALL_TIMEOUT_MS * 3 / 2)).await;
    assert_eq!(status.report().reconnects, 2);
    stop.send(true)?;
    task.await??;
    Ok(())
}

/// Gives results without end for a record `flood`, none of which completes it; answers others as [`Echo`] does.
struct Flooding;

impl Component for Flooding {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        let (records, mut incoming) = mpsc::channel::<Vec<SourceRecord>>(16);
        let (outgoing, results) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            while let Some(list) = incoming.recv().await {
                for record in list {
                    let is_flood = record.payload == b"flood";
                    let result = echo::answer(record);
                    if is_flood {
                        let part = ResultRecord { completes: Vec::new(), ..result };
                        while outgoing.send(vec![part.clone(); 1024]).await.is_ok() {}
                        return;
                    }
                    if outgoing.send(vec![result]).await.is_err() {
                        return;
                    }
                }
            }
        });
        echo::call(records, results, task)
    }
}

#[tokio::test]
async fn record_with_results_without_end_goes_to_the_errors_and_others_pass() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (input, out, errors) = (dir.path().join("in.ndjson"), dir.path().join("out"), dir.path().join("errors"));
    std::fs::write(&input, "1\nflood\n2\n")?;
    let file = |path: &std::path::Path| AdapterSink::File(FileSink { path: path.to_owned(), ..FileSink::default() });
    let adapter = Adapter {
        name: "flooding".into(),
        format: "ndjson".into(),
        reconnect_delay_ms: 1,
        source: AdapterSource::File(FileSource {
            paths: vec![input.display().to_string()],
            follow: false,
            checkpoint: dir.path().join("checkpoint"),
        }),
        sink: file(&out),
        errors: Some(file(&errors)),
        ..Adapter::default()
    };
    let run = async |attempts_max: u32| {
        let adapter = Adapter { reconnect_attempts_max: attempts_max, ..adapter.clone() };
        let plan = Plan::new(&adapter, 1).map_err(anyhow::Error::msg)?;
        let status = Status::new(&plan.name, plan.source, plan.sink);
        let (_stop, stopped) = watch::channel(false);
        let supervisor = Supervisor::new(plan.driver, Arc::new(Flooding), plan.bounds, status);
        Ok::<_, anyhow::Error>(tokio::time::timeout(echo::PATIENCE, supervisor.run(stopped)).await??)
    };
    let failure = run(1).await.unwrap_err().to_string();
    let reason = "1 record in flight: it has given more than 262144 results without completing a record";
    assert_eq!(failure, format!("the adapter component has ended with {reason}"));
    run(5).await?;
    assert_eq!(std::fs::read_to_string(&out)?, "1\n2\n");
    let errors = std::fs::read_to_string(&errors)?;
    assert!(errors.contains(r#""code":"component_trapped""#) && errors.contains(r#""payload":"flood""#), "{errors}");
    Ok(())
}
