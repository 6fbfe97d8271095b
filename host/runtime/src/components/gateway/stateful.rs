//! The stateful instance: the one instance of the gateway component that holds state across requests, executions and
//! stored sessions.
//!
//! It is the same component as the stateless instances, with `WEIR_KEEPER=1` in its environment. There is one at a
//! time, so its memory has the newest state. When it traps or hangs, another instance replaces it and resumes from the
//! checkpoints in the store; the open requests of the lost instance are answered with a retryable error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use tokio::task::JoinHandle;

use crate::components::gateway::admission::{HandleResult, OpenRequest, Request, RequestQueue};
use crate::components::gateway::run::InstanceRun;
use crate::components::gateway::state::{GatewayFactory, Role};

/// The instance is lost when its event loop does not run for this long.
const HANG_TIMEOUT: Duration = Duration::from_secs(20);
/// Delay between a lost instance and the next. It is doubled for each instance that runs for less than
/// [`RESTART_DELAY_MAX`].
const RESTART_DELAY: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);

/// Dispatches requests to the instance. The instance ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct StatefulInstance {
    queue: Arc<RequestQueue>,
    factory: Arc<GatewayFactory>,
    _task: Arc<Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StatefulInstance {
    /// Starts the instance. Must be called in a tokio runtime.
    pub(crate) fn start(factory: Arc<GatewayFactory>, queue: Arc<RequestQueue>) -> Self {
        let task = tokio::spawn(run_forever(factory.clone(), queue.clone()));
        Self { queue, factory, _task: Arc::new(Task(task)) }
    }

    pub(crate) async fn handle(&self, request: Request, open: Arc<OpenRequest>, body_bytes: u64) -> HandleResult {
        self.queue.submit(request, open, body_bytes, self.factory.host(), || {}).await
    }
}

/// Runs one instance after another.
async fn run_forever(factory: Arc<GatewayFactory>, queue: Arc<RequestQueue>) {
    let mut delay = RESTART_DELAY;
    loop {
        let start_time = Instant::now();
        let run = InstanceRun {
            factory: &factory,
            queue: &queue,
            role: Role::Stateful,
            head_timeout: factory.config().head_timeout,
            hang_timeout: HANG_TIMEOUT,
            idle_timeout: None,
        };
        // The first request wakes the instance, which then resumes interrupted executions.
        let result = match wake_request() {
            Ok(first) => run.run(Some(first), || {}).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::error!(error = format!("{error:#}"), "the stateful gateway instance is lost; another replaces it");
            metrics::counter!("weir_keeper_lost_total").increment(1);
        }
        if start_time.elapsed() > RESTART_DELAY_MAX {
            delay = RESTART_DELAY;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RESTART_DELAY_MAX);
    }
}

fn wake_request() -> wasmtime::Result<Request> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    Ok(http::Request::options("http://localhost/*").body(body)?)
}
