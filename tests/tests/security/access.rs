//! Access control over real sockets: forged and expired tokens, channels of other users, replayed tickets, injections, bounds.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use weir_tests::auth::{
    ADMIN, ANN, API_KEYS, BOB, CREW, SECRET, WORKER, claims, hs256_header, issue_ticket, now_s, progress_body, publish,
    request_as, start_with_auth, status,
};
use weir_tests::client::post;
use weir_tests::follow::Follower;
use weir_tests::tokens::token;
use weir_tests::{Raw, Server, until};

#[tokio::test]
async fn request_without_a_valid_token_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &[]).await?;
    const MINE: &str = "/stream/user/ann";
    let response = reqwest::get(server.url(MINE)).await?;
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"weir\"");
    assert_eq!(response.json::<Value>().await?["code"], "unauthenticated");
    // Routes without authentication, and an inference route, which requires it.
    for path in ["/", "/livez", "/readyz", "/openapi.json", "/stream/health"] {
        assert_eq!(reqwest::get(server.url(path)).await?.status(), 200, "{path}");
    }
    assert_eq!(post(&server, "/v1/classify", &json!({"inputs": "good"})).await?.0, 401);
    assert_eq!(publish(&server, "/v1/classify", ANN, &json!({"inputs": "good"})).await?, 200);

    let good = token(&hs256_header(), &claims("ann", 600)?, SECRET)?;
    let response = request_as(&server, Method::GET, MINE, &good).send().await?;
    assert_eq!(Follower::from_response(response, None)?.next_event().await?.name, "connected");
    let response = request_as(&server, Method::GET, MINE, ANN).send().await?;
    assert_eq!(Follower::from_response(response, None)?.next_event().await?.name, "connected");

    let with = |name: &str, value: Value| -> Result<Value> {
        let mut claims = claims("ann", 600)?;
        claims[name] = value;
        Ok(claims)
    };
    let mut parts = good.split('.');
    let (head, body) = (parts.next().context("a header")?, parts.next().context("claims")?);
    let mut forged = vec![
        ("another secret", token(&hs256_header(), &claims("ann", 600)?, &SECRET.replace('a', "b"))?),
        ("alg none", token(&json!({"alg": "none"}), &claims("ann", 600)?, SECRET)?),
        ("alg of another key", token(&json!({"alg": "ES256"}), &claims("ann", 600)?, SECRET)?),
        (
            "a header that must be understood",
            token(&json!({"alg": "HS256", "crit": ["x"]}), &claims("ann", 600)?, SECRET)?,
        ),
        ("expired", token(&hs256_header(), &with("exp", json!(now_s()? - 1))?, SECRET)?),
        ("no end", token(&hs256_header(), &with("exp", Value::Null)?, SECRET)?),
        ("not yet", token(&hs256_header(), &with("nbf", json!(now_s()? + 600))?, SECRET)?),
        ("another issuer", token(&hs256_header(), &with("iss", json!("https://evil.example"))?, SECRET)?),
        ("another audience", token(&hs256_header(), &with("aud", json!("other"))?, SECRET)?),
        ("no signature", format!("{head}.{body}.")),
        ("no user", token(&hs256_header(), &with("sub", json!(""))?, SECRET)?),
        ("an unknown key", format!("{}A", &ANN[..ANN.len() - 1])),
    ];
    forged.push(("an altered signature", format!("{good}A")));
    for (what, token) in forged {
        let response = request_as(&server, Method::GET, MINE, &token).send().await?;
        assert_eq!(response.status(), 401, "{what}");
        assert!(response.headers()["www-authenticate"].to_str()?.contains("invalid_token"), "{what}");
    }
    // A token in a URL is refused, good or not.
    for query in ["access_token", "token", "ticket"] {
        assert_eq!(reqwest::get(server.url(&format!("{MINE}?{query}={good}"))).await?.status(), 400, "{query}");
    }
    Ok(())
}

