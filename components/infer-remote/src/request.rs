//! One request to the server: its texts, their results, and its failure, which is that of all texts without a result.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::pending;
use std::pin::pin;

use futures::future::{Either, select};
use weir_codec::http::lines::Lines;
use weir_codec::inference::remote::{self, RESPONSE_LINE_BYTES_MAX, ResponseLine};
use weir_core::failure::Failure;
use wit_bindgen::rt::async_support::StreamWriter;

use crate::bindings::wasi::clocks::monotonic_clock;
use crate::bindings::weir::stream::types::Output;
use crate::call::CallState;
use crate::convert;
use crate::exchange::{self, Head, ResponseBody, UnsentRequest};

/// The interval at which deadlines and the silence of the server are checked.
const TICK_NS: u64 = 50_000_000;
/// The longest body of a response that is not a stream.
const PROBLEM_BYTES_MAX: usize = 64 << 10;

/// The form of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Lines in both directions, without a bound on their number.
    Lines,
    /// A JSON body with one text.
    Whole,
    /// A JSON body with one text to be summarized.
    Summary,
}

/// A text without a result.
struct OpenText {
    /// The id of the item.
    id: u64,
    deadline_ns: Option<u64>,
}

/// A request with its texts.
pub(crate) struct RemoteRequest {
    pub(crate) form: Form,
    pub(crate) target: String,
    /// Its texts fail when the queue of the server is full. Otherwise the server reads no more of them until there is room.
    pub(crate) fails_when_full: bool,
    outgoing: RefCell<Vec<u8>>,
    /// By the ids of the lines.
    open: RefCell<BTreeMap<u64, OpenText>>,
    /// The time of the last data of the server, or of the first outstanding text.
    last_data_ns: Cell<u64>,
    is_over: Cell<bool>,
}

impl RemoteRequest {
    pub(crate) fn new(form: Form, target: String, fails_when_full: bool) -> Self {
        Self {
            form,
            target,
            fails_when_full,
            outgoing: RefCell::default(),
            open: RefCell::default(),
            last_data_ns: Cell::new(monotonic_clock::now()),
            is_over: Cell::new(false),
        }
    }

    /// Adds a text. `bytes` is its line, or the whole body.
    pub(crate) fn take(&self, line: u64, id: u64, deadline_ns: Option<u64>, bytes: &[u8]) {
        if self.open.borrow().is_empty() {
            self.last_data_ns.set(monotonic_clock::now());
        }
        self.open.borrow_mut().insert(line, OpenText { id, deadline_ns });
        self.outgoing.borrow_mut().extend_from_slice(bytes);
    }

    /// Whether it accepts more texts.
    pub(crate) fn has_room(&self) -> bool {
        self.form == Form::Lines && !self.is_over.get()
    }

    /// The number of texts without a result.
    pub(crate) fn open(&self) -> usize {
        self.open.borrow().len()
    }

    /// Runs the request. When it resolves, every text has its result.
    pub(crate) async fn run(&self, call: &CallState) {
        let result = match select(pin!(self.exchange(call)), pin!(self.watch(call))).await {
            Either::Left((result, _)) => result,
            Either::Right((failure, _)) => Err(failure),
        };
        self.is_over.set(true);
        let name = call.settings.name();
        let incomplete = || Failure::Unavailable(format!("{name} ended its response without a result of this text"));
        let failure = result.err().unwrap_or_else(incomplete);
        for (_, open) in self.open.take() {
            call.finish(open.id, 0, Err(failure.clone()));
        }
        call.changed.notify();
    }

    async fn exchange(&self, call: &CallState) -> Result<(), Failure> {
        let content_type = if self.form == Form::Lines { "application/x-ndjson" } else { "application/json" };
        let head = Head {
            target: &self.target,
            content_type: Some(content_type),
            accept: "application/x-ndjson",
            prefer: Some(remote::preferences(self.fails_when_full)),
        };
        let (request, writer) = exchange::request(&call.settings, &head)?;
        let write = pin!(async {
            self.write(call, writer).await;
            // A server that does not read the whole body reports the reason in its response.
            pending::<()>().await
        });
        match select(pin!(self.read(call, request)), write).await {
            Either::Left((result, _)) => result,
            Either::Right(((), read)) => read.await,
        }
    }

