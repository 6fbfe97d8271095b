//! A server with the API of an upstream, over real sockets. The model of a request selects its behavior.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The pieces of the text that it generates.
pub(crate) const PIECES: [&str; 3] = ["One ", "zw\u{f6}lf ", "\u{1f600}."];
/// The tokens of every prompt, and of every generated text.
pub(crate) const TOKENS: (u64, u64) = (7, 3);

/// The API of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    OpenAi,
    Anthropic,
    Gemini,
}

pub(crate) const APIS: [Api; 3] = [Api::OpenAi, Api::Anthropic, Api::Gemini];

impl Api {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
        }
    }
}

/// A request that the server has read.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedRequest {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) model: String,
}

/// A server; it ends with the runtime of its test.
pub(crate) struct MockUpstream {
    pub(crate) api: Api,
    pub(crate) address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<ReceivedRequest>>,
    /// Requests for each model so far.
    counts: Mutex<BTreeMap<String, u32>>,
    /// Clients that disconnected before the end of their response.
    disconnects: Mutex<u32>,
    connections: Mutex<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MockUpstream {
    pub(crate) async fn start(api: Api) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::<Shared>::default();
        let server_state = shared.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = server_state.clone();
                // A disconnected client is an error of a write, which is counted where a test needs the count.
                tokio::spawn(async move { drop(serve(socket, api, &shared).await) });
            }
        });
        Ok(Self { api, address, shared })
    }

    /// The base URL for the configuration.
    pub(crate) fn url(&self) -> String {
        match self.api {
            Api::OpenAi => format!("http://{}/base/v1", self.address),
            Api::Anthropic | Api::Gemini => format!("http://{}/base", self.address),
        }
    }

    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        lock(&self.shared.requests).clone()
    }

    /// Requests for a model so far.
    pub(crate) fn count(&self, model: &str) -> u32 {
        lock(&self.shared.counts).get(model).copied().unwrap_or(0)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> u32 {
        *lock(&self.shared.connections)
    }

    /// Clients that disconnected before the end of their response.
    pub(crate) fn disconnects(&self) -> u32 {
        *lock(&self.shared.disconnects)
    }
}

/// Handles the requests on a connection until one that closes it.
async fn serve(socket: TcpStream, api: Api, shared: &Shared) -> Result<()> {
    *lock(&shared.connections) += 1;
    let mut socket = BufReader::new(socket);
    while handle_request(&mut socket, api, shared).await? {}
    Ok(())
}

/// Handles a request; returns whether the connection stays open.
async fn handle_request(socket: &mut BufReader<TcpStream>, api: Api, shared: &Shared) -> Result<bool> {
    let request = read(socket, api).await?;
    let model = request.model.clone();
    lock(&shared.requests).push(request);
    let number = {
        let mut counts = lock(&shared.counts);
        let count = counts.entry(model.clone()).or_default();
        *count += 1;
        *count
    };
    let socket = socket.get_mut();
    let behavior = model.rsplit('/').next().unwrap_or_default();
    match (behavior, number) {
        ("flaky", 1) | ("down", _) => refuse(socket, 500, "", "it broke").await?,
        ("throttled", 1) => refuse(socket, 429, "retry-after: 1\r\n", "slow down").await?,
        ("full", _) => refuse(socket, 429, "retry-after: 30\r\n", "slow down").await?,
        ("denied", _) => refuse(socket, 401, "", "the key secret-of-the-operator is wrong").await?,
        ("invalid", _) => refuse(socket, 400, "", "the prompt is too long").await?,
        ("silent", _) => wait_for_disconnect(socket, shared).await?,
        ("page", _) => {
            let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi";
            socket.write_all(page.as_bytes()).await?;
        }
        (behavior, _) => stream(socket, api, behavior, shared).await?,
    }
    Ok(behavior == "good")
}

async fn read(socket: &mut BufReader<TcpStream>, api: Api) -> Result<ReceivedRequest> {
    let mut line = String::new();
    socket.read_line(&mut line).await?;
    let path = line.split_whitespace().nth(1).context("a path")?.to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        socket.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length: usize = headers.get("content-length").context("a length")?.parse()?;
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await?;
    let body: Value = serde_json::from_slice(&body)?;
    let of_path = || path.split_once("/models/")?.1.split(':').next().map(str::to_owned);
    let model = match api {
        Api::Gemini => of_path().context("a model in the path")?,
        Api::OpenAi | Api::Anthropic => body["model"].as_str().context("a model")?.to_owned(),
    };
    Ok(ReceivedRequest { path, headers, model })
}

async fn refuse(socket: &mut TcpStream, status: u16, headers: &str, message: &str) -> Result<()> {
    let body = json!({ "error": { "message": message, "type": "error" } }).to_string();
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n");
    Ok(socket.write_all(format!("{head}{body}").as_bytes()).await?)
}

/// Sends nothing until the client disconnects.
async fn wait_for_disconnect(socket: &mut TcpStream, shared: &Shared) -> Result<()> {
    let mut byte = [0];
    if socket.read(&mut byte).await.unwrap_or(0) == 0 {
        *lock(&shared.disconnects) += 1;
    }
    Ok(())
}

async fn chunk(socket: &mut TcpStream, text: &str) -> Result<()> {
    Ok(socket.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?)
}

