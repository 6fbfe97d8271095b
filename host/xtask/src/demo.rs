//! `cargo xtask demo`: streams a document through the components and the models, and prints every event as it arrives.

mod recording;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::args::Args;
use crate::house::House;
use crate::server::Server;
use crate::ui::Step;
use crate::{build, http, lm, setup, sh};

pub(crate) const USAGE: &str = "\
Starts `weir serve` on a free port, streams demo/night-train.txt through POST /process-stream with all steps, runs
`weir run` on a few lines, shows a summary that a language model has rewritten, and stops the server.

Options:
  --serve            do not stop the server at the end; its page can be opened in a browser until Ctrl-C
  --text FILE        stream this file instead (10 to 5000 characters)
  --raw              print the events unchanged: one JSON object per line
  --record FILE.svg  record the output as an animated picture, as in README.md
  --server ADDRESS   use this server instead of building and starting one";

/// The document of the demo.
pub(crate) const DOCUMENT: &str = "demo/night-train.txt";
/// The width of the output.
const COLUMNS: usize = 100;
/// The cells of a progress bar.
const BAR_CELLS: usize = 20;

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let text_file = args.value("--text")?.unwrap_or_else(|| DOCUMENT.to_owned());
    let raw = args.flag("--raw");
    let record = args.value("--record")?;
    let serves = args.flag("--serve");
    let server = args.value("--server")?;
    args.finish()?;
    let path = house.root.join(&text_file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {text_file}"))?;
    if serves && server.is_some() {
        bail!("--serve starts a server, and --server uses another one");
    }
    if let Some(address) = server {
        let address = address.parse().with_context(|| format!("--server {address}: expected ADDRESS:PORT"))?;
        return show(house, address, &text_file, text.trim(), raw, record.as_deref());
    }
    setup::ensure(house)?;
    build::components(house, &[])?;
    build::weir(house)?;

    let step = Step::begin("start", "weir serve --listen 127.0.0.1:0");
    // Everything but the last part works without it.
    let language_model = lm::model(house).ok();
    let folder = language_model.as_deref().and_then(|file| file.parent());
    let argument = folder.map(|folder| format!("smollm2-135m-instruct={}", folder.display()));
    let arguments: Vec<&str> = argument.iter().flat_map(|model| ["--model", model.as_str()]).collect();
    let server = match Server::start(house, &arguments) {
        Ok(server) => server,
        Err(error) => {
            step.failed("");
            return Err(error);
        }
    };
    let ready = format!("http://{}, every model has run once after {}", server.address, ms(server.ready_after));
    step.done(&ready);
    show(house, server.address, &text_file, text.trim(), raw, record.as_deref())?;
    lines(house)?;
    match language_model {
        Some(_) => rewritten(server.address, text.trim())?,
        None => println!("\nThere is no language model for a summary in other words: `cargo xtask lm` fetches one."),
    }
    if serves {
        println!("\nThe server is running. Its page: http://{}/\nCtrl-C stops it.", server.address);
        return server.wait();
    }
    server.stop()?;
    println!(
        "\nThe server has been stopped. Next steps:\n  \
         cargo xtask demo --serve                         keeps the server running: open its page in a browser\n  \
         cargo xtask serve --listen 127.0.0.1:8080        serves http://127.0.0.1:8080/; then, elsewhere:\n  \
         curl -N 127.0.0.1:8080/process-stream -H 'content-type: application/json' \\\n       \
         -d '{{\"text\": \"A text of your own.\", \"include_entities\": true}}'\n  \
         target/release/weir run --task sentiment FILE    one text per line, one JSON line out\n  \
         target/release/weir --help"
    );
    Ok(())
}

/// Streams the text, prints each event, and writes the recording if `record` is set.
fn show(house: &House, address: SocketAddr, name: &str, text: &str, raw: bool, record: Option<&str>) -> Result<()> {
    let title = format!("{name}: {} characters, POST /process-stream", text.chars().count());
    println!("\n{title}\n");
    let rows = stream(address, text, raw)?;
    if let Some(file) = record {
        let path = house.root.join(file);
        std::fs::write(&path, recording::svg(&title, &rows)).with_context(|| format!("cannot write {file}"))?;
        println!("\n{file} shows these events");
    }
    Ok(())
}

