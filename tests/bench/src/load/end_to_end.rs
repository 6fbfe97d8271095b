//! Tests of the generator with small servers that respond, stall, reject and disconnect.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Load, Measured, Times, closed, compare, open, stream};
use crate::corpus::Text;
use crate::http::{Form, Target};

const OK: &str = r#"{"outputs":[[{"label":"positive","score":0.75},{"label":"negative","score":0.25}]]}"#;

/// The behavior of the server for request number n (from 0).
#[derive(Debug, Clone, Copy)]
enum ServerBehavior {
    /// Answers after this long.
    After(Duration),
    /// Answers at once, but stalls from 200 to 600 ms after the start.
    Stall,
    /// Every second request gets 503.
    Reject,
    /// Every fourth request gets a closed connection.
    Disconnect,
    /// Closes after every response, with `Connection: close`.
    OneEach,
    /// Never answers.
    Silence,
    /// Answers NDJSON item by item; the flag leaves the last item out.
    Lines { lose: bool },
}

async fn serve(behavior: ServerBehavior) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (count, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(connection(stream, behavior, count.clone(), began));
        }
    });
    address
}

async fn connection(stream: TcpStream, behavior: ServerBehavior, count: Arc<AtomicUsize>, began: Instant) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let (mut length, mut line) = (0, String::new());
        while line != "\r\n" {
            line.clear();
            if read.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        if let ServerBehavior::Lines { lose } = behavior {
            lines(&mut read, &mut write, lose).await;
            return;
        }
        let mut body = vec![0; length];
        read.read_exact(&mut body).await.unwrap();
        let number = count.fetch_add(1, Ordering::Relaxed);
        let (mut status, mut more) = ("200 OK", "");
        match behavior {
            ServerBehavior::After(time) => tokio::time::sleep(time).await,
            ServerBehavior::Stall if (200..600).contains(&began.elapsed().as_millis()) => {
                tokio::time::sleep_until((began + Duration::from_millis(600)).into()).await;
            }
            ServerBehavior::Reject if number % 2 == 1 => status = "503 Busy",
            ServerBehavior::Disconnect if number % 4 == 3 => return,
            ServerBehavior::OneEach => more = "connection: close\r\n",
            ServerBehavior::Silence => std::future::pending().await,
            _ => {}
        }
        let response = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n{OK}", OK.len());
        if write.write_all(response.as_bytes()).await.is_err() || !more.is_empty() {
            return;
        }
    }
}

/// Reads chunks, and answers each line that they hold as it comes.
async fn lines(read: &mut (impl AsyncBufReadExt + Unpin), write: &mut (impl AsyncWriteExt + Unpin), lose: bool) {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    write.write_all(head.as_bytes()).await.unwrap();
    let (mut index, mut line) = (0, String::new());
    let mut chunks = Vec::new();
    loop {
        line.clear();
        read.read_line(&mut line).await.unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        read.read_exact(&mut chunk).await.unwrap();
        chunks.extend_from_slice(&chunk[..size]);
        while let Some(end) = chunks.iter().position(|byte| *byte == b'\n') {
            let text: String = serde_json::from_slice(&chunks.drain(..=end).collect::<Vec<_>>()).unwrap();
            assert!(!text.is_empty());
            let response = format!("{{\"index\":{index},\"scores\":[1]}}\n");
            index += 1;
            // Chunks that end inside a line, as a server may send them.
            let (a, b) = response.split_at(5);
            let response = format!("{:x}\r\n{a}\r\n{:x}\r\n{b}\r\n", a.len(), b.len());
            if !(lose && index == 7) {
                write.write_all(response.as_bytes()).await.unwrap();
            }
        }
        if size == 0 {
            write.write_all(b"e\r\n{\"done\":true}\n\r\n0\r\n\r\n").await.unwrap();
            return;
        }
    }
}

fn run<F: Future<Output = T>, T>(behavior: ServerBehavior, work: impl FnOnce(Rc<Load>) -> F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = serve(behavior).await;
        let target = Target { address, path: "/v1/classify".to_owned(), form: Form::Inputs, headers: Vec::new() };
        let texts = (1..=20).map(|tokens| Text { text: format!("text {tokens}"), tokens }).collect();
        let ms = Duration::from_millis;
        let times = Times { warm: ms(100), window: ms(700), drain: ms(500) };
        let mut load = Load::new(target, texts, 1, times);
        load.pid = Some(std::process::id());
        work(Rc::new(load)).await
    })
}

fn assert_all_requests_are_counted(measured: &Measured) {
    let Measured { requests, answered, rejected, failed, unanswered, .. } = *measured;
    assert!(requests > 0, "{measured:?}");
    assert_eq!(requests, answered + rejected + failed + unanswered, "{measured:?}");
}

#[test]
fn closed_loop_measures_the_throughput_of_the_server() {
    let measured = run(ServerBehavior::After(Duration::from_millis(10)), |load| closed::run(load, 4));
    assert_all_requests_are_counted(&measured);
    assert_eq!(measured.answered, measured.requests);
    // 4 connections, 10 ms each (timers may be late, never early).
    assert!(measured.latency_ms.p50 >= 9.9, "{measured:?}");
    assert!((40.0..=404.0).contains(&measured.texts_per_s), "{measured:?}");
    let mean_tokens = measured.tokens_per_s / measured.texts_per_s;
    assert!((5.0..16.0).contains(&mean_tokens), "texts of 1 to 20 tokens: {mean_tokens}");
    assert!(measured.server.resident_max_bytes > 1_000_000);
}

