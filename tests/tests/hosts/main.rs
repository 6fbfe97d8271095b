//! Hosts: HTTP of the native host, its lifecycle and threads, the components under another host, and the embedding API.

mod composed;
mod early_responses;
mod embed;
mod http;
mod keyvalue;
mod keyvalue_draft2;
mod lifecycle;
mod node;
mod portable;
mod problems;
mod spin;
mod telemetry;
mod threads;
mod wasmcloud;
