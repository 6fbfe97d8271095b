//! The client with a scripted server.

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use weir_config::NatsSource;

use super::*;

/// The deadline of each wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection as its server sees it.
struct Peer(BufReader<TcpStream>);

impl Peer {
    /// The next line of the client, without its end.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("a line in time").unwrap();
        line.trim_end().to_owned()
    }

    async fn send(&mut self, frames: &str) {
        self.0.get_mut().write_all(frames.as_bytes()).await.unwrap();
    }

    /// The next request: its subject and the subject of its reply.
    async fn request(&mut self) -> (String, String) {
        let line = self.line().await;
        let fields: Vec<&str> = line.split(' ').collect();
        assert!(fields[0] == "PUB" && fields.len() == 4, "{line}");
        self.line().await;
        (fields[1].to_owned(), fields[2].to_owned())
    }
}

async fn listen() -> (TcpListener, NatsSource) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    (listener, NatsSource { url, timeout_ms: 60_000, ..NatsSource::default() })
}

/// A client and its server, which has accepted it.
async fn connected() -> (Client, Peer) {
    let (listener, config) = listen().await;
    let access = Access::from(&config);
    let serving = async {
        let mut peer = Peer(BufReader::new(listener.accept().await.unwrap().0));
        peer.send("INFO {\"max_payload\":100}\r\n").await;
        let connect = peer.line().await;
        assert!(connect.starts_with("CONNECT {") && connect.contains("\"no_responders\":true"), "{connect}");
        assert_eq!(peer.line().await, "PING");
        peer.send("PONG\r\n").await;
        peer
    };
    let (client, mut peer) = tokio::join!(Client::connect(&access), serving);
    let client = client.unwrap_or_else(|error| panic!("{error}"));
    let subscribe = peer.line().await;
    assert!(subscribe.starts_with("SUB _INBOX.") && subscribe.ends_with(".* 1"), "{subscribe}");
    (client, peer)
}

/// Sends a request without waiting for its reply.
async fn send_request(client: &Client, subject: &str) -> PendingReply {
    let mut batch = client.batch();
    let reply = batch.request(subject, &[], b"").await.unwrap();
    batch.send().await.unwrap();
    reply
}

/// The error of a connection attempt to a server that sends these frames.
async fn refused(frames: &str, config: NatsSource) -> DriverError {
    let (listener, NatsSource { url, .. }) = listen().await;
    let config = NatsSource { url, ..config };
    let access = Access::from(&config);
    let serving = async {
        let mut peer = Peer(BufReader::new(listener.accept().await.unwrap().0));
        peer.send(frames).await;
        peer
    };
    let (client, _peer) = tokio::join!(Client::connect(&access), serving);
    client.err().expect("the connection is refused")
}

#[tokio::test]
async fn requests_get_their_own_replies() {
    let (client, mut peer) = connected().await;
    let mut batch = client.batch();
    let one = batch.request("one", &[], b"").await.unwrap();
    let two = batch.request("two", &[], b"").await.unwrap();
    batch.send().await.unwrap();
    let (first, second) = (peer.request().await, peer.request().await);
    assert_eq!((first.0.as_str(), second.0.as_str()), ("one", "two"));
    peer.send(&format!("PING\r\nMSG {} 1 1\r\n2\r\nMSG {} 1 1\r\n1\r\n", second.1, first.1)).await;
    assert_eq!(one.receive().await.unwrap().payload, "1");
    assert_eq!(two.receive().await.unwrap().payload, "2");
    assert_eq!(peer.line().await, "PONG");
    assert_eq!(client.message_bytes_max(), 100);
}

