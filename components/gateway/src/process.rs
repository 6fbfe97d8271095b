//! `POST /process-stream`: a pipeline, drawn in a dialect of its own; `POST /process-batch`: a [`Process`], the same work with one
//! answer.

use std::{cell::RefCell, future::pending, ops::ControlFlow, pin::pin};

use futures::future::{Either, select};
use spin_sdk::wasip3::{
    http::types::ErrorCode,
    wit_bindgen::{StreamResult, StreamWriter},
};
use weir_codec::{
    http::{framing::Framing, problem::Problem},
    pipelines::{process_event::BatchAnswer, process_request::ProcessRequest, process_stream::Line},
};
use weir_core::{
    failure::Failure,
    process::{Now, Process},
};

use crate::{
    clock::{self, Deadline},
    infer,
    pipelines::Inside,
    reply::Client,
    settings::Settings,
};

/// While there is nothing to write, the client is looked after this often.
const PROBE_MS: u64 = 500;

/// Answers a request whole, or with the problem that stopped it.
pub(crate) async fn batch(request: ProcessRequest, settings: &Settings, began: Now) -> Result<Vec<u8>, Problem> {
    let process = RefCell::new(Process::new(request.into_batch(), began));
    let mut answer = BatchAnswer::default();
    let mut stopped = None;
    let collect = || {
        while let Some(event) = process.borrow_mut().poll_event(clock::now()) {
            if let Err((step, failure)) = answer.handle_event(event) {
                stopped.get_or_insert_with(|| Problem::failed(step, &failure));
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    };
    let deadline = Deadline::after(began, settings.request_timeout_ms);
    if deadline.bound(infer::exchange(&process, settings, collect)).await.is_none() {
        return Err(Problem::request_timeout(settings.request_timeout_ms));
    }
    match stopped {
        Some(problem) => Err(problem),
        None => Ok(answer.to_json()),
    }
}

/// Runs the pipeline of a request and writes its events until the last, or until the client is gone.
///
/// The first event leaves before inference is asked for anything. Then two halves run side by side: one brings
/// answers, the other writes events, so that a client that reads slowly slows nobody but itself. When this returns,
/// the streams to inference are dropped and with them the work that is left.
pub(crate) async fn stream(inside: Inside, framing: Framing, settings: &Settings, began: Now, client: Client) {
    let Client { mut body, trailers, sent } = client;
    let mut drawing = Drawing { framing, events: 0 };
    // Owns the body: it ends with this.
    let whole = Box::pin(async move {
        let mut first = Vec::new();
        while let Some(line) = inside.next_line() {
            drawing.draw(&line, &mut first);
        }
        if is_taken(&mut body, first).await {
            rest(&inside, &mut drawing, settings, began, &mut body).await;
        }
    });
    // A client may leave while there is nothing to write.
    let gone = Box::pin(async {
        if sent.await.is_ok() {
            pending::<()>().await;
        }
    });
    // A client may take as long again to read as the work may take.
    let deadline = Deadline::after(began, settings.request_timeout_ms.saturating_mul(2));
    if deadline.bound(select(whole, gone)).await.is_none() {
        let cut = trailers.write(Err(ErrorCode::HttpResponseTimeout));
        Deadline::after(clock::now(), PROBE_MS).bound(cut).await;
    }
}

/// Everything after the first event.
async fn rest(inside: &Inside, drawing: &mut Drawing, settings: &Settings, began: Now, client: &mut StreamWriter<u8>) {
    let work = pin!(async {
        let timeout_ms = settings.request_timeout_ms;
        if Deadline::after(began, timeout_ms).bound(inside.run()).await.is_none() {
            inside.abort(&Failure::RequestTimeout { timeout_ms });
        }
    });
    let write = pin!(async {
        let mut probe = Deadline::after(clock::now(), PROBE_MS);
        loop {
            let mut out = Vec::new();
            while let Some(line) = inside.next_line() {
                drawing.draw(&line, &mut out);
            }
            if out.is_empty() {
                if inside.is_over() {
                    return;
                }
                // Answers that do not come next change something and give nothing to write.
                if probe.bound(inside.told()).await.is_some() {
                    continue;
                }
            }
            if !is_taken(client, out).await {
                return;
            }
            probe = Deadline::after(clock::now(), PROBE_MS);
        }
    });
    if let Either::Left(((), write)) = select(work, write).await {
        write.await;
    }
}

/// Writes to the client; false when nobody reads any more. A write of nothing asks just that: it is done when the
/// reader is ready for more, or gone.
async fn is_taken(client: &mut StreamWriter<u8>, bytes: Vec<u8>) -> bool {
    if bytes.is_empty() {
        return client.write(bytes).await.0 != StreamResult::Dropped;
    }
    client.write_all(bytes).await.is_empty()
}

/// Events as bytes.
struct Drawing {
    framing: Framing,
    /// How many were drawn.
    events: u64,
}

impl Drawing {
    fn draw(&mut self, line: &Line, out: &mut Vec<u8>) {
        self.events += 1;
        self.framing.push(out, self.events, &line.status, line.json.as_bytes());
    }
}
