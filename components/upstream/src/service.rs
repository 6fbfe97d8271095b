//! The streams: commands in, events out. Each generation is a task.

mod exchange;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    pin::pin,
    rc::Rc,
};

use futures::{
    future::{Either, pending, select},
    lock::Mutex,
};
use weir_core::{
    failure::Failure,
    generation::upstream::{AttemptOutcome, Upstream, UpstreamAdmission},
    inference::breaker::Permit,
};
use weir_guest::notify::Signal;
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

use self::exchange::AttemptEnd;
use crate::{
    bindings::{
        exports::weir::stream::generate::{Command, Event, GenerateModel, Guest},
        wasi::{clocks::monotonic_clock, random::random},
        weir::stream::generate_types::{Done, EventKind, Reason, Request},
        wit_stream,
    },
    convert,
    settings::Settings,
};

/// The most commands read at once.
const COMMANDS_MAX: usize = 16;
/// The most choices of a request.
const CHOICES_MAX: u32 = 8;
const NS_PER_MS: u64 = 1_000_000;

thread_local! {
    static SERVER: Rc<Result<Server, String>> = Rc::new(Server::open());
}

/// The server, and the state of the requests to it.
struct Server {
    settings: Settings,
    upstream: RefCell<Upstream>,
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
        let server = SERVER.with(Rc::clone);
        let names = server.as_ref().as_ref().map_or_else(|_| Vec::new(), |server| server.settings.models.list());
        let model = |name| GenerateModel { name, context_tokens_max: None, ready: true, reason: None };
        names.into_iter().map(model).collect()
    }
}

impl Server {
    fn open() -> Result<Self, String> {
        let settings =
            Settings::read(|name| std::env::var(name).ok()).inspect_err(|error| eprintln!("error: {error}"))?;
        let upstream = RefCell::new(Upstream::new(settings.config.clone(), monotonic_clock::now()));
        Ok(Self { settings, upstream })
    }
}

async fn serve(mut commands: StreamReader<Command>, events: StreamWriter<Event>) {
    // The event stream ends when the last generation drops the call.
    let call = Rc::new(RunCall { events: Mutex::new(events), open: RefCell::default() });
    loop {
        let (status, read) = commands.read(Vec::with_capacity(COMMANDS_MAX)).await;
        for command in read {
            match command {
                Command::Start(request) => call.clone().start(request),
                Command::Cancel(id) => {
                    if let Some(open) = call.open.borrow().get(&id) {
                        open.cancel();
                    }
                }
            }
        }
        if !matches!(status, StreamResult::Complete(_)) {
            return;
        }
    }
}

/// One call of `run`.
struct RunCall {
    events: Mutex<StreamWriter<Event>>,
    /// The generations that have not ended.
    open: RefCell<HashMap<u64, Rc<OpenGeneration>>>,
}

/// A generation that has not ended.
#[derive(Default)]
struct OpenGeneration {
    is_cancelled: Cell<bool>,
    changed: Signal,
}

impl OpenGeneration {
    fn cancel(&self) {
        self.is_cancelled.set(true);
        self.changed.notify();
    }

    async fn cancelled(&self) {
        while !self.is_cancelled.get() {
            self.changed.wait().await;
        }
    }
}

impl RunCall {
    fn start(self: Rc<Self>, request: Request) {
        let open = Rc::new(OpenGeneration::default());
        let id = request.id;
        let is_known = self.open.borrow().contains_key(&id);
        if !is_known {
            self.open.borrow_mut().insert(id, open.clone());
        }
        wit_bindgen::spawn(async move {
            if is_known {
                let text = format!("the id {id} belongs to a generation that has not ended");
                return self.write(id, vec![failed(Failure::InvalidInput(text))]).await;
            }
            let last = self.generate(request, &open).await;
            self.open.borrow_mut().remove(&id);
            self.write(id, last).await;
        });
    }

