//! The service `weir:stream/generate`: streams of commands in, streams of events out.
//!
//! Every call of `run` is a loop: read the available commands, start requests, compute one step of each model, and
//! write its events. It waits only when it has nothing to compute.

mod lane;
mod models;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

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
            let (status, read) = read(&mut commands, call.is_idle()).await;
            ended = matches!(status, StreamResult::Dropped);
            for command in read {
                match command {
                    Command::Start(request) => call.start(request).await,
                    Command::Cancel(id) => call.cancel(id),
                }
            }
        }
        if let Some(request) = call.blocked.pop_front() {
            call.start(request).await;
        }
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

/// Reads commands: waits for some if `wait`, else reads those that are available.
async fn read(commands: &mut StreamReader<Command>, wait: bool) -> (StreamResult, Vec<Command>) {
    let mut reading = pin!(commands.read(Vec::with_capacity(COMMANDS_MAX)));
    if wait {
        return reading.await;
    }
    let at_once = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
    match at_once {
        Poll::Ready(read) => read,
        Poll::Pending => reading.as_mut().cancel(),
    }
}

/// One call of `run`.
struct RunCall {
    models: Rc<Models>,
    /// The models that its requests name.
    lanes: Vec<Lane>,
    /// Requests that wait for capacity in a queue. No command is read while there is one.
    blocked: VecDeque<Request>,
    events: Vec<Event>,
}

impl RunCall {
    fn is_idle(&self) -> bool {
        self.lanes.iter().all(Lane::is_idle)
    }

    async fn start(&mut self, request: Request) {
        let id = request.id;
        if let Err(failure) = self.try_start(request).await {
            self.events.push(Event { id, kind: EventKind::Failed(failure) });
        }
    }

    async fn try_start(&mut self, request: Request) -> Result<(), Failure> {
        if self.lanes.iter().any(|lane| lane.has(request.id)) {
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
        if let Some(request) = lane.start(request)? {
            self.blocked.push_back(request);
        }
        Ok(())
    }

    fn cancel(&mut self, id: u64) {
        if let Some(at) = self.blocked.iter().position(|request| request.id == id) {
            let choices = self.blocked.remove(at).map_or(0, |request| request.choices);
            self.events.extend((0..choices).map(|index| lane::cancelled(id, index)));
        }
        self.lanes.iter_mut().for_each(|lane| lane.cancel(id, &mut self.events));
    }
}