/// Streams the text and prints each event with the time since the request began. Returns the printed lines with those times.
fn stream(address: SocketAddr, text: &str, raw: bool) -> Result<Vec<(Duration, String)>> {
    let request = json!({
        "text": text, "include_sentiment": true, "include_summary": true, "include_entities": true,
    });
    let started = Instant::now();
    let response = http::request(address, "POST", "/process-stream", Some(&request.to_string()))?;
    let status = response.status;
    let (mut last, mut failed, mut rows) = (String::new(), Vec::new(), Vec::new());
    for line in BufReader::new(response.body).lines() {
        let line = line.context("the stream was cut off")?;
        let after = started.elapsed();
        if status != 200 {
            bail!("weir answered {status}: {line}");
        }
        if line.is_empty() {
            continue;
        }
        let event: Value = serde_json::from_str(&line).with_context(|| format!("not an event: {line}"))?;
        last = event["status"].as_str().unwrap_or_default().to_owned();
        if last.ends_with("_error") {
            failed.push(last.clone());
        }
        if raw {
            println!("{line}");
        } else if let Some(lines) = render(&event) {
            for (number, line) in lines.iter().enumerate() {
                let time = if number == 0 { ms(after) } else { String::new() };
                let row = format!("{time:>10}  {line}");
                println!("{row}");
                rows.push((after, row));
            }
        }
    }
    if !failed.is_empty() {
        bail!("the stream has errors: {}", failed.join(", "));
    }
    if last != "completed" {
        bail!("the stream ended with `{last}` instead of `completed`");
    }
    Ok(rows)
}

