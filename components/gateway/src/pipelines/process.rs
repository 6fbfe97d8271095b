//! `POST /process-stream`: a pipeline answered as a stream of events; `POST /process-batch`: the same pipeline answered
//! with one response.

use std::{future::pending, pin::pin};

use futures::future::{Either, select};
use spin_sdk::wasip3::{
    http::types::{self, ErrorCode, Response},
    spawn,
    wit_bindgen::StreamWriter,
};
use weir_codec::{
    http::{accept, framing::Framing, problem::Problem},
    pipelines::{process_batch::BatchCollector, process_request::ProcessRequest, process_stream::Line},
};
use weir_core::{failure::Failure, pipelines::TIMEOUT_MS_MAX, time::Now};

use super::ephemeral::{EphemeralExecution, Lines};
use crate::{
    http::{
        request::RequestContext,
        response::{BufferedResponse, Client, write_or_probe},
    },
    platform::{
        clock::{self, Deadline},
        settings::Settings,
    },
};

/// How often the client is probed while there is no output.
const PROBE_MS: u64 = 500;

impl RequestContext<'_> {
    pub(crate) async fn process_stream(&self, body: types::Request) -> Result<Response, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let framing = accept::framing(self.header("accept").as_deref())
            .ok_or_else(|| Problem::not_acceptable(&["application/x-ndjson", "text/event-stream"]))?;
        let request = self.process_request(body, settings).await?;
        let began = self.began;
        let timeout_ms = step_timeout_ms(settings);
        let execution = EphemeralExecution::stream(&request, timeout_ms, began);
        let execution = execution.map_err(|error| Problem::internal(&error))?;
        let (response, client) = self.streaming(framing)?;
        spawn(async move { stream(execution, framing, settings, began, client).await });
        Ok(response)
    }

    pub(crate) async fn process_batch(&self, body: types::Request) -> Result<BufferedResponse, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        if !accept::json(self.header("accept").as_deref()) {
            return Err(Problem::not_acceptable(&["application/json"]));
        }
        let request = self.process_request(body, settings).await?;
        let execution = EphemeralExecution::batch(&request, step_timeout_ms(settings), self.began);
        let execution = execution.map_err(|error| Problem::internal(&error))?;
        batch(execution, settings, self.began).await.map(BufferedResponse::json)
    }

    /// The request in a body.
    async fn process_request(&self, body: types::Request, settings: &Settings) -> Result<ProcessRequest, Problem> {
        Ok(ProcessRequest::from_json(&self.json(body, settings).await?)?)
    }
}

/// The timeout of a step of `/process-stream` and `/process-batch`. It is longer than that of the request, which ends
/// first.
fn step_timeout_ms(settings: &Settings) -> u64 {
    settings.request_timeout_ms.saturating_mul(2).min(TIMEOUT_MS_MAX)
}

/// Runs the pipeline of a request to its end. Returns the response body, or the problem of the first step that failed;
/// unfinished steps are dropped.
pub(crate) async fn batch(
    execution: EphemeralExecution<BatchCollector>,
    settings: &Settings,
    began: Now,
) -> Result<Vec<u8>, Problem> {
    let timeout_ms = settings.request_timeout_ms;
    let result = async {
        let run = pin!(execution.run());
        let collect = pin!(async {
            loop {
                if let Some(result) = execution.sink().poll_result() {
                    return result;
                }
                execution.changed().await;
            }
        });
        match select(collect, run).await {
            Either::Left((result, _)) => result,
            Either::Right(((), collect)) => collect.await,
        }
    };
    match Deadline::after(began, timeout_ms).bound(result).await {
        None => Err(Problem::request_timeout(timeout_ms)),
        Some(Ok(response)) => Ok(response.to_json()),
        Some(Err((step, failure))) => Err(Problem::failed(step, &failure)),
    }
}

/// Runs the pipeline of a request and writes its events until the last, or until the client is gone.
///
/// The first event is written before inference is called. Then two futures run concurrently: one runs the steps, the
/// other writes events, so that a client that reads slowly delays only itself. When this returns, the streams to
/// inference are dropped, and with them the unfinished steps.
pub(crate) async fn stream(
    execution: EphemeralExecution<Lines>,
    framing: Framing,
    settings: &Settings,
    began: Now,
    client: Client,
) {
    let Client { mut body, trailers, sent } = client;
    let mut writer = EventWriter { framing, events: 0 };
    // This future owns the body, which ends when it is dropped.
    let whole = Box::pin(async move {
        let mut first = Vec::new();
        while let Some(line) = execution.sink().next_line() {
            writer.push(&line, &mut first);
        }
        if write_or_probe(&mut body, first).await {
            write_events(&execution, &mut writer, settings, began, &mut body).await;
        }
    });
    // A client may disconnect while there is nothing to write.
    let gone = Box::pin(async {
        if sent.await.is_ok() {
            pending::<()>().await;
        }
    });
    // Twice the request timeout: once for the steps, and once for the client to read the response.
    let deadline = Deadline::after(began, settings.request_timeout_ms.saturating_mul(2));
    if deadline.bound(select(whole, gone)).await.is_none() {
        let cut = trailers.write(Err(ErrorCode::HttpResponseTimeout));
        Deadline::after(clock::now(), PROBE_MS).bound(cut).await;
    }
}

/// Runs the steps and writes every event after the first.
async fn write_events(
    execution: &EphemeralExecution<Lines>,
    writer: &mut EventWriter,
    settings: &Settings,
    began: Now,
    client: &mut StreamWriter<u8>,
) {
    let run = pin!(async {
        let timeout_ms = settings.request_timeout_ms;
        if Deadline::after(began, timeout_ms).bound(execution.run()).await.is_none() {
            execution.abort(&Failure::RequestTimeout { timeout_ms });
        }
    });
    let write = pin!(async {
        let mut probe = Deadline::after(clock::now(), PROBE_MS);
        loop {
            let mut out = Vec::new();
            while let Some(line) = execution.sink().next_line() {
                writer.push(&line, &mut out);
            }
            if out.is_empty() {
                if execution.is_over() && execution.sink().is_empty() {
                    return;
                }
                // An outcome may change the execution without producing an event.
                if probe.bound(execution.changed()).await.is_some() {
                    continue;
                }
            }
            if !write_or_probe(client, out).await {
                return;
            }
            probe = Deadline::after(clock::now(), PROBE_MS);
        }
    });
    if let Either::Left(((), write)) = select(run, write).await {
        write.await;
    }
}

/// Encodes events in the framing of the response.
struct EventWriter {
    framing: Framing,
    /// Events that were rendered.
    events: u64,
}

impl EventWriter {
    fn push(&mut self, line: &Line, out: &mut Vec<u8>) {
        self.events += 1;
        self.framing.push(out, self.events, &line.status, line.json.as_bytes());
    }
}
