//! The service `weir:stream/generate`: streams of commands in, streams of events out.
//!
//! Every call of `run` is a loop: read the available commands, start requests, compute one step of each model, and
//! write its events. It waits only when it has nothing to compute.

mod lane;
mod models;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use weir_guest::read::read_up_to;
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

use self::lane::Lane;
use self::models::Models;
use crate::Failure;
use crate::bindings::exports::weir::stream::generate::{Command, Event, GenerateModel, Guest};
use crate::bindings::wit_stream;
use crate::types::{EventKind, Request};

/// The most commands read at once.
const COMMANDS_MAX: usize = 16;

thread_local! {
    static MODELS: Rc<Models> = Rc::default();
}

struct Service;

crate::bindings::export!(Service with_types_in crate::bindings);

impl Guest for Service {
    async fn run(commands: StreamReader<Command>) -> StreamReader<Event> {
        let (writer, reader) = wit_stream::new();
        wit_bindgen::spawn(serve(commands, writer));
        reader
    }

    async fn models() -> Vec<GenerateModel> {
        MODELS.with(Rc::clone).list().await
    }
}

async fn serve(mut commands: StreamReader<Command>, mut events: StreamWriter<Event>) {
    let mut call =
        RunCall { models: MODELS.with(Rc::clone), lanes: Vec::new(), blocked: VecDeque::new(), events: Vec::new() };
    let mut ended = false;
    loop {
        if !ended && call.blocked.is_empty() {
            let (status, read) = read_up_to(&mut commands, COMMANDS_MAX, call.is_idle()).await;
            ended = matches!(status, StreamResult::Dropped);
            for command in read {
                match command {
                    Command::Start(request) => call.start(request).await,
                    Command::Cancel(id) => call.cancel(id),
                }
            }
        }
        call.start_blocked().await;
        for lane in &mut call.lanes {
            lane.step(&mut call.events).await;
        }
        let batch = std::mem::take(&mut call.events);
        if !batch.is_empty() && !events.write_all(batch).await.is_empty() {
            // The reader is gone: dropping the lanes frees their sequences.
            return;
        }
        if ended && call.is_idle() && call.blocked.is_empty() {
            return;
        }
    }
}

/// One call of `run`.
struct RunCall {
    models: Rc<Models>,
    /// The models that its requests name.
    lanes: Vec<Lane>,
    /// Requests that wait for capacity in a queue, in order. No command is read while there is one.
    blocked: VecDeque<BlockedRequest>,
    events: Vec<Event>,
}

/// A request that waits for capacity in the queue of its model.
struct BlockedRequest {
    request: Request,
    deadline: Option<Instant>,
}

impl BlockedRequest {
    fn new(request: Request) -> Self {
        let deadline = request.deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms.into()));
        Self { request, deadline }
    }

    /// Sets the time that remains until the deadline. False once it has passed.
    fn update(&mut self) -> bool {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.request.deadline_ms = left.map(|left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1));
        left != Some(Duration::ZERO)
    }
}

impl RunCall {
    fn is_idle(&self) -> bool {
        self.lanes.iter().all(Lane::is_idle)
    }

    async fn start(&mut self, request: Request) {
        let id = request.id;
        match self.try_start(request).await {
            Ok(None) => {}
            Ok(Some(request)) => self.blocked.push_back(BlockedRequest::new(request)),
            Err(failure) => self.events.push(Event { id, kind: EventKind::Failed(failure) }),
        }
    }

    /// Starts the blocked requests for which there is capacity now; the others keep their order.
    async fn start_blocked(&mut self) {
        for mut blocked in std::mem::take(&mut self.blocked) {
            let (id, is_in_time) = (blocked.request.id, blocked.update());
            let BlockedRequest { request, deadline } = blocked;
            let started = match is_in_time {
                true => self.try_start(request).await,
                false => Err(Failure::DeadlineExceeded),
            };
            match started {
                Ok(None) => {}
                Ok(Some(request)) => self.blocked.push_back(BlockedRequest { request, deadline }),
                Err(failure) => self.events.push(Event { id, kind: EventKind::Failed(failure) }),
            }
        }
    }

    /// Starts a request; returns it if it has to wait for capacity in the queue.
    async fn try_start(&mut self, request: Request) -> Result<Option<Request>, Failure> {
        let is_blocked = self.blocked.iter().any(|blocked| blocked.request.id == request.id);
        if is_blocked || self.lanes.iter().any(|lane| lane.has(request.id)) {
            let id = request.id;
            return Err(Failure::InvalidInput(format!("the id {id} belongs to a generation that has not ended")));
        }
        let lane = match self.lanes.iter_mut().position(|lane| lane.name() == request.model) {
            Some(at) => &mut self.lanes[at],
            None => {
                let model = self.models.open(&request.model).await?;
                self.lanes.push(Lane::new(model, &self.models.settings));
                let last = self.lanes.len() - 1;
                &mut self.lanes[last]
            }
        };
        lane.start(request)
    }

    fn cancel(&mut self, id: u64) {
        if let Some(at) = self.blocked.iter().position(|blocked| blocked.request.id == id) {
            let choices = self.blocked.remove(at).map_or(0, |blocked| blocked.request.choices);
            self.events.extend((0..choices).map(|index| lane::cancelled(id, index)));
        }
        self.lanes.iter_mut().for_each(|lane| lane.cancel(id, &mut self.events));
    }
}
