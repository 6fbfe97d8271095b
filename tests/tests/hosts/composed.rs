//! The gateway, which includes the session component, under another WASI 0.3 host: composed with stand-ins and served by an unmodified
//! `wasmtime serve`, alone or behind the Pushpin of Debian.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions};
use weir_tests::client::post;
use weir_tests::follow::Follower;
use weir_tests::pipelines::{Folder, run};
use weir_tests::{
    Duplex, IDLE_INSTANCE, ONE_INSTANCE, Server, component, conformance, free_port, ndjson, statuses, tool, until,
};

/// Plugs the exports of components into the imports of another, as `wac plug` does.
pub(crate) fn plug(socket: &[u8], plugs: &[&[u8]]) -> Result<Vec<u8>> {
    let mut graph = CompositionGraph::new();
    let mut plugged = Vec::new();
    for (at, plug) in plugs.iter().enumerate() {
        let package = Package::from_bytes(&format!("weir:plug{at}"), None, plug.to_vec(), graph.types_mut())?;
        plugged.push(graph.register_package(package)?);
    }
    let socket = Package::from_bytes("weir:socket", None, socket.to_vec(), graph.types_mut())?;
    let socket = graph.register_package(socket)?;
    wac_graph::plug(&mut graph, plugged, socket)?;
    Ok(graph.encode(EncodeOptions::default())?)
}

/// Starts the gateway with stand-ins for infer and generate, and the store, under `wasmtime serve`.
async fn start_composed(arguments: &[&str]) -> Result<(Server, tempfile::TempDir)> {
    start_composed_with("generate_stub.wasm", arguments).await
}

/// [`start_composed`], with another component that generates text.
async fn start_composed_with(generate: &str, arguments: &[&str]) -> Result<(Server, tempfile::TempDir)> {
    let gateway = std::fs::read(component("gateway.wasm")?)?;
    let stub = |name: &str| Ok::<_, anyhow::Error>(std::fs::read(component(name)?)?);
    let (infer, generate, store) = (stub("infer_stub.wasm")?, stub(generate)?, stub("store.wasm")?);
    let dir = tempfile::tempdir()?;
    let composed = dir.path().join("composed.wasm");
    std::fs::write(&composed, plug(&gateway, &[&infer, &generate, &store])?)?;
    let mut command = Command::new(tool("WEIR_TEST_WASMTIME")?);
    command.args(["serve", "-Sp3,cli", "-Wcomponent-model-async", "--addr", "127.0.0.1:0"]).args(arguments);
    command.arg(&composed);
    let server = Server::spawn(command, "Serving HTTP on http://")?;
    server.ready().await?;
    Ok((server, dir))
}

#[tokio::test]
async fn gateway_answers_under_wasmtime_serve() -> Result<()> {
    let (server, _dir) = start_composed(&[]).await?;
    assert_eq!(reqwest::get(server.url("/livez")).await?.status(), 200);

    let client = reqwest::Client::new();
    let body = json!({"text": "a good day in Rome, and a bad night in Bern", "include_entities": true});
    let response = client.post(server.url("/process-stream")).json(&body).send().await?;
    assert_eq!(response.status(), 200);
    let events = ndjson(&response.text().await?)?;
    assert_eq!(statuses(&events).first(), Some(&"started"));
    assert_eq!(statuses(&events).last(), Some(&"completed"));
    let entities = events.iter().find(|event| event["status"] == "entities_complete").context("entities")?;
    assert!(entities.to_string().contains("Rome"), "{entities}");

    let response = client.post(server.url("/process-stream")).body("{").header("content-type", "application/json");
    let response = response.send().await?;
    assert_eq!(response.status(), 400);
    assert_eq!(response.json::<Value>().await?["code"], "malformed_json");

    let chunks = "{\"start\":0,\"end\":1,\"text\":\"I'll check\"}\n{\"start\":0.5,\"end\":1,\"text\":\"early\"}\n{\"op\":\"end\"}\n";
    let response =
        client.post(server.url("/v1/transcript")).header("content-type", "application/x-ndjson").body(chunks);
    let response = response.send().await?;
    assert_eq!(response.status(), 200);
    let events = ndjson(&response.text().await?)?;
    let types: Vec<&Value> = events.iter().map(|event| &event["type"]).collect();
    assert_eq!(types, ["partial_segment", "error", "final_segment"], "{events:?}");
    assert_eq!(events[2]["semantic"]["intent"], "commitment", "{events:?}");
    let api: Value = reqwest::get(server.url("/openapi.json")).await?.json().await?;
    assert!(api["openapi"].as_str().context("a version")?.starts_with("3."));
    Ok(())
}

