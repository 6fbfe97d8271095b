//! permessage-deflate (RFC 7692) of the server: its negotiation, bounds and metrics, byte by byte. These tests compress with flate2, the
//! server with zlib-rs; the package `ws` compresses in the tests of `websockets`.

use std::io::{Read as _, Write as _};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use weir_tests::websocket::{frame_bytes, handshake, read_frame};
use weir_tests::{Server, until};

/// The end of a deflate stream that is not sent.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

struct Peer {
    stream: TcpStream,
    /// The header `Sec-WebSocket-Extensions` of the response.
    extensions: Option<String>,
}

impl Peer {
    async fn open(server: &Server, path: &str, offer: Option<&str>) -> Result<Self> {
        let offer = offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}\r\n")).unwrap_or_default();
        let (stream, response) = handshake(server, path, &offer).await?;
        ensure!(response.starts_with("HTTP/1.1 101 "), "{response}");
        let lines = response.lines().filter_map(|line| line.split_once(": "));
        let extensions = lines.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-extensions"));
        let extensions = extensions.map(|(_, value)| value.to_owned()).next();
        Ok(Self { stream, extensions })
    }

    async fn send(&mut self, first: u8, payload: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(&frame_bytes(first, payload)).await?)
    }

    /// The first byte and the payload of the next frame that is not a ping.
    async fn next(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            let frame = read_frame(&mut self.stream).await?;
            if frame.0 & 15 != 9 {
                return Ok(frame);
            }
        }
    }

    /// The code of the close frame that is next, and its reason.
    async fn closed(&mut self) -> Result<(u16, String)> {
        let (first, payload) = self.next().await?;
        let Some((code, reason)) = payload.split_first_chunk().filter(|_| first == 0x88) else {
            bail!("{first:#x} {payload:?} is not a close frame");
        };
        Ok((u16::from_be_bytes(*code), String::from_utf8(reason.to_vec())?))
    }
}

/// Compresses a message alone.
fn compress(message: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(message)?;
    encoder.flush()?;
    let mut payload = encoder.get_ref().clone();
    ensure!(payload.ends_with(&TAIL));
    payload.truncate(payload.len() - TAIL.len());
    Ok(payload)
}

/// Decompresses the messages of one direction, which may refer to earlier ones.
struct Inflater(flate2::Decompress);

impl Inflater {
    fn next(&mut self, payload: &[u8]) -> Result<Value> {
        let mut message = Vec::with_capacity(1 << 20);
        let input = [payload, &TAIL].concat();
        self.0.decompress_vec(&input, &mut message, flate2::FlushDecompress::Sync)?;
        Ok(serde_json::from_slice(&message)?)
    }
}

fn decompress(payload: &[u8]) -> Result<Value> {
    let mut message = String::new();
    // The stream has no last block: the message ends before the error about that.
    let _ = flate2::read::DeflateDecoder::new([payload, &TAIL].concat().as_slice()).read_to_string(&mut message);
    Ok(serde_json::from_str(&message)?)
}

#[tokio::test]
async fn offers_are_negotiated_by_the_configuration() -> Result<()> {
    const ALONE: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    let browser = Some("permessage-deflate; client_max_window_bits");
    let check = async |server: &Server, offer, expected: Option<&str>| {
        let peer = Peer::open(server, "/v1/classify", offer).await?;
        ensure!(peer.extensions.as_deref() == expected, "{offer:?}: {:?}", peer.extensions);
        anyhow::Ok(())
    };
    let server = Server::start_stub(&[]).await?;
    check(&server, None, None).await?;
    check(&server, Some("permessage-bzip2"), None).await?;
    check(&server, Some("permessage-deflate; server_max_window_bits=8"), None).await?;
    check(&server, browser, Some(&format!("{ALONE}; client_max_window_bits=12"))).await?;
    check(
        &server,
        Some("permessage-deflate; server_max_window_bits=9"),
        Some(&format!("{ALONE}; server_max_window_bits=9")),
    )
    .await?;
    let settings = ["--set", "http.websocket_compression=connection", "--set", "http.websocket_window_bits=10"];
    let server = Server::start_stub(&settings).await?;
    check(&server, browser, Some("permessage-deflate; client_max_window_bits=10")).await?;
    check(
        &server,
        Some("permessage-deflate; server_no_context_takeover"),
        Some("permessage-deflate; server_no_context_takeover"),
    )
    .await?;
    let server = Server::start_stub(&["--set", "http.websocket_compression=off"]).await?;
    check(&server, browser, None).await
}

