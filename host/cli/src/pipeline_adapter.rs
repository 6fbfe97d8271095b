//! Adapters with the task `pipeline`: each record is the input of an execution, and its output is the result.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use weir_adapters::RECORD_ID_HEADER;
use weir_adapters::build::PipelinePlan;
use weir_adapters::driver::BoxFuture;
use weir_adapters::supervisor::{Component, ComponentCall, ComponentError};
use weir_core::adapter::{Destination, ErrorCategory, Header, ResultRecord, SourceRecord};
use weir_runtime::Runtime;
use weir_runtime::gateway::{self, BodyError};

/// The most lists of records, and of results, between the supervisor and the executions.
const LISTS_MAX: usize = 4;
/// The most bytes of a response: an output has at most `pipelines.output_bytes_max`, and the response also lists the steps.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The client number of adapters in the gateway.
const CLIENT: u64 = u64::MAX;
/// The header of a result with the id of its execution.
const EXECUTION_HEADER: &str = "weir-execution-id";
/// The delay before a refused request is repeated, if the response has none.
const RETRY: Duration = Duration::from_secs(1);

/// Runs a pipeline of this server for each record. Results have the order of the records.
pub(crate) struct PipelineComponent(Arc<Pipeline>);

struct Pipeline {
    runtime: Arc<Runtime>,
    adapter: String,
    plan: PipelinePlan,
    token: Option<String>,
}

impl PipelineComponent {
    /// # Errors
    ///
    /// The file of the token cannot be read.
    pub(crate) fn new(runtime: Arc<Runtime>, adapter: &str, plan: PipelinePlan) -> anyhow::Result<Self> {
        let token = match plan.token_file.as_os_str().is_empty() {
            true => None,
            false => Some(weir_adapters::secret(&plan.token_file)?),
        };
        Ok(Self(Arc::new(Pipeline { runtime, adapter: adapter.to_owned(), plan, token })))
    }
}

impl Component for PipelineComponent {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        let (records, incoming) = mpsc::channel(LISTS_MAX);
        let (outgoing, results) = mpsc::channel(LISTS_MAX);
        let task = tokio::spawn(serve(self.0.clone(), incoming, outgoing));
        let end = Box::pin(async move { task.await.err().map(|error| error.to_string()) });
        Box::pin(async move { Ok(ComponentCall { records, results, end }) })
    }
}

