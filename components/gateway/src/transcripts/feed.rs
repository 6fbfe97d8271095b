//! A request that feeds a session: lines in, events out. Every event is appended to the channel before it is written to
//! the client.
//!
//! `feed_inputs` feeds lines, `receive` reads the outputs of the session, `put_periodically` stores it; a [`Duplex`]
//! writes to the client. Unlike the work of other requests, this is not dropped when the client disconnects or another
//! feeder takes over: it stops feeding, and ends when all outputs are in the channel and in the checkpoint.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
};

use futures::future::{Either, join, select};
use weir_codec::{
    http::{framing::Framing, problem::Problem},
    inference::output::ItemError,
    transcripts::{
        input::Refusal,
        outbox::{Batch, EventOutbox},
    },
};
use weir_core::time::Now;
use weir_guest::notify::LocalNotify;
use wit_bindgen::rt::async_support::{StreamReader, StreamResult, StreamWriter};

use super::{
    convert,
    log::SessionLog,
    registry::{self, SessionLease, SessionRegistry},
    running::{RunningSession, control_input},
};
use crate::{
    http::{
        body::BodyReader,
        duplex::{Duplex, OUT_BYTES_MAX},
        response::Client,
    },
    platform::{
        bindings::weir::stream::session::{Input, InputBody, Output},
        clock::{self, Deadline},
        store::owned_elsewhere,
    },
    transcripts::one_shot,
};

/// Maximum number of inputs between two checkpoints.
const INPUTS_MAX: usize = 128;
/// Expected bytes of events between two checkpoints.
const EVENTS_BYTES: usize = 128 << 10;
/// Bytes of lines in one turn.
const TURN_BYTES: usize = 32 << 10;
/// The most outputs in one read.
const OUTPUTS_MAX: usize = 256;
/// The time between two attempts to store a session, in milliseconds.
const RETRY_MS: u64 = 500;
/// How long a turn may be held while the session reads its inputs, in milliseconds.
const TURN_MS: u64 = 5;
/// Maximum number of attempts to store the session at the end.
const PUTS_MAX: u32 = 3;

/// The inputs of a request.
pub(crate) enum FeedSource {
    /// Lines.
    Lines(BodyReader),
    /// The end of the session.
    End,
}

/// Why feeding has stopped.
enum FeedEnd {
    /// The input has ended, or this refusal ended it.
    Ended(Option<Refusal>),
    /// Another feeder has requested the session.
    Superseded,
    /// The client is gone, or the session cannot be stored.
    Aborted,
}

struct Feed<'a> {
    lease: &'a SessionLease,
    log: SessionLog<'a>,
    duplex: Duplex<'a, EventOutbox>,
    /// True when feeding must stop: the client is gone, or the session cannot be stored.
    cut: Cell<bool>,
    /// Notified when `cut` is set.
    cut_gate: LocalNotify,
    /// True when all inputs were fed and all outputs were received.
    received: Cell<bool>,
    /// Notified when there may be something to store, or a write to the store has completed.
    put: LocalNotify,
    /// The problem of the last failed write of the session to the store.
    put_error: RefCell<Option<Problem>>,
    /// Bytes of the longest event of the last batch.
    line_bytes: Cell<usize>,
    /// The last checkpoint, for [`SessionLog::end`]; only set if the request ends the session.
    checkpoint: RefCell<Vec<u8>>,
    /// Whether the request ends the session.
    ends: bool,
}

/// Feeds a session until its input ends, its client is gone or another request takes over.
pub(crate) async fn feed(
    registry: &'static SessionRegistry,
    lease: SessionLease,
    session: RunningSession,
    source: FeedSource,
    framing: Framing,
    began: Now,
    client: Client,
) {
    let RunningSession { inputs, outputs, after, .. } = session;
    let outbox = EventOutbox::stored(lease.entry.head().annotate, framing);
    let feed = Feed {
        lease: &lease,
        log: SessionLog::new(registry, &lease.entry, after),
        duplex: Duplex::new(outbox, registry.settings, began),
        cut: Cell::new(false),
        cut_gate: LocalNotify::default(),
        received: Cell::new(false),
        put: LocalNotify::default(),
        put_error: RefCell::default(),
        line_bytes: Cell::new(0),
        checkpoint: RefCell::default(),
        ends: matches!(source, FeedSource::End),
    };
    let is_done = Cell::new(false);
    let mut run = pin!(async {
        feed.run(source, inputs, outputs).await;
        is_done.set(true);
    });
    feed.duplex.serve(run.as_mut(), client).await;
    feed.cut();
    if !is_done.get() {
        run.await;
    }
}

