//! `/v1/transcript` and `/v1/annotate` over real sockets: the vectors of slower-whisper, streams in both directions, and invalid lines.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use serde_json::{Value, json};
use weir_tests::client::{NDJSON, ndjson_body, post_body, post_lines};
use weir_tests::{Duplex, Server, ndjson, root};

/// The folder of the vectors, and whether it is the one in the repository.
fn golden() -> (PathBuf, bool) {
    match std::env::var_os("WEIR_GOLDEN_DIR") {
        Some(dir) => (dir.into(), false),
        None => (root().join("tests/golden"), true),
    }
}

fn vectors(name: &str) -> Result<Vec<Value>> {
    let file = golden().0.join(name);
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    ndjson(&text)
}

#[tokio::test]
async fn transcript_agrees_with_slower_whisper() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for vector in vectors("streaming_session.jsonl")? {
        let path = format!("/v1/transcript?annotate=none&max_gap_sec={}", vector["max_gap_sec"]);
        let inputs = vector["input"].as_array().context("inputs")?;
        let events = post_lines(&server, &path, NDJSON, ndjson_body(inputs)).await?;
        let mut expected = Vec::new();
        for (at, output) in vector["output"].as_array().context("outputs")?.iter().enumerate() {
            match output {
                Value::Array(events) => expected.extend(events.iter().cloned()),
                error => expected.push(json!({"type": "error", "message": error["error"], "line": at + 1})),
            }
        }
        let got: Vec<Value> = events
            .into_iter()
            .map(|event| match event["type"].as_str() {
                Some("error") => {
                    json!({"type": "error", "message": event["error"]["message"], "line": event["line"]})
                }
                _ => json!({"type": event["type"], "segment": event["segment"]}),
            })
            .collect();
        // The end of the body ends the session: a segment in flight becomes final.
        ensure!((expected.len()..=expected.len() + 1).contains(&got.len()), "{vector}\n{got:?}");
        let flushed = got.len() - expected.len();
        ensure!(got[..expected.len()] == expected, "{vector}\n{got:?}");
        ensure!(got[expected.len()..].iter().all(|event| event["type"] == "final_segment"), "{vector}");
        ensure!((flushed == 1) == has_segment_in_flight(&vector), "{vector}");
    }
    Ok(())
}

/// Whether a segment is in flight at the end of a vector.
fn has_segment_in_flight(vector: &Value) -> bool {
    let outputs = vector["output"].as_array().map(Vec::as_slice).unwrap_or_default();
    let last_accepted = outputs.iter().rev().find(|output| output.is_array());
    last_accepted.and_then(|output| output.as_array()?.last()).is_some_and(|event| event["type"] == "partial_segment")
}

#[tokio::test]
async fn annotations_agree_with_slower_whisper_or_differ_as_documented() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let vectors = vectors("keyword_annotator.jsonl")?;
    let texts: Vec<Value> =
        vectors.iter().map(|vector| json!({"text": vector["text"], "speaker_id": "spk_0", "segment_id": 0})).collect();
    let responses = post_lines(&server, "/v1/annotate?annotate=keywords", NDJSON, ndjson_body(&texts)).await?;
    assert_eq!(responses.len(), vectors.len());
    let mut different = 0;
    for (at, (response, vector)) in responses.iter().zip(&vectors).enumerate() {
        assert_eq!(response["index"], at);
        let (got, expected) = (&response["semantic"], &vector["semantic"]);
        for part in ["keywords", "risk_tags", "tags", "matches"] {
            assert_eq!(got.get(part), expected.get(part), "{vector}");
        }
        if got["actions"] != expected["actions"] {
            // The table in `weir_core::transcripts::annotate` documents these differences.
            different += 1;
            let text = vector["text"].as_str().context("a text")?.to_lowercase();
            let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '\'').collect();
            let is_documented = words.contains(&"ill") || words.contains(&"well") || text.contains("we’ll");
            assert!(is_documented, "{response} {vector}");
        }
    }
    if golden().1 {
        assert_eq!(different, 15);
    }
    Ok(())
}