/// `weir run` on a few lines.
fn lines(house: &House) -> Result<()> {
    const LINES: &str = "The tea was cold and nobody said sorry.\n\
                         What a wonderful, generous evening!\n\
                         The train leaves at nine.\n";
    println!("\nThree lines through `weir run --task sentiment -`:\n");
    let mut child = sh::program(house, house.weir())
        .args(["run", "--task", "sentiment", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start weir run")?;
    let mut stdin = child.stdin.take().ok_or_else(|| anyhow!("weir run has no standard input"))?;
    stdin.write_all(LINES.as_bytes()).context("cannot write to weir run")?;
    drop(stdin);
    let output = child.wait_with_output().context("cannot wait for weir run")?;
    let outputs = String::from_utf8_lossy(&output.stdout).into_owned();
    for (line, output) in LINES.lines().zip(outputs.lines()) {
        println!("  {line:<42} {output}");
    }
    if !output.status.success() || outputs.lines().count() != LINES.lines().count() {
        bail!("weir run failed: {}", output.status);
    }
    Ok(())
}

/// A summary that a language model has rewritten.
fn rewritten(address: SocketAddr, text: &str) -> Result<()> {
    println!(
        "\nA language model rewrites the summary, POST /process-batch with \"summary\": {{\"mode\": \"abstractive\"}}:\n"
    );
    let request = json!({ "text": text, "include_sentiment": false, "summary": { "mode": "abstractive" } });
    let answer = http::request(address, "POST", "/process-batch", Some(&request.to_string()))?;
    let status = answer.status;
    let answer: Value = serde_json::from_reader(answer.body).context("the answer is no JSON")?;
    let Some(summary) = answer["summary"].as_str().filter(|_| status == 200) else {
        bail!("weir answered {status}: {answer}")
    };
    wrap(summary).iter().for_each(|line| println!("{line}"));
    if let Some(reason) = answer["summary_fallback"].as_str() {
        println!("\n  These are sentences of the text: {reason}.");
    }
    Ok(())
}

/// An event as text; `None` for one that the next event repeats.
fn render(event: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let row = |name: &str, what: String| Some(vec![format!("{name:<10} {what}")]);
    match event["status"].as_str()? {
        "started" => row("started", format!("{} characters", event["text_length"])),
        "chunked" => row("chunked", format!("{} chunks", event["chunks"])),
        "chunking" | "sentiment_processing" | "summarization_processing" | "entities_processing" => None,
        "sentiment_progress" => {
            let (progress, result) = (event["progress"].as_f64()?, &event["chunk_result"]);
            let confidence = result["confidence"].as_f64()?;
            let what = format!(
                "{} chunk {:<3} {:<9} {confidence:.2}",
                bar(progress),
                result["chunk"].to_string(),
                text(&result["sentiment"])
            );
            row("sentiment", what)
        }
        "sentiment_complete" => row(
            "sentiment",
            format!(
                "{} overall: {} chunks positive, {} negative",
                text(&event["overall_sentiment"]),
                event["positive_chunks"],
                event["negative_chunks"]
            ),
        ),
        "summarization_complete" => {
            let ratio = event["compression_ratio"].as_f64()?;
            let mut lines = vec![format!("{:<11}{:.0} % of the text", "summary", ratio * 100.0)];
            lines.extend(wrap(&text(&event["summary"])));
            Some(lines)
        }
        "entities_complete" => {
            let mut lines = vec![format!("{:<11}{} found", "entities", event["total_entities"])];
            for (label, entities) in event["entity_types"].as_object()? {
                let mut names: Vec<String> = Vec::new();
                for name in entities.as_array()?.iter().map(|entity| text(&entity["text"])) {
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
                lines.extend(wrap(&format!("{label}: {}", names.join(", "))));
            }
            Some(lines)
        }
        "completed" => {
            row("completed", format!("{:.0} ms in the server", event["total_processing_time"].as_f64()? * 1e3))
        }
        other => row(other, event["error"].as_str().map_or_else(|| event.to_string(), str::to_owned)),
    }
}

fn bar(progress: f64) -> String {
    let full = (progress.clamp(0.0, 1.0) * BAR_CELLS as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR_CELLS - full))
}

/// Words in lines, indented below the name of their event.
fn wrap(text: &str) -> Vec<String> {
    const INDENT: usize = 11;
    const AFTER_TIME: usize = 12;
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let width = line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && width > COLUMNS - INDENT - AFTER_TIME {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.into_iter().map(|line| format!("{}{line}", " ".repeat(INDENT))).collect()
}

/// Milliseconds for a person.
pub(crate) fn ms(elapsed: Duration) -> String {
    format!("{:.1} ms", elapsed.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_has_an_accepted_length() {
        let text = std::fs::read_to_string(House::find().root.join(DOCUMENT)).unwrap();
        let length = text.trim().chars().count();
        assert!((2_000..=5_000).contains(&length), "{length} characters");
    }

    #[test]
    fn events_are_rendered_as_text() {
        let event = json!({"status": "sentiment_progress", "progress": 0.5,
            "chunk_result": {"chunk": 2, "sentiment": "POSITIVE", "confidence": 0.987}});
        let lines = render(&event).unwrap();
        assert_eq!(lines, ["sentiment  ██████████░░░░░░░░░░ chunk 2   POSITIVE  0.99"]);
        let event = json!({"status": "entities_complete", "total_entities": 3, "entity_types": {"PER":
            [{"text": "Birgit Holm"}, {"text": "Marta"}, {"text": "Birgit Holm"}]}});
        assert_eq!(render(&event).unwrap(), ["entities   3 found", "           PER: Birgit Holm, Marta"]);
        let event = json!({"status": "summarization_error", "error": "the model is gone", "code": "x"});
        assert_eq!(render(&event).unwrap(), ["summarization_error the model is gone"]);
        assert!(render(&json!({"status": "chunking"})).is_none());
    }

    #[test]
    fn long_texts_are_wrapped_by_words() {
        let lines = wrap(&"word ".repeat(40));
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= COLUMNS - 12), "{lines:?}");
        assert_eq!(lines.iter().flat_map(|line| line.split_whitespace()).count(), 40);
    }
}
