//! The keeper: the one instance of the gateway component that has what outlives a request, executions and stored sessions.
//!
//! It is the same component as the instances in front, told by its environment that it is the keeper. There is one at a
//! time: what it has in memory is the newest there is. When it traps or hangs another takes its place and goes on from what
//! it has put into the store; the requests that it had are answered with a retryable error.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::stream::{FuturesUnordered, StreamExt};
use http_body_util::{BodyExt, Empty};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::handler::{Prepared, Proxy, TrapOrPanicError};
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use crate::gateway::{GatewayState, Maker, Request};

/// Where the paths begin that the keeper answers. The rest is answered by any instance.
const KEPT: [&str; 5] = ["/pipelines", "/executions", "/reliability", "/sessions", "/ws/session"];
/// Tells an instance that it is the keeper.
const ENVIRONMENT: (&str, &str) = ("WEIR_KEEPER", "1");
/// Requests on their way to the instance; what it has is bounded by whoever accepts them.
const REQUESTS_MAX: usize = 1024;
/// The keeper is lost when it lets nobody else run for so long.
const HANG_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it shows that it runs.
const BEAT: Duration = Duration::from_millis(250);
/// Between an instance that is lost and the next, when it did not live for as long as the longer one.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether the keeper answers a path.
pub(crate) fn keeps(path: &str) -> bool {
    let begins = |kept: &str| path.strip_prefix(kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    KEPT.iter().any(|kept| begins(kept))
}

type Answer = wasmtime::Result<http::Response<WasiBody>>;

/// A request and where its answer goes.
struct Asked {
    request: Request,
    answer: oneshot::Sender<Answer>,
}

/// Hands requests to the instance. It ends with the last copy.
#[derive(Clone)]
pub(crate) struct Keeper {
    requests: mpsc::Sender<Asked>,
    _task: Arc<Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    /// Starts it. Must be called in a tokio runtime. `head_timeout` is for the head of an answer.
    pub(crate) fn start(maker: Arc<Maker>, memory_bytes_max: u64, head_timeout: Duration) -> Self {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let keeping = Keeping { maker, memory_bytes_max, head_timeout };
        Self { requests, _task: Arc::new(Task(tokio::spawn(keeping.run(asked)))) }
    }

    /// Answers a request.
    pub(crate) async fn handle(&self, request: Request) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Asked { request, answer }).await.is_err() {
            return Err(TrapOrPanicError.into());
        }
        answered.await.map_err(|_| TrapOrPanicError)?
    }
}

struct Keeping {
    maker: Arc<Maker>,
    memory_bytes_max: u64,
    head_timeout: Duration,
}

impl Keeping {
    /// One instance after another.
    async fn run(self, mut asked: mpsc::Receiver<Asked>) {
        let mut pause = PAUSE;
        loop {
            let began = Instant::now();
            match self.live(&mut asked).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the keeper is lost; another takes its place");
                    metrics::counter!("weir_keeper_lost_total").increment(1);
                }
            }
            if began.elapsed() > PAUSE_MAX {
                pause = PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The life of one instance: it ends well when nobody can ask any more.
    async fn live(&self, asked: &mut mpsc::Receiver<Asked>) -> wasmtime::Result<()> {
        let (mut store, service) = self.maker.store(self.memory_bytes_max, Some(ENVIRONMENT)).await?;
        let proxy = Proxy::P3(service);
        let beats = AtomicU64::new(0);
        let serving = store.run_concurrent(async |accessor| self.serve(accessor, &proxy, asked, &beats).await);
        tokio::select! {
            served = serving => served?,
            () = silence(&beats) => Err(wasmtime::format_err!("it has let nobody else run for {HANG_TIMEOUT:?}")),
        }
    }

    /// Hands requests to the instance as they come.
    async fn serve(
        &self,
        accessor: &Accessor<GatewayState>,
        proxy: &Proxy,
        asked: &mut mpsc::Receiver<Asked>,
        beats: &AtomicU64,
    ) -> wasmtime::Result<()> {
        let mut open = FuturesUnordered::new();
        let take = |asked: Asked| {
            let prepared = accessor.with(|mut access| {
                use wasmtime::AsContextMut;
                Prepared::new(access.as_context_mut(), proxy, asked.request, GatewayState::http, asked.answer)
            });
            let head_timeout = self.head_timeout;
            async move { prepared?.run(accessor, tokio::time::sleep(head_timeout)).await }
        };
        // The first request wakes it, so that it goes on with what was going on.
        let (answer, _) = oneshot::channel();
        open.push(take(Asked { request: wake()?, answer }));
        let mut beat = pin!(tokio::time::sleep(Duration::ZERO));
        std::future::poll_fn(|cx| {
            loop {
                match open.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) | Poll::Pending => {}
                }
                if beat.as_mut().poll(cx).is_ready() {
                    beats.fetch_add(1, Ordering::Relaxed);
                    beat.as_mut().reset(tokio::time::Instant::now() + BEAT);
                    continue;
                }
                match asked.poll_recv(cx) {
                    Poll::Ready(Some(asked)) => open.push(take(asked)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

/// Resolves when nothing has shown for a while that the instance runs.
async fn silence(beats: &AtomicU64) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(HANG_TIMEOUT).await;
        let now = beats.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
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
