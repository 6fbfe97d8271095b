//! Logs on standard error.

mod line;
mod printable;
mod repeats;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, filter::FilterExt, fmt};
use weir_config::{Log, LogFormat};

use line::Lines;
pub(crate) use printable::printable;
use repeats::Repeats;

/// A crate of wasmtime that warns about every aborted or malformed body. Such requests are answered, and the operator
/// cannot prevent them.
const NOISY: &str = "wasmtime_wasi_http";

/// Whether the log is JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Starts logging as configured.
pub(crate) fn start(log: &Log) -> anyhow::Result<()> {
    let mut filter = EnvFilter::try_new(&log.level)
        .map_err(|error| anyhow::anyhow!("log.level \"{}\" is not understood: {error}", log.level))?;
    if !log.level.contains(NOISY) {
        filter = filter.add_directive(format!("{NOISY}=error").parse()?);
    }
    let filter = filter.and(Repeats::default());
    let is_terminal = std::io::stderr().is_terminal();
    let layer = fmt::layer().with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => {
            let lines = Lines { is_terminal, colors: is_terminal && wants_colors() };
            tracing_subscriber::registry().with(layer.event_format(lines).with_filter(filter)).init();
        }
        LogFormat::Json => {
            JSON.store(true, Ordering::Relaxed);
            tracing_subscriber::registry().with(layer.json().with_filter(filter)).init();
            std::panic::set_hook(Box::new(|panic| {
                let place = panic.location().map_or_else(String::new, ToString::to_string);
                tracing::error!(place, "a thread has panicked: {}", panic.payload_as_str().unwrap_or("no message"));
            }));
        }
    }
    Ok(())
}

/// Writes the error that ends the program, as JSON if the log or the output of the command is JSON.
pub(crate) fn last_error(error: &anyhow::Error, is_json: bool) {
    let text = with_causes(error);
    match (JSON.load(Ordering::Relaxed), is_json) {
        (true, _) => tracing::error!("{text}"),
        (false, true) => eprintln!("{}", json!({ "error": text })),
        (false, false) => eprintln!("weir: {}", printable(&text)),
    }
}

/// An error with its causes, without those that its message has already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

/// Whether colors are wanted, by <https://no-color.org> and `TERM=dumb`.
fn wants_colors() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn text_of_a_peer_does_not_control_the_terminal() {
        let text = "NATS refuses: \u{1b}[31m\u{9b}2J\u{7}é\r\nb\0";
        assert_eq!(printable(text), "NATS refuses: \\u{1b}[31m\\u{9b}2J\\u{7}é\\r\nb\\u{0}");
    }

    #[test]
    fn cause_that_the_message_has_is_not_repeated() {
        let error = weir_config::load(Some(Path::new("/")), [], &[]).unwrap_err();
        assert_eq!(with_causes(&error.into()), "configuration file / cannot be read: it is not a file");
        let error = Err::<(), _>(anyhow::anyhow!("c")).context("b").context("a").unwrap_err();
        assert_eq!(with_causes(&error), "a: b: c");
    }
}
