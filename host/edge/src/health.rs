//! `GET /stream/health` of a server with adapters: adds the adapters of the host to the response of the gateway.

use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt, Limited};
use weir_codec::adapter::health::add_adapters;

use crate::body::ResponseBody;
use crate::response::{EdgeProblem, EdgeResponse, edge_problem};
use crate::state::EdgeState;

/// The path of the route.
pub(crate) const HEALTH_PATH: &str = "/stream/health";
/// The most bytes of the gateway's response, and the timeout of its body.
const BODY_BYTES_MAX: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Adds the adapters to the response of the gateway. Without adapters, or if the body has another form, the response is unchanged.
pub(crate) async fn with_adapters(state: &EdgeState, response: EdgeResponse, request_id: &str) -> EdgeResponse {
    let Some(reports) = state.adapters.get() else { return response };
    let (mut head, body) = match response {
        EdgeResponse::Http(response) => response.into_parts(),
        other => return other,
    };
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let body = match whole {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(_)) => return EdgeResponse::Http(edge_problem(EdgeProblem::InstanceLost, request_id)),
        Err(_) => return EdgeResponse::Http(edge_problem(EdgeProblem::Timeout, request_id)),
    };
    // What a failure says may name hosts of the operator: it is for those who may read metrics.
    let body = add_adapters(&body, &reports(), !state.needs_token).map_or(body, Into::into);
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    EdgeResponse::Http(Response::from_parts(head, ResponseBody::full(body)))
}