/// Prometheus sends `authorization: { credentials: … }` as a bearer token.
#[tokio::test]
async fn metrics_without_a_good_token_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let origins = ["--set", "auth.cors_origins=[\"https://app.example\"]"];
    let server = start_with_auth(dir.path(), &origins).await?;
    for path in ["/metrics", "/%6Detrics", "/metrics?x=1"] {
        for method in [Method::GET, Method::HEAD] {
            let none = Client::new().request(method.clone(), server.url(path)).send().await?;
            assert_eq!(none.status(), 401, "{method} {path}");
            assert_eq!(none.headers()["www-authenticate"], "Bearer realm=\"weir\"");
            assert!(!none.text().await?.contains("weir_http"));
            let unknown = format!("{}A", &ANN[..ANN.len() - 1]);
            assert_eq!(status(request_as(&server, method.clone(), path, &unknown)).await?, 401, "{method} {path}");
            assert_eq!(status(request_as(&server, method.clone(), path, ANN)).await?, 200, "{method} {path}");
        }
    }
    let text = request_as(&server, Method::GET, "/metrics", ANN).send().await?.text().await?;
    assert!(text.contains("weir_http_requests_total"), "{text}");
    let good = token(&hs256_header(), &claims("prometheus", 600)?, SECRET)?;
    assert_eq!(status(request_as(&server, Method::GET, "/metrics", &good)).await?, 200);
    // A page of another origin may read them with a token, and one that is not allowed may not.
    let from = |origin: &str| request_as(&server, Method::GET, "/metrics", ANN).header("origin", origin).send();
    let response = from("https://app.example").await?;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["access-control-allow-origin"]),
        (200, &"https://app.example".parse()?)
    );
    assert_eq!(from("https://evil.example").await?.status(), 403);
    assert_eq!(status(request_as(&server, Method::POST, "/metrics", ANN)).await?, 405);
    Ok(())
}

#[tokio::test]
async fn channel_of_another_user_reads_as_missing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &[]).await?;
    assert_eq!(publish(&server, "/stream/publish/workflow/w1", WORKER, &progress_body(Some("ann"))).await?, 200);
    assert_eq!(publish(&server, "/stream/publish/workflow/unowned", WORKER, &progress_body(None)).await?, 200);
    let refusal = |key: &'static str, path: &'static str| {
        let request = request_as(&server, Method::GET, path, key);
        async move {
            let response = request.send().await?;
            let (status, mut body) = (response.status(), response.json::<Value>().await?);
            let detail = body["detail"].as_str().context("a detail")?.replace(path, "PATH");
            body["detail"] = json!(detail);
            body["request_id"] = Value::Null;
            anyhow::Ok((status, body))
        }
    };
    let missing_channel = refusal(ANN, "/stream/workflow/never-was").await?;
    assert_eq!(missing_channel.0, StatusCode::NOT_FOUND);
    for (key, path) in [
        (BOB, "/stream/workflow/w1"),
        (BOB, "/stream/user/ann"),
        (ANN, "/stream/workflow/unowned"),
        (WORKER, "/stream/workflow/w1"),
        (ANN, "/stream/nothing/at/all"),
    ] {
        assert_eq!(refusal(key, path).await?, missing_channel, "{path}");
    }
    // The owner and an administrator can read the channel, and the event is also in the channel of the owner.
    for (key, path) in [(ANN, "/stream/workflow/w1"), (ADMIN, "/stream/workflow/w1"), (ANN, "/stream/user/ann")] {
        let mut follower = Follower::from_response(request_as(&server, Method::GET, path, key).send().await?, None)?;
        assert_eq!(follower.next_stored_event().await?.data["workflow_id"], "w1", "{path}");
    }
    // A user cannot take over or publish to a channel of another user.
    assert_eq!(publish(&server, "/stream/publish/workflow/w1", BOB, &progress_body(Some("bob"))).await?, 404);
    assert_eq!(publish(&server, "/stream/publish/workflow/w2", BOB, &progress_body(Some("bob"))).await?, 404);
    assert_eq!(publish(&server, "/stream/publish/workflow/w1", ANN, &progress_body(Some("bob"))).await?, 404);
    assert_eq!(publish(&server, "/stream/publish/user/ann", BOB, &json!({"message": "m"})).await?, 404);
    assert_eq!(publish(&server, "/stream/publish/workflow/w1", WORKER, &progress_body(Some("bob"))).await?, 200);
    assert_eq!(status(request_as(&server, Method::GET, "/stream/workflow/w1", BOB)).await?, 404);
    assert_eq!(publish(&server, "/stream/publish/workflow/w1", ANN, &progress_body(Some("ann"))).await?, 200);
    Ok(())
}

