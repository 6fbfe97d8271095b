//! Streams of texts in and of results out: an [`ItemStream`] driven by the body, inference, the client and the clock.
//!
//! `feed` passes texts and `receive` passes results, concurrently in one task; a [`Duplex`] writes the output and observes the client.
//! When it returns, everything is dropped, and with it the streams to inference and the unfinished work.
//!
//! Memory is bounded: reading input pauses while much output is unsent ([`OUT_BYTES_MAX`]) or many outcomes are missing
//! ([`OPEN_MAX`]), so that nothing is read from a client that does not read.

use std::{cell::Cell, pin::pin};

use futures::future::{Either, select};
use weir_codec::{
    http::{
        framing::Framing,
        lines::{Line, Lines},
    },
    inference::{
        item_stream::ItemStream,
        output::ItemError,
        request::{Input, LINE_BYTES_MAX},
    },
};
use weir_core::{failure::Failure, time::Now};
use wit_bindgen::rt::async_support::{StreamReader, StreamWriter};

use crate::{
    http::{
        body::{BodyPart, BodyReader},
        duplex::{Duplex, OUT_BYTES_MAX, OutputSource},
        response::Client,
    },
    inference::{
        client::{Outcomes, no_outcome},
        convert::output,
        requests::Plan,
    },
    platform::{
        bindings::{weir::stream::types::Item, wit_stream},
        clock::Deadline,
        settings::Settings,
    },
};

/// The most items in one write.
const ITEMS_MAX: usize = 32;
/// The most texts without an outcome. The host has a bound of its own, which is lower by default.
const OPEN_MAX: usize = 1024;

/// The source of the texts.
pub(crate) enum TextSource {
    /// Lines of a body that arrives.
    Lines(BodyReader),
    /// A body that was read.
    Inputs(Vec<Input>),
}

/// Streams the results of texts until all are written or the client is gone.
pub(crate) async fn stream(
    source: TextSource,
    plan: Plan,
    framing: Framing,
    settings: &Settings,
    began: Now,
    client: Client,
) {
    let session = ItemStream::new(plan.task, framing).with_token_counts(plan.token_counts);
    let duplex = Duplex::new(session, settings, began);
    let stream = Stream { duplex, plan, settings, errors_bytes: Cell::new(0) };
    stream.duplex.serve(stream.run(source, began), client).await;
}

impl OutputSource for ItemStream {
    fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.poll_output()
    }

    fn output_bytes(&self) -> usize {
        self.output_bytes()
    }

    fn has_pending(&self) -> bool {
        self.open() > 0
    }

    fn is_done(&self) -> bool {
        self.is_done()
    }
}

/// The state that the concurrent parts share.
struct Stream<'a> {
    duplex: Duplex<'a, ItemStream>,
    plan: Plan,
    settings: &'a Settings,
    /// Bytes of the errors for lines that are not valid items.
    errors_bytes: Cell<u64>,
}

