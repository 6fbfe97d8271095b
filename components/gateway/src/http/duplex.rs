//! The client's side of a bidirectional stream: writing, and when to stop.
//!
//! A route reads input and produces output (its work); this writes the output as soon as there is some, detects a client that disconnects
//! or does not read, and signals when there is capacity for more. Both run concurrently in one task and share the route's state. When all
//! output is written, or the client has disconnected, the work is dropped, and with it its streams.

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
    http::lines::Lines,
    inference::{output::ItemError, request::LINE_BYTES_MAX},
};
use weir_core::time::Now;

use crate::{
    http::{
        body::{BodyPart, BodyReader},
        response::Client,
    },
    platform::{
        clock::{self, Deadline},
        notify::{LocalNotify, Signal},
        settings::Settings,
    },
};

/// Reading input pauses while at least this many bytes are unsent.
pub(crate) const OUT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of output for each byte of the request body, in addition to a constant. Output that needs no work of a model would otherwise
/// amplify the bytes of a client a hundredfold.
const ANSWER_BYTES_PER_BYTE: u64 = 32;
const ANSWER_BYTES_FREE: u64 = 1 << 20;
/// The clock is looked at this often, and while there is nothing to write, the client.
const TICK_MS: u64 = 500;

/// What a route has to say.
pub(crate) trait OutputSource {
    /// What is to be written now, if anything.
    fn poll_output(&mut self) -> Option<Vec<u8>>;
    /// Unsent bytes.
    fn output_bytes(&self) -> usize;
    /// True when something that came has no answer yet.
    fn has_pending(&self) -> bool;
    /// True when all output was polled, and no more follows.
    fn is_done(&self) -> bool;
}

/// What the parts of a stream share.
pub(crate) struct Duplex<'a, S> {
    /// The route's own.
    pub(crate) session: RefCell<S>,
    settings: &'a Settings,
    /// There may be something to write.
    changed: Signal,
    /// There may be room for more.
    pub(crate) room: LocalNotify,
    /// True when the client should be probed.
    probe: Cell<bool>,
    /// Bytes of the body that have arrived, and bytes of the answer that were sent.
    body_bytes: Cell<u64>,
    sent_bytes: Cell<u64>,
    /// When something last arrived or was answered.
    active_ns: Cell<u64>,
    /// Since when a write waits for the client.
    writing_since_ns: Cell<Option<u64>>,
    /// Since when a probe waits for the client.
    probing_since_ns: Cell<Option<u64>>,
}

impl<'a, S: OutputSource> Duplex<'a, S> {
    /// A stream that began then.
    pub(crate) fn new(session: S, settings: &'a Settings, began: Now) -> Self {
        Self {
            session: RefCell::new(session),
            settings,
            changed: Signal::default(),
            room: LocalNotify::default(),
            probe: Cell::new(false),
            body_bytes: Cell::new(0),
            sent_bytes: Cell::new(0),
            active_ns: Cell::new(began.monotonic_ns),
            writing_since_ns: Cell::new(None),
            probing_since_ns: Cell::new(None),
        }
    }

    /// Writes the output of `work` until it is complete or the client is gone; unfinished work is dropped.
    pub(crate) async fn serve(&self, work: impl Future<Output = ()>, client: Client) {
        let Client { mut body, trailers, sent } = client;
        let stalled = {
            // A client may leave while there is nothing to write.
            let gone = pin!(async {
                if sent.await.is_ok() {
                    pending::<()>().await;
                }
            });
            let work = pin!(async {
                work.await;
                pending::<()>().await;
            });
            let write = pin!(self.write(&mut body));
            let whole = pin!(select(write, select(work, gone)));
            let watch = pin!(self.watch());
            matches!(select(whole, watch).await, Either::Right(_))
        };
        if stalled {
            let cut = trailers.write(Err(ErrorCode::HttpResponseTimeout));
            Deadline::after(clock::now(), TICK_MS).bound(cut).await;
        }
    }

    /// There may be something to write.
    pub(crate) fn changed(&self) {
        self.changed.notify();
    }

    /// A piece of the body has arrived just now. White space alone is no activity: a client that sends nothing else is idle.
    pub(crate) fn arrived(&self, piece: &[u8]) {
        self.body_bytes.set(self.body_bytes.get().saturating_add(piece.len() as u64));
        if !piece.iter().all(u8::is_ascii_whitespace) {
            self.touch();
        }
    }

