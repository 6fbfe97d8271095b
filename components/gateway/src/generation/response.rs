//! A generation as a response, rendered from its channel: for the client that started it and for those that reconnect.

use std::{future::pending, pin::pin, rc::Rc};

use futures::future::{Either, LocalBoxFuture, select};
use spin_sdk::wasip3::{http::types::ErrorCode, wit_bindgen::StreamWriter as BodyWriter};
use weir_codec::{
    channels::route::Channel,
    generation::{
        dialect::{Dialect, StreamFraming},
        event::{GenerationEvent, Started},
        generated::Generated,
        render::GenerationStream,
    },
    http::problem::Problem,
};
use weir_core::channels::Cursor;
use wit_bindgen::rt::async_support::{StreamReader, StreamResult};

use super::running::{RunningGeneration, failed};
use crate::{
    http::response::{Client, send, write_or_probe},
    platform::{
        bindings::weir::stream::events::{self, Closed, Delivery, Entry},
        clock::{self, Deadline},
        settings::Settings,
        store,
    },
};

/// The most deliveries in one read. Those of one read are sent with one write.
const DELIVERIES_MAX: usize = 64;
/// Events in one page of the store.
const PAGE_EVENTS: u32 = 1000;
/// The interval in which the client is probed while there is nothing to write, in milliseconds.
const PROBE_MS: u64 = 500;
/// The delay before a channel is followed again whose deliveries ended without an event, in milliseconds.
const FOLLOW_AGAIN_MS: u64 = 100;
const START: Cursor = Cursor { epoch: 0, seq: 0 };

/// The events of a channel in order, up to its last.
pub(super) struct ChannelEvents {
    channel: Channel,
    user: Option<String>,
    deliveries: StreamReader<Delivery>,
    last: Cursor,
    has_ended: bool,
}

/// The store has lost events of the channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventsLost;

impl ChannelEvents {
    /// Follows a channel from its first event.
    pub(super) async fn follow(channel: Channel, user: Option<String>) -> Result<Self, Problem> {
        let deliveries = events::follow(channel.to_string(), START, user.clone()).await.map_err(store::problem)?;
        Ok(Self { channel, user, deliveries, last: START, has_ended: false })
    }

    /// Waits for events; none after the last.
    async fn next(&mut self) -> Result<Option<Vec<Entry>>, EventsLost> {
        loop {
            if self.has_ended {
                return Ok(None);
            }
            let (result, batch) = self.deliveries.read(Vec::with_capacity(DELIVERIES_MAX)).await;
            let (mut entries, mut is_slow) = (Vec::new(), false);
            for delivery in batch {
                match delivery {
                    Delivery::Entry(entry) => {
                        (self.last, self.has_ended) = (entry.at, entry.event.finishes);
                        entries.push(entry);
                    }
                    Delivery::Closed(Closed::Slow) => is_slow = true,
                    Delivery::Gap(_) | Delivery::Closed(Closed::Lost) => return Err(EventsLost),
                }
            }
            if is_slow {
                if entries.is_empty() {
                    Deadline::after(clock::now(), FOLLOW_AGAIN_MS).passed().await;
                }
                // The channel retains the events that were not read.
                let followed = events::follow(self.channel.to_string(), self.last, self.user.clone()).await;
                self.deliveries = followed.map_err(|_| EventsLost)?;
            } else if !matches!(result, StreamResult::Complete(_)) && !self.has_ended {
                return if entries.is_empty() { Err(EventsLost) } else { Ok(Some(entries)) };
            }
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
    }
}

/// All of a generation, once it has ended.
pub(super) async fn collect(mut channel: ChannelEvents) -> Result<Generated, Problem> {
    let mut generated = Generated::default();
    loop {
        match channel.next().await {
            Ok(None) => return Ok(generated),
            Ok(Some(entries)) => entries.iter().filter_map(event).for_each(|event| generated.push(&event)),
            Err(EventsLost) => return Err(lost()),
        }
    }
}

/// The current state of a generation.
pub(super) async fn collect_so_far(channel: &Channel) -> Result<Generated, Problem> {
    let mut generated = Generated::default();
    let mut after = START;
    loop {
        let page = events::read(channel.to_string(), after, PAGE_EVENTS).await.map_err(store::problem)?;
        if page.gap.is_some() {
            return Err(lost());
        }
        page.entries.iter().filter_map(event).for_each(|event| generated.push(&event));
        if page.ended || page.entries.is_empty() {
            return Ok(generated);
        }
        after = page.next;
    }
}

/// The first event of a generation; none if there is no such generation or its first event is not retained.
pub(super) async fn started(channel: &Channel) -> Result<Option<Started>, Problem> {
    let page = events::read(channel.to_string(), START, 1).await.map_err(store::problem)?;
    match page.entries.first().and_then(event) {
        Some(GenerationEvent::Started(started)) if page.gap.is_none() => Ok(Some(started)),
        _ => Ok(None),
    }
}

fn event(entry: &Entry) -> Option<GenerationEvent> {
    GenerationEvent::from_json(&entry.event.data)
}

/// 410: the channel no longer retains all events of the generation.
fn lost() -> Problem {
    let detail = "the events of this generation are no longer retained (events.events_max, events.bytes_max)";
    Problem::refused(410, "events_lost", "The generation is not retained", detail, None)
}

/// The source of a response.
pub(super) enum Source {
    /// A generation whose prompt is being computed.
    Starting(LocalBoxFuture<'static, Result<Rc<RunningGeneration>, Problem>>),
    /// A generation that this request has started.
    Running(Rc<RunningGeneration>),
    /// The channel of an existing generation.
    Channel(ChannelEvents),
}

/// The response that streams a generation to a client.
pub(super) struct GenerationResponse {
    pub(super) dialect: Dialect,
    pub(super) framing: StreamFraming,
    /// The number of the last frame that the client has.
    pub(super) after: Option<u64>,
    /// Whether the generation is cancelled when the client disconnects.
    pub(super) ends_with_client: bool,
    pub(super) settings: &'static Settings,
}

impl GenerationResponse {
    /// Writes until the last event, or until the client is gone.
    pub(super) async fn write(self, source: Source, client: Client) {
        let Client { mut body, trailers, sent } = client;
        let mut running = None;
        let outcome = {
            let disconnected = pin!(async {
                // A detached generation starts even if its client disconnects before.
                if !self.ends_with_client || sent.await.is_ok() {
                    pending::<()>().await;
                }
            });
            let write = pin!(self.write_all(source, &mut running, &mut body));
            match select(write, disconnected).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(((), _)) => WriteEnd::Disconnected,
            }
        };
        match outcome {
            WriteEnd::Complete => {}
            WriteEnd::Disconnected => {
                if let Some(running) = running.filter(|_| self.ends_with_client) {
                    running.cancel();
                }
            }
            WriteEnd::Incomplete => {
                let cut = trailers.write(Err(ErrorCode::InternalError(None)));
                Deadline::after(clock::now(), PROBE_MS).bound(cut).await;
            }
        }
    }

