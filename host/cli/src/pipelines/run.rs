//! `weir pipelines run`.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::requests::{self, TIMEOUT_S};
use crate::logs::printable;
use crate::remote::{Client, ServerAddress};

/// Most consecutive connections without an event.
const ATTEMPTS_MAX: u32 = 10;
/// The delay before another connection.
const RETRY: Duration = Duration::from_secs(1);
/// Longest line of an event, bytes.
const LINE_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Name of the pipeline
    #[arg(value_name = "NAME")]
    name: String,
    /// Input: JSON that begins with `{`, `[` or `"`, a file with JSON, or `-` for standard input
    #[arg(long, value_name = "JSON|FILE|-", default_value = "{}")]
    input: String,
    /// Input: `{"text": TEXT}`
    #[arg(long, value_name = "TEXT", conflicts_with = "input")]
    text: Option<String>,
    /// Print each event, and the output at the end
    #[arg(long, conflicts_with = "detach")]
    follow: bool,
    /// Print the id of the execution, and do not wait for its end
    #[arg(long)]
    detach: bool,
    /// The same key starts one execution
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    server: ServerAddress,
    /// Print a JSON object for each event, and the whole execution at the end
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &Run) -> anyhow::Result<ExitCode> {
    let input = match &arguments.text {
        Some(text) => json!({ "text": text }).to_string(),
        None => read_input(&arguments.input)?,
    };
    let client = arguments.server.client(TIMEOUT_S)?;
    let key = arguments.idempotency_key.as_deref();
    let headers: Vec<(&str, &str)> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
    let path = format!("/pipelines/{}", path_segment(&arguments.name));
    let started = requests::json(&client, &Method::POST, &path, &headers, Some(&input)).await?;
    let id = started["execution_id"].as_str().context("the response has no id of an execution")?;
    let mut out = std::io::stdout().lock();
    if arguments.detach {
        match arguments.json {
            true => writeln!(out, "{started}")?,
            false => writeln!(out, "{id}")?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut show = |event: &Value| -> anyhow::Result<()> {
        if arguments.follow && event["data"]["event_type"].is_string() {
            match arguments.json {
                true => writeln!(out, "{event}")?,
                false => writeln!(out, "{}", event_line(&event["data"]))?,
            }
        }
        Ok(())
    };
    follow(&client, id, &mut show).await?;
    let execution = requests::json(&client, &Method::GET, &format!("/executions/{id}"), &[], None).await?;
    let is_completed = execution["state"] == "completed";
    if arguments.json {
        writeln!(out, "{execution}")?;
    } else if is_completed {
        writeln!(out, "{}", serde_json::to_string_pretty(&execution["output"])?)?;
    } else {
        let reason = printable(execution["failure"]["error"].as_str().unwrap_or_default());
        let state = execution["state"].as_str().unwrap_or("unfinished");
        eprintln!("weir: the execution {id} is {state}{}{reason}", if reason.is_empty() { "" } else { ": " });
    }
    Ok(if is_completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The JSON of `--input`.
fn read_input(input: &str) -> anyhow::Result<String> {
    let (text, place) = match input {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
            (text, "standard input".to_owned())
        }
        json if json.trim_start().starts_with(['{', '[', '"']) => (json.to_owned(), "--input".to_owned()),
        file => (std::fs::read_to_string(file).with_context(|| format!("{file} cannot be read"))?, file.to_owned()),
    };
    serde_json::from_str::<serde::de::IgnoredAny>(&text).with_context(|| format!("{place} is not JSON"))?;
    Ok(text)
}

/// A name as a segment of a path.
fn path_segment(name: &str) -> String {
    let mut segment = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => segment.push(char::from(byte)),
            other => segment.push_str(&format!("%{other:02X}")),
        }
    }
    segment
}

/// Passes each event of an execution to `show`, until its last one. Resumes after a broken connection.
async fn follow(client: &Client, id: &str, show: &mut impl FnMut(&Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let path = format!("/stream/pipeline/{id}");
    let mut last_id: Option<String> = None;
    let mut attempts = 0;
    loop {
        let mut headers = vec![("accept", "application/x-ndjson")];
        headers.extend(last_id.as_deref().map(|last_id| ("last-event-id", last_id)));
        let mut response = match requests::send(client, &Method::GET, &path, &headers, None).await {
            Ok(response) if response.status() == 204 => return Ok(()),
            Ok(response) => response,
            Err(_) if attempts < ATTEMPTS_MAX && last_id.is_some() => {
                attempts += 1;
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut rest = Vec::new();
        // An error is treated as the end of the connection.
        while let Ok(Some(bytes)) = response.next().await {
            rest.extend_from_slice(&bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let event: Value = serde_json::from_slice(&line).context("an event is not JSON")?;
                if let Some(id) = event["id"].as_str() {
                    last_id = Some(id.to_owned());
                    attempts = 0;
                }
                show(&event)?;
                if event["type"] == "disconnected" && event["data"]["reason"] == "finished" {
                    return Ok(());
                }
            }
            if rest.len() > LINE_BYTES_MAX {
                bail!("an event has more than {LINE_BYTES_MAX} bytes");
            }
        }
        attempts += 1;
        if attempts > ATTEMPTS_MAX {
            bail!("the connection ended {ATTEMPTS_MAX} times without an event; the execution is {id}");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// An event of an execution in one line.
fn event_line(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = text(&event["timestamp"]).get(11..23).unwrap_or_default().to_owned();
    let data = &event["data"];
    let mut line = format!("{time}  {:<17}  {}", text(&event["event_type"]), text(&event["step_id"]));
    if let Some(progress) = data["progress"].as_f64() {
        line.push_str(&format!("  {:.0} %", progress * 100.0));
    }
    for member in ["message", "error"] {
        if let Some(text) = data[member].as_str() {
            line.push_str(&format!("  {text}"));
        }
    }
    for (member, label) in [("duration_ms", ""), ("retry_in_ms", "retry in ")] {
        if let Some(ms) = data[member].as_f64() {
            line.push_str(&format!("  {label}{ms:.0} ms"));
        }
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_json_or_a_file_of_json() {
        assert_eq!(read_input(r#"{"text": "a"}"#).unwrap(), r#"{"text": "a"}"#);
        assert!(read_input("{torn").unwrap_err().to_string().contains("--input is not JSON"));
        assert!(read_input("/nowhere.json").unwrap_err().to_string().contains("/nowhere.json cannot be read"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("input.json").display().to_string();
        std::fs::write(&file, "[1]").unwrap();
        assert_eq!(read_input(&file).unwrap(), "[1]");
    }

    #[test]
    fn name_is_escaped_in_a_path() {
        assert_eq!(path_segment("a/b?c é"), "a%2Fb%3Fc%20%C3%A9");
    }

    #[test]
    fn events_are_lines() {
        let event = json!({"event_type": "step_error", "step_id": "call", "timestamp": "2025-10-22T10:30:00.123Z",
            "data": {"error": "503", "retry_in_ms": 200, "duration_ms": 12.4}});
        assert_eq!(event_line(&event), "10:30:00.123  step_error         call  503  12 ms  retry in 200 ms");
        let start = json!({"event_type": "pipeline_start", "step_id": null, "timestamp": "2025-10-22T10:30:00.000Z", "data": {}});
        assert_eq!(event_line(&start), "10:30:00.000  pipeline_start");
    }
}
