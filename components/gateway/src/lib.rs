//! The gateway component: `wasi:http` in, streams of results out.
//!
//! It routes and validates requests, negotiates formats and renders responses; `weir:stream/infer` does the inference
//! and `weir:stream/session` runs transcript sessions. One instance serves many requests concurrently, so nothing here
//! blocks.
//!
//! - `dispatch`: from a path to the feature that handles it; `health`: probes.
//! - `inference`, `generation`, `channels`, `transcripts`, `pipelines`: the features.
//! - `page`: the web page for browsers.
//! - `auth`: users, their rates and their connections.
//! - `http`: requests, responses, and streams in both directions.
//! - `platform`: bindings, clocks, settings, leases.
//!
//! A module depends only on those below it in this list. The component imports `wasi:*` and `weir:stream/*`, nothing
//! else.

mod auth;
mod channels;
mod dispatch;
mod generation;
mod health;
mod http;
mod inference;
mod page;
mod pipelines;
mod platform;
mod transcripts;

use spin_sdk::{
    http::Request,
    http_service,
    wasip3::http::types::{ErrorCode, Response},
};

#[http_service]
async fn handle(request: Request) -> Result<Response, ErrorCode> {
    dispatch::handle(request).await
}