#[tokio::test]
async fn compressed_messages_are_answered_compressed_and_counted() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut peer = Peer::open(&server, "/v1/classify", Some("permessage-deflate")).await?;
    until("open", || async { Ok(server.metric("weir_websockets_compressed_open").await? == 1.0) }).await?;
    // A long id, so that the answer is worth a compression.
    let id = "a long id ".repeat(25);
    let message = json!({"text": "a good Day", "id": id}).to_string();
    let payload = compress(message.as_bytes())?;
    // In one frame, in frames of one byte, and without compression.
    peer.send(0xc1, &payload).await?;
    let (first, answer) = peer.next().await?;
    ensure!(first == 0xc1 && answer.len() < 250, "{first:#x}, {} bytes", answer.len());
    ensure!(decompress(&answer)?["id"] == id);
    for (at, byte) in payload.iter().enumerate() {
        let first = if at == 0 { 0x41 } else { 0 };
        peer.send(first, &[*byte]).await?;
    }
    peer.send(0x80, b"").await?;
    ensure!(decompress(&peer.next().await?.1)?["id"] == id);
    peer.send(0x81, message.as_bytes()).await?;
    ensure!(decompress(&peer.next().await?.1)?["id"] == id);
    // A short answer is not compressed.
    peer.send(0x81, b"\"Day\"").await?;
    let (first, answer) = peer.next().await?;
    ensure!(first == 0x81 && answer.len() < 128, "{first:#x}, {} bytes", answer.len());
    ensure!(serde_json::from_slice::<Value>(&answer)?["scores"].is_array());
    peer.send(0x88, &1000_u16.to_be_bytes()).await?;
    ensure!(peer.closed().await?.0 == 1000);
    until("closed", || async { Ok(server.metric("weir_websockets_compressed_open").await? == 0.0) }).await?;
    let sum = async |name: &str, direction: &str| {
        let direction = format!("direction=\"{direction}\"");
        server.sum_metrics(|key| key.split('{').next() == Some(name) && key.contains(&direction)).await
    };
    let received = sum("weir_websocket_message_bytes_total", "in").await?;
    ensure!(received == (3 * message.len() + 5) as f64, "{received}");
    let payloads = sum("weir_websocket_payload_bytes_total", "in").await?;
    ensure!(payloads == (2 * payload.len() + message.len() + 5) as f64, "{payloads}");
    let (content, payloads) = (
        sum("weir_websocket_message_bytes_total", "out").await?,
        sum("weir_websocket_payload_bytes_total", "out").await?,
    );
    ensure!(content > (3 * id.len()) as f64 && payloads < content * 0.6, "{payloads} of {content}");
    Ok(())
}

#[tokio::test]
async fn context_is_taken_over_where_both_sides_agree() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.websocket_compression=connection"]).await?;
    let mut peer = Peer::open(&server, "/v1/classify", Some("permessage-deflate")).await?;
    let mut compressor = flate2::Compress::new(flate2::Compression::best(), false);
    let mut inflater = Inflater(flate2::Decompress::new(false));
    let message = json!({"text": "a good Day", "id": "0123456789abcdefghijklmnopqrstuvwxyz".repeat(7)}).to_string();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let mut payload = Vec::with_capacity(4096);
        compressor.compress_vec(message.as_bytes(), &mut payload, flate2::FlushCompress::Sync)?;
        payload.truncate(payload.len() - TAIL.len());
        peer.send(0xc1, &payload).await?;
        let (first, answer) = peer.next().await?;
        ensure!(first == 0xc1);
        ensure!(inflater.next(&answer)?["scores"].is_array());
        sizes.push((payload.len(), answer.len()));
    }
    // Later messages are references to the first one.
    ensure!(sizes[2].0 < sizes[0].0 / 2 && sizes[2].1 < sizes[0].1 / 2, "{sizes:?}");
    Ok(())
}

