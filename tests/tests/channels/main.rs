//! Channels: events published, followed in every form and resumed, by clients of other projects, across restarts, failures and full disks.

mod browser;
mod existence;
mod full_disk;
mod held_connections;
mod readers;
mod streams;
mod websocket_compression;
mod websockets;
