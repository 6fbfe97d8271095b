//! Requests that wait for an instance of the gateway component, and the occupancy of each instance.
//!
//! Instances pull: a request is admitted by the first instance that has room for it, in the number of its requests and
//! in the bytes of their bodies. The bytes of a body are reserved before its first byte reaches the guest, because a
//! guest that runs out of memory traps and ends every request that it has.

use std::collections::{HashMap, VecDeque};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::TrapOrPanicError;
use weir_telemetry::SpanContext;

use crate::components::engine::Host;
use crate::generation::GenerationHandle;
use crate::inference::call::CallHandle;

/// A request for the gateway.
pub type Request = http::Request<WasiBody>;

/// The response of an instance to a request.
pub(crate) type HandleResult = wasmtime::Result<http::Response<WasiBody>>;

/// How long a request waits for an instance that has room for it.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(15);

/// Why no instance admitted a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Every instance is at its bound on requests or on the bytes of their bodies.
    #[error("no instance of the gateway had room for the request within {} s", ADMISSION_TIMEOUT.as_secs())]
    Full,
    /// The client holds its share of the bytes of bodies.
    #[error("the client holds its share of the bytes of request bodies")]
    ClientShare,
}

/// The bounds of one instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InstanceBounds {
    pub(crate) requests_max: usize,
    /// Bytes of request bodies, as announced. A single body is admitted whatever its size.
    pub(crate) body_bytes_max: u64,
    /// The most bytes of bodies that one client may have in all instances together.
    pub(crate) client_body_bytes_max: u64,
}

/// One request, from its start until the body of its response has ended or its client has disconnected. When it is
/// dropped, it is no longer counted in its instance, and the calls that it made are abandoned.
pub(crate) struct OpenRequest {
    pub(crate) client: u64,
    /// The span of the request, or that of its client.
    pub(crate) trace: Option<SpanContext>,
    /// The end of the time of its response, unless that is a stream (`http.request_timeout_ms`).
    pub(crate) deadline: Instant,
    instance: OnceLock<Arc<Occupancy>>,
    reservation: OnceLock<Arc<Reservation>>,
    calls: Mutex<Vec<CallHandle>>,
    generations: Mutex<Vec<GenerationHandle>>,
}

impl OpenRequest {
    pub(crate) fn new(client: u64, trace: Option<SpanContext>, deadline: Instant) -> Self {
        Self {
            client,
            trace,
            deadline,
            instance: OnceLock::new(),
            reservation: OnceLock::new(),
            calls: Mutex::default(),
            generations: Mutex::default(),
        }
    }

    /// Counts the request in an instance.
    fn begin(&self, instance: Arc<Occupancy>, reservation: Arc<Reservation>) {
        instance.begin_request();
        let _ = self.reservation.set(reservation);
        let _ = self.instance.set(instance);
    }

    fn is_admitted(&self) -> bool {
        self.instance.get().is_some()
    }

    /// Whether the instance that admitted it was lost.
    pub(crate) fn is_instance_lost(&self) -> bool {
        self.instance.get().is_some_and(|instance| instance.is_lost())
    }

    /// Adds a call that ends with the request.
    pub(crate) fn add_call(&self, call: CallHandle) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        push_pruned(&mut calls, call, CallHandle::has_ended);
    }

    /// Adds a call of generations; those that are not detached end with the request.
    pub(crate) fn add_generations(&self, call: GenerationHandle) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        push_pruned(&mut generations, call, GenerationHandle::has_ended);
    }
}

/// Adds a handle. Handles of ended calls are removed each time the list would grow, so that a long request with many
/// calls has at most twice as many handles as open calls.
fn push_pruned<T>(handles: &mut Vec<T>, handle: T, has_ended: impl Fn(&T) -> bool) {
    if handles.len() == handles.capacity() {
        handles.retain(|handle| !has_ended(handle));
        handles.shrink_to(handles.len() * 2);
    }
    handles.push(handle);
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.get() {
            instance.end_request();
        }
        for call in self.calls.get_mut().unwrap_or_else(PoisonError::into_inner) {
            call.abandon();
        }
        for call in self.generations.get_mut().unwrap_or_else(PoisonError::into_inner) {
            call.end_attached();
        }
    }
}

