//! Hosts: HTTP as the native host speaks it, its life from start to end, the components under another host, and the embedding API.

mod composed;
mod early_responses;
mod embed;
mod http;
mod lifecycle;
mod problems;
mod threads;
