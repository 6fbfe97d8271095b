//! `--json` of every command: each line that it prints is JSON.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::client::{post, publish};
use weir_tests::kafka::Kafka;
use weir_tests::nats::Nats;
use weir_tests::pipelines::Folder;
use weir_tests::redis::Redis;
use weir_tests::{Server, component, models, ndjson, onnxruntime, until, weir};

use crate::Running;
use crate::generate::language_model_folder;

/// A command with its arguments, the member of one of the objects that it prints, and whether it runs until a signal.
struct Case {
    command: &'static str,
    arguments: Vec<String>,
    member: &'static str,
    runs_on: bool,
}

fn case(command: &'static str, arguments: &[&str], member: &'static str) -> Case {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Case { command, arguments, member, runs_on: false }
}

/// A command that runs until a signal.
fn service(command: &'static str, arguments: &[&str], member: &'static str) -> Case {
    Case { runs_on: true, ..case(command, arguments, member) }
}

/// The commands without subcommands, from the pages of the manual.
fn commands() -> Result<BTreeSet<String>> {
    let folder = tempfile::tempdir()?;
    let pages = Command::new(weir()?).args(["man", "--json"]).arg(folder.path()).output()?;
    let pages = ndjson(std::str::from_utf8(&pages.stdout)?)?;
    let all: BTreeSet<String> = pages.iter().filter_map(|page| page["command"].as_str()).map(str::to_owned).collect();
    let has_subcommands = |command: &String| all.iter().any(|other| other.starts_with(&format!("{command} ")));
    Ok(all.iter().filter(|command| !has_subcommands(command)).cloned().collect())
}

/// Whether a value, or an element of an array, has a member.
fn has(value: &Value, member: &str) -> bool {
    value.get(member).is_some() || value.as_array().is_some_and(|values| values.iter().any(|one| has(one, member)))
}

fn check(case: &Case, data: &std::path::Path) -> Result<()> {
    let Case { command, arguments, member, runs_on } = case;
    let mut weir = Command::new(weir()?);
    weir.args(command.split(' ').skip(1)).arg("--json").args(arguments).env("XDG_DATA_HOME", data);
    let running = Running::spawn(weir, "A fine day.\n")?;
    let mut printed = Vec::new();
    if *runs_on {
        printed.push(running.line()?);
        running.terminate()?;
    }
    let (status, output, errors) = running.end()?;
    printed.extend(output);
    let context = || format!("{status}: {printed:?}; {errors:?}");
    ensure!(status.code().is_some_and(|code| code < 2), "{}", context());
    ensure!(!printed.is_empty(), "{}", context());
    let mut is_found = false;
    for line in printed.iter().chain(&errors) {
        let value: Value = serde_json::from_str(line).with_context(context)?;
        ensure!(value.is_object() || value.is_array(), "{}", context());
        is_found |= has(&value, member);
    }
    ensure!(is_found, "no `{member}`: {}", context());
    Ok(())
}

/// A record of a source.
const RECORD: &str = r#"{"text":"A fine day.","id":1}"#;

