//! The gateway: instances of the gateway component behind `wasi:http/handler`. An instance serves many requests at once
//! and is reused.
//!
//! - `admission`: the requests that wait for an instance, and the occupancy of each instance.
//! - `run`: one instance, from its start to its end.
//! - `scaled`: the stateless instances, whose number follows the load.
//! - `stateful`: the one instance that holds state across requests.
//! - `state`: the data of an instance's store, and the factory of instances.

pub(crate) mod admission;
mod run;
mod scaled;
pub(crate) mod state;
mod stateful;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::WasiBody;
use weir_codec::http::router::RouteMatch;
use weir_telemetry::TRACEPARENT;

use crate::components::gateway::admission::{InstanceBounds, OpenRequest, RequestQueue};
use crate::components::gateway::scaled::ScaledInstances;
use crate::components::gateway::state::GatewayFactory;
use crate::components::gateway::stateful::StatefulInstance;

pub use crate::components::gateway::admission::{AdmissionError, Request};
pub use wasmtime::Error as HandleError;
pub use wasmtime_wasi_http::Error as BodyError;

/// The gateway's response; its request counts as open until the body ends or is dropped.
pub type Response = http::Response<ResponseBody>;

/// Dispatches requests to gateway instances: those of stateful routes to the one stateful instance, all others to
/// stateless instances, which are started as needed.
#[derive(Clone)]
pub struct Gateway {
    stateless: ScaledInstances,
    stateful: StatefulInstance,
    /// The time for a response that is not a stream.
    request_timeout: Duration,
}

impl Gateway {
    /// Starts the stateful instance; stateless ones start with the first requests.
    pub(crate) fn start(factory: GatewayFactory) -> Self {
        let config = factory.config();
        let share = |bytes: u64| bytes.saturating_mul(u64::from(config.client_share_percent)) / 100;
        let stateless = InstanceBounds {
            requests_max: config.instance_requests_max,
            body_bytes_max: config.body_bytes_max,
            client_body_bytes_max: share(config.body_bytes_max.saturating_mul(config.instances_max as u64)),
        };
        let stateful = InstanceBounds {
            // The listener bounds the number of requests.
            requests_max: usize::MAX,
            body_bytes_max: config.stateful_body_bytes_max,
            client_body_bytes_max: share(config.stateful_body_bytes_max),
        };
        let request_timeout = config.request_timeout;
        let factory = Arc::new(factory);
        Self {
            request_timeout,
            stateful: StatefulInstance::start(factory.clone(), RequestQueue::new(stateful)),
            stateless: ScaledInstances::new(factory, RequestQueue::new(stateless)),
        }
    }

    /// Answers a request of a client, which has a share of each queue. A [`BodyBytes`] extension of the request is the
    /// memory that its body takes in an instance. The caller must bound the number of open requests.
    ///
    /// # Errors
    ///
    /// No instance had room for the request ([`admission_error`]), the instance was lost ([`is_lost_instance`]), or it
    /// gave no response in time ([`is_timeout`]).
    pub async fn handle(&self, mut request: Request, client: u64) -> wasmtime::Result<Response> {
        let body_bytes = body_bytes(&mut request);
        let trace = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok()?.parse().ok());
        let deadline = Instant::now() + self.request_timeout;
        let open = Arc::new(OpenRequest::new(client, trace, deadline));
        let response = match RouteMatch::is_stateful(request.uri().path()) {
            true => self.stateful.handle(request, open.clone(), body_bytes).await?,
            false => self.stateless.handle(request, open.clone(), body_bytes).await?,
        };
        Ok(response.map(|body| ResponseBody { body, open, has_ended: false }))
    }
}

/// The body of a response. Its request counts as open until this is dropped. It ends with an error when its instance
/// was lost before the guest had written the whole body.
pub struct ResponseBody {
    body: WasiBody,
    open: Arc<OpenRequest>,
    has_ended: bool,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.has_ended = true;
            // The streams of a lost instance end with its store, and look as if the guest had ended them.
            if self.open.is_instance_lost() {
                return Poll::Ready(Some(Err(wasmtime_wasi_http::Error::HttpResponseIncomplete)));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // A body that seems to have ended may belong to a lost instance, which only `poll_frame` checks.
        self.has_ended || (self.body.is_end_stream() && self.body.size_hint().exact() == Some(0))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The most bytes of an instance's memory that the body of a request takes. A request extension for hosts that know how
/// bodies of its content type are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyBytes(pub u64);

/// Memory assumed for a body without an announced length or a [`BodyBytes`] extension.
const UNKNOWN_BODY_BYTES: u64 = 256 << 10;

fn body_bytes(request: &mut Request) -> u64 {
    match request.extensions_mut().remove::<BodyBytes>() {
        Some(BodyBytes(bytes)) => bytes,
        None => request.body().size_hint().exact().unwrap_or(UNKNOWN_BODY_BYTES),
    }
}

/// Wraps a body for [`Gateway::handle`].
pub fn request_body<B>(body: B) -> WasiBody
where
    B: Body<Data = Bytes, Error = wasmtime_wasi_http::Error> + Send + 'static,
{
    use http_body_util::BodyExt;
    body.boxed_unsync()
}

/// Whether `handle` failed because the instance trapped. A retry of the same request may succeed.
pub fn is_lost_instance(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime_wasi_http::handler::TrapOrPanicError>()
}

/// Why no instance admitted the request, if that is why `handle` failed.
pub fn admission_error(error: &wasmtime::Error) -> Option<AdmissionError> {
    error.downcast_ref().copied()
}

/// Whether `handle` failed because no response came in time.
pub fn is_timeout(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime_wasi_http::handler::ExpirationError>()
}