/// The requests and the reserved bytes of one instance.
pub(crate) struct Occupancy {
    queue: Arc<RequestQueue>,
    requests: AtomicUsize,
    body_bytes: AtomicU64,
    /// Set before the store of an instance that trapped or hung is dropped.
    lost: AtomicBool,
    waker: AtomicWaker,
}

impl Occupancy {
    /// The number of requests whose responses have not ended.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    fn begin_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn end_request(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        self.queue.wake();
    }

    /// Wakes the task when a request has ended or been queued.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    pub(crate) fn mark_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Whether the instance trapped or hung: its streams have ended early.
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

struct WaitingRequest {
    request: Request,
    open: Arc<OpenRequest>,
    result: oneshot::Sender<HandleResult>,
    body_bytes: u64,
    since: Instant,
}

/// A request that an instance has admitted.
pub(crate) struct AdmittedRequest {
    pub(crate) request: Request,
    pub(crate) open: Arc<OpenRequest>,
    pub(crate) result: oneshot::Sender<HandleResult>,
    /// Must be held for as long as the guest may have the body in its memory.
    pub(crate) reservation: Arc<Reservation>,
}

/// The requests that wait for one kind of instance.
pub(crate) struct RequestQueue {
    bounds: InstanceBounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<WaitingRequest>,
    instances: Vec<Weak<Occupancy>>,
    /// Reserved bytes, by client.
    client_bytes: HashMap<u64, u64>,
}

impl RequestQueue {
    pub(crate) fn new(bounds: InstanceBounds) -> Arc<Self> {
        Arc::new(Self { bounds, state: Mutex::default() })
    }