impl Stream<'_> {
    /// Passes texts to inference and results to the output until there are no more.
    async fn run(&self, source: TextSource, began: Now) {
        let (writer, reader) = wit_stream::new::<Item>();
        let feed = pin!(async {
            let error = match source {
                TextSource::Lines(body) => {
                    let idle = pin!(self.duplex.idle_unless(body.may_be_quiet));
                    match select(pin!(self.feed_lines(body, writer)), idle).await {
                        Either::Left((error, _)) => error,
                        Either::Right(_) => Some(ItemError::idle(self.settings.body_timeout_ms)),
                    }
                }
                TextSource::Inputs(inputs) => {
                    self.feed_inputs(inputs, writer).await;
                    None
                }
            };
            self.duplex.session.borrow_mut().handle_end(error.as_ref());
            self.duplex.changed();
        });
        let receive = pin!(self.receive(reader));
        if let Either::Left(((), receive)) = select(feed, receive).await {
            // The texts of a JSON body have the time of a request, as with one response.
            let timeout_ms = self.settings.request_timeout_ms;
            if self.plan.deadline_ms.is_none() {
                receive.await;
            } else if Deadline::after(began, timeout_ms).bound(receive).await.is_none() {
                self.duplex.session.borrow_mut().handle_lost(&Failure::RequestTimeout { timeout_ms });
            }
        }
        let lost = no_outcome();
        let mut session = self.duplex.session.borrow_mut();
        session.handle_lost(&lost);
        if !session.is_ended() {
            session.handle_end(Some(&ItemError::from(&lost)));
        }
        self.duplex.changed();
    }

    /// Passes the lines of a body to inference. Returns the error that ended the input early, if any.
    async fn feed_lines(&self, mut body: BodyReader, mut writer: StreamWriter<Item>) -> Option<ItemError> {
        let mut lines = Lines::new(LINE_BYTES_MAX);
        let mut room = Vec::new();
        loop {
            self.wait_for_capacity().await;
            let BodyPart { bytes, more } = body.next_part(room).await;
            self.duplex.arrived(&bytes);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                // Results cost inference, which bounds them; errors cost nothing and need a bound.
                if let Some(error) = self.duplex.too_large("the errors have", self.errors_bytes.get()) {
                    return Some(error);
                }
                let items = self.take_lines(&mut lines, &mut rest);
                if !self.send_items(items, &mut writer).await {
                    return Some(lost());
                }
                if !rest.is_empty() {
                    self.wait_for_capacity().await;
                }
            }
            room = bytes;
            if !more {
                break;
            }
        }
        // The last line of an incomplete body is dropped.
        if !body.check_complete().await {
            return Some(ItemError::body_incomplete());
        }
        let last = lines.last_line().and_then(|line| self.take_line(&line));
        match self.send_items(last.into_iter().collect(), &mut writer).await {
            true => None,
            false => Some(lost()),
        }
    }

    /// The items of the next lines, bounded in number so that the errors of invalid lines do not accumulate.
    fn take_lines(&self, lines: &mut Lines, rest: &mut &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        while items.len() < ITEMS_MAX && self.duplex.session.borrow().output_bytes() < OUT_BYTES_MAX {
            let Some(line) = lines.next_line(rest) else { break };
            items.extend(self.take_line(&line));
        }
        items
    }

    fn take_line(&self, line: &Line<'_>) -> Option<Item> {
        let mut session = self.duplex.session.borrow_mut();
        let before = session.output_bytes();
        let Some((index, input)) = session.handle_line(line) else {
            let bytes = session.output_bytes().saturating_sub(before) as u64;
            self.errors_bytes.set(self.errors_bytes.get().saturating_add(bytes));
            return None;
        };
        Some(self.plan.item(index, input))
    }

    /// Passes the texts of a JSON body to inference.
    async fn feed_inputs(&self, inputs: Vec<Input>, mut writer: StreamWriter<Item>) {
        let mut inputs = inputs.into_iter();
        loop {
            let items: Vec<Item> = inputs
                .by_ref()
                .take(ITEMS_MAX)
                .map(|input| {
                    let (index, input) = self.duplex.session.borrow_mut().handle_input(input);
                    self.plan.item(index, input)
                })
                .collect();
            if items.is_empty() || !self.send_items(items, &mut writer).await {
                return;
            }
            self.wait_for_capacity().await;
        }
    }

    /// Passes items to inference; waits while its queue is full. False when the call has ended.
    async fn send_items(&self, items: Vec<Item>, writer: &mut StreamWriter<Item>) -> bool {
        self.duplex.changed();
        items.is_empty() || writer.write_all(items).await.is_empty()
    }

    /// Passes outcomes to the session until there are no more.
    async fn receive(&self, items: StreamReader<Item>) {
        let mut outcomes = Outcomes::begin(items).await;
        loop {
            let more = outcomes
                .next(|id, tokens, outcome| {
                    self.duplex.session.borrow_mut().handle_outcome(id, tokens, outcome.and_then(output));
                })
                .await;
            self.duplex.touch();
            self.duplex.changed();
            self.duplex.room.notify();
            if !more {
                return;
            }
            self.duplex.wait_for_capacity().await;
        }
    }

    /// Resolves when there is capacity for more texts and their results.
    async fn wait_for_capacity(&self) {
        let has_room = || {
            let session = self.duplex.session.borrow();
            session.output_bytes() < OUT_BYTES_MAX && session.open() < OPEN_MAX
        };
        self.duplex.room.until(has_room).await;
    }
}

fn lost() -> ItemError {
    ItemError::from(&Failure::Unavailable("inference takes no more".to_owned()))
}