#[tokio::test]
async fn channel_in_use_keeps_its_owner() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = format!("events.path={}", dir.path().join("events.redb").display());
    for store in ["memory", "disk"] {
        let store = format!("events.store={store}");
        let more =
            ["--set", "events.channels_max=6", "--set", "auth.publishes_burst=1000", "--set", &store, "--set", &path];
        let server = start_with_auth(dir.path(), &more).await?;
        assert_eq!(publish(&server, "/stream/publish/workflow/w", WORKER, &progress_body(Some("ann"))).await?, 200);
        let mut follower =
            Follower::from_response(request_as(&server, Method::GET, "/stream/workflow/w", ANN).send().await?, None)?;
        follower.next_stored_event().await?;
        for id in 0..100 {
            let path = format!("/stream/publish/workflow/bobs-{id}");
            assert_eq!(publish(&server, &path, WORKER, &progress_body(Some("bob"))).await?, 200);
        }
        assert_eq!(publish(&server, "/stream/publish/workflow/w", WORKER, &progress_body(Some("worker"))).await?, 200);
        assert_eq!(status(request_as(&server, Method::GET, "/stream/workflow/w", WORKER)).await?, 404);
        let mut second_follower =
            Follower::from_response(request_as(&server, Method::GET, "/stream/workflow/w", ANN).send().await?, None)?;
        second_follower.next_stored_event().await?;
    }
    Ok(())
}

#[tokio::test]
async fn publisher_that_names_itself_gains_no_access_to_earlier_events() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &[]).await?;
    let worker = progress_body(Some("worker"));
    assert_eq!(publish(&server, "/stream/publish/workflow/past", WORKER, &progress_body(None)).await?, 200);
    assert_eq!(publish(&server, "/stream/publish/workflow/past", WORKER, &worker).await?, 200);
    assert_eq!(status(request_as(&server, Method::GET, "/stream/workflow/past", WORKER)).await?, 404);
    // A channel that the publisher begins is its own, and a channel with earlier events can be given to the user that it concerns.
    assert_eq!(publish(&server, "/stream/publish/workflow/new", WORKER, &worker).await?, 200);
    let mut follower =
        Follower::from_response(request_as(&server, Method::GET, "/stream/workflow/new", WORKER).send().await?, None)?;
    follower.next_stored_event().await?;
    assert_eq!(publish(&server, "/stream/publish/workflow/past", WORKER, &progress_body(Some("ann"))).await?, 200);
    let mut follower =
        Follower::from_response(request_as(&server, Method::GET, "/stream/workflow/past", ANN).send().await?, None)?;
    follower.next_stored_event().await?;
    assert_eq!(status(request_as(&server, Method::GET, "/stream/workflow/past", WORKER)).await?, 404);
    Ok(())
}

