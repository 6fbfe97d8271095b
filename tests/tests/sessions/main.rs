//! Transcripts: streams of chunks, and sessions that are stored.

mod stored;
mod transcript;
