//! Feeds over WebSockets, with a server of the test.

mod echo;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use echo::{start, until};
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};
use weir_adapters::build::Plan;
use weir_adapters::check;
use weir_adapters::driver::BoxFuture;
use weir_adapters::status::Status;
use weir_adapters::supervisor::{Component, ComponentCall, ComponentError, Supervisor};
use weir_config::{Adapter, AdapterSink, AdapterSource, FileSink, WebSocketSource};
use weir_core::adapter::SourceRecord;

/// What the server does with a connection, in this order.
#[derive(Debug, Clone)]
enum Step {
    /// Sends a message.
    Send(Message),
    /// Waits for a message.
    Receive(&'static str),
    /// Waits for a ping; the library answers it.
    ReceivePing,
    /// Ends the connection without a close frame.
    Cut,
    /// Reads nothing more, and keeps the connection.
    Hang,
    /// Closes the connection with a code, and waits for the answer.
    Close(CloseCode),
}

struct Server {
    url: String,
    /// The headers `authorization` of the handshakes.
    tokens: Arc<Mutex<Vec<Option<String>>>>,
    /// Why a step did not happen.
    failures: Arc<Mutex<Vec<String>>>,
    /// Connections that were refused because there were no more steps.
    refusals: Arc<AtomicU32>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Server {
    /// The first connections are refused with 503; the next ones have these steps.
    async fn start(refused: usize, connections: Vec<Vec<Step>>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("ws://{}/feed", listener.local_addr()?);
        let (tokens, failures) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (seen, failed) = (tokens.clone(), failures.clone());
        let refusals = Arc::new(AtomicU32::new(0));
        let refused_without_steps = refusals.clone();
        let task = tokio::spawn(async move {
            let mut refused = refused;
            let mut connections = connections.into_iter();
            let mut hung = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let is_refused = refused > 0;
                #[expect(clippy::result_large_err, reason = "the callback of the library returns this type")]
                let callback = |request: &Request, response: Response| {
                    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(token.map(str::to_owned));
                    if is_refused {
                        let mut refusal = ErrorResponse::new(None);
                        *refusal.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                        return Err(refusal);
                    }
                    Ok(response)
                };
                let mut socket = match accept_hdr_async(stream, callback).await {
                    Ok(socket) => socket,
                    Err(error) => {
                        // Others are connections that send no request.
                        refused -= usize::from(matches!(error, Error::Http(_)));
                        continue;
                    }
                };
                let Some(steps) = connections.next() else { return };
                if connections.len() == 0 && matches!(steps[..], [Step::Cut]) {
                    drop(socket);
                    while let Ok((stream, _)) = listener.accept().await {
                        drop(stream);
                        refused_without_steps.fetch_add(1, Ordering::Relaxed);
                    }
                    return;
                }
                match serve(&mut socket, steps).await {
                    Ok(true) => hung.push(socket),
                    Ok(false) => {}
                    Err(error) => failed.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string()),
                }
            }
        });
        Ok(Self { url, tokens, failures, refusals, _task: tokio_util::task::AbortOnDropHandle::new(task) })
    }

    fn check(&self) -> Result<()> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(failures.is_empty(), "{failures:?}");
        Ok(())
    }
}

/// Performs the steps; true when the connection hangs.
async fn serve(socket: &mut WebSocketStream<TcpStream>, steps: Vec<Step>) -> Result<bool> {
    for step in steps {
        match step {
            Step::Send(message) => socket.send(message).await?,
            Step::Receive(text) => loop {
                match socket.next().await.context("the connection has ended")?? {
                    Message::Text(message) => {
                        ensure!(message.as_str() == text, "{message} was received, and not {text}");
                        break;
                    }
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => anyhow::bail!("{other:?} was received"),
                }
            },
            Step::ReceivePing => while !matches!(socket.next().await.context("ended")??, Message::Ping(_)) {},
            Step::Cut => return Ok(false),
            Step::Hang => return Ok(true),
            Step::Close(code) => {
                socket.close(Some(CloseFrame { code, reason: "".into() })).await?;
                while let Some(Ok(_)) = socket.next().await {}
            }
        }
    }
    Ok(false)
}

fn text(text: &str) -> Step {
    Step::Send(Message::text(text))
}