/// The component of upstreams under this host: another `weir` is its server.
#[tokio::test]
async fn upstream_component_generates_in_each_dialect_under_wasmtime_serve() -> Result<()> {
    let upstream = Server::start_generate_stub(&[]).await?;
    let url = format!("WEIR_UPSTREAM_URL={}", upstream.url("/v1"));
    let environment = ["WEIR_UPSTREAM_KIND=openai", &url, "WEIR_UPSTREAM_MODELS=stub", "WEIR_AUTH_LOOPBACK=true"];
    let arguments: Vec<&str> = environment.iter().flat_map(|variable| ["--env", *variable]).collect();
    let (server, _dir) = start_composed_with("upstream.wasm", &arguments).await?;
    let text = "One two three four five.";
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, body, member) in [
        ("/v1/chat/completions", json!({"model": "stub", "messages": messages}), "/choices/0/message/content"),
        ("/v1/messages", json!({"model": "stub", "max_tokens": 64, "messages": messages}), "/content/0/text"),
        (
            "/v1beta/models/stub:generateContent",
            json!({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}),
            "/candidates/0/content/parts/0/text",
        ),
    ] {
        let (status, whole) = post(&server, path, &body).await?;
        ensure!(status == 200 && whole.pointer(member) == Some(&json!(text)), "{path}: {status} {whole}");
    }
    let body = json!({"model": "stub", "messages": messages, "stream": true});
    let stream = reqwest::Client::new().post(server.url("/v1/chat/completions")).json(&body).send().await?;
    let stream = stream.text().await?;
    let chunks = stream.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let pieces = chunks.filter_map(|chunk| Some(chunk.pointer("/choices/0/delta/content")?.as_str()?.to_owned()));
    ensure!(pieces.collect::<String>() == text && stream.ends_with("data: [DONE]\n\n"), "{stream}");
    Ok(())
}

#[tokio::test]
async fn channels_are_served_under_wasmtime_serve() -> Result<()> {
    // The channels of the stand-in are in its instance, so one instance has to serve all requests.
    let (server, _dir) = start_composed(&[&ONE_INSTANCE[..], &["--env", "WEIR_AUTH_LOOPBACK=true"]].concat()).await?;
    conformance::channels(&server).await?;
    let health: Value = reqwest::get(server.url("/stream/health")).await?.json().await?;
    assert_eq!(health["status"], "healthy", "{health}");
    Ok(())
}

#[tokio::test]
async fn call_of_a_client_that_disconnects_is_abandoned() -> Result<()> {
    let (server, _dir) = start_composed(&[&ONE_INSTANCE[..], &[IDLE_INSTANCE]].concat()).await?;
    let mut duplex = Duplex::open(&server, "/v1/classify").await?;
    duplex.send("\"a !slow day\"\n".repeat(20).as_bytes()).await?;
    duplex.raw.read_until_nth("\"scores\"", 3).await?;
    drop(duplex);
    // The counters of the stand-in.
    let counted = async || {
        let models: Value = reqwest::get(server.url("/v1/models")).await?.json().await?;
        let is_stub = |model: &&Value| model["name"] == "stub";
        let stub = models["models"].as_array().context("models")?.iter().find(is_stub).context("the stand-in")?;
        Ok::<_, anyhow::Error>(stub["labels"].clone())
    };
    until("the call is abandoned", || async { Ok(counted().await?[1] == "abandoned 1") }).await?;
    let labels = counted().await?;
    let answered = labels[0].as_str().and_then(|label| label.strip_prefix("answered ")).context("answered")?;
    ensure!((3..20).contains(&answered.parse::<u32>()?), "{labels}");
    Ok(())
}

