//! The gateway component: `wasi:http` in, streams of results out.
//!
//! It routes, validates, negotiates and renders; `weir:stream/infer` does the inference and `weir:stream/session` runs transcript
//! sessions. One instance serves many requests at once: nothing here blocks.
//!
//! - `dispatch`: from a path to the feature that answers it; `health`: probes.
//! - `inference`, `generation`, `channels`, `transcripts`, `pipelines`: the features.
//! - `page`: the page for browsers.
//! - `auth`: users, their rates and their subscriptions.
//! - `http`: requests, responses, and streams in both directions.
//! - `platform`: bindings, clocks, settings, leases.
//!
//! Arrows go down this list. Imports `wasi:*` and `weir:stream/*`, nothing else.

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
