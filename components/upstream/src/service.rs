//! The streams: commands in, events out. Each generation is a task.

mod call;
mod exchange;
mod server;

use std::{pin::pin, rc::Rc};

use futures::future::{Either, pending, select};
use weir_core::{
    failure::Failure,
    generation::upstream::{AttemptOutcome, UpstreamAdmission},
    inference::breaker::Permit,
};
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

use self::{
    call::{OpenGeneration, RunCall},
    exchange::AttemptEnd,
    server::Server,
};
use crate::{
    bindings::{
        exports::weir::stream::generate::{Command, Event, GenerateModel, Guest},
        wasi::{clocks::monotonic_clock, random::random},
        weir::stream::generate_types::{Done, EventKind, Reason, Request},
        wit_stream,
    },
    convert,
};

/// The most commands read at once.
const COMMANDS_MAX: usize = 16;
/// The most choices of a request.
const CHOICES_MAX: u32 = 8;
const NS_PER_MS: u64 = 1_000_000;

thread_local! {
    static SERVER: Rc<Result<Server, String>> = Rc::new(Server::open());
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

async fn serve(mut commands: StreamReader<Command>, events: StreamWriter<Event>) {
    // The event stream ends when the last generation drops the call.
    let call = Rc::new(RunCall::new(events));
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
