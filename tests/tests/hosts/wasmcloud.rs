//! `weir.wasm` under `wash dev` of wasmCloud, with the configuration of the repository, and `weir-keyvalue.wasm` with its store in Redis.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::client::{post, post_lines};
use weir_tests::conformance::{self, publish_and_resume};
use weir_tests::follow::Follower;
use weir_tests::redis::Redis;
use weir_tests::{Server, component, free_port, models, root, tool, until};

/// Time in which `wash` compiles the component, which takes a minute on a busy machine.
const COMPILATION_MAX: Duration = Duration::from_secs(300);

/// The command; its folders of settings and caches are below the home folder.
fn wash(home: &Path) -> Result<Command> {
    let mut command = Command::new(tool("WEIR_TEST_WASH")?);
    command.arg("--non-interactive").env("HOME", home).env("NO_COLOR", "1").current_dir(home);
    Ok(command)
}

#[tokio::test]
async fn weir_wasm_under_wash_dev_passes_the_conformance_cases() -> Result<()> {
    // A component has no bf16 instructions, so embeddings are compared with those of a processor without them.
    let reference = Server::start(&["--set", "models.isa=portable"]).await?;
    let project = tempfile::tempdir()?;
    let shipped = std::fs::read_to_string(root().join(".wash/config.yaml"))?;
    // The configuration names files below the repository and a fixed port.
    let mut config = shipped.clone();
    let component = component("weir.wasm")?;
    for (from, to) in [
        ("target/components/weir.wasm", component.display().to_string()),
        ("target/components/models", models().display().to_string()),
        ("127.0.0.1:8000", format!("127.0.0.1:{}", free_port()?)),
    ] {
        assert_eq!(shipped.matches(from).count(), 1, "{from} in .wash/config.yaml");
        config = config.replace(from, &to);
    }
    std::fs::create_dir(project.path().join(".wash"))?;
    std::fs::write(project.path().join(".wash/config.yaml"), config)?;
    let mut command = wash(project.path())?;
    command.arg("-C").arg(project.path()).arg("dev");
    let server = Server::spawn_within(command, "requests address=http://", COMPILATION_MAX)?;
    server.ready().await?;
    conformance::check("`wash dev` of wasmCloud 2.10", &server, &reference).await
}

/// A project whose buckets are in Redis. Without `dev.service` each request has an instance of its own.
fn write_project(folder: &Path, redis: &str, address: &str) -> Result<()> {
    std::fs::create_dir(folder.join(".wash"))?;
    let config = json!({
        "build": {"command": "true", "component_path": component("weir-keyvalue.wasm")?},
        "dev": {
            "address": address,
            "wasi_keyvalue_redis_url": redis,
            "volumes": [{"host_path": models(), "guest_path": "/models"}],
        },
        "workload": {"environment": {"config": {"WEIR_AUTH_LOOPBACK": "true", "WEIR_INSTANCE": "wash"}}},
    });
    Ok(std::fs::write(folder.join(".wash/config.yaml"), config.to_string())?)
}

/// Starts `wash dev` in the folder of a project.
async fn dev(project: &Path) -> Result<Server> {
    let mut command = wash(project)?;
    command.arg("-C").arg(project).arg("dev");
    let server = Server::spawn_within(command, "requests address=http://", COMPILATION_MAX)?;
    let lives = || async { Ok(reqwest::get(server.url("/livez")).await.is_ok_and(|answer| answer.status() == 200)) };
    until("listening", lives).await?;
    Ok(server)
}

#[tokio::test]
async fn channels_and_sessions_survive_instances_and_restarts_of_wash_dev() -> Result<()> {
    let redis = Redis::start()?;
    let folder = tempfile::tempdir()?;
    write_project(folder.path(), &redis.url(), &format!("127.0.0.1:{}", free_port()?))?;
    let server = dev(folder.path()).await?;
    // Every request is another instance: the follower, the publishers, and those that resume.
    publish_and_resume(&server, "w1").await?;
    let publish = async |server: &Server| {
        let (status, answer) =
            post(server, "/stream/publish/workflow/w2", &json!({"step": "s", "progress": 1})).await?;
        ensure!(status == 200, "{status} {answer}");
        Ok(answer["id"].as_str().context("an id")?.to_owned())
    };
    let last = publish(&server).await?;
    let body = json!({"annotate": ["keywords"], "summary": {"every_finals": 0, "at_end": false}});
    let (status, session) = post(&server, "/sessions", &body).await?;
    ensure!(status == 200 || status == 201, "{status} {session}");
    let id = session["session_id"].as_str().context("a session")?.to_owned();
    let chunk = |seq: u32, text: &str| {
        format!("{}\n", json!({"start": seq, "end": seq + 1, "text": text, "speaker_id": "ann", "seq": seq}))
    };
    let path = format!("/sessions/{id}/chunks");
    let events = post_lines(&server, &path, "application/x-ndjson", chunk(1, "Can you send")).await?;
    assert_eq!((events.len(), &events[0]["type"], &events[0]["seq"]), (1, &json!("partial_segment"), &json!(1)));
    drop(server);

    let server = dev(folder.path()).await?;
    let next = publish(&server).await?;
    let mut whole = Follower::open(&server, "/stream/workflow/w2", None).await?;
    let (first, second) = (whole.next_stored_event().await?, whole.next_stored_event().await?);
    assert_eq!((first.id.as_str(), second.id.as_str()), (last.as_str(), next.as_str()));
    assert_eq!((first.seq()?, second.seq()?), (1, 2));
    // The segment continues, and the chunk that was accepted is known.
    let chunks = [chunk(1, "Can you send"), chunk(2, "the price list?")].concat();
    let events = post_lines(&server, &path, "application/x-ndjson", chunks).await?;
    assert_eq!(events[0]["type"], "repeated", "{events:?}");
    assert_eq!(events[1]["segment"]["text"], "Can you send the price list?", "{events:?}");
    Ok(())
}

#[tokio::test]
async fn component_is_pushed_to_a_registry_and_pulled_from_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.yml");
    let data = folder.path().join("data");
    let address = format!("127.0.0.1:{}", free_port()?);
    let settings = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
        data.display()
    );
    std::fs::write(&config, settings)?;
    let mut command = Command::new(tool("WEIR_TEST_REGISTRY")?);
    command.arg("serve").arg(&config);
    let registry = Server::spawn(command, "msg=\"listening on ")?;
    let (artifact, pulled) = (format!("{address}/weir/thin:0.1.0"), folder.path().join("pulled.wasm"));
    let pushed = component("weir-thin.wasm")?;
    for (verb, file) in [("push", &pushed), ("pull", &pulled)] {
        let output = wash(folder.path())?.args(["oci", verb, "--insecure", &artifact]).arg(file).output()?;
        ensure!(output.status.success(), "{verb}: {output:?}\n{}", registry.log());
    }
    ensure!(std::fs::read(&pushed)? == std::fs::read(&pulled)?, "the pulled component differs");
    // The media types of the Wasm OCI artifact layout, which other tools read.
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let manifest = reqwest::Client::new().get(format!("http://{address}/v2/weir/thin/manifests/0.1.0"));
    let manifest: Value = manifest.header("accept", accept).send().await?.json().await?;
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json", "{manifest}");
    let layers = manifest["layers"].as_array().context("layers")?;
    assert_eq!((layers.len(), &layers[0]["mediaType"]), (1, &Value::from("application/wasm")), "{manifest}");
    Ok(())
}