    async fn write_all(
        &self,
        source: Source,
        running: &mut Option<Rc<RunningGeneration>>,
        body: &mut BodyWriter<u8>,
    ) -> WriteEnd {
        let mut stream = GenerationStream::new(&self.dialect, self.framing, self.after);
        let mut channel = match source {
            Source::Channel(channel) => Ok(channel),
            Source::Running(generation) => self.follow(generation, running).await,
            Source::Starting(mut starting) => {
                match self.keep_alive(&mut starting, &stream, body).await {
                    None => {
                        if !self.ends_with_client {
                            // The generation continues in its own task.
                            drop(starting.await);
                        }
                        return WriteEnd::Disconnected;
                    }
                    Some(Ok(generation)) => self.follow(generation, running).await,
                    Some(Err(problem)) => Err(problem),
                }
            }
        };
        let channel = match &mut channel {
            Ok(channel) => channel,
            Err(problem) => {
                let mut out = Vec::new();
                stream.push("", &failed(problem), &mut out);
                return if send(body, out).await { self.end(true) } else { WriteEnd::Disconnected };
            }
        };
        loop {
            let next = Box::pin(channel.next());
            let Some(next) = self.keep_alive(next, &stream, body).await else { return WriteEnd::Disconnected };
            let (entries, is_lost) = match next {
                Ok(Some(entries)) => (entries, false),
                Ok(None) => return WriteEnd::Complete,
                Err(EventsLost) => (Vec::new(), true),
            };
            let mut out = Vec::new();
            let mut is_failed = is_lost;
            for entry in &entries {
                let Some(event) = event(entry) else { continue };
                is_failed |= matches!(event, GenerationEvent::Error(_));
                stream.push(&entry.at.to_string(), &event, &mut out);
            }
            if is_lost {
                stream.push("", &failed(&lost()), &mut out);
            }
            if !out.is_empty() && !send(body, out).await {
                return WriteEnd::Disconnected;
            }
            if is_failed {
                return self.end(true);
            }
        }
    }

    async fn follow(
        &self,
        generation: Rc<RunningGeneration>,
        running: &mut Option<Rc<RunningGeneration>>,
    ) -> Result<ChannelEvents, Problem> {
        let channel = (generation.channel.clone(), generation.share());
        *running = Some(generation);
        ChannelEvents::follow(channel.0, channel.1).await
    }

    /// How the body ends. In plain text the only sign of an error is an incomplete body.
    fn end(&self, is_failed: bool) -> WriteEnd {
        if is_failed && self.framing == StreamFraming::Text { WriteEnd::Incomplete } else { WriteEnd::Complete }
    }

    /// Waits for a future and writes keep-alives to the client meanwhile; none when the client is gone.
    async fn keep_alive<T>(
        &self,
        mut future: impl Future<Output = T> + Unpin,
        stream: &GenerationStream,
        body: &mut BodyWriter<u8>,
    ) -> Option<T> {
        let mut beat = Deadline::after(clock::now(), self.settings.heartbeat_ms);
        loop {
            let tick = Box::pin(Deadline::after(clock::now(), PROBE_MS).passed());
            match select(&mut future, tick).await {
                Either::Left((done, _)) => return Some(done),
                Either::Right(((), _)) => {
                    let bytes = match stream.keep_alive().filter(|_| beat.is_past(clock::now())) {
                        Some(bytes) => {
                            beat = Deadline::after(clock::now(), self.settings.heartbeat_ms);
                            bytes.to_vec()
                        }
                        None => Vec::new(),
                    };
                    // An empty write completes when the reader is ready for more, or gone. The result of the future
                    // waits for it.
                    if !write_or_probe(body, bytes).await {
                        return None;
                    }
                }
            }
        }
    }
}

/// How writing a response has ended.
enum WriteEnd {
    Complete,
    /// The client is gone.
    Disconnected,
    /// The client must see that the body is incomplete.
    Incomplete,
}
