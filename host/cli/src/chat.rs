//! `weir chat`: a chat with a language model in the terminal.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use weir_codec::generation::event::Finish;
use weir_codec::generation::request::Prompt;
use weir_runtime::Runtime;
use weir_runtime::inference::failure;
use weir_runtime::types::Failure;

use crate::arguments::Chat;
use crate::builtin::BUILTIN;
use crate::generation::{self, Generation, Part};
use crate::logs;

const HELP: &str = "Ctrl-C cancels an answer, /new starts another chat, Ctrl-D ends the program";

pub(crate) fn main(arguments: &Chat) -> anyhow::Result<ExitCode> {
    let mut config = arguments.setup.load(&[])?;
    if config.log == weir_config::Log::default() {
        config.log.level = "error".into();
    }
    logs::start(&config.log)?;
    let (name, dir) = generation::choose(&config, arguments.model.as_deref())?;
    config.models.dir = PathBuf::new();
    config.models.names.clear();
    config.model = BTreeMap::from([(name.clone(), weir_config::Model { path: dir, ..Default::default() })]);
    config.upstream.clear();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let code = runtime.block_on(chat(arguments, config, &name));
    runtime.shutdown_background();
    code
}

/// The lines of the standard input, which a thread reads.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn chat(arguments: &Chat, config: weir_config::Config, model: &str) -> anyhow::Result<ExitCode> {
    // Registered first, so that no signal ends the program.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let view = View { has_prompts: !arguments.json && std::io::stdin().is_terminal(), is_json: arguments.json };
    let runtime = Arc::new(Runtime::start(&config, BUILTIN)?);
    runtime.settled(model).await.map_err(|reason| anyhow::anyhow!("model {model} cannot answer: {reason}"))?;
    if view.has_prompts {
        eprintln!("{model}; {HELP}");
    }
    let mut lines = lines();
    let mut messages = first_messages(arguments);
    loop {
        if view.has_prompts {
            show("> ")?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = interrupt.recv() => {
                if !view.is_json {
                    eprintln!("\n{HELP}");
                }
                continue;
            }
        };
        let Some(line) = line.transpose()? else { break };
        match line.trim() {
            "" => continue,
            "/new" => {
                messages = first_messages(arguments);
                continue;
            }
            text => messages.push(json!({ "role": "user", "content": text })),
        }
        let text = Value::from(messages.clone()).to_string();
        let prompt = Prompt::Chat { messages: text, tools: None, tool_choice: None };
        let generation = Generation::start(&runtime, model, arguments.generation.request(prompt)).await;
        match answer(generation, &mut interrupt, view).await? {
            Some(text) => messages.push(json!({ "role": "assistant", "content": text })),
            // A message without an answer is removed from the chat.
            None => drop(messages.pop()),
        }
    }
    if view.has_prompts {
        show("\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The first messages of a chat.
fn first_messages(arguments: &Chat) -> Vec<Value> {
    let system = arguments.generation.system.as_ref();
    system.map(|text| json!({ "role": "system", "content": text })).into_iter().collect()
}

/// Prints an answer as it is generated; returns its text, or `None` if there is none. Ctrl-C cancels the answer, and its text up to there is
/// returned.
async fn answer(mut generation: Generation, interrupt: &mut Signal, view: View) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    loop {
        let part = tokio::select! {
            part = generation.next() => part,
            _ = interrupt.recv() => {
                generation.cancel().await;
                continue;
            }
        };
        match part {
            Ok(Part::Text(piece)) => {
                view.piece(&piece)?;
                text.push_str(&piece);
            }
            Ok(Part::End(finish)) => {
                view.end(finish)?;
                return Ok((!text.is_empty()).then_some(text));
            }
            Err(reason) => {
                view.failure(&reason)?;
                return Ok(None);
            }
        }
    }
}

/// How a chat is printed.
#[derive(Debug, Clone, Copy)]
struct View {
    /// Whether a person writes the messages.
    has_prompts: bool,
    is_json: bool,
}

impl View {
    fn piece(self, text: &str) -> std::io::Result<()> {
        match self.is_json {
            true => show_json(&json!({ "type": "token", "text": text })),
            false => show(text),
        }
    }

    /// The end of an answer; `None` if it was cancelled.
    fn end(self, finish: Option<Finish>) -> std::io::Result<()> {
        if self.is_json {
            let reason = finish.map_or_else(|| json!("cancelled"), |finish| json!(finish));
            return show_json(&json!({ "type": "done", "finish_reason": reason }));
        }
        show("\n")?;
        match finish {
            None => eprintln!("(cancelled)"),
            Some(Finish::Length) => eprintln!("(truncated; --max-tokens sets the length)"),
            Some(Finish::Stop | Finish::ToolCalls | Finish::Filtered) => {}
        }
        Ok(())
    }

    fn failure(self, reason: &Failure) -> std::io::Result<()> {
        let message = failure::text(reason);
        if self.is_json {
            return show_json(&json!({ "type": "error", "code": failure::code(reason), "message": message }));
        }
        show("\n")?;
        eprintln!("error: {}", logs::printable(&message));
        Ok(())
    }
}

fn show_json(value: &Value) -> std::io::Result<()> {
    show(&format!("{value}\n"))
}

fn show(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