/// Starts an execution for each record, and sends the results in the order of the records. The supervisor bounds the number of records.
async fn serve(
    pipeline: Arc<Pipeline>,
    mut incoming: mpsc::Receiver<Vec<SourceRecord>>,
    outgoing: mpsc::Sender<Vec<ResultRecord>>,
) {
    let mut running: VecDeque<JoinHandle<ResultRecord>> = VecDeque::new();
    let mut has_ended = false;
    while !has_ended || !running.is_empty() {
        let first = async {
            match running.front_mut() {
                Some(first) => first.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = first => {
                running.pop_front();
                let Ok(result) = result else { return };
                if outgoing.send(vec![result]).await.is_err() {
                    return;
                }
            }
            records = incoming.recv(), if !has_ended => match records {
                Some(records) => running.extend(records.into_iter().map(|record| {
                    let pipeline = pipeline.clone();
                    tokio::spawn(async move { pipeline.process(record).await })
                })),
                None => has_ended = true,
            },
        }
    }
}

/// The outcome of a request for an execution.
enum RequestOutcome {
    /// The id of the execution, and its output.
    Output(String, Value),
    /// There is no output: the category, the code and the message of the error.
    Failed(ErrorCategory, String, String),
    /// The same request may succeed after a delay: the delay, and the reason.
    Later(Duration, String),
}

impl Pipeline {
    async fn process(&self, record: SourceRecord) -> ResultRecord {
        let input = match self.plan.is_text {
            true => match std::str::from_utf8(&record.payload) {
                Ok(text) => Bytes::from(Value::from(text).to_string()),
                Err(error) => {
                    let reason = format!("it is not UTF-8 at byte {}", error.valid_up_to());
                    return ResultRecord::error(record, ErrorCategory::Client, "not_utf8", &reason);
                }
            },
            false => Bytes::copy_from_slice(&record.payload),
        };
        // With an idempotency key, each delivery of a record waits for the same execution.
        let id = record.headers.iter().rev().find(|header| header.name == RECORD_ID_HEADER);
        let id = id.map(|header| String::from_utf8_lossy(&header.value).into_owned());
        let key = id.map(|id| format!("{}:{}:{id}", self.adapter, record.origin));
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.request(input.clone(), key.as_deref()).await {
                RequestOutcome::Output(execution, output) => return self.result(record, &execution, &output),
                RequestOutcome::Failed(category, code, reason) => {
                    return ResultRecord::error(record, category, &code, &reason);
                }
                RequestOutcome::Later(_, reason) if attempts >= self.plan.attempts_max => {
                    return ResultRecord::error(record, ErrorCategory::System, "pipeline_unavailable", &reason);
                }
                RequestOutcome::Later(after, _) => tokio::time::sleep(after).await,
            }
        }
    }

    fn result(&self, record: SourceRecord, execution: &str, output: &Value) -> ResultRecord {
        let id = serde_json::from_slice::<Value>(&record.payload).ok();
        let id = id.as_ref().and_then(|payload| payload.pointer(&self.plan.id)).cloned();
        let mut line = serde_json::Map::new();
        if let Some(id) = id {
            line.insert("id".to_owned(), id);
        }
        line.insert("output".to_owned(), output.clone());
        let SourceRecord { key, mut headers, origin, position, .. } = record;
        headers.push(Header::new(EXECUTION_HEADER, execution));
        ResultRecord {
            payload: Value::Object(line).to_string().into_bytes(),
            key,
            headers,
            destination: Destination::Output,
            origin,
            completes: vec![position],
        }
    }

    /// Requests an execution from the gateway, and waits for its end or the timeout of requests.
    async fn request(&self, input: Bytes, key: Option<&str>) -> RequestOutcome {
        let failed =
            |reason: &str| RequestOutcome::Failed(ErrorCategory::System, "internal".to_owned(), reason.to_owned());
        let Some(gateway) = self.runtime.gateway() else {
            return failed("this command has no pipelines; use `weir serve`");
        };
        let mut request = http::Request::post(format!("http://localhost/pipelines/{}", self.plan.name))
            .header("host", "localhost")
            .header(CONTENT_TYPE, "application/json")
            .header("prefer", "wait");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = Full::new(input).map_err(|never| -> BodyError { match never {} });
        let request = match request.body(gateway::request_body(body)) {
            Ok(request) => request,
            Err(error) => return failed(&error.to_string()),
        };
        let response = match gateway.handle(request, CLIENT).await {
            Ok(response) => response,
            Err(error) => return RequestOutcome::Later(RETRY, format!("the gateway did not respond: {error:#}")),
        };
        let status = response.status().as_u16();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let after = after.map_or(RETRY, Duration::from_secs);
        let body = match Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return RequestOutcome::Later(RETRY, error.to_string()),
        };
        let answer: Value = match serde_json::from_slice(&body) {
            Ok(answer) => answer,
            Err(error) => return failed(&format!("the response of the gateway is not JSON: {error}")),
        };
        outcome_of(status, &answer, after)
    }
}

/// The outcome of a response of the gateway.
fn outcome_of(status: u16, answer: &Value, after: Duration) -> RequestOutcome {
    let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    match (status, text("/state").as_str()) {
        (200, "completed") => RequestOutcome::Output(text("/execution_id"), answer["output"].clone()),
        (200, state) => {
            let message = text("/failure/message");
            let reason = if message.is_empty() { format!("the execution is {state}") } else { message };
            RequestOutcome::Failed(ErrorCategory::Model, "pipeline_failed".to_owned(), reason)
        }
        // The execution continues, and a request with the same key waits for it.
        (202, _) => RequestOutcome::Later(Duration::ZERO, "the execution has not ended in time".to_owned()),
        (408 | 409 | 429 | 500..=599, _) => RequestOutcome::Later(after, text("/detail")),
        _ => RequestOutcome::Failed(ErrorCategory::Client, text("/code"), text("/detail")),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(status: u16, answer: &Value, expect: Expect) {
        expect.assert_eq(&match outcome_of(status, answer, RETRY) {
            RequestOutcome::Output(execution, output) => format!("{execution}: {output}"),
            RequestOutcome::Failed(category, code, reason) => format!("{} {code}: {reason}", category.name()),
            RequestOutcome::Later(after, reason) => format!("after {after:?}: {reason}"),
        });
    }

    #[test]
    fn responses_of_the_gateway_are_results_or_failures() {
        check(
            200,
            &json!({"execution_id": "exec_1", "state": "completed", "output": {"a": 1}}),
            expect![[r#"exec_1: {"a":1}"#]],
        );
        check(
            200,
            &json!({"execution_id": "exec_1", "state": "failed", "failure": {"message": "it is broken"}}),
            expect!["model pipeline_failed: it is broken"],
        );
        check(202, &json!({"state": "running"}), expect!["after 0ns: the execution has not ended in time"]);
        check(503, &json!({"detail": "full"}), expect!["after 1s: full"]);
        check(
            404,
            &json!({"code": "unknown_pipeline", "detail": "there is none"}),
            expect!["client unknown_pipeline: there is none"],
        );
    }
}
