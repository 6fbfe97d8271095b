//! The calls of `weir:stream/infer`. A call is one task, which polls its requests together.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use futures::future::{Either, select};
use weir_codec::inference::remote::{self, SUMMARY_TARGET};
use weir_core::failure::Failure;
use wit_bindgen::rt::async_support::{StreamReader, StreamResult, StreamWriter, spawn};

use crate::bindings::exports::weir::stream::infer::Guest;
use crate::bindings::wasi::clocks::monotonic_clock;
use crate::bindings::weir::stream::types::{Item, ModelInfo, Outcome, WhenFull};
use crate::bindings::{self, wit_stream};
use crate::call::CallState;
use crate::convert;
use crate::exchange::{self, Head, ResponseBody};
use crate::plan::{self, ItemRequest};
use crate::request::{Form, RemoteRequest};
use crate::settings::Settings;

/// The most items in one read.
const ITEMS_MAX: usize = 32;
/// The most items of a call whose outcomes were not written.
const OPEN_MAX: usize = 256;
/// The most requests of a call at once; the items of one read may each add one.
const REQUESTS_MAX: usize = 16;
/// The longest list of models, in bytes.
const MODELS_BYTES_MAX: usize = 1 << 20;
const NS_PER_MS: u64 = 1_000_000;

thread_local! {
    /// The models of the last successful list.
    static LISTED: RefCell<Vec<ModelInfo>> = const { RefCell::new(Vec::new()) };
}

struct Service;

bindings::export!(Service with_types_in bindings);

impl Guest for Service {
    async fn run(items: StreamReader<Item>) -> StreamReader<Outcome> {
        let (writer, reader) = wit_stream::new();
        match Settings::read() {
            Ok(settings) => spawn(relay(items, writer, settings)),
            Err(reason) => spawn(refuse(items, writer, reason)),
        }
        reader
    }

    /// The models of the server; when it cannot be reached, those of the last list, as not ready.
    async fn models() -> Vec<ModelInfo> {
        let listed = match Settings::read() {
            Ok(settings) => models(&settings).await,
            Err(reason) => Err(Failure::Other(reason)),
        };
        match listed {
            Ok(models) => {
                LISTED.set(models.clone());
                models
            }
            Err(failure) => {
                eprintln!("infer-remote: the models cannot be listed: {failure}");
                let reason = Some(failure.to_string());
                let unready = |model: &ModelInfo| ModelInfo { ready: false, reason: reason.clone(), ..model.clone() };
                LISTED.with_borrow(|models| models.iter().map(unready).collect())
            }
        }
    }
}

async fn models(settings: &Settings) -> Result<Vec<ModelInfo>, Failure> {
    let request = async {
        let head = Head { target: "/v1/models", content_type: None, accept: "application/json", prefer: None };
        let (unsent, _) = exchange::request(settings, &head)?;
        let response = exchange::send(settings, unsent).await?;
        let (status, retry_after_ms) = (response.status(), response.retry_after_ms());
        let body = ResponseBody::of(response).collect(settings, MODELS_BYTES_MAX).await?;
        if status != 200 {
            return Err(remote::refusal(status, &body, retry_after_ms));
        }
        let models = remote::models(&body);
        let models = models
            .map_err(|why| Failure::Other(format!("the list of models of {} is invalid: {why}", settings.name())))?;
        Ok(models.into_iter().map(convert::model).collect())
    };
    match select(pin!(request), pin!(monotonic_clock::wait_for(settings.timeout_ns))).await {
        Either::Left((listed, _)) => listed,
        Either::Right(_) => Err(Failure::Unavailable(format!("{} did not answer in time", settings.name()))),
    }
}

/// Fails every item of a call.
async fn refuse(mut items: StreamReader<Item>, mut outcomes: StreamWriter<Outcome>, reason: String) {
    loop {
        let (result, batch) = items.read(Vec::with_capacity(ITEMS_MAX)).await;
        let refused = |item: Item| convert::outcome(item.id, 0, Err(Failure::Other(reason.clone())));
        let refused: Vec<Outcome> = batch.into_iter().map(refused).collect();
        let is_open = refused.is_empty() || outcomes.write_all(refused).await.is_empty();
        if !is_open || !matches!(result, StreamResult::Complete(_)) {
            return;
        }
    }
}