#[tokio::test]
async fn publisher_without_read_scope_grants_no_access_to_events_of_others() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = format!("events.path={}", dir.path().join("events.redb").display());
    for store in ["memory", "disk"] {
        let server = start_with_auth(dir.path(), &["--set", &format!("events.store={store}"), "--set", &path]).await?;
        let publish = async |id: &str, key: &str, user: Option<&str>| {
            let status = publish(&server, &format!("/stream/publish/workflow/{id}"), key, &progress_body(user)).await?;
            anyhow::ensure!(status == 200, "{id}: {status}");
            Ok(())
        };
        let read = async |id: &str, key: &str| {
            status(request_as(&server, Method::GET, &format!("/stream/workflow/{id}"), key)).await
        };
        // After two workers have published, neither can give the channel to a user.
        publish("one", WORKER, None).await?;
        publish("one", CREW, Some("bob")).await?;
        assert_eq!(read("one", BOB).await?, 404);
        publish("one", WORKER, Some("ann")).await?;
        assert_eq!((read("one", ANN).await?, read("one", BOB).await?), (404, 404));
        // The same after both have published without naming a user.
        publish("both", WORKER, None).await?;
        publish("both", CREW, None).await?;
        publish("both", WORKER, Some("ann")).await?;
        assert_eq!(read("both", ANN).await?, 404);
        // A user that may read the channel can give it.
        publish("both", ADMIN, Some("ann")).await?;
        assert_eq!((read("both", ANN).await?, read("both", BOB).await?), (200, 404));
        // A worker can give a channel to which it alone has published.
        publish("own", CREW, None).await?;
        publish("own", CREW, None).await?;
        publish("own", CREW, Some("bob")).await?;
        assert_eq!((read("own", BOB).await?, read("own", ANN).await?), (200, 404));
    }
    Ok(())
}

/// Whether a channel has an event now.
async fn has_event(server: &Server, path: &str) -> Result<bool> {
    let mut response = request_as(server, Method::GET, path, ADMIN).send().await?;
    // The subscription is refused while all channels that fit have subscribers.
    if response.status() != 200 {
        return Ok(false);
    }
    let mut text = String::new();
    let reading = async {
        while let Ok(Some(piece)) = response.chunk().await {
            text += &String::from_utf8_lossy(&piece);
            if text.contains("event: workflow_progress") {
                return true;
            }
        }
        false
    };
    // Retained events are sent at once.
    Ok(tokio::time::timeout(Duration::from_millis(50), reading).await.unwrap_or(false))
}

