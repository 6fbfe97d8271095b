//! A peer of conformance suites: an echo server, and a client that echoes what each case of a server sends.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weir_websocket::handshake::{accept_key, new_key};
use weir_websocket::{CloseFrame, Config, DeflateConfig, Message, Role, WebSocket};

/// Longest message of the suite, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Time of one case.
const CASE_TIMEOUT: Duration = Duration::from_secs(300);

fn config(deflate: Option<weir_websocket::Agreement>) -> Config {
    Config { message_bytes_max: MESSAGE_BYTES_MAX, read_bytes: 16 << 10, deflate, deflate_bytes_min: 0 }
}

/// Sends back each message, until the connection ends.
async fn echo(mut socket: WebSocket<TcpStream>) -> Result<()> {
    let frame = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => socket.feed(&text).await?,
            Some(Ok(Message::Binary(content))) => socket.feed_binary(&content).await?,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => break None,
            Some(Err(error)) => match error.close_code() {
                Some(code) => break Some(CloseFrame { code, reason: error.to_string() }),
                None => return Err(error.into()),
            },
        }
        socket.flush().await?;
    };
    Ok(socket.close(frame.as_ref()).await?)
}

/// Serves connections without end.
pub(crate) async fn serve(listener: TcpListener, deflate: DeflateConfig) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let serving = async {
                let socket = accept(stream, deflate).await?;
                echo(socket).await
            };
            // Cases that cut the connection are errors here; what counts is the report of the suite.
            if tokio::time::timeout(CASE_TIMEOUT, serving).await.is_err() {
                eprintln!("a case has not ended within {CASE_TIMEOUT:?}");
            }
        });
    }
}

async fn accept(mut stream: TcpStream, deflate: DeflateConfig) -> Result<WebSocket<TcpStream>> {
    let (head, rest) = read_head(&mut stream).await?;
    let key = header(&head, "sec-websocket-key").next().context("no key")?;
    let accepted = deflate.accept(header(&head, "sec-websocket-extensions"));
    let extensions =
        accepted.as_ref().map(|(_, value)| format!("Sec-WebSocket-Extensions: {value}\r\n")).unwrap_or_default();
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n{extensions}\r\n",
        accept_key(key.as_bytes())
    );
    stream.write_all(response.as_bytes()).await?;
    let agreement = accepted.map(|(agreement, _)| agreement);
    Ok(WebSocket::new(stream, Role::Server, config(agreement), &rest))
}

async fn connect(address: &str, path: &str, deflate: DeflateConfig) -> Result<WebSocket<TcpStream>> {
    let mut stream = TcpStream::connect(address).await?;
    let key = new_key();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Extensions: {}\r\n\r\n",
        deflate.offer()
    );
    stream.write_all(request.as_bytes()).await?;
    let (head, rest) = read_head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
    ensure!(header(&head, "sec-websocket-accept").next() == Some(&accept_key(key.as_bytes())), "{head}");
    let agreement = deflate.complete(header(&head, "sec-websocket-extensions").next())?;
    Ok(WebSocket::new(stream, Role::Client, config(agreement), &rest))
}

/// Runs all cases of a server.
pub(crate) async fn run_cases(address: &str, deflate: DeflateConfig) -> Result<()> {
    let mut socket = connect(address, "/getCaseCount", deflate).await?;
    let count: u32 = match socket.next().await {
        Some(Ok(Message::Text(count))) => count.trim().parse()?,
        other => bail!("{other:?}"),
    };
    // The suite may close these two connections first, which resets them.
    let _ = socket.close(None).await;
    for case in 1..=count {
        let socket = connect(address, &format!("/runCase?case={case}&agent=weir"), deflate).await?;
        if tokio::time::timeout(CASE_TIMEOUT, echo(socket)).await.is_err() {
            eprintln!("case {case} has not ended within {CASE_TIMEOUT:?}");
        }
    }
    let mut socket = connect(address, "/updateReports?agent=weir", deflate).await?;
    let _ = socket.close(None).await;
    Ok(())
}

/// The head of a request or response, and the bytes after it.
async fn read_head(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    const HEAD_BYTES_MAX: usize = 16 << 10;
    let mut head = Vec::new();
    loop {
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let rest = head.split_off(end + 4);
            return Ok((String::from_utf8(head)?, rest));
        }
        ensure!(head.len() < HEAD_BYTES_MAX, "the head is too long");
        ensure!(stream.read_buf(&mut head).await? > 0, "the connection has ended within a head");
    }
}

/// The values of a header.
fn header<'h>(head: &'h str, name: &'h str) -> impl Iterator<Item = &'h str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