#[tokio::test]
async fn messages_of_a_batch_are_written_in_their_order() {
    let (client, mut peer) = connected().await;
    let payload = [b'x'; 100];
    let sending = async {
        let mut batch = client.batch();
        for number in 0..2 * BATCH_BYTES / payload.len() {
            batch.publish(&format!("a.{number}"), &payload).await.unwrap();
        }
        batch.request("last", &[], b"").await.unwrap();
        assert!(batch.frames.len() < BATCH_BYTES, "a long batch is written in parts");
        batch.send().await.unwrap();
    };
    let receiving = async {
        for number in 0..2 * BATCH_BYTES / payload.len() {
            assert_eq!(peer.line().await, format!("PUB a.{number} 100"));
            assert_eq!(peer.line().await.len(), 100);
        }
        assert_eq!(peer.request().await.0, "last");
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn request_without_permission_is_denied() {
    let (client, mut peer) = connected().await;
    let mut batch = client.batch();
    let (denied, other) = (batch.request("a.b", &[], b"").await, batch.request("c", &[], b"").await);
    batch.send().await.unwrap();
    peer.request().await;
    let (_, reply) = peer.request().await;
    peer.send(&format!("-ERR 'Permissions Violation for Publish to \"a.b\"'\r\nMSG {reply} 1 1\r\nx\r\n")).await;
    let error = denied.unwrap().receive().await.unwrap_err();
    let reason = "NATS refuses: Permissions Violation for Publish to \"a.b\"";
    assert_eq!(error, DriverError::Denied(reason.to_owned()));
    assert_eq!(other.unwrap().receive().await.unwrap().payload, "x");
}

/// Nothing waits for a reply to it, so the denial would be lost.
#[tokio::test]
async fn message_without_permission_ends_the_connection() {
    let (client, mut peer) = connected().await;
    let mut subscription = client.subscribe(1).await.unwrap();
    peer.line().await;
    client.publish_for("a.b", &subscription.subject, b"").await.unwrap();
    peer.request().await;
    peer.send("-ERR 'Permissions Violation for Publish to \"a.b\"'\r\n").await;
    let end = tokio::time::timeout(PATIENCE, subscription.messages.recv()).await;
    assert_eq!(end.expect("an end in time"), None);
    let reason = "NATS refuses: Permissions Violation for Publish to \"a.b\"";
    assert_eq!(client.failure(), DriverError::Denied(reason.to_owned()));
}

#[tokio::test]
async fn lost_connection_ends_requests_and_subscriptions_with_the_reason() {
    let (client, mut peer) = connected().await;
    let mut subscription = client.subscribe(1).await.unwrap();
    let request = send_request(&client, "one").await;
    peer.line().await;
    peer.request().await;
    peer.send("-ERR 'Stale Connection'\r\n").await;
    drop(peer);
    let reason = DriverError::transport("NATS has closed the connection: Stale Connection");
    assert_eq!(request.receive().await.unwrap_err(), reason);
    assert_eq!(subscription.messages.recv().await, None);
    assert_eq!(client.failure(), reason);
    assert_eq!(client.request("two", b"").await.unwrap_err(), reason);
}

/// Those that were delivered before the end of the subscription and those after it.
#[tokio::test]
async fn messages_that_were_not_received_are_returned() {
    let (client, mut peer) = connected().await;
    let subscription = client.subscribe(3).await.unwrap();
    let line = peer.line().await;
    let [_, subject, id] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    assert!(subject.ends_with(".subscription.2"), "{line}");
    let message = |number: usize| format!("MSG text-input {id} $JS.ACK.s.c.1.{number}.1.0.0 1\r\nx\r\n");
    let status = format!("HMSG {subject} {id} 18 18\r\nNATS/1.0 408 x\r\n\r\n\r\n");
    // The reply to a request shows that the client has the messages before it.
    let request = send_request(&client, "one").await;
    let (_, reply) = peer.request().await;
    peer.send(&[message(1), status, message(2), format!("MSG {reply} 1 0\r\n\r\n")].concat()).await;
    request.receive().await.unwrap();
    drop(subscription);
    assert_eq!(peer.line().await, "UNSUB 2");
    peer.send(&message(3)).await;
    for number in 1..=3 {
        assert_eq!(peer.line().await, format!("PUB $JS.ACK.s.c.1.{number}.1.0.0 4"));
        assert_eq!(peer.line().await, "-NAK");
    }
}

#[tokio::test]
async fn more_messages_than_requested_end_the_connection() {
    let (client, mut peer) = connected().await;
    let _subscription = client.subscribe(1).await.unwrap();
    let request = send_request(&client, "one").await;
    peer.send("MSG a 2 1\r\nx\r\nMSG a 2 1\r\ny\r\n").await;
    let reason = "NATS has sent more messages than were requested";
    assert_eq!(request.receive().await.unwrap_err(), DriverError::transport(reason));
}

#[tokio::test]
async fn servers_that_cannot_be_used_are_described() {
    let config = || NatsSource { timeout_ms: 60_000, ..NatsSource::default() };
    let error = refused("HTTP/1.1 400 Bad Request\r\n", config()).await;
    assert_eq!(error.to_string(), "NATS: `HTTP/1.1 400 Bad Request` is not a frame of NATS");
    let error = refused("INFO {}\r\n-ERR 'Authorization Violation'\r\n", config()).await;
    assert_eq!(error, DriverError::Denied("NATS refuses the credentials: Authorization Violation".to_owned()));
    let error = refused("INFO {}\r\n-ERR 'maximum connections exceeded'\r\n", config()).await;
    assert_eq!(error, DriverError::transport("NATS refuses: maximum connections exceeded"));
    let error = refused("INFO {\"tls_required\":true}\r\nPONG\r\n", config()).await;
    assert!(error.is_retryable() && error.to_string().ends_with("has sent more than INFO before TLS"), "{error}");
    let error = refused("", NatsSource { timeout_ms: 50, ..config() }).await;
    assert!(error.to_string().ends_with("has not answered within 50 ms"), "{error}");
}

#[tokio::test]
async fn second_server_is_tried_when_the_first_cannot_be_reached() {
    let (listener, mut config) = listen().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    config.url = format!("nats://{closed}, {}", config.url);
    let access = Access::from(&config);
    let serving = async {
        let mut peer = Peer(BufReader::new(listener.accept().await.unwrap().0));
        peer.send("INFO {}\r\nPONG\r\n").await;
        peer
    };
    let (client, _peer) = tokio::join!(Client::connect(&access), serving);
    client.unwrap_or_else(|error| panic!("{error}"));
}
