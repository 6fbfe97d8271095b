//! The response side of a bidirectional stream: writes output and detects when to stop.
//!
//! The future of a route reads input and produces output. A [`Duplex`] writes the output as soon as there is some,
//! detects a client that disconnects or does not read, and signals when there is capacity for more. Both run
//! concurrently in one task and share the route's state. When all output is written, or the client has disconnected,
//! the future of the route is dropped, and with it its streams.

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
use weir_guest::notify::{LocalNotify, Signal};

use crate::{
    http::{
        body::{BodyPart, BodyReader},
        response::Client,
    },
    platform::{
        clock::{self, Deadline},
        settings::Settings,
    },
};

/// Reading input pauses while at least this many bytes are unsent.
pub(crate) const OUT_BYTES_MAX: usize = 64 * 1024;
/// Maximum bytes of output for each byte of the request body, in addition to a constant. Output that needs no inference
/// would otherwise amplify the bytes of a client a hundredfold.
const RESPONSE_BYTES_PER_BYTE: u64 = 32;
const RESPONSE_BYTES_FREE: u64 = 1 << 20;
/// The interval in which the clock is checked and, while there is nothing to write, the client is probed, in
/// milliseconds.
const TICK_MS: u64 = 500;

/// A source of output: the state of a route.
pub(crate) trait OutputSource {
    /// Takes the output to write now, if there is any.
    fn poll_output(&mut self) -> Option<Vec<u8>>;
    /// Size of the output that was not taken yet, in bytes.
    fn output_bytes(&self) -> usize;
    /// True when some input has no output yet.
    fn has_pending(&self) -> bool;
    /// True when all output was taken and no more follows.
    fn is_done(&self) -> bool;
}

/// The state that the concurrent parts of a bidirectional stream share.
pub(crate) struct Duplex<'a, S> {
    /// The state of the route.
    pub(crate) session: RefCell<S>,
    settings: &'a Settings,
    /// Set when there may be something to write.
    changed: Signal,
    /// Notified when there may be capacity for more input.
    pub(crate) room: LocalNotify,
    /// True when the client should be probed.
    probe: Cell<bool>,
    /// Bytes of the request body that have arrived.
    body_bytes: Cell<u64>,
    /// Bytes of the response body that were sent.
    sent_bytes: Cell<u64>,
    /// When input last arrived or output was last produced, in nanoseconds of the monotonic clock.
    active_ns: Cell<u64>,
    /// Since when a write has waited for the client.
    writing_since_ns: Cell<Option<u64>>,
    /// Since when a probe has waited for the client.
    probing_since_ns: Cell<Option<u64>>,
}

impl<'a, S: OutputSource> Duplex<'a, S> {
    /// A stream of a request that began at `began`.
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

    /// Runs `route_work` and writes its output until all is written or the client is gone; unfinished work is dropped.
    pub(crate) async fn serve(&self, route_work: impl Future<Output = ()>, client: Client) {
        let Client { mut body, trailers, sent } = client;
        let stalled = {
            // A client may disconnect while there is nothing to write.
            let gone = pin!(async {
                if sent.await.is_ok() {
                    pending::<()>().await;
                }
            });
            let route_work = pin!(async {
                route_work.await;
                pending::<()>().await;
            });
            let write = pin!(self.write(&mut body));
            let whole = pin!(select(write, select(route_work, gone)));
            let watch = pin!(self.watch());
            matches!(select(whole, watch).await, Either::Right(_))
        };
        if stalled {
            let cut = trailers.write(Err(ErrorCode::HttpResponseTimeout));
            Deadline::after(clock::now(), TICK_MS).bound(cut).await;
        }
    }

    /// Signals that there may be something to write.
    pub(crate) fn changed(&self) {
        self.changed.notify();
    }

    /// Records that a part of the body has arrived. White space alone is not activity: a client that sends nothing else
    /// is idle.
    pub(crate) fn arrived(&self, piece: &[u8]) {
        self.body_bytes.set(self.body_bytes.get().saturating_add(piece.len() as u64));
        if !piece.iter().all(u8::is_ascii_whitespace) {
            self.touch();
        }
    }