/// Nothing is appended to the channel, so only the end of the stream can tell the store.
#[tokio::test]
async fn reader_that_leaves_a_quiet_channel_is_not_counted_any_more() -> Result<()> {
    // The gateway notices at its next write that the client has disconnected.
    let environment = ["--env", "WEIR_AUTH_LOOPBACK=true", "--env", "WEIR_EVENTS_HEARTBEAT_MS=200"];
    let (server, _dir) = start_composed(&[&ONE_INSTANCE[..], &[IDLE_INSTANCE], &environment].concat()).await?;
    let followers = |expected: u64| {
        let server = &server;
        move || async move {
            let health: Value = reqwest::get(server.url("/stream/health")).await?.json().await?;
            Ok(health["active_streams"] == expected)
        }
    };
    let mut follower = Follower::open(&server, "/stream/workflow/quiet", None).await?;
    ensure!(follower.next_event().await?.name == "connected");
    until("the follower is counted", followers(1)).await?;
    drop(follower);
    until("the follower is gone", followers(0)).await
}

/// Pushpin in front of a server, with its own ports and folder.
struct Pushpin {
    zurl: Child,
    proxy: Child,
    port: u16,
    control: u16,
    dir: tempfile::TempDir,
}

impl Pushpin {
    fn start(server: &Server) -> Result<Self> {
        let (folder, dir) = (tool("WEIR_TEST_PUSHPIN")?, tempfile::tempdir()?);
        let (port, control) = (free_port()?, free_port()?);
        let (shipped, run) = (folder.join("prefix"), dir.path());
        let here = run.display();
        let sockets = ("ipc:///var/run/zurl/", format!("ipc://{here}/"));
        let internal = fs::read_to_string(shipped.join("usr/lib/pushpin/internal.conf"))?;
        fs::write(run.join("internal.conf"), internal.replace(sockets.0, &sockets.1))?;
        // The shipped configuration denies requests to this machine.
        let zurl = fs::read_to_string(shipped.join("etc/zurl.conf"))?.replace(sockets.0, &sockets.1);
        fs::write(run.join("zurl.conf"), with_values(&zurl, &[("deny", String::new())]))?;
        let settings = format!(
            "[global]\ninclude={here}/internal.conf\nrundir={here}\nipc_prefix=pushpin-\nport_offset=0\n\
             [runner]\nservices=condure,pushpin-proxy,pushpin-handler\nhttp_port={port}\nlogdir={here}\nlog_level=2\n\
             client_buffer_size=8192\nclient_maxconn=100\ncondure_bin=condure\n\
             [proxy]\nroutesfile=routes\nsig_iss=pushpin\nsig_key=changeme\nupdates_check=off\n\
             [handler]\npush_in_spec=ipc://{here}/push-in\npush_in_sub_specs=ipc://{here}/push-in-sub\n\
             push_in_http_addr=127.0.0.1\npush_in_http_port={control}\npush_in_http_max_headers_size=10000\n\
             push_in_http_max_body_size=1000000\nstats_spec=ipc://{here}/stats\ncommand_spec=ipc://{here}/command\n\
             message_rate=2500\nmessage_hwm=25000\nmessage_wait=5000\nid_cache_ttl=60\n\
             connection_subscription_max=20\nsubscription_linger=60\nstats_connection_ttl=120\n"
        );
        fs::write(run.join("pushpin.conf"), settings)?;
        fs::write(run.join("routes"), format!("* {}\n", server.address()))?;
        let start = |program: &str| {
            let config = format!("--config={here}/{program}.conf");
            let mut command = Command::new(folder.join(program));
            command.arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().with_context(|| format!("cannot start {program}"))
        };
        Ok(Self { zurl: start("zurl")?, proxy: start("pushpin")?, port, control, dir })
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The contents of its log files.
    fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        ["pushpin-proxy.log", "pushpin-handler.log"].map(read).concat()
    }

    /// Sends bytes to the subscribers of a channel, or ends their streams.
    async fn publish(&self, channel: &str, format: Value) -> Result<()> {
        let item = json!({"items": [{"channel": channel, "formats": {"http-stream": format}}]});
        let url = format!("http://127.0.0.1:{}/publish/", self.control);
        let response = reqwest::Client::new().post(url).body(item.to_string()).send().await?;
        ensure!(response.status() == 200, "{response:?}");
        Ok(())
    }
}

impl Drop for Pushpin {
    fn drop(&mut self) {
        // On SIGTERM it ends the processes that it has started.
        let _ = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.proxy.id())]).status();
        let _ = self.proxy.wait();
        let _ = self.zurl.kill();
        let _ = self.zurl.wait();
    }
}