/// Sends items to the server and results to the caller, until every item has its outcome or the caller has dropped the stream.
async fn relay(items: StreamReader<Item>, outcomes: StreamWriter<Outcome>, settings: Settings) {
    let call = Rc::new(RunCall {
        state: CallState::new(settings),
        requests: RefCell::default(),
        running: RefCell::default(),
        lines: Cell::new(0),
    });
    let feed = pin!(async {
        call.feed(items).await;
        pending::<()>().await
    });
    let drive = pin!(call.drive());
    select(select(feed, drive), pin!(call.deliver(outcomes))).await;
    // The requests contain references to the call.
    call.running.take();
}

type RequestFuture = Pin<Box<dyn Future<Output = ()>>>;

/// One call of `run`.
struct RunCall {
    state: CallState,
    requests: RefCell<Vec<Rc<RemoteRequest>>>,
    /// Runs of the requests.
    running: RefCell<Vec<RequestFuture>>,
    /// The number of items so far, which is the id of the next line.
    lines: Cell<u64>,
}

impl RunCall {
    async fn feed(self: &Rc<Self>, mut items: StreamReader<Item>) {
        loop {
            self.state.changed.until(|| self.has_room()).await;
            let (result, batch) = items.read(Vec::with_capacity(ITEMS_MAX)).await;
            batch.into_iter().for_each(|item| self.take(&item));
            if !matches!(result, StreamResult::Complete(_)) {
                break;
            }
        }
        self.state.has_ended.set(true);
        self.state.changed.notify();
    }

    fn has_room(&self) -> bool {
        let open: usize = self.requests.borrow().iter().map(|request| request.open()).sum();
        open + self.state.done.borrow().len() < OPEN_MAX && self.running.borrow().len() < REQUESTS_MAX
    }

    /// Adds an item to the stream of its model and options, or to a request of its own.
    fn take(self: &Rc<Self>, item: &Item) {
        let line = self.lines.replace(self.lines.get() + 1);
        let deadline_ns = item.deadline_ms.map(|ms| monotonic_clock::now().saturating_add(u64::from(ms) * NS_PER_MS));
        let fails_when_full = item.when_full == WhenFull::Fail;
        let request = |form, target| RemoteRequest::new(form, target, fails_when_full);
        match plan::item_request(line, item) {
            Err(failure) => self.state.finish(item.id, 0, Err(failure)),
            Ok((ItemRequest::Line(target), bytes)) => {
                let is_equal = |other: &&Rc<RemoteRequest>| {
                    other.target == target && other.fails_when_full == fails_when_full && other.has_room()
                };
                let known = self.requests.borrow().iter().find(is_equal).cloned();
                let request = known.unwrap_or_else(|| self.open(request(Form::Lines, target)));
                request.take(line, item.id, deadline_ns, &bytes);
            }
            Ok((ItemRequest::Whole(target, body), _)) => {
                self.open(request(Form::Whole, target)).take(line, item.id, deadline_ns, &body);
            }
            Ok((ItemRequest::Summary(body), _)) => {
                self.open(request(Form::Summary, SUMMARY_TARGET.to_owned())).take(line, item.id, deadline_ns, &body);
            }
        }
        self.state.changed.notify();
    }

    /// Starts a request.
    fn open(self: &Rc<Self>, request: RemoteRequest) -> Rc<RemoteRequest> {
        let request = Rc::new(request);
        self.requests.borrow_mut().push(request.clone());
        let (call, run) = (self.clone(), request.clone());
        self.running.borrow_mut().push(Box::pin(async move {
            run.run(&call.state).await;
            call.requests.borrow_mut().retain(|other| !Rc::ptr_eq(other, &run));
        }));
        request
    }

    /// Polls the requests. Never resolves.
    async fn drive(&self) {
        poll_fn(|context| {
            let mut running = self.running.take();
            running.retain_mut(|request| request.as_mut().poll(context).is_pending());
            // Polling starts no request; appending keeps one if it did.
            running.append(&mut self.running.borrow_mut());
            self.running.replace(running);
            Poll::<()>::Pending
        })
        .await;
    }

    /// Writes outcomes until there are no more, or the caller has dropped the stream.
    async fn deliver(&self, mut outcomes: StreamWriter<Outcome>) {
        loop {
            let is_finished = || self.state.has_ended.get() && self.running.borrow().is_empty();
            self.state.changed.until(|| !self.state.done.borrow().is_empty() || is_finished()).await;
            let done = self.state.done.take();
            if done.is_empty() || !outcomes.write_all(done).await.is_empty() {
                return;
            }
        }
    }
}