/// With room for two channels, channels are evicted between the lookup of their owner and their next event.
#[tokio::test(flavor = "multi_thread")]
async fn recreated_channel_has_its_owner() -> Result<()> {
    const CHANNELS: usize = 24;
    let dir = tempfile::tempdir()?;
    let path = format!("events.path={}", dir.path().join("events.redb").display());
    for store in ["disk", "memory"] {
        let store = format!("events.store={store}");
        let more = ["--set", "events.channels_max=2", "--set", "auth.publishes_burst=100000"];
        let more = [&more[..], &["--set", "auth.requests_burst=100000", "--set", &store, "--set", &path]].concat();
        let server = start_with_auth(dir.path(), &more).await?;
        for _ in 0..6 {
            let publish = |id: usize| {
                let path = format!("/stream/publish/workflow/w{id}");
                let request = request_as(&server, Method::POST, &path, WORKER).json(&progress_body(Some("ann")));
                async move { status(request).await }
            };
            for status in futures::future::try_join_all((0..CHANNELS).map(publish)).await? {
                // Both channels of the user may be in use by other requests.
                assert!(matches!(status, 200 | 429 | 503), "{status}");
            }
            // A channel with events belongs to its owner.
            for id in 0..CHANNELS {
                let path = format!("/stream/workflow/w{id}");
                if has_event(&server, &path).await? {
                    assert_eq!(status(request_as(&server, Method::GET, &path, ANN)).await?, 200, "{path}");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn ticket_opens_one_path_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &[]).await?;
    let mine = json!({"path": "/stream/user/ann"});
    let ticket = issue_ticket(&server, ANN, &mine).await?;
    let url = server.url(&format!("/stream/user/ann?ticket={ticket}"));
    let mut follower = Follower::from_response(reqwest::get(&url).await?, None)?;
    assert_eq!(follower.next_event().await?.name, "connected");
    let second_use = reqwest::get(&url).await?;
    assert_eq!(second_use.status(), 401);
    assert_eq!(second_use.json::<Value>().await?["code"], "invalid_ticket");
    // Of a hundred concurrent uses, one is accepted.
    let ticket = issue_ticket(&server, ANN, &mine).await?;
    let url = server.url(&format!("/stream/user/ann?ticket={ticket}"));
    let client = Client::new();
    let all = (0..100).map(|_| client.get(&url).send());
    let statuses: Vec<u16> =
        futures::future::try_join_all(all).await?.iter().map(|response| response.status().as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 99, "{statuses:?}");
    // For another path, altered, for a channel of another user, or with too narrow a scope.
    let ticket = issue_ticket(&server, ANN, &mine).await?;
    assert_eq!(reqwest::get(server.url(&format!("/stream/user/bob?ticket={ticket}"))).await?.status(), 401);
    let altered = format!("{}x", &ticket[..ticket.len() - 1]);
    assert_eq!(reqwest::get(server.url(&format!("/stream/user/ann?ticket={altered}"))).await?.status(), 401);
    let ticket = issue_ticket(&server, BOB, &mine).await?;
    assert_eq!(reqwest::get(server.url(&format!("/stream/user/ann?ticket={ticket}"))).await?.status(), 404);
    let ticket = issue_ticket(&server, ANN, &json!({"path": "/stream/user/ann", "scope": "read:workflow:*"})).await?;
    assert_eq!(reqwest::get(server.url(&format!("/stream/user/ann?ticket={ticket}"))).await?.status(), 404);
    for body in [json!({"path": "/v1/classify"}), json!({"path": "/stream/user/ann?x"}), json!({})] {
        assert_eq!(publish(&server, "/tickets", ANN, &body).await?, 422, "{body}");
    }
    Ok(())
}

#[tokio::test]
async fn connection_ends_with_its_token() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &[]).await?;
    let short = token(&hs256_header(), &claims("ann", 3)?, SECRET)?;
    let mut follower =
        Follower::from_response(request_as(&server, Method::GET, "/stream/user/ann", &short).send().await?, None)?;
    assert_eq!(follower.next_event().await?.name, "connected");
    let end = follower.next_event().await?;
    assert_eq!((end.name.as_str(), &end.data["reason"]), ("disconnected", &json!("expired")));
    assert_eq!(follower.next().await?, None);
    assert_eq!(status(request_as(&server, Method::GET, "/stream/user/ann", &short)).await?, 401);
    Ok(())
}

#[tokio::test]
async fn replaced_key_files_are_used_without_a_restart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &[]).await?;
    let good = json!({"inputs": "good"});
    let classify = |key| publish(&server, "/v1/classify", key, &good);
    assert_eq!(classify(ANN).await?, 200);
    let without: String = API_KEYS.lines().skip(1).map(|line| format!("{line}\n")).collect();
    let fresh = dir.path().join("fresh");
    std::fs::write(&fresh, without)?;
    std::fs::rename(&fresh, dir.path().join("api_keys"))?;
    until("refused", || async { Ok(classify(ANN).await? == 401) }).await?;
    assert_eq!(classify(BOB).await?, 200);
    // While a key file is invalid, every request is refused.
    std::fs::write(dir.path().join("api_keys"), "nonsense\n")?;
    until("requests are refused", || async { Ok(classify(BOB).await? == 503) }).await?;
    assert_eq!(reqwest::get(server.url("/readyz")).await?.status(), 503);
    // The log arrives through a pipe, possibly later than the response.
    until("the log says which file", async || Ok(server.log().contains("api_keys"))).await?;
    std::fs::write(dir.path().join("api_keys"), API_KEYS)?;
    until("the key is accepted again", || async { Ok(classify(ANN).await? == 200) }).await
}