fn feed(server: &Server, out: &Path) -> Adapter {
    Adapter {
        name: "feed".into(),
        reconnect_delay_ms: 1,
        reconnect_attempts_max: 1,
        source: AdapterSource::WebSocket(WebSocketSource {
            url: server.url.clone(),
            reconnect_delay_ms: 1,
            ..WebSocketSource::default()
        }),
        sink: AdapterSink::File(FileSink { path: out.to_owned(), ..FileSink::default() }),
        ..Adapter::default()
    }
}

fn source(adapter: &mut Adapter) -> &mut WebSocketSource {
    match &mut adapter.source {
        AdapterSource::WebSocket(source) => source,
        _ => unreachable!("the adapter has a WebSocket"),
    }
}

/// The feed is connected again by the source, so that records in flight are not lost; the adapter does not repeat its attempts.
#[tokio::test]
async fn attempts_of_a_feed_count_for_the_adapter() -> Result<()> {
    for (adapter_attempts, expected) in [(3, 3), (5, 5)] {
        let server = Server::start(0, vec![vec![Step::Cut]]).await?;
        // After its only connection the server refuses any other.
        let refusals = server.refusals.clone();
        let dir = tempfile::tempdir()?;
        let mut adapter = feed(&server, &dir.path().join("out"));
        adapter.reconnect_attempts_max = adapter_attempts;
        source(&mut adapter).max_reconnect_attempts = 3;
        start(&adapter)?.failed().await?;
        assert_eq!(refusals.load(Ordering::Relaxed), expected);
    }
    Ok(())
}

#[tokio::test]
async fn messages_are_records_and_a_lost_feed_is_subscribed_again() -> Result<()> {
    let server = Server::start(
        0,
        vec![
            vec![
                Step::Receive("subscribe"),
                text("\"one\""),
                Step::Send(Message::binary(b"\"two\"".to_vec())),
                Step::Cut,
            ],
            vec![Step::Receive("subscribe"), text("\"three\""), Step::Close(CloseCode::Restart)],
            vec![Step::Receive("subscribe"), text("\"four\""), Step::Close(CloseCode::Normal)],
        ],
    )
    .await?;
    let dir = tempfile::tempdir()?;
    let (out, token) = (dir.path().join("out"), dir.path().join("token"));
    std::fs::write(&token, "secret")?;
    let mut adapter = feed(&server, &out);
    source(&mut adapter).subscribe = "subscribe".into();
    source(&mut adapter).token_file = token;
    let status = start(&adapter)?.ended().await?;
    server.check()?;
    assert_eq!(std::fs::read_to_string(out)?, "\"one\"\n\"two\"\n\"three\"\n\"four\"\n");
    assert_eq!((status.report().records, status.report().reconnects), (4, 0));
    let tokens = server.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(tokens, vec![Some("Bearer secret".to_owned()); 3]);
    Ok(())
}

#[tokio::test]
async fn server_without_pongs_is_disconnected() -> Result<()> {
    let server = Server::start(
        0,
        vec![
            vec![text("\"one\""), Step::Hang],
            vec![text("\"two\""), Step::ReceivePing, Step::Close(CloseCode::Normal)],
        ],
    )
    .await?;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let mut adapter = feed(&server, &out);
    source(&mut adapter).heartbeat_ms = 500;
    start(&adapter)?.ended().await?;
    server.check()?;
    assert_eq!(std::fs::read_to_string(out)?, "\"one\"\n\"two\"\n");
    Ok(())
}

#[tokio::test]
async fn refused_connection_is_tried_again_up_to_the_bound() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let end = vec![vec![text("\"one\""), Step::Cut], vec![text("\"two\""), Step::Close(CloseCode::Normal)]];
    // The adapter connects for the first time, which it tries twice; then the feed is lost and connected again.
    let server = Server::start(1, end).await?;
    let out = dir.path().join("out");
    let status = start(&feed(&server, &out))?.ended().await?;
    assert_eq!(std::fs::read_to_string(&out)?, "\"one\"\n\"two\"\n");
    assert_eq!(status.report().reconnects, 1);
    let server = Server::start(2, Vec::new()).await?;
    let failure = start(&feed(&server, &out))?.failed().await?.to_string();
    assert!(failure.contains("503"), "{failure}");
    Ok(())
}

