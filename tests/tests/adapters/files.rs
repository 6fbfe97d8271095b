//! `weir stream file`: formats, tasks, checkpoints across kills, and adapter components.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weir_tests::{PATIENCE, component, ndjson};

use super::{path, run, stream, stub_stream};

/// Default number of kills; `WEIR_TEST_KILLS=200` sets another.
const KILLS: usize = 12;

#[test]
fn stream_file_with_the_shipped_model_writes_results_and_errors() -> Result<()> {
    let input = b"{\"text\":\"I love this so much!\",\"id\":1,\"user\":\"u\"}\n\nnot json\n{\"text\":\"This is awful and I hate it.\"}\n";
    let output = run(stream(&["file", "-", "--format", "ndjson"])?, input)?;
    assert_eq!(output.status.code(), Some(1), "an invalid record makes the exit status 1: {output:?}");
    let lines = ndjson(std::str::from_utf8(&output.stdout)?)?;
    assert_eq!((&lines[0]["label"], &lines[0]["id"], &lines[0]["user"]), (&"positive".into(), &1.into(), &"u".into()));
    let error = &lines[1]["error"];
    assert_eq!((&error["category"], &error["code"]), (&"client".into(), &"malformed_json".into()));
    assert_eq!(lines[1]["payload"], "not json");
    assert_eq!(lines[2]["label"], "negative");
    Ok(())
}

#[test]
fn stream_file_writes_the_result_of_each_task() -> Result<()> {
    let text = b"Angela Merkel met Emmanuel Macron in Berlin.\n";
    for (task, member) in [("tokens", "entities"), ("embed", "embedding"), ("summarize", "summary")] {
        let output = run(stream(&["file", "-", "--format", "text", "--task", task])?, text)?;
        ensure!(output.status.success(), "{task}: {output:?}");
        let line: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(line.get(member).is_some_and(|value| !value.is_null()), "{task}: {line}");
    }
    Ok(())
}

#[test]
fn output_format_selects_how_results_are_written() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let input = path(dir.path(), "reviews.csv");
    std::fs::write(&input, "id,review\n7,\"I love this, so much!\"\n8,This is awful and I hate it.\n")?;
    let output = |format: &str| -> Result<String> {
        let output = run(stub_stream(&["file", &input, "--text", "review", "--output-format", format])?, b"")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let rows: Vec<String> =
        output("csv")?.lines().map(|line| line.split(',').take(2).collect::<Vec<_>>().join(",")).collect();
    assert_eq!((rows[0].as_str(), rows.len()), ("id,label", 3));
    assert!(rows[1].starts_with("7,") && rows[2].starts_with("8,"), "{rows:?}");
    let array: Vec<Value> = serde_json::from_str(&output("json")?)?;
    assert_eq!((array.len(), &array[1]["id"]), (2, &"8".into()));
    assert!(output("text")?.starts_with("7\t"), "{}", output("text")?);
    let table = output("table")?;
    assert!(table.starts_with("ID ") && table.contains("I love this, so much!"), "{table}");
    Ok(())
}

/// `batch`, `--input-file`, `--message-format` and `STREAMING_MODEL` are other names of `file`, its argument, `--format` and `--model`.
#[test]
fn other_names_of_the_command_and_its_flags_are_known() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (input, output) = (path(dir.path(), "lines.dat"), path(dir.path(), "out"));
    std::fs::write(&input, "It is good.\nIt is bad.\n")?;
    let batch = |model: &str| -> Result<std::process::Output> {
        let arguments = ["batch", "--input-file", &input, "--message-format", "text", "--output-format", "text"];
        let mut command = stub_stream(&arguments)?;
        command.args(["--output-file", &output, "--batch-size", "2"]).env("STREAMING_MODEL", model);
        run(command, b"")
    };
    let ended = batch("sentiment")?;
    ensure!(ended.status.success(), "{ended:?}");
    let text = std::fs::read_to_string(&output)?;
    let labels: Vec<Option<&str>> = text.lines().map(|line| line.split(' ').next()).collect();
    assert_eq!(labels, [Some("positive"), Some("negative")], "{text}");
    let ended = batch("nothing")?;
    let error = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() == Some(2) && error.contains("nothing"), "{ended:?}");
    Ok(())
}

/// The flags of the documents for a feed, up to the failure to connect.
#[test]
fn flags_of_a_feed_are_known() -> Result<()> {
    let flags = [
        "websocket --url ws://127.0.0.1:1/feed --timeout 30 --max-reconnect-attempts 1 --reconnect-delay 0.01",
        "--heartbeat-interval 30 --message-format json --model sentiment --batch-size 8 --output-format json --quiet",
    ];
    let flags = flags.join(" ");
    let ended = run(stub_stream(&flags.split(' ').collect::<Vec<_>>())?, b"")?;
    let error = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() == Some(2) && error.contains("127.0.0.1:1: "), "{ended:?}");
    Ok(())
}

#[test]
fn caption_cues_are_read_as_records() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let input = path(dir.path(), "talk.vtt");
    std::fs::write(
        &input,
        "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Ada>I love this.\n\n00:03.000 --> 00:04.000\nI hate it.\n",
    )?;
    let output = run(stub_stream(&["file", &input, "--with-text"])?, b"")?;
    ensure!(output.status.success(), "{output:?}");
    let lines = ndjson(std::str::from_utf8(&output.stdout)?)?;
    assert_eq!((&lines[0]["text"], &lines[1]["text"]), (&"I love this.".into(), &"I hate it.".into()));
    Ok(())
}

