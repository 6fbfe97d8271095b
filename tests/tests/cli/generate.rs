//! `weir run --task generate`, abstractive summaries, and `weir chat`, with the stand-in for the generate component.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_tests::{PATIENCE, component, exit_status, models, ndjson, root, weir};

/// A folder with the language model of the stand-in.
pub(crate) fn language_model_folder() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("stub"))?;
    std::fs::copy(root().join("tests/data/language-model/model.gguf"), dir.path().join("stub/model.gguf"))?;
    Ok(dir)
}

fn command(subcommand: &str, dir: &TempDir, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(weir()?);
    command.arg(subcommand).args(arguments).arg("--models-dir").arg(dir.path());
    command.arg("--component").arg(format!("generate={}", component("generate_stub.wasm")?.display()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Runs a command over an input; its status and the lines of its output.
fn run(mut command: Command, input: &str) -> Result<(Option<i32>, Vec<Value>)> {
    let mut child = command.spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = std::str::from_utf8(&output.stdout)?;
    Ok((output.status.code(), ndjson(text).with_context(|| format!("{text}{:?}", output.stderr))?))
}

#[test]
fn lines_are_generated_from_and_printed_in_their_order() -> Result<()> {
    let dir = language_model_folder()?;
    let input = "!slow first\n{\"text\":\"second\",\"id\":7}\n!fail\n{\"no\":1}\nlast\n";
    let (status, lines) = run(command("run", &dir, &["--task", "generate", "--max-tokens", "3"])?, input)?;
    assert_eq!(status, Some(1), "a line has failed");
    assert_eq!(lines[0], json!({ "index": 0, "text": "One two three", "finish_reason": "length" }));
    assert_eq!(lines[1], json!({ "index": 1, "id": 7, "text": "One two three", "finish_reason": "length" }));
    assert_eq!((&lines[2]["index"], &lines[2]["error"]["code"]), (&json!(2), &json!("engine_failed")));
    assert_eq!((&lines[3]["index"], &lines[3]["error"]["code"]), (&json!(3), &json!("invalid_item")));
    assert_eq!(lines[4]["text"], "One two three");
    Ok(())
}

#[test]
fn abstractive_summaries_have_their_mode() -> Result<()> {
    let dir = language_model_folder()?;
    let infer = format!("infer={}", component("infer_stub.wasm")?.display());
    let embeddings = format!("model.embeddings.path={}", models().join("embeddings").display());
    let arguments = [
        "--task",
        "summary",
        "--mode",
        "abstractive",
        "--component",
        &infer,
        "--set",
        &embeddings,
        "--set",
        "models.replicas=1",
    ];
    let input = format!("{}\n{}\n", "a".repeat(120), "a".repeat(121));
    let (status, lines) = run(command("run", &dir, &arguments)?, &input)?;
    assert_eq!(status, Some(0), "{lines:?}");
    assert_eq!(lines[0], json!({ "index": 0, "summary": "A stub summary.", "summary_mode": "abstractive" }));
    assert_eq!((&lines[1]["summary_mode"], &lines[1]["index"]), (&json!("extractive"), &json!(1)));
    assert!(lines[1]["summary_fallback"].as_str().is_some_and(|text| text.contains("Paris")), "{lines:?}");
    let (status, _) = run(command("run", &dir, &["--task", "embed", "--mode", "abstractive"])?, "")?;
    assert_eq!(status, Some(2));
    Ok(())
}

#[test]
fn missing_language_model_is_named_with_a_remedy() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = command("chat", &dir, &[])?.stdin(Stdio::null()).output()?;
    let text = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("weir models pull"), "{text}");
    Ok(())
}

/// A chat, with what it prints.
struct Chat {
    child: Child,
    input: ChildStdin,
    printed: Receiver<u8>,
    log: Receiver<String>,
}

impl Chat {
    fn start(dir: &TempDir) -> Result<Self> {
        let mut child = command("chat", dir, &[])?.spawn()?;
        let (input, mut output) = (child.stdin.take().context("a pipe")?, child.stdout.take().context("a pipe")?);
        let errors = BufReader::new(child.stderr.take().context("a pipe")?);
        let (sender, printed) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while output.read_exact(&mut byte).is_ok() && sender.send(byte[0]).is_ok() {}
        });
        let (sender, log) = channel();
        std::thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, input, printed, log })
    }

    /// Reads until the text that was printed ends so.
    fn until(&mut self, end: &str) -> Result<String> {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let byte = self.printed.recv_timeout(PATIENCE);
            text.push(byte.with_context(|| format!("after {:?}", String::from_utf8_lossy(&text)))?);
        }
        Ok(String::from_utf8(text)?)
    }

    fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.input.write_all(format!("{text}\n").as_bytes())?)
    }

    fn interrupt(&self) -> Result<()> {
        let status = Command::new("sh").args(["-c", &format!("kill -INT {}", self.child.id())]).status()?;
        ensure!(status.success(), "kill: {status}");
        Ok(())
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn chat_streams_and_an_interrupt_ends_an_answer_and_not_the_chat() -> Result<()> {
    let dir = language_model_folder()?;
    let mut chat = Chat::start(&dir)?;
    chat.say("hello")?;
    assert_eq!(chat.until("\n")?, "One two three four five.\n");
    // Part of an answer is there before its end.
    chat.say("!slow")?;
    assert_eq!(chat.until(" two")?, "One two");
    chat.interrupt()?;
    let rest = chat.until("\n")?;
    assert!(!rest.contains("five"), "{rest}");
    assert_eq!(chat.log.recv_timeout(PATIENCE)?, "(cancelled)");
    // Another chat: the stand-in looks for its words in all messages.
    chat.say("/new")?;
    chat.say("!never")?;
    // Nothing is printed: the interrupt may come before the question, and is then answered by a hint.
    loop {
        chat.interrupt()?;
        let mut line = chat.log.recv_timeout(PATIENCE)?;
        if line.is_empty() {
            line = chat.log.recv_timeout(PATIENCE)?;
        }
        if line == "(cancelled)" {
            break;
        }
        ensure!(line.contains("Ctrl-D"), "{line}");
    }
    assert_eq!(chat.until("\n")?, "\n");
    chat.say("/new")?;
    chat.say("again")?;
    assert_eq!(chat.until("\n")?, "One two three four five.\n");
    chat.say("!down")?;
    chat.until("\n")?;
    loop {
        let line = chat.log.recv_timeout(PATIENCE)?;
        if line.starts_with("error: ") {
            break;
        }
    }
    chat.say("still here")?;
    assert_eq!(chat.until("\n")?, "One two three four five.\n", "a question without an answer is not part of the chat");
    drop(std::mem::replace(&mut chat.input, sink()?));
    let status = exit_status(&mut chat.child).context("the end of its input ends the chat")?;
    assert!(status.success(), "{status}");
    Ok(())
}

/// The input of a program that takes it.
fn sink() -> Result<ChildStdin> {
    let mut child = Command::new("true").stdin(Stdio::piped()).spawn()?;
    let input = child.stdin.take().context("a pipe")?;
    child.wait()?;
    Ok(input)
}