#[tokio::test]
async fn user_over_its_rate_or_connections_is_refused_and_others_are_served() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(
        dir.path(),
        &[
            "--set",
            "auth.publishes_per_s=1",
            "--set",
            "auth.publishes_burst=3",
            "--set",
            "auth.connections_max=2",
            "--set",
            "models.replicas=1",
        ],
    )
    .await?;
    let mut last = None;
    for _ in 0..20 {
        let response = request_as(&server, Method::POST, "/stream/publish/workflow/w", WORKER)
            .json(&progress_body(None))
            .send()
            .await?;
        if response.status() == 429 {
            last = Some(response);
            break;
        }
    }
    let refused = last.context("never refused")?;
    assert!(refused.headers()["retry-after"].to_str()?.parse::<u32>()? >= 1);
    assert_eq!(refused.json::<Value>().await?["code"], "too_many_requests");
    // Other users are served.
    assert_eq!(publish(&server, "/stream/publish/user/bob", BOB, &json!({"message": "m"})).await?, 200);
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(Follower::from_response(
            request_as(&server, Method::GET, "/stream/user/ann", ANN).send().await?,
            None,
        )?);
    }
    let response = request_as(&server, Method::GET, "/stream/user/ann", ANN).send().await?;
    assert_eq!(response.status(), 429);
    assert_eq!(response.json::<Value>().await?["code"], "too_many_connections");
    assert_eq!(status(request_as(&server, Method::GET, "/stream/user/bob", BOB)).await?, 200);
    drop(open);
    until("another one is accepted", || async {
        Ok(status(request_as(&server, Method::GET, "/stream/user/ann", ANN)).await? == 200)
    })
    .await
}

/// Opens a classify stream whose body stays open; the beginning of its status line, and its connection.
async fn open_stream(server: &Server, key: &str) -> Result<(String, Raw)> {
    let mut raw = Raw::connect(server).await?;
    let head = format!(
        "POST /v1/classify HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/x-ndjson\r\n",
        server.address()
    );
    raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await?;
    let head = raw.read_until("\r\n\r\n").await?;
    anyhow::ensure!(!head.contains("weir-user"), "{head}");
    Ok((head[..12].to_owned(), raw))
}

#[tokio::test]
async fn user_over_its_share_of_permits_is_refused_and_another_at_the_same_address_is_served() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &["--set", "http.requests_max=4"]).await?;
    let open = async |key: &str| open_stream(&server, key).await;
    let (first, second) = (open(ANN).await?, open(ANN).await?);
    assert_eq!((first.0.as_str(), second.0.as_str()), ("HTTP/1.1 200", "HTTP/1.1 200"));
    assert_eq!(open(ANN).await?.0, "HTTP/1.1 429");
    let other = open(BOB).await?;
    assert_eq!(other.0, "HTTP/1.1 200");
    drop(first);
    until("another one is accepted", || async { Ok(open(ANN).await?.0 == "HTTP/1.1 200") }).await
}

#[tokio::test]
async fn connections_of_a_user_are_counted_in_the_whole_process() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let one_each = ["--set", "auth.connections_max=3", "--set", "gateway.instance_requests_max=1"];
    let server = start_with_auth(
        dir.path(),
        &[&one_each[..], &["--set", "auth.cors_origins=[\"https://app.example\"]"]].concat(),
    )
    .await?;
    let follow =
        || request_as(&server, Method::GET, "/stream/user/ann", ANN).header("origin", "https://app.example").send();
    // An open stream occupies an instance that serves one request at a time, so later subscriptions are served by another.
    let mut responses = vec![follow().await?];
    let busy = open_stream(&server, BOB).await?;
    responses.push(follow().await?);
    assert_eq!(busy.0, "HTTP/1.1 200");
    assert!(server.metric("weir_gateway_instances_total").await? > 1.0);
    responses.extend(futures::future::try_join_all((0..18).map(|_| follow())).await?);
    let (accepted, refused): (Vec<_>, Vec<_>) = responses.into_iter().partition(|response| response.status() == 200);
    assert_eq!((accepted.len(), refused.len()), (3, 17));
    for response in refused {
        assert_eq!(response.status(), 429);
        assert!(response.headers()["retry-after"].to_str()?.parse::<u32>()? >= 1);
        // The page can read the refusal.
        assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example");
        assert_eq!(response.json::<Value>().await?["code"], "too_many_connections");
    }
    assert_eq!(status(request_as(&server, Method::GET, "/stream/user/bob", BOB)).await?, 200);
    drop(accepted);
    until("another one is accepted", || async { Ok(follow().await?.status() == 200) }).await
}