/// The process is killed at random moments and restarted until it has processed the file: each line has one result, in order.
#[test]
fn process_killed_at_random_writes_each_line_once() -> Result<()> {
    let kills = std::env::var("WEIR_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let dir = tempfile::tempdir()?;
    let (input, output, checkpoint) =
        (path(dir.path(), "in.ndjson"), path(dir.path(), "out.ndjson"), path(dir.path(), "checkpoint"));
    let count = 60_000;
    let lines: String = (0..count).map(|id| format!("{{\"text\":\"I love number {id}\",\"id\":{id}}}\n")).collect();
    std::fs::write(&input, lines)?;
    let start = || -> Result<std::process::Child> {
        let arguments = ["file", &input, "--output-file", &output, "--checkpoint", &checkpoint, "--quiet"];
        Ok(stub_stream(&arguments)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    };
    let written = || std::fs::metadata(&output).map_or(0, |meta| meta.len());
    let mut random = seeded_random(11);
    let mut killed = 0;
    while killed < kills {
        let before = written();
        let mut child = start()?;
        // Killed a random time after its first write.
        let began = std::time::Instant::now();
        while written() <= before && child.try_wait()?.is_none() {
            ensure!(began.elapsed() < PATIENCE, "the process writes nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random() % 40_000));
        child.kill()?;
        if child.wait()?.success() {
            break;
        }
        killed += 1;
    }
    let status = start()?.wait()?;
    ensure!(status.success(), "{status}");
    let results = ndjson(&std::fs::read_to_string(&output)?)?;
    ensure!(killed > 2, "the process was killed only {killed} times");
    ensure!(results.len() == count, "{} results of {count} after {killed} kills", results.len());
    let wrong = results.iter().enumerate().find(|(id, result)| result["id"] != *id);
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}

/// A generator of pseudo-random numbers.
pub(super) fn seeded_random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

#[test]
fn adapter_component_decodes_its_own_format() -> Result<()> {
    let guest = component("adapter_guest.wasm")?.display().to_string();
    let arguments = ["file", "-", "--format", "text", "--adapter", &guest, "--quiet", "--reconnect-delay", "0.001"];
    let output = run(stream(&arguments)?, b"7|I love this so much!\nno bar\n8|This is awful and I hate it.\n")?;
    let text = String::from_utf8(output.stdout)?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2]), ("7|positive", "8|negative"), "{text}");
    assert!(lines[1].contains(r#""code":"no_bar""#), "{text}");
    Ok(())
}

#[test]
fn record_that_traps_the_component_is_written_as_an_error() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let input = path(dir.path(), "in.txt");
    std::fs::write(&input, "1|I love this\ntrap\n2|I hate this\n")?;
    let guest = component("adapter_guest.wasm")?.display().to_string();
    let output = path(dir.path(), "out");
    let arguments =
        ["file", &input, "--adapter", &guest, "--output-file", &output, "--quiet", "--reconnect-delay", "0.001"];
    let result = run(stub_stream(&arguments)?, b"")?;
    let text = std::fs::read_to_string(&output).with_context(|| format!("{result:?}"))?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("1|") && lines[2].starts_with("2|"), "{text}");
    assert!(lines[1].contains(r#""code":"component_trapped""#) && lines[1].contains(r#""payload":"trap""#), "{text}");
    Ok(())
}

#[test]
fn record_at_which_the_component_never_yields_goes_to_the_errors() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let input = path(dir.path(), "in.txt");
    std::fs::write(&input, "1|I love this\nspin\n2|I hate this\n")?;
    let guest = component("adapter_guest.wasm")?.display().to_string();
    let output = path(dir.path(), "out");
    let mut arguments = vec!["file", &input, "--adapter", &guest, "--output-file", &output, "--quiet"];
    arguments.extend(["--reconnect-delay", "0.001", "--set", "infer.hang_timeout_ms=1000"]);
    let result = run(stub_stream(&arguments)?, b"")?;
    let text = std::fs::read_to_string(&output).with_context(|| format!("{result:?}"))?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("1|") && lines[2].starts_with("2|"), "{text}");
    assert!(lines[1].contains(r#""payload":"spin""#), "{text}");
    let message = String::from_utf8(result.stderr)?;
    assert!(message.contains("without yielding"), "{message}");
    Ok(())
}

#[test]
fn invalid_stream_arguments_exit_with_2_and_name_the_mistake() -> Result<()> {
    for (arguments, message) in [
        (vec!["file", "/nowhere/*.ndjson"], "no file matches /nowhere/*.ndjson"),
        (vec!["file", "a.csv", "b.txt"], "the files have the formats csv and text"),
        (vec!["file", "-", "--follow"], "- cannot be followed"),
        (vec!["file", "-", "--model", "nonesuch"], "nonesuch"),
    ] {
        let output = run(stub_stream(&arguments)?, b"")?;
        let stderr = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2) && stderr.contains(message), "{arguments:?}: {stderr}");
    }
    Ok(())
}
