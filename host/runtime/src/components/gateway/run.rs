//! Runs one instance: it takes requests from its queue until it is idle, lost or retired.

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
use weir_codec::generation::route::GenerationRoute;

use crate::components::gateway::admission::{
    AdmittedRequest, HandleResult, Occupancy, OpenRequest, Request, RequestQueue, Reservation,
};
use crate::components::gateway::state::{GatewayFactory, GatewayState, Role};
use crate::components::heartbeat::{HEARTBEATS, silence};
use crate::components::woken::poll_when_woken;
use crate::inference::pool::task::lend_thread;
use crate::stages::{self, Stage};
use weir_wasi::StoreData;

/// An admitted request, and the reserved bytes of its body.
type Admission = (Arc<OpenRequest>, Arc<Reservation>);

/// The parameters of an instance's run.
pub(crate) struct InstanceRun<'a> {
    pub(crate) factory: &'a GatewayFactory,
    pub(crate) queue: &'a Arc<RequestQueue>,
    pub(crate) role: Role,
    /// Time for the head of a response.
    pub(crate) head_timeout: Duration,
    /// The instance is lost when its event loop does not run for this long.
    pub(crate) hang_timeout: Duration,
    /// The instance ends when it has had no request for this long; `None`: it does not end when idle.
    pub(crate) idle_timeout: Option<Duration>,
}

impl InstanceRun<'_> {
    /// Runs an instance. `first` is a request of the host itself, whose response is discarded; `on_start` is called
    /// when the instance is created. Returns without an error when the instance was idle, or when one request got no
    /// response in time and all others have ended.
    pub(crate) async fn run(&self, first: Option<Request>, on_start: impl FnOnce()) -> wasmtime::Result<()> {
        let (mut store, service) = self.factory.instantiate(self.role).await?;
        let proxy = Proxy::P3(service);
        let occupancy = self.queue.register();
        on_start();
        // Declared after the store and so dropped before it: response bodies see that the instance is lost before their
        // streams end with the store.
        let mut loss = LossGuard(Some(&occupancy));
        let heartbeats = AtomicU64::new(0);
        let serve =
            store.run_concurrent(async |accessor| self.serve(accessor, &proxy, &occupancy, first, &heartbeats).await);
        let serve = self.factory.host().run_guest(serve);
        // Several requests share the thread, and their items are computed together. The stateful instance also has work
        // without requests.
        let may_lend = || self.role == Role::Stateless && occupancy.requests() <= 1;
        let serve = lend_thread(may_lend, serve);
        let result = tokio::select! {
            result = serve => result.and_then(|result| result),
            () = silence(&heartbeats, self.hang_timeout) => {
                let waited_ms = self.hang_timeout.as_millis();
                Err(wasmtime::format_err!("its event loop has not run for {waited_ms} ms"))
            }
        };
        if result.is_ok() {
            loss.0 = None;
        }
        result
    }

    /// Hands requests to the instance as it has room for them.
    async fn serve(
        &self,
        accessor: &Accessor<StoreData>,
        proxy: &Proxy,
        occupancy: &Arc<Occupancy>,
        first: Option<Request>,
        heartbeats: &AtomicU64,
    ) -> wasmtime::Result<()> {
        let mut open = FuturesUnordered::new();
        let begin = |request: Request, result: oneshot::Sender<HandleResult>, admission: Option<Admission>| {
            // Calls of the stateful instance continue after their requests, except for generations, which end with
            // their clients.
            let ends_with_request =
                self.idle_timeout.is_some() || GenerationRoute::find(request.uri().path()).is_some();
            let prepared = accessor.with(|mut access| {
                let prepared = Prepared::new(access.as_context_mut(), proxy, request, WasiHttpView::http, result);
                if let (Ok(Prepared::P3 { call, .. }), Some((request, _))) = (&prepared, &admission)
                    && ends_with_request
                {
                    access.get().state::<GatewayState>().add_request(call.task(), request);
                }
                prepared
            });
            // The open request is not held here: it ends with its response body, even if the guest still runs.
            let reservation = admission.map(|(_, reservation)| reservation);
            let head_timeout = self.head_timeout;
            async move {
                let result = prepared?.run(accessor, tokio::time::sleep(head_timeout)).await;
                drop(reservation);
                result
            }
        };
        if let Some(first) = first {
            let (result, _) = oneshot::channel();
            open.push(begin(first, result, None));
        }
        let mut accepts = true;
        let mut heartbeat = pin!(tokio::time::sleep(Duration::ZERO));
        let mut idle: Option<Pin<Box<Sleep>>> = None;
        let serve = std::future::poll_fn(|cx| {
            loop {
                match open.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(true))) => continue,
                    Poll::Ready(Some(Ok(false))) => {
                        // A guest that did not answer one request in time gets no new ones, except for the stateful
                        // instance, since no other instance has its state.
                        accepts = self.idle_timeout.is_none();
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) | Poll::Pending => {}
                }
                if heartbeat.as_mut().poll(cx).is_ready() {
                    heartbeats.fetch_add(1, Ordering::Relaxed);
                    heartbeat.as_mut().reset(Instant::now() + self.hang_timeout / HEARTBEATS);
                    continue;
                }
                if accepts && let Poll::Ready(admitted) = self.queue.poll_admit(occupancy, cx) {
                    stages::mark(Stage::Admitted);
                    let AdmittedRequest { request, open: state, result, reservation } = admitted;
                    open.push(begin(request, result, Some((state, reservation))));
                    // The guest starts on this request before it admits another: while it computes, other instances may
                    // admit.
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
        });
        poll_when_woken(serve).await
    }
}

/// Marks an instance as lost, unless its run ended without an error.
struct LossGuard<'a>(Option<&'a Arc<Occupancy>>);

impl Drop for LossGuard<'_> {
    fn drop(&mut self) {
        if let Some(occupancy) = self.0 {
            occupancy.mark_lost();
        }
    }
}
