//! One instance: it pulls requests from its queue until it is idle, lost or retired.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::channel::oneshot;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, Sleep};
use wasmtime::AsContextMut;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{Prepared, Proxy};

use crate::components::gateway::{GatewayState, Maker, OpenRequest, Request};
use crate::components::gateway::admission::{Answer, Occupancy, RequestQueue, Reservation, Taken};

/// How often an instance shows that its event loop runs.
const BEAT: Duration = Duration::from_millis(250);

/// A request that an instance has, and the room for its body.
type Owner = (Arc<OpenRequest>, Arc<Reservation>);

/// How an instance is run.
pub(crate) struct InstanceRun<'a> {
    pub(crate) maker: &'a Maker,
    pub(crate) queue: &'a Arc<RequestQueue>,
    pub(crate) memory_bytes_max: u64,
    /// What its environment has besides the configuration.
    pub(crate) variable: Option<(&'static str, &'static str)>,
    /// Time for the head of an answer.
    pub(crate) head_timeout: Duration,
    /// It is lost when its event loop does not run for this long.
    pub(crate) hang_timeout: Duration,
    /// It ends when it has had no request for this long; without one it stays.
    pub(crate) idle_timeout: Option<Duration>,
}

impl InstanceRun<'_> {
    /// Runs an instance. `first` is a request of the host's own whose answer nobody reads; `started` runs once the instance
    /// is there. It ends without an error when it was idle, or when a request got no answer and all others have ended.
    pub(crate) async fn run(&self, first: Option<Request>, started: impl FnOnce()) -> wasmtime::Result<()> {
        let (mut store, service) = self.maker.store(self.memory_bytes_max, self.variable).await?;
        let proxy = Proxy::P3(service);
        let occupancy = self.queue.register();
        started();
        // Declared after the store and so dropped before it: the bodies of answers learn that the instance is lost before
        // their streams end with the store.
        let mut loss = LossGuard(Some(&occupancy));
        let beats = AtomicU64::new(0);
        let serving =
            store.run_concurrent(async |accessor| self.serve(accessor, &proxy, &occupancy, first, &beats).await);
        let served = tokio::select! {
            served = serving => served.and_then(|served| served),
            () = silence(&beats, self.hang_timeout) => {
                let waited = self.hang_timeout;
                Err(wasmtime::format_err!("its event loop has not run for {waited:?}"))
            }
        };
        if served.is_ok() {
            loss.0 = None;
        }
        served
    }

    /// Hands requests to the instance as it has room for them.
    async fn serve(
        &self,
        accessor: &Accessor<GatewayState>,
        proxy: &Proxy,
        occupancy: &Arc<Occupancy>,
        first: Option<Request>,
        beats: &AtomicU64,
    ) -> wasmtime::Result<()> {
        let mut open = FuturesUnordered::new();
        let begin = |request: Request, answer: oneshot::Sender<Answer>, owner: Option<Owner>| {
            let prepared = accessor.with(|mut access| {
                let prepared = Prepared::new(access.as_context_mut(), proxy, request, GatewayState::http, answer);
                if let (Ok(Prepared::P3 { call, .. }), Some((request, _))) = (&prepared, &owner)
                    && self.idle_timeout.is_some()
                {
                    access.get().add_request(call.task(), request);
                }
                prepared
            });
            // The request itself is not kept: what it has ends with its answer's body, whatever the guest still does.
            let reservation = owner.map(|(_, reservation)| reservation);
            let head_timeout = self.head_timeout;
            async move {
                let answered = prepared?.run(accessor, tokio::time::sleep(head_timeout)).await;
                drop(reservation);
                answered
            }
        };
        if let Some(first) = first {
            let (answer, _) = oneshot::channel();
            open.push(begin(first, answer, None));
        }
        let mut accepts = true;
        let mut beat = pin!(tokio::time::sleep(Duration::ZERO));
        let mut idle: Option<Pin<Box<Sleep>>> = None;
        std::future::poll_fn(|cx| {
            loop {
                match open.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(true))) => continue,
                    Poll::Ready(Some(Ok(false))) => {
                        // A guest that did not answer one request in time gets no new ones. The one instance that stays
                        // has to: nothing else has what it has.
                        accepts = self.idle_timeout.is_none();
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) | Poll::Pending => {}
                }
                if beat.as_mut().poll(cx).is_ready() {
                    beats.fetch_add(1, Ordering::Relaxed);
                    beat.as_mut().reset(Instant::now() + BEAT);
                    continue;
                }
                if accepts && let Poll::Ready(taken) = self.queue.poll_take(occupancy, cx) {
                    let Taken { request, open: data, answer, reservation } = taken;
                    open.push(begin(request, answer, Some((data, reservation))));
                    // The guest works on this one before it takes another: while it computes, other instances may.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let Some(idle_timeout) = self.idle_timeout else { return Poll::Pending };
                occupancy.register(cx);
                let is_idle =
                    open.is_empty() && occupancy.requests() == 0 && accessor.poll_no_interesting_tasks(cx).is_ready();
                if !is_idle {
                    idle = None;
                    return Poll::Pending;
                }
                if !accepts {
                    return Poll::Ready(Ok(()));
                }
                let timer = idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle_timeout)));
                return timer.as_mut().poll(cx).map(Ok);
            }
        })
        .await
    }
}

/// Marks an instance as lost when it is dropped before it has ended well.
struct LossGuard<'a>(Option<&'a Arc<Occupancy>>);

impl Drop for LossGuard<'_> {
    fn drop(&mut self) {
        if let Some(occupancy) = self.0 {
            occupancy.mark_lost();
        }
    }
}

/// Resolves when the beats have not changed for a while.
async fn silence(beats: &AtomicU64, timeout: Duration) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(timeout).await;
        let now = beats.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
    }
}