#[tokio::test]
async fn stalled_subscriber_is_cut_when_its_token_ends() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(
        dir.path(),
        &["--set", "events.bytes_max=100000000", "--set", "events.outbox_bytes_max=50000000"],
    )
    .await?;
    let short = token(&hs256_header(), &claims("ann", 4)?, SECRET)?;
    let mut stalled = Raw::connect_with_small_buffer(&server).await?;
    let head = format!("GET /stream/user/ann HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {short}\r\n\r\n");
    stalled.send(head.as_bytes()).await?;
    stalled.read_until("event: connected").await?;
    // More than the buffers between server and client hold.
    let body = json!({"message": "m", "metadata": {"pad": "x".repeat(50_000)}});
    for _ in 0..60 {
        assert_eq!(publish(&server, "/stream/publish/user/ann", ADMIN, &body).await?, 200);
    }
    assert_eq!(server.metric("weir_http_connections_held").await?, 1.0);
    // The connection is cut at the expiry of the token, long before `http.write_timeout_ms`.
    until("cut", || async { Ok(server.metric("weir_http_connections_held").await? == 0.0) }).await?;
    assert!(!stalled.read_to_end().await?.contains("expired"));
    Ok(())
}

#[tokio::test]
async fn page_of_an_origin_that_is_not_allowed_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let origins = ["--set", "auth.cors_origins=[\"https://app.example\"]", "--set", "auth.cors_credentials=true"];
    let server = start_with_auth(dir.path(), &origins).await?;
    let from = |origin: &'static str| {
        request_as(&server, Method::GET, "/stream/user/ann", ANN).header("origin", origin).send()
    };
    let response = from("https://app.example").await?;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example");
    assert_eq!(response.headers()["access-control-allow-credentials"], "true");
    let vary: Vec<_> = response.headers().get_all("vary").iter().collect();
    assert!(vary.iter().any(|vary| *vary == "origin"), "{vary:?}");
    for origin in ["https://evil.example", "null", "https://app.example.evil.example", "http://app.example"] {
        let response = from(origin).await?;
        assert_eq!(response.status(), 403, "{origin}");
        assert!(!response.headers().contains_key("access-control-allow-origin"), "{origin}");
        assert_eq!(response.headers()["vary"], "origin");
    }
    let preflight = |origin: &'static str| {
        Client::new()
            .request(Method::OPTIONS, server.url("/stream/publish/workflow/w"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .send()
    };
    let response = preflight("https://app.example").await?;
    assert_eq!(response.status(), 204);
    assert_eq!(response.headers()["access-control-allow-methods"], "POST, OPTIONS");
    assert_eq!(preflight("https://evil.example").await?.status(), 403);
    // A cookie that a browser attaches to a cross-site request is not accepted.
    let body = json!({"inputs": "good"});
    let cookie = Client::new().post(server.url("/v1/classify")).header("cookie", format!("__Host-weir={ANN}"));
    assert_eq!(status(cookie.try_clone().context("a copy")?.json(&body)).await?, 403);
    assert_eq!(status(cookie.header("sec-fetch-site", "same-origin").json(&body)).await?, 200);
    Ok(())
}

#[tokio::test]
async fn hostile_event_data_does_not_break_framing() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let hostile = "x\r\n\r\nevent: evil\nid: 1-1\rdata: {}\n\n: \u{0}\u{feff}\u{2028}\u{2029}\u{85}\"\\";
    let body = json!({
        "step": hostile, "progress": 1, "message": hostile, "metadata": {(hostile): [hostile, {"id": hostile}]},
    });
    for _ in 0..2 {
        assert_eq!(post(&server, "/stream/publish/workflow/w", &body).await?.0, 200);
    }
    let mut follower = Follower::open(&server, "/stream/workflow/w", None).await?;
    for seq in 1..=2 {
        let event = follower.next_stored_event().await?;
        assert_eq!((event.name.as_str(), event.seq()?), ("workflow_progress", seq));
        for field in ["step", "message", "metadata"] {
            assert_eq!(event.data[field], body[field], "{field}");
        }
    }
    // An id with control characters or reserved characters is refused.
    for id in ["a%0d%0aid:%201", "a%00", "a%20b", "..", ".hidden", "a%2fb", "*", "a;b", &"x".repeat(129)] {
        for path in [format!("/stream/workflow/{id}"), format!("/stream/publish/workflow/{id}")] {
            let request = match path.contains("publish") {
                true => Client::new().post(server.url(&path)).json(&body),
                false => Client::new().get(server.url(&path)),
            };
            let status = status(request).await?;
            assert!(matches!(status, 404 | 422), "{path}: {status}");
        }
    }
    let bad = json!({"step": "s", "progress": 1, "user_id": "ann\r\nid: 1"});
    assert_eq!(post(&server, "/stream/publish/workflow/w", &bad).await?.0, 422);
    Ok(())
}

