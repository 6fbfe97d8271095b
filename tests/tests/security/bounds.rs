//! Bounds of responses: their size is in proportion to the size of the request.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::Server;
use weir_tests::client::{NDJSON, chunks_path, create_session, post_body};

/// Bound of the bytes of a response for each byte of the request body, in addition to [`BYTES_FREE`].
const BYTES_PER_BYTE: usize = 32;
/// One mebibyte that every response may have, and what is written before the bound takes effect.
const BYTES_FREE: usize = 2 << 20;

/// An NDJSON transcript of one speaker without a pause, of at least this many bytes: each event repeats the segment so far.
fn monologue(bytes: usize) -> String {
    let mut body = String::new();
    for at in 0.. {
        let start = f64::from(at) / 10.0;
        body += &json!({"start": start, "end": start + 0.1, "text": "a", "speaker_id": "ann"}).to_string();
        body.push('\n');
        if body.len() >= bytes {
            break;
        }
    }
    body
}

/// Posts an NDJSON body; the size of the response in bytes, and its last line.
async fn response_size_and_last_line(server: &Server, path: &str, body: String) -> Result<(usize, Value)> {
    let response = post_body(server, path, NDJSON, body).await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    let (mut bytes, mut tail) = (0, Vec::new());
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        bytes += piece.len();
        tail.extend_from_slice(&piece);
        let line = tail
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |begin| begin + 1));
        tail.drain(..line);
    }
    Ok((bytes, serde_json::from_slice(&tail).context("the last line")?))
}

#[tokio::test]
async fn response_to_a_transcript_of_one_mebibyte_is_bounded() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_bytes_max=4194304"]).await?;
    let session = chunks_path(&create_session(&server, &json!({})).await?);
    for path in ["/v1/transcript", "/v1/transcript?annotate=none", session.as_str()] {
        let body = monologue(1 << 20);
        let bytes_max = body.len() * BYTES_PER_BYTE + BYTES_FREE;
        let (bytes, last) = response_size_and_last_line(&server, path, body).await?;
        ensure!(bytes <= bytes_max, "{path}: {bytes} bytes");
        assert_eq!(last["error"]["code"], "answer_too_large", "{path}: {last}");
        let message = last["error"]["message"].as_str().context("a message")?;
        ensure!(message.contains("bytes of the body") && message.contains("may have"), "{message}");
    }
    // The response to a short transcript is complete.
    let (_, last) = response_size_and_last_line(&server, "/v1/transcript", monologue(10_000)).await?;
    assert_eq!(last["type"], "final_segment");
    Ok(())
}

#[tokio::test]
async fn query_of_8_kb_gets_a_bounded_list_of_errors() -> Result<()> {
    const ANSWER_BYTES_MAX: usize = 16 << 10;
    let server = Server::start_stub(&[]).await?;
    let query = |parameter: &str| parameter.repeat(8000 / parameter.len());
    for path in ["/v1/classify", "/v1/tokens", "/v1/embed", "/v1/transcript", "/v1/annotate", "/stream/workflow/w"] {
        for parameter in ["a&", "a=1&", "&", "top_k=x&", "annotate=x&", "%00=%ff&", "last_event_id=x&"] {
            let url = server.url(&format!("{path}?{}", query(parameter)));
            let request = match path.starts_with("/stream") {
                true => Client::new().get(&url),
                false => {
                    Client::new().post(&url).header("content-type", "application/json").body(r#"{"inputs":"good"}"#)
                }
            };
            let response = request.send().await?;
            if response.status() == 200 {
                continue;
            }
            let bytes = response.bytes().await?;
            ensure!(bytes.len() <= ANSWER_BYTES_MAX, "{path}?{parameter}…: {} bytes", bytes.len());
            let problem: Value = serde_json::from_slice(&bytes)?;
            ensure!(problem["errors"].as_array().is_none_or(|errors| errors.len() <= 32), "{path}: {problem}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn body_full_of_mistakes_gets_a_bounded_list_of_errors() -> Result<()> {
    const ANSWER_BYTES_MAX: usize = 64 << 10;
    let server = Server::start_stub(&[]).await?;
    let fields: String = (0..50_000).map(|n| format!(",\"f{n}\":0")).collect();
    let items: String = "5,".repeat(200_000);
    for (path, body) in [
        ("/v1/classify", format!("{{\"inputs\":\"good\"{fields}}}")),
        ("/v1/classify", format!("{{\"inputs\":[{items}5]}}")),
        ("/process-stream", format!("{{\"text\":\"long enough to be a text\"{fields}}}")),
        ("/sessions", format!("{{\"annotate\":[]{fields}}}")),
        ("/stream/publish/workflow/w", format!("{{\"step\":\"s\"{fields}}}")),
        ("/tickets", format!("{{\"path\":\"/\"{fields}}}")),
        ("/models/sentiment", format!("{{\"inputs\":\"good\"{fields}}}")),
        ("/predict", format!("{{\"inputs\":\"good\"{fields}}}")),
    ] {
        let request = Client::new().post(server.url(path)).header("content-type", "application/json").body(body);
        let response = request.send().await?;
        let status = response.status();
        let bytes = response.bytes().await?;
        // Without authentication every request for a ticket is refused, with a status that may be 5xx.
        ensure!(status.is_client_error() || path == "/tickets", "{path}: {status}");
        ensure!(bytes.len() <= ANSWER_BYTES_MAX, "{path}: {} bytes", bytes.len());
    }
    Ok(())
}