    /// The error that ends the response if it has become too large for its request body.
    pub(crate) fn response_too_large(&self) -> Option<ItemError> {
        let unsent = self.session.borrow().output_bytes() as u64;
        self.too_large("the answer has", self.sent_bytes.get().saturating_add(unsent))
    }

    /// The error that ends the response if `bytes` of `what` are too many for the request body so far.
    pub(crate) fn too_large(&self, what: &str, bytes: u64) -> Option<ItemError> {
        let body_bytes = self.body_bytes.get();
        let bytes_max = body_bytes.saturating_mul(RESPONSE_BYTES_PER_BYTE).saturating_add(RESPONSE_BYTES_FREE);
        (bytes > bytes_max).then(|| {
            let message = format!(
                "{what} {bytes} bytes for {body_bytes} bytes of the body, and may have {bytes_max}: the rest of the body is not \
                 answered; send longer lines, or ask for less of each"
            );
            ItemError::new("answer_too_large", message)
        })
    }

    /// Records that input has arrived or output was produced.
    pub(crate) fn touch(&self) {
        self.active_ns.set(clock::monotonic_ns());
    }

    /// Resolves when the unsent output allows more input.
    pub(crate) async fn wait_for_capacity(&self) {
        self.room.until(|| self.session.borrow().output_bytes() < OUT_BYTES_MAX).await;
    }

    /// Reads a body by lines, as fast as the client reads the output. `step` gets the remaining bytes of a part and
    /// takes lines from them. Returns the line reader, which has the last line if it has no line break; the last line
    /// of an incomplete body is dropped.
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
            self.wait_for_capacity().await;
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
        if body.check_complete().await { Ok(lines) } else { Err(ItemError::body_incomplete().into()) }
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
                // An empty write completes when the reader is ready for more, or gone.
                self.probing_since_ns.set(Some(clock::monotonic_ns()));
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
        self.writing_since_ns.set(Some(clock::monotonic_ns()));
        let (mut result, mut rest) = client.write(bytes).await;
        while matches!(result, StreamResult::Complete(_)) && rest.remaining() > 0 {
            self.writing_since_ns.set(Some(clock::monotonic_ns()));
            (result, rest) = client.write_buf(rest).await;
        }
        let now_ns = clock::monotonic_ns();
        self.writing_since_ns.set(None);
        // Output was pending until now.
        self.active_ns.set(now_ns);
        rest.remaining() == 0
    }

    /// Resolves when nothing has arrived for `body_timeout_ms` and no output was pending.
    pub(crate) async fn idle(&self) {
        let timeout_ms = self.settings.body_timeout_ms;
        loop {
            let active = Now { monotonic_ns: self.active_ns.get(), unix_ns: 0 };
            Deadline::after(active, timeout_ms).passed().await;
            let is_pending = {
                let session = self.session.borrow();
                session.has_pending() || session.output_bytes() > 0 || self.writing_since_ns.get().is_some()
            };
            if is_pending {
                self.active_ns.set(clock::monotonic_ns());
            } else if self.active_ns.get() == active.monotonic_ns {
                return;
            }
        }
    }

    /// [`Self::idle`], unless the client may be quiet.
    pub(crate) async fn idle_unless(&self, may_be_quiet: bool) {
        if may_be_quiet { pending().await } else { self.idle().await }
    }

    /// Probes the client periodically. Resolves when the client has read nothing for twice the request timeout although
    /// there was output.
    async fn watch(&self) {
        let stalled_ns = self.settings.request_timeout_ms.saturating_mul(2 * 1_000_000);
        loop {
            Deadline::after(clock::now(), TICK_MS).passed().await;
            // Output that was produced while a probe waits for the reader waits as well.
            let probe_since_ns = self.probing_since_ns.get().filter(|_| self.session.borrow().output_bytes() > 0);
            match self.writing_since_ns.get().or(probe_since_ns) {
                Some(since_ns) if clock::monotonic_ns().saturating_sub(since_ns) >= stalled_ns => return,
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
