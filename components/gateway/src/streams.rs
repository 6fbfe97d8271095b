//! Streams of texts in and of results out: a [`Session`] driven by the body, inference, the client and the clock.
//!
//! Four parts run side by side in one task and share the session: `feed` brings texts, `receive` brings results,
//! `write` sends what there is, `watch` looks at the clock. When `write` is done, or the client is gone, all of it is
//! dropped, and with it the streams to inference and the work that is left.
//!
//! Nothing grows: who brings something waits while much is unsent ([`OUT_BYTES_MAX`]) or owed ([`OPEN_MAX`]), so a
//! client that does not read is not read from either.

use std::{
    cell::{Cell, RefCell},
    future::pending,
    pin::pin,
};

use futures::future::{Either, select};
use spin_sdk::wasip3::{
    http::types::ErrorCode,
    wit_bindgen::{StreamResult, StreamWriter as BodyWriter},
};
use weir_codec::{
    ask::{Input, LINE_BYTES_MAX},
    frame::Framing,
    lines::{Line, Lines},
    output::ItemError,
    session::Session,
};
use weir_core::{failure::Failure, process::Now};
use wit_bindgen::rt::async_support::{StreamReader, StreamWriter};

use crate::{
    bindings::{
        weir::stream::{
            infer,
            types::{Item, Outcome},
        },
        wit_stream,
    },
    body::{Arriving, Piece},
    clock::{self, Deadline},
    infer::OUTCOMES_MAX,
    items::{Plan, result},
    reply::Client,
    settings::Settings,
    signal::{Gate, Signal},
};

/// Most texts that are handed over at once.
const ITEMS_MAX: usize = 32;
/// Most texts without an outcome; the host has a bound of its own, which is lower unless it is configured.
const OPEN_MAX: usize = 1024;
/// Unsent bytes from which nothing more is brought.
const OUT_BYTES_MAX: usize = 64 * 1024;
/// The clock is looked at this often, and while there is nothing to write, the client.
const TICK_MS: u64 = 500;

/// Where the texts come from.
pub(crate) enum Source {
    /// Lines of a body that arrives.
    Lines(Arriving),
    /// A body that was read.
    Inputs(Vec<Input>),
}

/// Answers a stream of texts until all is said or the client is gone.
pub(crate) async fn stream(
    source: Source,
    plan: Plan,
    framing: Framing,
    settings: &Settings,
    began: Now,
    client: Client,
) {
    let Client { mut body, trailers, sent } = client;
    let stream = Stream {
        session: RefCell::new(Session::new(plan.task, framing)),
        plan,
        settings,
        changed: Signal::default(),
        room: Gate::default(),
        probe: Cell::new(false),
        active_ns: Cell::new(began.monotonic_ns),
        writing_since_ns: Cell::new(None),
    };
    let stalled = {
        // A client may leave while there is nothing to write.
        let gone = pin!(async {
            if sent.await.is_ok() {
                pending::<()>().await;
            }
        });
        let work = pin!(async {
            stream.work(source, began).await;
            pending::<()>().await;
        });
        let write = pin!(stream.write(&mut body));
        let whole = pin!(select(write, select(work, gone)));
        let watch = pin!(stream.watch());
        matches!(select(whole, watch).await, Either::Right(_))
    };
    if stalled {
        let cut = trailers.write(Err(ErrorCode::HttpResponseTimeout));
        Deadline::after(clock::now(), TICK_MS).bound(cut).await;
    }
}

/// What the parts share.
struct Stream<'a> {
    session: RefCell<Session>,
    plan: Plan,
    settings: &'a Settings,
    /// There may be something to write.
    changed: Signal,
    /// There may be room for more.
    room: Gate,
    /// The client should be looked after.
    probe: Cell<bool>,
    /// When something last arrived or was answered.
    active_ns: Cell<u64>,
    /// While the client is written to: since when it has taken nothing.
    writing_since_ns: Cell<Option<u64>>,
}

