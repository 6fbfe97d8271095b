//! A subscriber of a channel: server-sent events over HTTP, parsed as in the HTML standard (section 9.2).

use std::collections::VecDeque;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use reqwest::{Client, Response};
use serde_json::Value;

use crate::{PATIENCE, Server};

/// A received event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The id of the last event that had one, which may be an earlier event.
    pub id: String,
    /// The name of the event.
    pub name: String,
    /// The data, as JSON.
    pub data: Value,
}

impl Event {
    /// The sequence number of the cursor in the id.
    pub fn seq(&self) -> Result<u64> {
        let (_, seq) = self.id.split_once('-').with_context(|| format!("an id: {}", self.id))?;
        Ok(seq.parse()?)
    }
}

/// A subscriber that reads server-sent events.
pub struct Follower {
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    line: Vec<u8>,
    lines: VecDeque<String>,
    last_id: String,
    heartbeats: usize,
}

impl Follower {
    /// Subscribes to the channel at a path, after an event id or from the beginning.
    pub async fn open(server: &Server, path: &str, last_id: Option<&str>) -> Result<Self> {
        let mut request = Client::new().get(server.url(path));
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        Self::from_response(request.send().await?, last_id)
    }

    /// Reads the events of a response.
    pub fn from_response(response: Response, last_id: Option<&str>) -> Result<Self> {
        ensure!(response.status() == 200, "{response:?}");
        let last_id = last_id.unwrap_or_default().to_owned();
        let body = response.bytes_stream().boxed();
        Ok(Self { body, line: Vec::new(), lines: VecDeque::new(), last_id, heartbeats: 0 })
    }

    /// The next event; none at the end of the stream or where the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let (mut name, mut data) = ("message".to_owned(), Vec::new());
        loop {
            let Some(line) = self.next_line().await? else { return Ok(None) };
            if line.is_empty() {
                if data.is_empty() {
                    name = "message".to_owned();
                    continue;
                }
                let text = data.join("\n");
                let data = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
                return Ok(Some(Event { id: self.last_id.clone(), name, data }));
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => self.heartbeats += 1,
                "id" => self.last_id = value.to_owned(),
                "event" => name = value.to_owned(),
                "data" => data.push(value.to_owned()),
                "retry" => {}
                other => bail!("an unknown field: {other:?}"),
            }
        }
    }

    /// The next event; an error at the end of the stream.
    pub async fn next_event(&mut self) -> Result<Event> {
        self.next().await?.context("the stream ended")
    }

    /// The next event that has a cursor, which `connected` and `disconnected` have not; an error at the end of the stream.
    pub async fn next_stored_event(&mut self) -> Result<Event> {
        loop {
            let event = self.next_event().await?;
            if !matches!(event.name.as_str(), "connected" | "disconnected") {
                return Ok(event);
            }
        }
    }

    /// The events with a cursor, to the end of the stream.
    pub async fn remaining_events(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            if !matches!(event.name.as_str(), "connected" | "disconnected") {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// The event id after which a new subscription would resume.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The number of comments received.
    pub fn heartbeats(&self) -> usize {
        self.heartbeats
    }

    async fn next_line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            // A broken connection counts as the end.
            let next = self.body.try_next();
            let piece = tokio::time::timeout(PATIENCE, next).await.context("no event or heartbeat in time")?;
            let Ok(Some(piece)) = piece else { return Ok(None) };
            for byte in piece {
                match byte {
                    b'\n' => self.lines.push_back(String::from_utf8(std::mem::take(&mut self.line))?),
                    b'\r' => bail!("a line that ends in CR"),
                    byte => self.line.push(byte),
                }
            }
        }
    }
}