#[tokio::test]
async fn each_command_prints_json() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (texts, config, mine) = (path("texts.txt"), path("weir.toml"), path("models"));
    let (refused, man) = (path("refused.ndjson"), path("man"));
    std::fs::write(&texts, "A fine day.\nIt rained.\n")?;
    let infer = format!("infer={}", component("infer_stub.wasm")?.display());
    let generate = format!("generate={}", component("generate_stub.wasm")?.display());
    let shipped = models().display().to_string();
    let sentiment = models().join("sentiment").display().to_string();
    let language_models = language_model_folder()?;
    let language = language_models.path().display().to_string();
    let stub =
        ["--models-dir", &shipped, "--component", &infer, "--set", "models.replicas=1", "--set", "log.format=json"];
    let stub_with = |more: &[&'static str]| [more, &stub[..]].concat();

    let steps = json!([{"id": "sum", "kind": "map", "expression": "{twice: n * `2`}"}]);
    let folder = Folder::new(&[("double", steps)])?;
    let definitions = folder.path().display().to_string();
    let server = Server::start_stub(&folder.arguments()).await?;
    let url = server.url("");
    publish(&server, "feed", 1).await?;
    let socket = format!("ws://{}/ws", server.address());
    let subscribe = json!({"type": "subscribe", "channel": "workflow:feed"}).to_string();
    publish(&server, "over", 1).await?;
    let last = json!({"step": "s", "progress": 100, "message": "over", "last": true});
    post(&server, "/stream/publish/workflow/over", &last).await?;
    let over = server.url("/stream/workflow/over");

    let redis = Redis::start()?;
    until("up", async || Ok(redis.command(&["PING"]).is_ok())).await?;
    redis.command(&["XADD", "text-input", "*", "payload", RECORD])?;
    let redis_url = redis.url();
    let kafka = Kafka::start().await?;
    kafka.produce([("key".to_owned(), RECORD.to_owned())])?;
    let library = onnxruntime()?.display().to_string();
    let precision = format!("--precision={texts}");

    let feed = [&["--text", "/message", "--url", &over, "--event", "workflow_progress"][..], &stub].concat();
    // The first message has no text.
    let messages = ["--text", "/data/message", "--url", &socket, "--subscribe", &subscribe, "--errors-file", &refused];
    let messages = [&messages[..], &stub].concat();
    let redis_records = [&["--stdout", "--url", redis_url.as_str()][..], &stub].concat();
    let kafka_records = [&["--stdout", "--brokers", kafka.brokers()][..], &stub].concat();
    let chat = ["--models-dir", &language, "--component", &generate];
    let of_server = ["--url", url.as_str()];
    let cases = [
        service("weir serve", &stub_with(&["--listen", "0"]), "url"),
        case("weir run", &stub_with(&["--task", "sentiment"]), "label"),
        case("weir run", &stub_with(&["--task", "sentiment"]), "elapsed_ms"),
        case("weir chat", &chat, "finish_reason"),
        case("weir stream file", &[&[texts.as_str()][..], &stub].concat(), "label"),
        case("weir stream http", &feed, "label"),
        service("weir stream websocket", &messages, "label"),
        service("weir stream redis", &redis_records, "label"),
        service("weir stream kafka", &kafka_records, "label"),
        case("weir models list", &["--models-dir", &shipped], "name"),
        case("weir models check", &["--models-dir", &shipped, "sentiment"], "works"),
        case("weir models check", &["--models-dir", &shipped, &precision, "sentiment"], "recommended"),
        case("weir models pull", &["--models-dir", &mine, &sentiment], "path"),
        case("weir models engine", &["onnxruntime", "--from", &library], "path"),
        case("weir pipelines list", &of_server, "valid"),
        case("weir pipelines run", &["double", "--input", r#"{"n": 1}"#, "--url", &url], "output"),
        case("weir pipelines run", &["double", "--input", r#"{"n": 1}"#, "--url", &url, "--detach"], "execution_id"),
        case("weir pipelines check", &[&definitions], "valid"),
        case("weir config", &[], "meaning"),
        case("weir config", &["--effective"], "http"),
        case("weir init-config", &[&config], "path"),
        case("weir init-config", &["-"], "text"),
        case("weir test-connection", &["--protocol", "http", "--url", &over], "passed"),
        case("weir status", &of_server, "health"),
        case("weir metrics", &of_server, "value"),
        case("weir completions", &["bash"], "script"),
        case("weir man", &[], "text"),
        case("weir man", &[&man], "command"),
    ];
    let mut names: BTreeSet<String> = cases.iter().map(|case| case.command.to_owned()).collect();
    // [`stream_nats_prints_json`]
    names.insert("weir stream nats".to_owned());
    assert_eq!(names, commands()?);
    for case in &cases {
        check(case, dir.path()).with_context(|| format!("{} {:?}", case.command, case.arguments))?;
    }
    Ok(())
}

#[test]
fn stream_nats_prints_json() -> Result<()> {
    let (dir, nats) = (tempfile::tempdir()?, Nats::start()?);
    nats.publish([RECORD])?;
    let (shipped, url) = (models().display().to_string(), nats.url());
    let infer = format!("infer={}", component("infer_stub.wasm")?.display());
    let stub = ["--models-dir", &shipped, "--component", &infer, "--set", "models.replicas=1"];
    let arguments = [&["--stdout", "--url", &url, "--set", "log.format=json"][..], &stub].concat();
    check(&service("weir stream nats", &arguments, "label"), dir.path())
}

#[test]
fn failure_of_a_command_is_json_on_standard_error() -> Result<()> {
    for arguments in [
        ["status", "--json", "--url", "nonsense"],
        ["pipelines", "check", "--json", "/nowhere.json"],
        ["models", "list", "--json", "--models-dir=/nowhere"],
        ["config", "--json", "--effective", "/nowhere.toml"],
    ] {
        let (status, output, errors) = Running::start(&arguments, "")?.end()?;
        assert_eq!(
            (status.code(), output.len(), errors.len()),
            (Some(2), 0, 1),
            "{arguments:?}: {output:?} {errors:?}"
        );
        let error: Value = serde_json::from_str(&errors[0])?;
        let text = error["error"].as_str().context("an error")?;
        assert!(text.contains(arguments[3].trim_start_matches("--models-dir=")), "{text}");
    }
    Ok(())
}

/// A message of a chat has its pieces, and the reason of its end.
#[test]
fn chat_prints_pieces_and_ends_as_json() -> Result<()> {
    let generate = format!("generate={}", component("generate_stub.wasm")?.display());
    let folder = language_model_folder()?;
    let language = folder.path().display().to_string();
    let arguments = ["chat", "--json", "--max-tokens", "3", "--component", &generate, "--models-dir", &language];
    let (status, output, errors) = Running::start(&arguments, "hello\n!down\n")?.end()?;
    assert!(status.success() && errors.is_empty(), "{status}: {errors:?}");
    let events = ndjson(&output.join("\n"))?;
    let pieces: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(pieces, "One two three");
    let ends: Vec<&Value> = events.iter().filter(|event| event["type"] != "token").collect();
    assert_eq!(ends[0], &json!({ "type": "done", "finish_reason": "length" }));
    assert_eq!((ends.len(), &ends[1]["type"], &ends[1]["code"]), (2, &json!("error"), &json!("model_unavailable")));
    Ok(())
}