#[tokio::test]
async fn body_and_header_over_their_bounds_are_refused() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    const PATH: &str = "/stream/publish/workflow/w";
    let send =
        |body: String| Client::new().post(server.url(PATH)).header("content-type", "application/json").body(body);
    let deep = |depth: usize| {
        format!(r#"{{"step":"s","progress":1,"metadata":{{"a":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    let progress = |more: &str| format!(r#"{{"step":"s","progress":1{more}}}"#);
    for (what, body, want) in [
        ("too deep", deep(100_000), 400),
        ("deeper than an event may be", deep(70), 422),
        ("no JSON", "{".to_owned(), 400),
        ("a member twice", progress(r#","progress":2"#), 400),
        ("not a percent", progress(r#","last":"yes""#), 422),
        ("a percent too many", r#"{"step":"s","progress":101}"#.to_owned(), 422),
        ("an unknown field", progress(r#","mesage":"m""#), 422),
        ("an empty body", String::new(), 400),
        ("a result larger than an event", progress(&format!(r#","result":"{}""#, "x".repeat(300_000))), 413),
        ("a valid body", progress(""), 200),
    ] {
        assert_eq!(status(send(body)).await?, want, "{what}");
    }
    // The refusal is sent before the body: a client that continues to send may find the connection closed before it reads the response.
    let mut long = Raw::connect(&server).await?;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n", server.address());
    long.send(format!("{head}Content-Length: {}\r\n\r\n", 2 << 20).as_bytes()).await?;
    assert!(long.read_until("\r\n\r\n").await?.starts_with("HTTP/1.1 413"));
    let get = |path: &str| Client::new().get(server.url(path));
    assert_eq!(status(get(&format!("/stream/workflow/w?x={}", "y".repeat(9000)))).await?, 414);
    assert_eq!(status(get("/stream/workflow/w").header("x-long", "y".repeat(20_000))).await?, 431);
    let many = (0..120).fold(get("/stream/workflow/w"), |request, n| request.header(format!("x-{n}"), "y"));
    assert_eq!(status(many).await?, 431);
    Ok(())
}

#[tokio::test]
async fn channels_without_authentication_are_loopback_only() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    // A page whose host name resolves to this server (DNS rebinding).
    let mut raw = Raw::connect(&server).await?;
    raw.send(b"GET /stream/workflow/w HTTP/1.1\r\nHost: evil.example\r\n\r\n").await?;
    assert!(raw.read_until("\r\n\r\n").await?.starts_with("HTTP/1.1 403"));
    let response =
        Client::new().get(server.url("/stream/workflow/w")).header("origin", "https://evil.example").send().await?;
    assert_eq!(response.status(), 403);

    let open = Server::start_stub(&["--listen", "0.0.0.0:0"]).await?;
    let (status, response) = post(&open, "/stream/publish/workflow/w", &progress_body(None)).await?;
    assert_eq!((status, &response["code"]), (403, &json!("auth_not_configured")));
    let detail = response["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("http.listen") && detail.contains("auth.mode"), "{detail}");
    assert_eq!(reqwest::get(open.url("/stream/workflow/w")).await?.status(), 403);
    assert_eq!(post(&open, "/v1/classify", &json!({"inputs": "good"})).await?.0, 200);
    Ok(())
}