    /// Adds an instance.
    pub(crate) fn register(self: &Arc<Self>) -> Arc<Occupancy> {
        let occupancy = Arc::new(Occupancy {
            queue: self.clone(),
            requests: AtomicUsize::new(0),
            body_bytes: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let mut state = self.lock();
        state.instances.retain(|instance| instance.strong_count() > 0);
        state.instances.push(Arc::downgrade(&occupancy));
        occupancy
    }

    /// Hands a request to the first instance that has room for it, and waits for its response. `start_if_needed` runs
    /// at once and at each tick of the clock of guests while the request waits: a timer for each request would wake the
    /// thread that waits for sockets.
    pub(crate) async fn submit(
        &self,
        request: Request,
        open: Arc<OpenRequest>,
        body_bytes: u64,
        host: &Host,
        start_if_needed: impl Fn(),
    ) -> HandleResult {
        let (result, mut received) = oneshot::channel();
        let since = Instant::now();
        let client = open.client;
        self.lock().waiting.push_back(WaitingRequest { request, open: open.clone(), result, body_bytes, since });
        self.wake();
        let ticking = host.ticking();
        let mut timeout = pin!(tokio::time::sleep(ADMISSION_TIMEOUT));
        while !open.is_admitted() {
            let ticked = host.ticked();
            start_if_needed();
            tokio::select! {
                result = &mut received => return result.map_err(|_| TrapOrPanicError)?,
                () = ticked => {}
                () = &mut timeout => {}
            }
            if timeout.is_elapsed() && !open.is_admitted() {
                let over = self.lock().is_over_share(client, body_bytes, &self.bounds);
                return Err(if over { AdmissionError::ClientShare } else { AdmissionError::Full }.into());
            }
        }
        drop(ticking);
        received.await.map_err(|_| TrapOrPanicError)?
    }

    /// The next request that an instance has room for.
    pub(crate) fn poll_admit(
        self: &Arc<Self>,
        instance: &Arc<Occupancy>,
        cx: &mut Context<'_>,
    ) -> Poll<AdmittedRequest> {
        instance.register(cx);
        if instance.requests() >= self.bounds.requests_max {
            return Poll::Pending;
        }
        let mut state = self.lock();
        // Requests whose clients have disconnected.
        state.waiting.retain(|waiting| !waiting.result.is_canceled());
        let held_bytes = instance.body_bytes.load(Ordering::Relaxed);
        let fits = |waiting: &WaitingRequest| {
            let fits = held_bytes == 0
                || waiting.body_bytes == 0
                || held_bytes.saturating_add(waiting.body_bytes) <= self.bounds.body_bytes_max;
            fits && !state.is_over_share(waiting.open.client, waiting.body_bytes, &self.bounds)
        };
        let Some(at) = state.waiting.iter().position(fits) else { return Poll::Pending };
        let Some(WaitingRequest { request, open, result, body_bytes, .. }) = state.waiting.remove(at) else {
            return Poll::Pending;
        };
        instance.body_bytes.fetch_add(body_bytes, Ordering::Relaxed);
        if body_bytes > 0 {
            *state.client_bytes.entry(open.client).or_default() += body_bytes;
        }
        drop(state);
        let reservation = Arc::new(Reservation {
            instance: instance.clone(),
            client: open.client,
            bytes: AtomicU64::new(body_bytes),
        });
        open.begin(instance.clone(), reservation.clone());
        let request =
            request.map(|body| ReservedBody { body, reservation: reservation.clone(), bytes: 0 }.boxed_unsync());
        Poll::Ready(AdmittedRequest { request, open, result, reservation })
    }

    /// Whether another instance is needed: a request that is not over its client's share has waited for `waited`, or
    /// every instance is at its bound on requests.
    pub(crate) fn wants_instance(&self, waited: Duration) -> bool {
        let state = self.lock();
        let waits = |waiting: &&WaitingRequest| {
            !waiting.result.is_canceled() && !state.is_over_share(waiting.open.client, waiting.body_bytes, &self.bounds)
        };
        let Some(oldest) = state.waiting.iter().find(waits) else { return false };
        let full = |instance: Arc<Occupancy>| instance.requests() >= self.bounds.requests_max;
        oldest.since.elapsed() >= waited || state.instances.iter().filter_map(Weak::upgrade).all(full)
    }

    /// Fails every waiting request: no instance can be created.
    pub(crate) fn fail(&self, error: &wasmtime::Error) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        for waiting in waiting {
            let _ = waiting.result.send(Err(wasmtime::format_err!("{error:#}")));
        }
    }

    /// Wakes every instance, which then checks the waiting requests.
    fn wake(&self) {
        let instances: Vec<_> = self.lock().instances.iter().filter_map(Weak::upgrade).collect();
        for instance in instances {
            instance.waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases reserved bytes.
    fn release(&self, instance: &Occupancy, client: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        instance.body_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut state = self.lock();
        if let Some(reserved) = state.client_bytes.get_mut(&client) {
            *reserved = reserved.saturating_sub(bytes);
            if *reserved == 0 {
                state.client_bytes.remove(&client);
            }
        }
        let waits = !state.waiting.is_empty();
        drop(state);
        if waits {
            self.wake();
        }
    }
}

impl State {
    fn is_over_share(&self, client: u64, body_bytes: u64, bounds: &InstanceBounds) -> bool {
        let reserved = self.client_bytes.get(&client).copied().unwrap_or(0);
        reserved > 0 && body_bytes > 0 && reserved.saturating_add(body_bytes) > bounds.client_body_bytes_max
    }
}

/// Bytes of an instance that are reserved for a body.
pub(crate) struct Reservation {
    instance: Arc<Occupancy>,
    client: u64,
    bytes: AtomicU64,
}

impl Reservation {
    /// Releases the reserved bytes beyond the actual length of the body.
    fn shrink_to(&self, bytes: u64) {
        let before = self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.instance.queue.release(&self.instance, self.client, before.saturating_sub(bytes));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.instance.queue.release(&self.instance, self.client, *self.bytes.get_mut());
    }
}

/// A request's body, whose reservation shrinks to its length when it ends.
struct ReservedBody {
    body: WasiBody,
    reservation: Arc<Reservation>,
    bytes: u64,
}

impl Body for ReservedBody {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) | None => this.reservation.shrink_to(this.bytes),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;
    use http_body_util::Empty;

    use super::*;

    const BOUNDS: InstanceBounds = InstanceBounds { requests_max: 3, body_bytes_max: 100, client_body_bytes_max: 150 };

    fn request() -> Request {
        let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
        http::Request::post("http://localhost/").body(body).unwrap()
    }

    /// Queues a request, which waits for as long as the receiver exists.
    fn push(queue: &RequestQueue, client: u64, body_bytes: u64) -> oneshot::Receiver<HandleResult> {
        let (result, received) = oneshot::channel();
        let since = Instant::now();
        let open = Arc::new(OpenRequest::new(client, None, since));
        queue.lock().waiting.push_back(WaitingRequest { request: request(), open, result, body_bytes, since });
        received
    }

    fn admit(queue: &Arc<RequestQueue>, instance: &Arc<Occupancy>) -> Option<AdmittedRequest> {
        match queue.poll_admit(instance, &mut Context::from_waker(noop_waker_ref())) {
            Poll::Ready(admitted) => Some(admitted),
            Poll::Pending => None,
        }
    }

    #[test]
    fn handles_of_ended_calls_do_not_accumulate() {
        let mut handles = Vec::new();
        let open: Vec<_> = (0..10).map(Arc::new).collect();
        open.iter().for_each(|call| push_pruned(&mut handles, Arc::downgrade(call), |call| call.strong_count() == 0));
        for number in 10..10_000 {
            let ended = Arc::downgrade(&Arc::new(number));
            push_pruned(&mut handles, ended, |call| call.strong_count() == 0);
            assert!(handles.len() <= 64, "{} handles of 10 open calls", handles.len());
        }
        let remaining = handles.iter().filter(|call| call.strong_count() > 0).count();
        assert_eq!(remaining, open.len());
    }

    #[test]
    fn bodies_over_the_bound_wait_until_others_are_released() {
        let queue = RequestQueue::new(BOUNDS);
        let instance = queue.register();
        let _receivers = [push(&queue, 1, 60), push(&queue, 2, 60), push(&queue, 3, 40), push(&queue, 4, 0)];
        let first = admit(&queue, &instance).unwrap();
        // The second does not fit; a later one that fits does not wait for it.
        let third = admit(&queue, &instance).unwrap();
        assert_eq!((first.open.client, third.open.client), (1, 3));
        assert_eq!(instance.body_bytes.load(Ordering::Relaxed), 100);
        let fourth = admit(&queue, &instance).unwrap();
        assert_eq!(fourth.open.client, 4, "a request without a body needs no bytes");
        // The instance is at its bound of three requests.
        drop(first);
        drop(fourth);
        let second = admit(&queue, &instance).unwrap();
        assert_eq!(second.open.client, 2);
        drop((second, third));
        assert_eq!((instance.body_bytes.load(Ordering::Relaxed), instance.requests()), (0, 0));
        assert!(queue.lock().client_bytes.is_empty());
    }

    #[test]
    fn body_larger_than_the_bound_is_admitted_alone() {
        let queue = RequestQueue::new(BOUNDS);
        let instance = queue.register();
        let _receivers = [push(&queue, 1, 1000), push(&queue, 2, 1)];
        let alone = admit(&queue, &instance).unwrap();
        assert!(admit(&queue, &instance).is_none());
        drop(alone);
        assert!(admit(&queue, &instance).is_some());
    }

    #[test]
    fn client_over_its_share_of_bytes_waits_and_others_pass() {
        let queue = RequestQueue::new(BOUNDS);
        let instances = [queue.register(), queue.register(), queue.register()];
        let _receivers = [push(&queue, 1, 90), push(&queue, 1, 60), push(&queue, 1, 1), push(&queue, 2, 90)];
        let first = admit(&queue, &instances[0]).unwrap();
        let second = admit(&queue, &instances[1]).unwrap();
        let other = admit(&queue, &instances[2]).unwrap();
        assert_eq!(other.open.client, 2);
        assert!(admit(&queue, &instances[2]).is_none(), "150 bytes are its share");
        assert!(!queue.wants_instance(Duration::ZERO), "another instance gives it no more");
        drop(first);
        assert!(admit(&queue, &instances[2]).is_some());
        drop((second, other));
    }

    #[test]
    fn body_that_ends_early_releases_the_rest() {
        let queue = RequestQueue::new(BOUNDS);
        let instance = queue.register();
        let _receivers = [push(&queue, 1, 100), push(&queue, 2, 90)];
        let mut first = admit(&queue, &instance).unwrap();
        assert!(admit(&queue, &instance).is_none());
        let mut cx = Context::from_waker(noop_waker_ref());
        assert!(matches!(Pin::new(first.request.body_mut()).poll_frame(&mut cx), Poll::Ready(None)));
        assert!(admit(&queue, &instance).is_some(), "the first body had no bytes");
    }

    #[test]
    fn request_of_a_disconnected_client_is_not_admitted() {
        let queue = RequestQueue::new(BOUNDS);
        let instance = queue.register();
        drop(push(&queue, 1, 1));
        assert!(admit(&queue, &instance).is_none());
        assert!(queue.lock().waiting.is_empty());
    }
}
