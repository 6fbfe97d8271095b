//! The keeper: the one instance of the gateway component that has what outlives a request, executions and stored sessions.
//!
//! It is the same component as the instances in front, told by its environment that it is the keeper. There is one at a
//! time: what it has in memory is the newest there is. When it traps or hangs another takes its place and goes on from what
//! it has put into the store; the requests that it had are answered with a retryable error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use tokio::task::JoinHandle;

use crate::components::gateway::{Maker, OpenRequest, Request};
use crate::components::gateway::admission::{Answer, RequestQueue};
use crate::components::gateway::run::InstanceRun;

/// Where the paths begin that the keeper answers. The rest is answered by any instance.
const KEPT: [&str; 5] = ["/pipelines", "/executions", "/reliability", "/sessions", "/ws/session"];
/// Tells an instance that it is the keeper.
const ENVIRONMENT: (&str, &str) = ("WEIR_KEEPER", "1");
/// The keeper is lost when it lets nobody else run for so long.
const HANG_TIMEOUT: Duration = Duration::from_secs(20);
/// Between an instance that is lost and the next, when it did not live for as long as the longer one.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether the keeper answers a path.
pub(crate) fn keeps(path: &str) -> bool {
    let begins = |kept: &str| path.strip_prefix(kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    KEPT.iter().any(|kept| begins(kept))
}

/// Hands requests to the instance. It ends with the last copy.
#[derive(Clone)]
pub(crate) struct Keeper {
    queue: Arc<RequestQueue>,
    _task: Arc<Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    /// Starts it. Must be called in a tokio runtime.
    pub(crate) fn start(maker: Arc<Maker>, queue: Arc<RequestQueue>) -> Self {
        let task = tokio::spawn(keep(maker, queue.clone()));
        Self { queue, _task: Arc::new(Task(task)) }
    }

    /// Answers a request.
    pub(crate) async fn handle(&self, request: Request, open: Arc<OpenRequest>, body_bytes: u64) -> Answer {
        self.queue.submit(request, open, body_bytes, || {}).await
    }
}

/// Runs one instance after another.
async fn keep(maker: Arc<Maker>, queue: Arc<RequestQueue>) {
    let mut pause = PAUSE;
    loop {
        let began = Instant::now();
        let config = maker.config();
        let run = InstanceRun {
            maker: &maker,
            queue: &queue,
            memory_bytes_max: config.keeper_memory_bytes_max,
            variable: Some(ENVIRONMENT),
            head_timeout: config.head_timeout,
            hang_timeout: HANG_TIMEOUT,
            idle_timeout: None,
        };
        // The first request wakes it, so that it resumes what was interrupted.
        let ended = match wake() {
            Ok(first) => run.run(Some(first), || {}).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::error!(error = format!("{error:#}"), "the keeper is lost; another takes its place");
            metrics::counter!("weir_keeper_lost_total").increment(1);
        }
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn wake() -> wasmtime::Result<Request> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    Ok(http::Request::options("http://localhost/*").body(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_parts_of_paths_are_kept() {
        for path in [
            "/sessions",
            "/sessions/",
            "/sessions/1/chunks",
            "/pipelines/a",
            "/reliability",
            "/executions",
            "/ws/session/1",
        ] {
            assert!(keeps(path), "{path}");
        }
        for path in ["/", "/session", "/sessionsx", "/stream/session/1", "//sessions", "/v1/transcript"] {
            assert!(!keeps(path), "{path}");
        }
    }
}