#[tokio::test]
async fn policy_of_the_server_stops_the_adapter() -> Result<()> {
    let server = Server::start(0, vec![vec![Step::Close(CloseCode::Policy)]]).await?;
    let dir = tempfile::tempdir()?;
    let failure = start(&feed(&server, &dir.path().join("out")))?.failed().await?.to_string();
    assert!(failure.contains("1008"), "{failure}");
    let server = Server::start(0, vec![vec![text(&"x".repeat(100)), Step::Hang]]).await?;
    let mut adapter = feed(&server, &dir.path().join("out"));
    source(&mut adapter).message_bytes_max = 99;
    let failure = start(&adapter)?.failed().await?.to_string();
    assert!(failure.contains("message_bytes_max"), "{failure}");
    Ok(())
}

/// A component that gives no result before it may.
struct Gated(watch::Receiver<bool>);

impl Component for Gated {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        let mut may = self.0.clone();
        let (records, mut incoming) = mpsc::channel::<Vec<SourceRecord>>(16);
        let (outgoing, results) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            // An error means that the test is over.
            let _ = may.wait_for(|may| *may).await;
            while let Some(list) = incoming.recv().await {
                if outgoing.send(list.into_iter().map(echo::answer).collect()).await.is_err() {
                    return;
                }
            }
        });
        echo::call(records, results, task)
    }
}

/// The component gives nothing for a while: the server waits, and the connection is not taken for dead.
#[tokio::test]
async fn feed_waits_while_the_adapter_reads_nothing() -> Result<()> {
    const HEARTBEAT_MS: u64 = 1000;
    let count = 2_000;
    let steps = (0..count).map(|number| text(&format!("{number}"))).chain([Step::Close(CloseCode::Normal)]).collect();
    let server = Server::start(0, vec![steps]).await?;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let mut adapter = feed(&server, &out);
    adapter.in_flight_max = 2;
    source(&mut adapter).heartbeat_ms = HEARTBEAT_MS;
    let plan = Plan::new(&adapter, 1).map_err(anyhow::Error::msg)?;
    let status = Status::new(&plan.name, plan.source, plan.sink);
    let ((may, gate), (_stop, stopped)) = (watch::channel(false), watch::channel(false));
    let supervisor = Supervisor::new(plan.driver, Arc::new(Gated(gate)), plan.bounds, status.clone());
    let running = tokio::spawn(supervisor.run(stopped));
    until("in flight", async || Ok(status.report().records == 2)).await?;
    // With room, silence for two heartbeats ends a connection.
    tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS * 5 / 2)).await;
    may.send(true)?;
    tokio::time::timeout(echo::PATIENCE, running).await???;
    server.check()?;
    let expected: String = (0..count).map(|number| format!("{number}\n")).collect();
    ensure!(std::fs::read_to_string(out)? == expected, "messages are missing or in another order");
    assert_eq!(status.report().reconnects, 0);
    Ok(())
}

#[tokio::test]
async fn stopped_adapter_writes_what_it_has_read() -> Result<()> {
    let server = Server::start(0, vec![vec![text("\"one\""), Step::Hang]]).await?;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let running = start(&feed(&server, &out))?;
    let status = running.status.clone();
    until("read", async || Ok(status.report().results == 1)).await?;
    running.stop().await?;
    assert_eq!(std::fs::read_to_string(out)?, "\"one\"\n");
    Ok(())
}

#[tokio::test]
async fn checks_name_the_failure_and_a_remedy() -> Result<()> {
    let config = |url: &str| WebSocketSource { url: url.to_owned(), timeout_ms: 2000, ..WebSocketSource::default() };
    // The answer to a ping leaves with the next message.
    let alive = vec![text("\"one\""), Step::ReceivePing, text("\"two\""), Step::Close(CloseCode::Normal)];
    let server = Server::start(0, vec![alive]).await?;
    let checks = check::websocket(&config(&server.url)).await;
    let names: Vec<&str> = checks.list.iter().map(|check| check.name).collect();
    assert!(checks.passed(), "{checks:?}");
    assert_eq!(names, ["resolve", "connect", "handshake", "read"]);
    let server = Server::start(1, Vec::new()).await?;
    let checks = check::websocket(&config(&server.url)).await;
    let last = checks.list.last().context("no checks")?;
    assert!(last.name == "handshake" && last.outcome.as_ref().is_err_and(|reason| reason.contains("503")), "{last:?}");
    let checks = check::websocket(&config("http://127.0.0.1:1/")).await;
    assert!(!checks.passed() && checks.list[0].name == "resolve", "{checks:?}");
    Ok(())
}