async fn stream(socket: &mut TcpStream, api: Api, behavior: &str, shared: &Shared) -> Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await?;
    if api != Api::Gemini {
        chunk(socket, ": a comment\n\n").await?;
    }
    chunk(socket, &begin(api)).await?;
    if behavior == "error-first" {
        chunk(socket, &error(api)).await?;
        return chunk(socket, "").await;
    }
    if behavior == "tool" {
        chunk(socket, &tool(api)).await?;
        chunk(socket, &finish(api, "tool")).await?;
        return chunk(socket, "").await;
    }
    for (number, text) in PIECES.iter().enumerate() {
        let text = piece(api, text);
        // The two writes are divided within a character or a line.
        let middle = text.len() / 2;
        let (first, second) = text.as_bytes().split_at(middle);
        socket.write_all(format!("{:x}\r\n", text.len()).as_bytes()).await?;
        socket.write_all(first).await?;
        socket.flush().await?;
        tokio::task::yield_now().await;
        socket.write_all(second).await?;
        socket.write_all(b"\r\n").await?;
        match (behavior, number) {
            // The client reads the bytes before the end, then closes the connection.
            ("cut", 1) => {
                socket.shutdown().await?;
                let _ = socket.read(&mut [0]).await?;
                return Ok(());
            }
            ("error", 1) => {
                chunk(socket, &error(api)).await?;
                return chunk(socket, "").await;
            }
            ("gap", 0) => return wait_for_disconnect(socket, shared).await,
            ("endless", _) => loop {
                if chunk(socket, &piece(api, "and ")).await.is_err() {
                    *lock(&shared.disconnects) += 1;
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            },
            _ => {}
        }
    }
    if behavior == "unfinished" {
        if api == Api::OpenAi {
            chunk(socket, "data: [DONE]\n\n").await?;
        }
        return chunk(socket, "").await;
    }
    chunk(socket, &finish(api, if behavior == "long" { "length" } else { "stop" })).await?;
    chunk(socket, "").await
}

fn data(value: &Value) -> String {
    match value["type"].as_str() {
        Some(name) => format!("event: {name}\ndata: {value}\n\n"),
        None => format!("data: {value}\n\n"),
    }
}

fn begin(api: Api) -> String {
    match api {
        Api::OpenAi => data(&json!({ "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] })),
        Api::Anthropic => {
            let usage = json!({ "input_tokens": TOKENS.0, "output_tokens": 1 });
            let start = data(&json!({ "type": "message_start", "message": { "usage": usage } }));
            let block = json!({ "type": "text", "text": "" });
            start + &data(&json!({ "type": "content_block_start", "index": 0, "content_block": block }))
        }
        Api::Gemini => String::from("\n"),
    }
}

fn piece(api: Api, text: &str) -> String {
    match api {
        Api::OpenAi => {
            data(&json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }] }))
        }
        Api::Anthropic => {
            let delta = json!({ "type": "text_delta", "text": text });
            data(&json!({ "type": "content_block_delta", "index": 0, "delta": delta }))
        }
        Api::Gemini => {
            let content = json!({ "role": "model", "parts": [{ "text": text }] });
            data(&json!({ "candidates": [{ "index": 0, "content": content }] }))
        }
    }
}

fn tool(api: Api) -> String {
    match api {
        Api::OpenAi => {
            let call = |call: Value| data(&json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [call] } }] }));
            let first = json!({ "index": 0, "id": "call_1", "function": { "name": "weather", "arguments": "" } });
            call(first) + &call(json!({ "index": 0, "function": { "arguments": "{\"city\":\"Rome\"}" } }))
        }
        Api::Anthropic => {
            let block = json!({ "type": "tool_use", "id": "call_1", "name": "weather", "input": {} });
            let start = data(&json!({ "type": "content_block_start", "index": 1, "content_block": block }));
            let delta = json!({ "type": "input_json_delta", "partial_json": "{\"city\":\"Rome\"}" });
            start + &data(&json!({ "type": "content_block_delta", "index": 1, "delta": delta }))
        }
        Api::Gemini => {
            let call = json!({ "id": "call_1", "name": "weather", "args": { "city": "Rome" } });
            let content = json!({ "role": "model", "parts": [{ "functionCall": call }] });
            data(&json!({ "candidates": [{ "index": 0, "content": content }] }))
        }
    }
}

/// The end, with the usage where the API has it.
fn finish(api: Api, reason: &str) -> String {
    let (prompt, completion) = TOKENS;
    match api {
        Api::OpenAi => {
            let reason = if reason == "tool" { "tool_calls" } else { reason };
            let last = data(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }));
            let usage = json!({ "prompt_tokens": prompt, "completion_tokens": completion });
            last + &data(&json!({ "choices": [], "usage": usage })) + "data: [DONE]\n\n"
        }
        Api::Anthropic => {
            let reason = match reason {
                "tool" => "tool_use",
                "length" => "max_tokens",
                _ => "end_turn",
            };
            let usage = json!({ "output_tokens": completion });
            let delta = data(&json!({ "type": "message_delta", "delta": { "stop_reason": reason }, "usage": usage }));
            delta + &data(&json!({ "type": "message_stop" }))
        }
        Api::Gemini => {
            let reason = if reason == "length" { "MAX_TOKENS" } else { "STOP" };
            let usage = json!({ "promptTokenCount": prompt, "candidatesTokenCount": completion });
            data(&json!({ "candidates": [{ "index": 0, "finishReason": reason }], "usageMetadata": usage }))
        }
    }
}

fn error(api: Api) -> String {
    let body = json!({ "message": "it broke", "type": "api_error", "code": 500 });
    match api {
        Api::Anthropic => data(&json!({ "type": "error", "error": body })),
        Api::OpenAi | Api::Gemini => data(&json!({ "error": body })),
    }
}