#[tokio::test]
async fn events_arrive_while_chunks_are_sent() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut duplex = Duplex::open(&server, "/v1/transcript").await?;
    duplex.send(b"{\"start\":0,\"end\":1,\"text\":\"can you send\"}\n{\"start\":1,").await?;
    duplex.raw.read_until(r#""text":"can you send""#).await?;
    duplex.send(b"\"end\":2,\"text\":\"the price list?\"}\n").await?;
    duplex.raw.read_until(r#""text":"can you send the price list?""#).await?;
    duplex.send(b"nonsense\n{\"op\":\"end\"}\n").await?;
    let text = duplex.raw.read_until("final_segment").await?;
    assert!(text.contains(r#""code":"malformed_json"},"line":3}"#), "{text}");
    duplex.raw.read_until(r#""intent":"action_item"},"workflow":"action_item""#).await?;
    // A session continues after an `end`, and its times may start again at 0.
    duplex.send(b"{\"start\":0,\"end\":1,\"text\":\"bye\"}\n").await?;
    duplex.raw.read_until(r#""text":"bye""#).await?;
    duplex.end().await?;
    duplex.raw.read_until(r#"{"type":"final_segment","segment":{"start":0.0,"end":1.0,"text":"bye""#).await?;
    Ok(())
}

#[tokio::test]
async fn invalid_chunk_is_an_error_at_its_index() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let chunks = [
        json!({"start": 1, "end": 2, "text": "a", "seq": 5}),
        json!({"start": 3, "end": 2.5, "text": "b"}),
        json!({"start": 1.5, "end": 2.5, "text": "b"}),
        json!({"start": 2, "end": 3, "text": "b", "speaker": "x"}),
        json!({"start": 2, "end": 3, "text": "x".repeat(8193)}),
        json!({"start": 2, "end": 3, "text": "b", "seq": 5}),
        json!({"start": 2, "end": 3, "text": "b", "seq": 6}),
    ];
    let events = post_lines(&server, "/v1/transcript", NDJSON, ndjson_body(&chunks)).await?;
    let summaries: Vec<String> = events
        .iter()
        .map(|event| match event["type"].as_str() {
            Some("error") => format!("{} {} line {}", event["error"]["code"], event["error"]["field"], event["line"]),
            Some("repeated") => format!("repeated {}", event["seq"]),
            kind => format!("{} {}", kind.unwrap_or_default(), event["segment"]["text"]),
        })
        .collect();
    let expected = [
        "partial_segment \"a\"",
        "\"end_before_start\" \"end\" line 2",
        "\"out_of_order\" \"start\" line 3",
        "\"unknown_field\" \"speaker\" line 4",
        "\"text_too_long\" \"text\" line 5",
        "repeated 5",
        "partial_segment \"a b\"",
        "final_segment \"a b\"",
    ];
    assert_eq!(summaries, expected);
    for (path, content_type, status, code) in [
        ("/v1/transcript?max_gap_sec=-1", NDJSON, 422, "invalid_request"),
        ("/v1/transcript?gap=1", NDJSON, 422, "invalid_request"),
        ("/v1/transcript", "text/html", 415, "unsupported_media_type"),
        ("/v1/annotate?annotate=mood", NDJSON, 422, "invalid_request"),
        ("/v1/annotate", "text/html", 415, "unsupported_media_type"),
    ] {
        let response = post_body(&server, path, content_type, String::new()).await?;
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert_eq!(response.json::<Value>().await?["code"], code, "{path}");
    }
    Ok(())
}

/// Overlapping cues in the order of their start, errors with the line of the file, and encodings that are read or refused.
#[tokio::test]
async fn captions_over_http_are_read() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let long = "x".repeat(8193);
    let vtt = format!(
        "\u{feff}WEBVTT\r\n\r\n00:04.000 --> 00:09.000\r\n<v Bo>second\r\n\r\n00:01.000 --> 00:06.000\r\n<v O&#39;Neil>first\r\n\r\n\
         00:10.000 --> soon\r\nlost\r\n\r\n00:11.000 --> 00:12.000\r\n{long}\r\n\r\n00:13.000 --> 00:13.500\r\n<v Bo>third\r\n"
    );
    let expected = [
        "final_segment first O'Neil 1 6",
        "invalid_cue line 9",
        "text_too_long line 12",
        "final_segment second Bo 4 9",
        "final_segment third Bo 13 13.5",
    ];
    let utf16: Vec<u8> = vtt.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for (content_type, body) in [
        ("text/vtt", vtt.clone().into_bytes()),
        ("application/x-subrip", vtt.clone().into_bytes()),
        ("text/vtt; charset=utf-16", utf16),
    ] {
        let request = reqwest::Client::new().post(server.url("/v1/transcript")).header("content-type", content_type);
        let response = request.body(body).send().await?;
        ensure!(response.status() == 200, "{}", response.text().await?);
        let mut summaries: Vec<String> = Vec::new();
        for event in ndjson(&response.text().await?)? {
            let segment = &event["segment"];
            match event["type"].as_str() {
                Some("final_segment") => summaries.push(format!(
                    "final_segment {} {} {} {}",
                    segment["text"].as_str().unwrap_or_default(),
                    segment["speaker_id"].as_str().unwrap_or_default(),
                    segment["start"].as_f64().context("a start")?,
                    segment["end"].as_f64().context("an end")?,
                )),
                Some("error") => {
                    let code = event["error"]["code"].as_str().unwrap_or_default();
                    summaries.push(format!("{code} line {}", event["line"]));
                }
                _ => {}
            }
        }
        assert_eq!(summaries, expected, "{content_type}");
    }
    for (content_type, body, status, code) in [
        ("text/vtt", b"WEBVTT\n\n00:01.000 --> 00:02.000\ncaf\xe9\n".to_vec(), 400, "not_utf8"),
        ("text/vtt; charset=iso-8859-1", b"WEBVTT\n".to_vec(), 415, "unsupported_media_type"),
        ("text/srt", vec![b'1'; 2 << 20], 413, "body_too_large"),
    ] {
        let request = reqwest::Client::new().post(server.url("/v1/transcript")).header("content-type", content_type);
        let response = request.body(body).send().await?;
        assert_eq!(response.status().as_u16(), status, "{content_type}");
        let problem: Value = response.json().await?;
        assert_eq!(problem["code"], code, "{problem}");
        if code == "not_utf8" {
            assert_eq!(problem["line"], 4, "{problem}");
        }
    }
    Ok(())
}

/// Rounding errors do not count as an overlap, and larger overlaps are accepted with `overlap=true`.
#[tokio::test]
async fn overlapping_chunks_are_accepted_where_the_request_allows_them() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let noise = "{\"start\":0,\"end\":0.30000000000000004,\"text\":\"a\"}\n{\"start\":0.3,\"end\":1,\"text\":\"b\"}\n";
    let events = post_lines(&server, "/v1/transcript", NDJSON, noise.to_owned()).await?;
    assert_eq!(events.last().context("an event")?["segment"]["text"], "a b");
    let chunks = [
        json!({"start": 0, "end": 5, "text": "a", "speaker_id": "x"}),
        json!({"start": 1, "end": 2, "text": "b", "speaker_id": "y"}),
    ];
    let refused = |events: &[Value]| events.iter().filter(|event| event["type"] == "error").count();
    assert_eq!(refused(&post_lines(&server, "/v1/transcript", NDJSON, ndjson_body(&chunks)).await?), 1);
    assert_eq!(refused(&post_lines(&server, "/v1/transcript?overlap=true", NDJSON, ndjson_body(&chunks)).await?), 0);
    Ok(())
}

#[tokio::test]
async fn text_is_annotated_in_every_form() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let plain = post_lines(&server, "/v1/annotate", "text/plain", "the price\n\nI'll go\n".to_owned()).await?;
    assert_eq!(plain[0]["semantic"]["keywords"], json!(["price"]));
    assert_eq!(plain[1]["semantic"]["intent"], "commitment");
    assert_eq!(plain.len(), 2);
    let response =
        post_body(&server, "/v1/annotate", "application/json", json!({"inputs": ["cheap", "is it?"]}).to_string())
            .await?;
    assert_eq!(response.status(), 200);
    let response: Value = response.json().await?;
    assert_eq!(response["outputs"][0]["risk_tags"], json!(["pricing"]));
    assert_eq!(response["outputs"][1]["intent"], "question");
    let request = reqwest::Client::new().post(server.url("/v1/annotate")).header("accept", "text/event-stream");
    let text = request.header("content-type", NDJSON).body("\"a\"\n[]\n").send().await?.text().await?;
    assert!(text.starts_with("id: 1\nevent: semantic\ndata: {\"index\":0,"), "{text}");
    assert!(text.contains("id: 2\nevent: error\ndata: {\"index\":1,\"error\":"), "{text}");
    Ok(())
}

/// Summaries are due after a number of final segments, and have the prompt for a language model.
#[tokio::test]
async fn summary_is_sent_on_request() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let chunks: Vec<Value> = (0..4)
        .map(|at| json!({"start": at, "end": at, "text": "we cancel", "speaker_id": (["a", "b"][at % 2])}))
        .collect();
    let events =
        post_lines(&server, "/v1/transcript?summary_every=2&summary_at_end=true", NDJSON, ndjson_body(&chunks)).await?;
    let due: Vec<&Value> = events.iter().filter(|event| event["type"] == "summary_due").collect();
    let counts: Vec<(&Value, &Value)> = due.iter().map(|due| (&due["kind"], &due["finals"])).collect();
    let (incremental, last) = (json!("incremental"), json!("final"));
    assert_eq!(counts, [(&incremental, &json!(2)), (&incremental, &json!(4)), (&last, &json!(4))]);
    let prompt = due[2]["prompt"].as_str().context("a prompt")?;
    assert!(prompt.starts_with("Recent conversation context:\n[0.0s] a: we cancel\n"), "{prompt}");
    assert!(prompt.contains("Conversation keywords: cancel\n"), "{prompt}");
    Ok(())
}

/// One stream in both directions with 100,000 chunks, more than a day of speech; its duration is printed, with a generous bound.
#[tokio::test]
async fn long_transcript_is_processed_in_time() -> Result<()> {
    const CHUNKS: usize = 100_000;
    let server = Server::start_stub(&[]).await?;
    let (mut sender, pieces) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    let feed = tokio::spawn(async move {
        for block in 0..CHUNKS / 500 {
            let lines: String = (block * 500..(block + 1) * 500)
                .map(|at| {
                    let speaker = ["agent", "customer"][at / 4 % 2];
                    format!("{{\"start\":{at},\"end\":{at}.9,\"text\":\"and the price was not what we agreed\",\"speaker_id\":\"{speaker}\"}}\n")
                })
                .collect();
            if futures::SinkExt::send(&mut sender, Ok(Bytes::from(lines))).await.is_err() {
                return;
            }
        }
    });
    let began = Instant::now();
    let request = reqwest::Client::new().post(server.url("/v1/transcript")).header("content-type", NDJSON);
    let response = request.body(reqwest::Body::wrap_stream(pieces)).send().await?;
    assert_eq!(response.status(), 200);
    let mut stream = response.bytes_stream();
    let mut lines = 0;
    while let Some(bytes) = stream.next().await {
        lines += bytes?.iter().filter(|byte| **byte == b'\n').count();
    }
    let duration = began.elapsed();
    feed.await?;
    println!("{CHUNKS} chunks in {duration:?}: {:.0} a second", CHUNKS as f64 / duration.as_secs_f64());
    assert_eq!(lines, CHUNKS + CHUNKS / 4, "a partial for each chunk, a final for each turn");
    assert!(duration < Duration::from_secs(60), "{duration:?}");
    Ok(())
}