impl Stream<'_> {
    /// Brings texts and results until there are no more.
    async fn work(&self, source: Source, began: Now) {
        let (writer, reader) = wit_stream::new::<Item>();
        let feed = pin!(async {
            let error = match source {
                Source::Lines(body) => match select(pin!(self.feed_lines(body, writer)), pin!(self.idle())).await {
                    Either::Left((error, _)) => error,
                    Either::Right(_) => Some(ItemError::idle(self.settings.body_timeout_ms)),
                },
                Source::Inputs(inputs) => {
                    self.feed_inputs(inputs, writer).await;
                    None
                }
            };
            self.session.borrow_mut().handle_end(error.as_ref());
            self.changed.notify();
        });
        let receive = pin!(self.receive(reader));
        if let Either::Left(((), receive)) = select(feed, receive).await {
            // Texts that were all there have the time of a request, as if they were answered at once.
            let timeout_ms = self.settings.request_timeout_ms;
            if self.plan.deadline_ms.is_none() {
                receive.await;
            } else if Deadline::after(began, timeout_ms).bound(receive).await.is_none() {
                self.session.borrow_mut().handle_lost(&Failure::RequestTimeout { timeout_ms });
            }
        }
        let lost = Failure::Unavailable("inference ended without an answer".to_owned());
        let mut session = self.session.borrow_mut();
        session.handle_lost(&lost);
        if !session.is_ended() {
            session.handle_end(Some(&ItemError::from(&lost)));
        }
        self.changed.notify();
    }

    /// Brings the texts of a body line by line. Returns why no more come, unless all that was to come has.
    async fn feed_lines(&self, mut body: Arriving, mut writer: StreamWriter<Item>) -> Option<ItemError> {
        let mut lines = Lines::new(LINE_BYTES_MAX);
        let mut room = Vec::new();
        loop {
            self.room().await;
            let Piece { bytes, more } = body.piece(room).await;
            self.active_ns.set(clock::now().monotonic_ns);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let items = self.take_lines(&mut lines, &mut rest);
                if !self.hand_over(items, &mut writer).await {
                    return Some(lost());
                }
                if !rest.is_empty() {
                    self.room().await;
                }
            }
            room = bytes;
            if !more {
                break;
            }
        }
        // The line that was being sent when the body broke is nobody's.
        if !body.arrived_whole().await {
            return Some(ItemError::body_incomplete());
        }
        let last = lines.last_line().and_then(|line| self.take_line(&line));
        match self.hand_over(last.into_iter().collect(), &mut writer).await {
            true => None,
            false => Some(lost()),
        }
    }

    /// The items of the next lines: some, so that what is wrong with the others does not pile up.
    fn take_lines(&self, lines: &mut Lines, rest: &mut &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        while items.len() < ITEMS_MAX && self.session.borrow().output_bytes() < OUT_BYTES_MAX {
            let Some(line) = lines.next_line(rest) else { break };
            items.extend(self.take_line(&line));
        }
        items
    }

    fn take_line(&self, line: &Line<'_>) -> Option<Item> {
        let (index, input) = self.session.borrow_mut().handle_line(line)?;
        Some(self.plan.item(index, input))
    }

    /// Brings texts that are all there.
    async fn feed_inputs(&self, inputs: Vec<Input>, mut writer: StreamWriter<Item>) {
        let mut inputs = inputs.into_iter();
        loop {
            let items: Vec<Item> = inputs
                .by_ref()
                .take(ITEMS_MAX)
                .map(|input| {
                    let (index, input) = self.session.borrow_mut().handle_input(input);
                    self.plan.item(index, input)
                })
                .collect();
            if items.is_empty() || !self.hand_over(items, &mut writer).await {
                return;
            }
            self.room().await;
        }
    }

    /// Hands items to inference, when it takes them. False when it takes no more.
    async fn hand_over(&self, items: Vec<Item>, writer: &mut StreamWriter<Item>) -> bool {
        self.changed.notify();
        items.is_empty() || writer.write_all(items).await.is_empty()
    }

    /// Brings results until inference has no more.
    async fn receive(&self, items: StreamReader<Item>) {
        let mut outcomes = infer::run(items).await;
        let mut buffer = Vec::with_capacity(OUTCOMES_MAX);
        loop {
            let (read, mut batch) = outcomes.read(buffer).await;
            {
                let mut session = self.session.borrow_mut();
                for Outcome { id, result: outcome, .. } in batch.drain(..) {
                    session.handle_outcome(id, result(outcome));
                }
            }
            buffer = batch;
            self.active_ns.set(clock::now().monotonic_ns);
            self.changed.notify();
            self.room.notify();
            if !matches!(read, StreamResult::Complete(_)) {
                return;
            }
            self.room.until(|| self.session.borrow().output_bytes() < OUT_BYTES_MAX).await;
        }
    }

    /// Resolves when there is room for more texts and what they bring.
    async fn room(&self) {
        let has_room = || {
            let session = self.session.borrow();
            session.output_bytes() < OUT_BYTES_MAX && session.open() < OPEN_MAX
        };
        self.room.until(has_room).await;
    }

    /// Sends what there is, as soon as there is something, until the last line or until nobody reads any more.
    async fn write(&self, client: &mut BodyWriter<u8>) {
        loop {
            let out = self.session.borrow_mut().poll_output();
            if let Some(out) = out {
                self.room.notify();
                if !self.send(client, out).await {
                    return;
                }
            } else if self.session.borrow().is_done() {
                return;
            } else if self.probe.take() {
                // A write of nothing is done when the reader is ready for more, or gone.
                if client.write(Vec::new()).await.0 == StreamResult::Dropped {
                    return;
                }
            } else {
                self.changed.wait().await;
            }
        }
    }

    /// Sends bytes; false when nobody reads any more.
    async fn send(&self, client: &mut BodyWriter<u8>, bytes: Vec<u8>) -> bool {
        self.writing_since_ns.set(Some(clock::now().monotonic_ns));
        let (mut result, mut left) = client.write(bytes).await;
        while matches!(result, StreamResult::Complete(_)) && left.remaining() > 0 {
            self.writing_since_ns.set(Some(clock::now().monotonic_ns));
            (result, left) = client.write_buf(left).await;
        }
        let now_ns = clock::now().monotonic_ns;
        self.writing_since_ns.set(None);
        // What was owed to the client was owed until now.
        self.active_ns.set(now_ns);
        left.remaining() == 0
    }

    /// Resolves when nothing has arrived for `body_timeout_ms` and nothing was owed.
    async fn idle(&self) {
        let timeout_ms = self.settings.body_timeout_ms;
        loop {
            let active = Now { monotonic_ns: self.active_ns.get(), unix_ns: 0 };
            Deadline::after(active, timeout_ms).passed().await;
            let owed = {
                let session = self.session.borrow();
                session.open() > 0 || session.output_bytes() > 0 || self.writing_since_ns.get().is_some()
            };
            if owed {
                self.active_ns.set(clock::now().monotonic_ns);
            } else if self.active_ns.get() == active.monotonic_ns {
                return;
            }
        }
    }

    /// Has the client looked after from time to time. Resolves when it has taken nothing for twice the time of a
    /// request, though there was something to take.
    async fn watch(&self) {
        let stalled_ns = self.settings.request_timeout_ms.saturating_mul(2 * 1_000_000);
        loop {
            Deadline::after(clock::now(), TICK_MS).passed().await;
            match self.writing_since_ns.get() {
                Some(since_ns) if clock::now().monotonic_ns.saturating_sub(since_ns) >= stalled_ns => return,
                Some(_) => {}
                None => {
                    self.probe.set(true);
                    self.changed.notify();
                }
            }
        }
    }
}

fn lost() -> ItemError {
    ItemError::from(&Failure::Unavailable("inference takes no more".to_owned()))
}