impl Feed<'_> {
    async fn run(&self, source: FeedSource, inputs: StreamWriter<Input>, outputs: StreamReader<Output>) {
        let serve = async {
            let (refusal, ()) = join(self.feed_inputs(source, inputs), self.receive(outputs)).await;
            self.received.set(true);
            self.put.notify();
            if self.ends && refusal.is_none() && !self.cut.get() {
                self.end().await;
            }
            if let Some(refusal) = refusal {
                self.duplex.session.borrow_mut().handle_input_failure(refusal);
            }
            self.duplex.session.borrow_mut().handle_end();
            self.duplex.changed();
        };
        let lease = pin!(self.keep_lease());
        let serve = pin!(join(serve, self.put_periodically()));
        // When the feed ends first, the lease is dropped; when the lease is lost first, the feed ends soon after.
        if let Either::Right(((), serve)) = select(serve, lease).await {
            serve.await;
        }
        // Stores the changes of the end.
        self.put_final().await;
        if !self.lease.is_wanted() {
            self.lease.entry.release_store_lease().await;
        }
        // A request that waits for the session need not wait until this client has read its responses.
        self.lease.release();
        self.log.registry.evict();
    }

    /// Renews the ownership of the session. When another instance has taken it over, the client gets an error and no
    /// more input is read.
    async fn keep_lease(&self) {
        let Some(store_lease) = self.lease.entry.store_lease() else { return };
        store_lease.renew_until_lost(|| ()).await;
        self.lease.entry.mark_lost();
        let problem = owned_elsewhere(0);
        let refusal = Refusal { message: problem.detail, code: problem.code.into(), field: None };
        self.duplex.session.borrow_mut().handle_input_failure(refusal);
        self.cut();
        self.put.notify();
    }

    /// Stops feeding.
    fn cut(&self) {
        self.cut.set(true);
        self.cut_gate.notify();
        self.duplex.room.notify();
    }

    /// Feeds the inputs of the request, and requests a checkpoint at the end. Returns why feeding stopped; none when all inputs were fed.
    async fn feed_inputs(&self, source: FeedSource, mut inputs: StreamWriter<Input>) -> Option<Refusal> {
        let end = {
            let cut = pin!(self.cut_gate.until(|| self.cut.get()));
            let wanted = pin!(self.lease.wanted());
            let lines = pin!(async {
                match source {
                    FeedSource::Lines(body) => self.feed_lines(body, &mut inputs).await,
                    FeedSource::End => {
                        inputs.write_one(control_input(InputBody::End)).await;
                        None
                    }
                }
            });
            let idle = pin!(self.duplex.idle());
            match select(select(lines, idle), select(cut, wanted)).await {
                Either::Left((Either::Left((refusal, _)), _)) => FeedEnd::Ended(refusal),
                Either::Left((Either::Right(_), _)) => {
                    FeedEnd::Ended(Some(ItemError::idle(self.log.registry.settings.body_timeout_ms).into()))
                }
                Either::Right((Either::Left(_), _)) => FeedEnd::Aborted,
                Either::Right((Either::Right(_), _)) => FeedEnd::Superseded,
            }
        };
        // Wakes `receive`, which does not wait for the client once another request wants the session.
        self.duplex.room.notify();
        inputs.write_one(control_input(InputBody::Checkpoint)).await;
        match end {
            FeedEnd::Ended(refusal) => refusal,
            FeedEnd::Superseded => {
                let message = "another request feeds this session now; submit unacknowledged input again, with its seq";
                Some(ItemError { retryable: false, ..ItemError::new("superseded", message) }.into())
            }
            FeedEnd::Aborted => None,
        }
    }

    /// Feeds the lines of a body. Returns the refusal that ended the input early, if any.
    async fn feed_lines(&self, body: BodyReader, inputs: &mut StreamWriter<Input>) -> Option<Refusal> {
        let user = self.user();
        let read = self.duplex.read_lines(body, async |lines, rest| {
            if let Some(error) = self.duplex.response_too_large() {
                return Err(Refusal::from(error));
            }
            // One turn for several lines: parsing them, and the computation of the session up to its first wait.
            let turn = self.log.turn.take(&user).await;
            let mut batch = Vec::with_capacity(INPUTS_MAX + 1);
            // The retained events of the channel must reach back to the last checkpoint.
            let inputs_max = (EVENTS_BYTES / self.line_bytes.get().max(1)).clamp(1, INPUTS_MAX);
            let mut bytes = 0;
            while batch.len() < inputs_max
                && bytes < TURN_BYTES
                && let Some(line) = lines.next_line(rest)
            {
                bytes += line.content.map_or(0, <[u8]>::len);
                batch.push(convert::input(&line));
            }
            if batch.is_empty() {
                return Ok(());
            }
            // The acknowledgements of a batch wait for its checkpoint: a client that has them finds them in the session.
            batch.push(control_input(InputBody::Checkpoint));
            let end = Deadline::after(clock::now(), TURN_MS);
            let written = inputs.write_all(batch);
            let unwritten = match select(pin!(written), pin!(end.passed())).await {
                Either::Left((unwritten, _)) => unwritten,
                // The session waits for its outputs to be read.
                Either::Right(((), written)) => {
                    drop(turn);
                    written.await
                }
            };
            if unwritten.is_empty() { Ok(()) } else { Err(one_shot::lost()) }
        });
        match read.await {
            Ok(mut lines) => inputs.write_one(convert::input(&lines.last_line()?)).await.map(|_| one_shot::lost()),
            Err(refusal) => Some(refusal),
        }
    }

    /// Reads the outputs of the session until it ends or cannot be stored.
    async fn receive(&self, mut outputs: StreamReader<Output>) {
        let user = self.user();
        let mut buffer = Vec::with_capacity(OUTPUTS_MAX);
        loop {
            let (read, mut batch) = outputs.read(buffer).await;
            // If `feed_lines` has the turn, this is part of it: that waits until the session has read its inputs, and the session
            // waits until its outputs are read.
            let turn = self.log.turn.join(&user).await;
            for output in batch.drain(..) {
                convert::hand_over(&mut self.duplex.session.borrow_mut(), output);
            }
            drop(turn);
            buffer = batch;
            loop {
                let batch = self.duplex.session.borrow_mut().poll_batch();
                let Some(batch) = batch else { break };
                if let Err(problem) = self.store(batch).await {
                    let refusal = Refusal { message: problem.detail, code: problem.code.into(), field: None };
                    self.duplex.session.borrow_mut().handle_input_failure(refusal);
                    self.cut();
                    // Later outputs are not in the channel; they are produced again when the client submits their
                    // inputs again.
                    return;
                }
            }
            if !matches!(read, StreamResult::Complete(_)) {
                return;
            }
            self.duplex.room.until(|| self.has_room()).await;
        }
    }

    fn has_room(&self) -> bool {
        let unsent = self.duplex.session.borrow().output_bytes();
        unsent < OUT_BYTES_MAX || self.cut.get() || self.lease.is_wanted()
    }

    /// Stores the outputs of a batch, then passes them to the client.
    async fn store(&self, mut batch: Batch) -> Result<(), Problem> {
        if self.log.must_put() {
            self.put.notify();
            let entry = &self.lease.entry;
            let is_lost = || entry.store_lease().is_none();
            self.put.until(|| !self.log.must_put() || self.put_error.borrow().is_some() || is_lost()).await;
            if let Some(problem) = self.put_error.take() {
                return Err(problem);
            }
        }
        if let Some(checkpoint) = batch.checkpoint.as_ref().filter(|_| self.ends) {
            self.checkpoint.borrow_mut().clone_from(checkpoint);
        }
        // Other futures of this task run while models compute, so no borrow is held across the await.
        let outbox = self.outbox();
        let cursors = self.log.store(&outbox, &mut batch).await?;
        let mut session = self.duplex.session.borrow_mut();
        self.line_bytes.set(session.take_line_bytes_max());
        session.handle_stored(batch, &cursors);
        drop(session);
        self.duplex.touch();
        self.duplex.changed();
        self.put.notify();
        Ok(())
    }

    /// The owner of the session, for turns; empty if users are not identified.
    fn user(&self) -> String {
        self.lease.entry.head().owner.map(String::from).unwrap_or_default()
    }

    /// An outbox that selects the queries to models.
    fn outbox(&self) -> EventOutbox {
        EventOutbox::stored(self.lease.entry.head().annotate, Framing::Ndjson)
    }

    /// Ends the session with the last event of its channel.
    async fn end(&self) {
        let mut outbox = self.outbox();
        outbox.handle_ended();
        outbox.handle_pause();
        let Some(batch) = outbox.poll_batch() else { return };
        let checkpoint = self.checkpoint.take();
        if checkpoint.is_empty() {
            // The last outputs could not be stored, which was reported.
            return;
        }
        match self.log.end(&batch, checkpoint).await {
            Ok(cursors) => self.duplex.session.borrow_mut().handle_stored(batch, &cursors),
            Err(problem) => {
                let refusal = Refusal { message: problem.detail, code: problem.code.into(), field: None };
                self.duplex.session.borrow_mut().handle_input_failure(refusal);
            }
        }
    }

    /// Stores the session when it has changed, at most once per `checkpoint_ms` unless the log requires it.
    async fn put_periodically(&self) {
        let checkpoint_ms = self.log.registry.settings.sessions.checkpoint_ms;
        loop {
            self.put.until(|| self.received.get() || self.lease.entry.is_dirty()).await;
            if self.received.get() {
                return;
            }
            let error = self.log.put().await.err();
            let wait_ms = if error.is_some() { RETRY_MS } else { checkpoint_ms };
            self.put_error.replace(error);
            // Wakes the request that waits for it.
            self.put.notify();
            let waited = pin!(Deadline::after(clock::now(), wait_ms).passed());
            let sooner = pin!(self.put.until(|| self.received.get() || self.log.must_put()));
            select(waited, sooner).await;
        }
    }

    /// Stores the session at the end. After a failure the sweep task stores it later.
    async fn put_final(&self) {
        for _ in 0..PUTS_MAX {
            match self.log.put().await {
                Ok(()) => return,
                Err(problem) if registry::is_no_room(&problem) => {
                    let reverted = self.log.registry.revert(&self.lease.entry).await;
                    if reverted.is_ok() {
                        return;
                    }
                }
                Err(_) => {}
            }
            Deadline::after(clock::now(), RETRY_MS).passed().await;
        }
    }
}