    /// Runs a generation; returns its last events.
    async fn generate(&self, request: Request, open: &OpenGeneration) -> Vec<EventKind> {
        let choices = request.choices;
        let deadline_ms = request.deadline_ms;
        let late = pin!(async {
            match deadline_ms {
                Some(deadline_ms) => monotonic_clock::wait_for(u64::from(deadline_ms) * NS_PER_MS).await,
                None => pending().await,
            }
        });
        let server = SERVER.with(Rc::clone);
        let run = pin!(async {
            match server.as_ref() {
                Ok(server) => self.attempts(server, request).await,
                Err(error) => Err(Failure::Unavailable(error.clone())),
            }
        });
        let cancelled_by_caller = pin!(open.cancelled());
        let interrupted = select(cancelled_by_caller, late);
        match select(run, interrupted).await {
            Either::Left((Ok(last), _)) => last,
            Either::Left((Err(failure), _)) => vec![failed(failure)],
            Either::Right((Either::Left(_), _)) => (0..choices).map(cancelled).collect(),
            Either::Right((Either::Right(_), _)) => vec![failed(Failure::DeadlineExceeded)],
        }
    }

    /// Makes attempts until one succeeds or no further one is allowed; returns the last events.
    async fn attempts(&self, server: &Server, request: Request) -> Result<Vec<EventKind>, Failure> {
        if !(1..=CHOICES_MAX).contains(&request.choices) {
            return Err(Failure::InvalidInput(format!("the number of choices must be 1 to {CHOICES_MAX}")));
        }
        let Some(model) = server.settings.models.resolve(&request.model) else {
            return Err(Failure::UnknownModel { name: request.model, served: Vec::new() });
        };
        let (id, choices) = (request.id, request.choices);
        let seed = request.sampling.seed.unwrap_or_else(random::get_random_u64);
        let message =
            server.settings.kind.request(&model, &convert::request(request)).map_err(Failure::InvalidInput)?;
        let mut slot = Slot::admit(server, (id >> 32) as u32)?;
        loop {
            slot.attempt()?;
            match exchange::exchange(self, id, server, &message, (choices, seed), &mut slot.tokens).await {
                Ok(events) => {
                    slot.record(AttemptOutcome::Ok);
                    return Ok(events);
                }
                Err(AttemptEnd { failure, outcome }) => match slot.record(outcome) {
                    Some(delay_ns) => {
                        eprintln!("warn: another attempt after {} ms: {failure}", delay_ns / NS_PER_MS);
                        monotonic_clock::wait_for(delay_ns).await;
                    }
                    None => return Err(failure),
                },
            }
        }
    }

    /// Writes events of a generation. If the reader of the events has closed the stream, all generations end.
    async fn write(&self, id: u64, kinds: Vec<EventKind>) {
        if kinds.is_empty() {
            return;
        }
        let events = kinds.into_iter().map(|kind| Event { id, kind }).collect();
        let unwritten = self.events.lock().await.write_all(events).await;
        if !unwritten.is_empty() {
            self.open.borrow().values().for_each(|open| open.cancel());
        }
    }
}

/// An admitted request. Dropping it releases its admission and the permit of its attempt.
struct Slot<'a> {
    server: &'a Server,
    admission: Option<UpstreamAdmission>,
    permit: Option<Permit>,
    /// Tokens so far.
    tokens: u64,
}

impl<'a> Slot<'a> {
    fn admit(server: &'a Server, user: u32) -> Result<Self, Failure> {
        let admission = server.upstream.borrow_mut().admit(monotonic_clock::now(), user)?;
        Ok(Self { server, admission: Some(admission), permit: None, tokens: 0 })
    }

    fn attempt(&mut self) -> Result<(), Failure> {
        self.permit = Some(self.server.upstream.borrow_mut().attempt(monotonic_clock::now())?);
        Ok(())
    }

    /// Records the outcome of an attempt; returns the delay before the next one, in nanoseconds, if there is one.
    fn record(&mut self, outcome: AttemptOutcome) -> Option<u64> {
        let (permit, admission) = (self.permit.take()?, self.admission.as_mut()?);
        let (now, random) = (monotonic_clock::now(), random::get_random_u64());
        self.server.upstream.borrow_mut().record(now, admission, permit, outcome, random)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut upstream = self.server.upstream.borrow_mut();
        if let Some(permit) = self.permit.take() {
            upstream.cancel(permit);
        }
        if let Some(admission) = self.admission.take() {
            upstream.end(monotonic_clock::now(), admission, self.tokens);
        }
    }
}

fn failed(failure: Failure) -> EventKind {
    EventKind::Failed(convert::failure(failure))
}

fn cancelled(index: u32) -> EventKind {
    EventKind::Done(Done { index, reason: Reason::Cancelled, stop: None, tokens: 0, prompt_tokens: None })
}