    /// Writes the body until there are no more texts.
    async fn write(&self, call: &CallState, mut writer: StreamWriter<u8>) {
        loop {
            let is_last = || self.form != Form::Lines || call.has_ended.get();
            call.changed.until(|| !self.outgoing.borrow().is_empty() || is_last()).await;
            let bytes = self.outgoing.take();
            if bytes.is_empty() || !writer.write_all(bytes).await.is_empty() {
                return;
            }
        }
    }

    async fn read(&self, call: &CallState, request: UnsentRequest) -> Result<(), Failure> {
        let settings = &call.settings;
        let response = exchange::send(settings, request).await?;
        let (status, retry_after_ms) = (response.status(), response.retry_after_ms());
        let mut body = ResponseBody::of(response);
        if status != 200 {
            let problem = body.collect(settings, PROBLEM_BYTES_MAX).await.unwrap_or_default();
            return Err(remote::refusal(status, &problem, retry_after_ms));
        }
        let mut lines = Lines::new(RESPONSE_LINE_BYTES_MAX);
        while let Some(piece) = body.piece().await {
            self.last_data_ns.set(monotonic_clock::now());
            let mut rest = piece;
            while let Some(line) = lines.next_line(&mut rest) {
                self.take_line(call, line.content)?;
            }
        }
        body.end(settings).await?;
        // Every line has an end, so a line without one is incomplete.
        match lines.last_line() {
            None => Ok(()),
            Some(_) => Err(Failure::Unavailable(format!("the response of {} is incomplete", settings.name()))),
        }
    }

    fn take_line(&self, call: &CallState, content: Option<&[u8]>) -> Result<(), Failure> {
        let wrong = |why: &str| Failure::Other(format!("{} sent an invalid response: {why}", call.settings.name()));
        let content = content.ok_or_else(|| wrong("a line is too long"))?;
        if self.form == Form::Summary {
            if let Some(summary) = remote::summary(content).map_err(|why| wrong(&why))? {
                let first = self.open.borrow_mut().pop_first();
                if let Some((_, open)) = first {
                    // This response has no count.
                    call.finish(open.id, 0, summary.map(Output::Summary));
                }
            }
            return Ok(());
        }
        match remote::response_line(content).map_err(|why| wrong(&why))? {
            ResponseLine::Item(line, tokens, result) => {
                // A text whose deadline has passed has its result already.
                let open = self.open.borrow_mut().remove(&line);
                if let Some(open) = open {
                    call.finish(open.id, tokens, result.map(convert::output));
                }
                Ok(())
            }
            ResponseLine::Stream(failure) => Err(failure),
            ResponseLine::Done => Ok(()),
        }
    }

    /// Fails texts whose deadline has passed; resolves when the server has been silent for too long.
    async fn watch(&self, call: &CallState) -> Failure {
        loop {
            monotonic_clock::wait_for(TICK_NS).await;
            let now_ns = monotonic_clock::now();
            let mut late = Vec::new();
            self.open.borrow_mut().retain(|_, open| {
                let is_late = open.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns);
                if is_late {
                    late.push(open.id);
                }
                !is_late
            });
            for id in late {
                call.finish(id, 0, Err(Failure::DeadlineExceeded));
            }
            if self.open.borrow().is_empty() && !call.has_ended.get() {
                self.last_data_ns.set(now_ns);
            }
            if now_ns.saturating_sub(self.last_data_ns.get()) >= call.settings.timeout_ns {
                let (name, ms) = (call.settings.name(), call.settings.timeout_ns / 1_000_000);
                return Failure::Unavailable(format!("{name} has sent nothing for {ms} ms"));
            }
        }
    }
}