#[test]
fn one_connection_keeps_the_latency_of_each_text_in_the_order_of_the_corpus() {
    let measured = run(ServerBehavior::After(Duration::from_millis(1)), |load| closed::run(load, 1));
    assert_eq!(measured.samples.len() as u64, measured.answered);
    let texts: Vec<u32> = measured.samples.iter().map(|sample| sample.0).collect();
    assert!(texts.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 20), "{texts:?}");
    assert!(measured.samples.iter().all(|sample| sample.1 >= 1_000.0));
}

/// A server that stalls for 400 ms delays about half the requests that were due in 800 ms. A generator that waits for
/// answers before it sends sees one slow request for each connection; this one must see them all.
#[test]
fn stall_delays_each_request_that_was_due() {
    let open = run(ServerBehavior::Stall, |load| open::run(load, 200.0, 1_000));
    assert_all_requests_are_counted(&open);
    assert_eq!(open.unanswered + open.failed, 0, "{open:?}");
    let slow = 1.0 - open.good_share;
    assert!(slow > 0.25, "{slow} of the requests waited longer than 100 ms: {open:?}");
    assert!(open.latency_ms.p99 > 300.0, "{open:?}");
    let closed = run(ServerBehavior::Stall, |load| closed::run(load, 1));
    assert!(closed.latency_ms.p50 < 100.0 && closed.latency_ms.max > 100.0, "one request waited: {closed:?}");
}

#[test]
fn latency_includes_the_wait_for_a_free_connection() {
    let measured = run(ServerBehavior::After(Duration::from_millis(20)), |load| open::run(load, 100.0, 1));
    assert_all_requests_are_counted(&measured);
    // At most 50 a second are served: the queue grows in the generator, and latencies and lag say so.
    assert!(measured.latency_ms.p99 > 100.0 && measured.lag_ms.p99 > 80.0, "{measured:?}");
}

#[test]
fn rejections_are_counted_and_timed_apart() {
    for measured in [
        run(ServerBehavior::Reject, |load| open::run(load, 200.0, 100)),
        run(ServerBehavior::Reject, |load| closed::run(load, 2)),
    ] {
        assert_all_requests_are_counted(&measured);
        assert!(measured.rejected > 0 && measured.answered > 0 && measured.failed == 0, "{measured:?}");
        assert_eq!(measured.rejection_ms.count, measured.rejected);
        assert_eq!(measured.latency_ms.count, measured.answered);
        assert_eq!(measured.statuses.keys().copied().collect::<Vec<_>>(), [200, 503]);
    }
}

#[test]
fn broken_connections_are_failures_and_the_load_continues() {
    for measured in [
        run(ServerBehavior::Disconnect, |load| open::run(load, 200.0, 100)),
        run(ServerBehavior::Disconnect, |load| closed::run(load, 2)),
    ] {
        assert_all_requests_are_counted(&measured);
        assert!(measured.failed > 3 && measured.answered > measured.failed, "{measured:?}");
        assert!(measured.first_failure.as_deref().unwrap().contains("closed"), "{measured:?}");
    }
}

#[test]
fn server_may_close_after_each_response() {
    let measured = run(ServerBehavior::OneEach, |load| closed::run(load, 2));
    assert_all_requests_are_counted(&measured);
    assert!(measured.answered > 10 && measured.failed == 0, "{measured:?}");
}

#[test]
fn request_without_a_response_is_counted() {
    for measured in [
        run(ServerBehavior::Silence, |load| open::run(load, 50.0, 100)),
        run(ServerBehavior::Silence, |load| open::run(load, 50.0, 2)),
    ] {
        assert_all_requests_are_counted(&measured);
        assert_eq!(measured.unanswered, measured.requests);
        assert_eq!((measured.good_share, measured.texts_per_s), (0.0, 0.0));
    }
}

#[test]
fn incomplete_stream_has_a_reason() {
    let limit = Duration::from_secs(20);
    let whole = run(ServerBehavior::Lines { lose: false }, |load| stream::run(load, 1_000, limit));
    assert_all_requests_are_counted(&whole);
    assert_eq!((whole.answered, whole.first_failure.as_deref()), (1_000, None), "{whole:?}");
    assert!(whole.stream.unwrap().done);
    let lost = run(ServerBehavior::Lines { lose: true }, |load| stream::run(load, 100, limit));
    assert_eq!((lost.answered, lost.unanswered), (99, 1));
    assert!(lost.first_failure.unwrap().contains("99 answers"));
    // A server that has no streams.
    let not = run(ServerBehavior::Reject, |load| stream::run(load, 10, limit));
    assert_eq!(not.unanswered, 10);
}

#[test]
fn responses_are_compared_alone_and_in_batches() {
    let after = ServerBehavior::After(Duration::from_millis(1));
    let [alone, together] = run(after, |load| async move { compare::run(load, 64, &[]).await.unwrap() });
    assert_eq!(alone.len(), 20);
    assert_eq!(compare::difference(&alone, &together), 0.0);
    assert!(run(ServerBehavior::Reject, |load| async move { compare::run(load, 64, &[]).await.is_err() }));
}