    /// Why the answer is cut here, where it has become too large for its body.
    pub(crate) fn answer_too_large(&self) -> Option<ItemError> {
        let unsent = self.session.borrow().output_bytes() as u64;
        self.too_large("the answer has", self.sent_bytes.get().saturating_add(unsent))
    }

    /// Why the answer is cut here, where its bytes have become too many for the request body.
    pub(crate) fn too_large(&self, what: &str, bytes: u64) -> Option<ItemError> {
        let body_bytes = self.body_bytes.get();
        let bytes_max = body_bytes.saturating_mul(ANSWER_BYTES_PER_BYTE).saturating_add(ANSWER_BYTES_FREE);
        (bytes > bytes_max).then(|| {
            let message = format!(
                "{what} {bytes} bytes for {body_bytes} bytes of the body, and may have {bytes_max}: the rest of the body is not \
                 answered; send longer lines, or ask for less of each"
            );
            ItemError::new("answer_too_large", message)
        })
    }

    /// Something has arrived or was answered just now.
    pub(crate) fn touch(&self) {
        self.active_ns.set(clock::now().monotonic_ns);
    }

    /// Resolves when the unsent output allows more input.
    pub(crate) async fn unsent_few(&self) {
        self.room.until(|| self.session.borrow().output_bytes() < OUT_BYTES_MAX).await;
    }

    /// Reads a body by lines, as fast as the client reads the output. `step` gets the bytes that are left of a piece and takes lines from
    /// them. Returns the reader of lines, which has the last line; a line in which the body breaks off is dropped.
    ///
    /// # Errors
    ///
    /// Those of `step`, or the body is incomplete.
    pub(crate) async fn read_lines<E: From<ItemError>>(
        &self,
        mut body: BodyReader,
        mut step: impl AsyncFnMut(&mut Lines, &mut &[u8]) -> Result<(), E>,
    ) -> Result<Lines, E> {
        let mut lines = Lines::new(LINE_BYTES_MAX);
        let mut buffer = Vec::new();
        loop {
            self.unsent_few().await;
            let BodyPart { bytes, more } = body.next_part(buffer).await;
            self.arrived(&bytes);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                step(&mut lines, &mut rest).await?;
            }
            buffer = bytes;
            if !more {
                break;
            }
        }
        if body.arrived_whole().await { Ok(lines) } else { Err(ItemError::body_incomplete().into()) }
    }

    /// Writes output as soon as there is some, until the last line or until the reader is gone.
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
                self.probing_since_ns.set(Some(clock::now().monotonic_ns));
                let probed = client.write(Vec::new()).await.0;
                self.probing_since_ns.set(None);
                if probed == StreamResult::Dropped {
                    return;
                }
            } else {
                self.changed.wait().await;
            }
        }
    }

    /// Sends bytes; false when the reader is gone.
    async fn send(&self, client: &mut BodyWriter<u8>, bytes: Vec<u8>) -> bool {
        self.sent_bytes.set(self.sent_bytes.get().saturating_add(bytes.len() as u64));
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
    pub(crate) async fn idle(&self) {
        let timeout_ms = self.settings.body_timeout_ms;
        loop {
            let active = Now { monotonic_ns: self.active_ns.get(), unix_ns: 0 };
            Deadline::after(active, timeout_ms).passed().await;
            let owed = {
                let session = self.session.borrow();
                session.has_pending() || session.output_bytes() > 0 || self.writing_since_ns.get().is_some()
            };
            if owed {
                self.active_ns.set(clock::now().monotonic_ns);
            } else if self.active_ns.get() == active.monotonic_ns {
                return;
            }
        }
    }

    /// Probes the client periodically. Resolves when it has read nothing for twice the timeout of a request although there was output.
    async fn watch(&self) {
        let stalled_ns = self.settings.request_timeout_ms.saturating_mul(2 * 1_000_000);
        loop {
            Deadline::after(clock::now(), TICK_MS).passed().await;
            // Output that was produced while a probe waits for the reader waits as well.
            let behind = self.probing_since_ns.get().filter(|_| self.session.borrow().output_bytes() > 0);
            match self.writing_since_ns.get().or(behind) {
                Some(since_ns) if clock::now().monotonic_ns.saturating_sub(since_ns) >= stalled_ns => return,
                Some(_) => {}
                None if self.probing_since_ns.get().is_some() => {}
                None => {
                    self.probe.set(true);
                    self.changed.notify();
                }
            }
        }
    }
}