/// A configuration file with replaced values.
fn with_values(text: &str, values: &[(&str, String)]) -> String {
    let line = |line: &str| match values.iter().find(|(key, _)| line.split_once('=').is_some_and(|(k, _)| k == *key)) {
        Some((key, value)) => format!("{key}={value}\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Appends the next piece of a stream to a text; false at the end of the stream.
async fn read_piece(response: &mut reqwest::Response, text: &mut String) -> Result<bool> {
    let piece = tokio::time::timeout(Duration::from_secs(5), response.chunk()).await??;
    text.push_str(std::str::from_utf8(piece.as_deref().unwrap_or_default())?);
    Ok(piece.is_some())
}

/// A stream without its epochs, timestamps and heartbeats, which differ between runs.
fn comparable(stream: &str) -> String {
    let line = |line: &str| {
        let line = match line.strip_prefix("id: ").and_then(|id| id.split_once('-')) {
            Some((_, seq)) => format!("id: {seq}"),
            None => line.to_owned(),
        };
        match line.split_once("\"timestamp\":\"") {
            Some((before, after)) => {
                format!("{before}\"timestamp\":{}", after.split_once('"').map_or("", |(_, rest)| rest))
            }
            None => line,
        }
    };
    stream.replace(":\n\n", "").lines().map(|text| line(text) + "\n").collect()
}

/// The body of the `n`th event. Events 0 to 2 are published before a subscriber follows, and 5 finishes the channel.
fn nth_event(n: u32) -> Value {
    match n {
        5 => json!({"event": "temporal_status", "status": "COMPLETED", "result": {"of": "all"}}),
        n => json!({"step": "s", "progress": n, "message": format!("n{n}\r\nid: 9")}),
    }
}

/// Follows a channel at the URL `follow` while publishing to it; `forward` is called with the id before each stored event. Returns the
/// stream.
async fn follow_and_publish<F: Future<Output = Result<()>>>(
    server: &Server,
    follow: String,
    id: &str,
    forward: impl Fn(String) -> F,
) -> Result<String> {
    let publish = async |n: u32| {
        let (status, response) = post(server, &format!("/stream/publish/workflow/{id}"), &nth_event(n)).await?;
        ensure!(status == 200, "{response}");
        Ok(response["id"].as_str().context("an id")?.to_owned())
    };
    let mut last = String::new();
    for n in 0..3 {
        last = publish(n).await?;
    }
    let mut response = reqwest::get(follow).await?;
    ensure!(response.status() == 200 && response.headers()["content-type"] == "text/event-stream", "{response:?}");
    ensure!(!response.headers().keys().any(|name| name.as_str().starts_with("grip-")), "{response:?}");
    let mut text = String::new();
    while text.matches("event: workflow_progress").count() < 3 {
        ensure!(read_piece(&mut response, &mut text).await?, "the stream ended");
    }
    for n in 3..6 {
        let before = std::mem::replace(&mut last, publish(n).await?);
        forward(before).await?;
        if n < 5 {
            let id_line = format!("id: {last}\n");
            while !text.contains(&id_line) {
                ensure!(read_piece(&mut response, &mut text).await?, "the stream ended");
            }
        }
    }
    while read_piece(&mut response, &mut text).await? {}
    Ok(comparable(&text.replace(id, "ID")))
}

#[tokio::test]
async fn stream_behind_pushpin_equals_the_native_stream() -> Result<()> {
    let environment = ["--env", "WEIR_AUTH_LOOPBACK=true", "--env", "WEIR_GRIP=proxy"];
    let (server, _dir) = start_composed(&[&ONE_INSTANCE[..], &environment].concat()).await?;
    let pushpin = Pushpin::start(&server)?;
    // While Pushpin starts, it accepts requests that it never answers.
    let probe = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
    until("reachable", || async {
        Ok(probe.get(pushpin.url("/livez")).send().await.is_ok_and(|response| response.status() == 200))
    })
    .await?;
    // The host may create a second instance with separate channels, and Pushpin may hold the stream only after the event is forwarded:
    // then another channel is tried.
    let (tries, held_stream) = (AtomicU32::new(0), std::cell::RefCell::new(String::new()));
    until("a stream is held", || async {
        let id = format!("w{}", tries.fetch_add(1, Ordering::Relaxed));
        let path = format!("/stream/workflow/{id}");
        // The publisher forwards the events that the gateway has rendered to the proxy.
        let forward = |before: String| {
            let (server, pushpin, path, channel) = (&server, &pushpin, path.clone(), format!("workflow:{id}"));
            async move {
                let rendered =
                    reqwest::Client::new().get(server.url(&path)).header("last-event-id", before).send().await?;
                let hold = rendered.headers().get("grip-hold").cloned();
                let text = rendered.text().await?;
                let (_, rendered) = text.split_once("event: connected").context("connected")?;
                let (_, rendered) = rendered.split_once("\n\n").context("an event")?;
                pushpin.publish(&channel, json!({"content": rendered})).await?;
                match hold {
                    Some(_) => Ok(()),
                    None => pushpin.publish(&channel, json!({"action": "close"})).await,
                }
            }
        };
        match follow_and_publish(&server, pushpin.url(&path), &id, forward).await {
            Ok(stream) => *held_stream.borrow_mut() = stream,
            Err(error) => {
                eprintln!("{id}: {error:#}\n{}", pushpin.log());
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    let native = Server::start_stub(&[]).await?;
    let url = native.url("/stream/workflow/native");
    let native = follow_and_publish(&native, url, "native", |_| async { Ok(()) }).await?;
    assert_eq!(held_stream.into_inner(), native);
    assert_eq!(native.matches("\nevent: ").count(), 8, "{native}");
    Ok(())
}

#[tokio::test]
async fn pipelines_run_under_wasmtime_serve() -> Result<()> {
    let pipelines = Folder::new(&[(
        "mood",
        json!([
            {"id": "mood", "kind": "sentiment"},
            {"id": "own", "kind": "component", "path": "own", "on_error": "continue", "after": []},
            {"id": "both", "kind": "map", "after": ["mood", "own"], "expression": "{mood: mood.overall_sentiment, own: own}"},
        ]),
    )])?;
    let dir = format!("{}::/pipelines", pipelines.path().display());
    let (server, _dir) = start_composed(&["--dir", &dir, "--env", "WEIR_AUTH_LOOPBACK=true"]).await?;
    let execution = run(&server, "mood", &json!({"text": "good"})).await?;
    assert_eq!(
        (&execution["state"], &execution["output"]),
        (&json!("completed"), &json!({"mood": "POSITIVE", "own": null})),
        "{execution}"
    );
    assert_eq!(execution["steps"][1]["code"], "unknown_step", "{execution}");
    Ok(())
}

#[tokio::test]
async fn client_under_another_host_is_not_treated_as_local() -> Result<()> {
    let (server, _dir) = start_composed(&[]).await?;
    assert_eq!(reqwest::get(server.url("/stream/workflow/w")).await?.status(), 403);
    Ok(())
}

#[test]
fn gateway_imports_only_wasi_and_weir() -> Result<()> {
    let gateway = std::fs::read(component("gateway.wasm")?)?;
    let mut graph = CompositionGraph::new();
    let package = Package::from_bytes("weir:gateway", None, gateway, graph.types_mut())?;
    let world = &graph.types()[package.ty()];
    for name in world.imports.keys() {
        assert!(name.starts_with("wasi:") || name.starts_with("weir:stream/"), "the gateway imports {name}");
    }
    assert!(world.imports.keys().any(|name| name.starts_with("weir:stream/infer@")));
    // The gateway includes the session component.
    assert!(!world.imports.keys().any(|name| name.starts_with("weir:stream/session@")));
    assert!(world.imports.keys().any(|name| name.starts_with("weir:stream/events@")));
    assert!(world.exports.keys().any(|name| name.starts_with("wasi:http/handler@0.3")), "{:?}", world.exports.keys());

    let session = std::fs::read(component("session.wasm")?)?;
    let session = Package::from_bytes("weir:session", None, session, graph.types_mut())?;
    for name in graph.types()[session.ty()].imports.keys() {
        assert!(
            name.starts_with("wasi:cli/") || name.starts_with("wasi:io/") || name.starts_with("wasi:clocks/"),
            "session imports {name}"
        );
    }

    let infer = Package::from_bytes("weir:infer", None, std::fs::read(component("infer.wasm")?)?, graph.types_mut())?;
    let world = &graph.types()[infer.ty()];
    for name in world.imports.keys() {
        assert!(name.starts_with("wasi:") || name.starts_with("weir:stream/types"), "infer imports {name}");
    }
    assert!(world.imports.keys().any(|name| name.starts_with("wasi:nn/graph@0.2.0-rc-2024-10-28")));
    Ok(())
}