#[tokio::test]
async fn bombs_and_invalid_data_are_refused() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let open = async || Peer::open(&server, "/v1/classify", Some("permessage-deflate")).await;
    // 64 MiB in 64 KiB; the bound is that of a message without compression.
    let bomb = compress(&vec![b' '; 64 << 20])?;
    let before = server.resident_bytes()?;
    for _ in 0..20 {
        let mut peer = open().await?;
        // The server may close before it has read all.
        let _ = peer.send(0xc1, &bomb).await;
        let (code, reason) = peer.closed().await?;
        ensure!(code == 1009 && reason.contains("262144 bytes"), "{code} {reason}");
    }
    let grown = server.resident_bytes()?.saturating_sub(before);
    ensure!(grown < 64 << 20, "the server has grown by {grown} bytes");
    // A message of exactly the bound is read, and one byte more is not.
    for (bytes, is_read) in [(256 << 10, true), ((256 << 10) + 1, false)] {
        let mut peer = open().await?;
        let message = format!("{}\"a good Day\"", " ".repeat(bytes - 12));
        peer.send(0xc1, &compress(message.as_bytes())?).await?;
        let (first, _) = peer.next().await?;
        ensure!((first & 15 == 1) == is_read, "{bytes} bytes: {first:#x}");
    }
    // Empty blocks, which add nothing to the message, without end.
    let mut peer = open().await?;
    let empty = [0x00, 0x00, 0x00, 0xff, 0xff].repeat(60_000);
    let _ = peer.send(0x41, &empty).await;
    ensure!(peer.closed().await?.0 == 1009);
    for (payload, expected) in [(&[0xff, 0xff][..], 1007), (&compress(b"\xed\xa0\x80")?, 1007)] {
        let mut peer = open().await?;
        peer.send(0xc1, payload).await?;
        let (code, _) = peer.closed().await?;
        ensure!(code == expected, "{code}");
    }
    // A compressed control frame, and a compressed message without an agreement.
    let mut peer = open().await?;
    peer.send(0xc9, b"").await?;
    ensure!(peer.closed().await?.0 == 1002);
    let mut peer = Peer::open(&server, "/v1/classify", None).await?;
    peer.send(0xc1, &compress(b"\"a good Day\"")?).await?;
    ensure!(peer.closed().await?.0 == 1002);
    until("closed", || async { Ok(server.metric("weir_websockets_open").await? == 0.0) }).await
}

/// A quiet WebSocket holds no compressor and no window after its messages.
#[tokio::test]
async fn quiet_websocket_takes_as_much_memory_as_without_compression() -> Result<()> {
    const SOCKETS: u64 = 200;
    let message = json!({"text": "a good Day", "id": "a long id ".repeat(25)}).to_string();
    let payload = compress(message.as_bytes())?;
    let mut bytes_of = Vec::new();
    for offer in [None, Some("permessage-deflate")] {
        let server = Server::start_stub(&[]).await?;
        let mut peers = Vec::new();
        // The first ones grow what all share.
        let mut before = 0;
        for number in 0..SOCKETS + 20 {
            if number == 20 {
                before = server.resident_bytes()?;
            }
            let mut peer = Peer::open(&server, "/v1/classify", offer).await?;
            match offer {
                Some(_) => peer.send(0xc1, &payload).await?,
                None => peer.send(0x81, message.as_bytes()).await?,
            }
            peer.next().await?;
            peers.push(peer);
        }
        bytes_of.push(server.resident_bytes()?.saturating_sub(before) / SOCKETS);
    }
    // A window and a compressor take 40 KiB at least.
    ensure!(
        bytes_of[1] < bytes_of[0] + (16 << 10),
        "{bytes_of:?} bytes for each WebSocket, without and with compression"
    );
    Ok(())
}
