//! The standard error of components: each line becomes an event of the host's log, with the component's name and a
//! level.
//!
//! A line that begins with `error: `, `warn: `, `info: ` or `debug: ` has that level, and the message of a panic is an
//! error. Other lines are warnings if they come from Weir's own components or from adapters, and information if they
//! come from steps.

use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;
use tracing::Level;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use weir_core::quota::{Quota, QuotaConfig};
use weir_core::wording::counted;

/// The target of these events in the log.
pub const TARGET: &str = "guest";
/// Most bytes in a line; a longer one is split.
const LINE_BYTES_MAX: usize = 4096;
/// Lines per second of one component, and the burst that may exceed this rate.
const LINES_PER_S: NonZeroU32 = NonZeroU32::new(5).expect("not zero");
const LINES_BURST: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
/// Components whose lines are counted.
const COMPONENTS_MAX: usize = 1024;

/// The standard error of one instance.
#[derive(Clone)]
pub(crate) struct GuestLog(Arc<Mutex<Lines>>);

struct Lines {
    component: &'static str,
    /// The model, step or adapter that the component serves; empty if there is one component of its kind.
    name: String,
    default: Level,
    /// The start of a line whose end is not written yet.
    partial: Vec<u8>,
    /// True after the first line of a panic: the following lines belong to the panic.
    panicking: bool,
}

impl GuestLog {
    /// The log of a component of Weir's own.
    pub(crate) fn built_in(component: &'static str, name: &str) -> Self {
        Self::new(component, name, Level::WARN)
    }

    /// The log of a step, which is a component of the operator.
    pub(crate) fn step(name: &str) -> Self {
        Self::new("step", name, Level::INFO)
    }

    /// The log of an adapter, which may be a component of the operator.
    pub(crate) fn adapter(name: &str) -> Self {
        Self::new("adapter", name, Level::WARN)
    }

    fn new(component: &'static str, name: &str, default: Level) -> Self {
        let lines = Lines { component, name: name.to_owned(), default, partial: Vec::new(), panicking: false };
        Self(Arc::new(Mutex::new(lines)))
    }
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                byte => {
                    if self.partial.len() >= LINE_BYTES_MAX {
                        self.end_line();
                    }
                    self.partial.push(*byte);
                }
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        self.panicking |= line.starts_with("thread ") && line.contains("panicked at");
        let (level, text) = match self.panicking {
            true => (Level::ERROR, line),
            false => level_of(line, self.default),
        };
        if let Some(omitted) = admit(self.component, &self.name) {
            if omitted > 0 {
                write(
                    Level::WARN,
                    self.component,
                    &self.name,
                    &format!("omitted before this line: {}", counted(omitted, "line")),
                );
            }
            write(level, self.component, &self.name, text);
        }
    }
}

/// Writes the last line, if it has no end.
impl Drop for Lines {
    fn drop(&mut self) {
        self.end_line();
    }
}

/// The level of a line, and its text without the prefix.
fn level_of(line: &str, default: Level) -> (Level, &str) {
    let levels =
        [("error: ", Level::ERROR), ("warn: ", Level::WARN), ("info: ", Level::INFO), ("debug: ", Level::DEBUG)];
    let prefixed = levels.into_iter().find_map(|(prefix, level)| Some((level, line.strip_prefix(prefix)?)));
    prefixed.unwrap_or((default, line))
}

/// The number of lines of a component that were omitted before this one; `None` if this one is omitted too.
fn admit(component: &str, name: &str) -> Option<u64> {
    struct Counts {
        start_time: Instant,
        quota: Quota,
        omitted: std::collections::BTreeMap<String, u64>,
    }
    static COUNTS: LazyLock<Mutex<Counts>> = LazyLock::new(|| {
        let config = QuotaConfig {
            per_period: LINES_PER_S,
            period_ns: 1_000_000_000,
            burst: LINES_BURST,
            keys_max: COMPONENTS_MAX,
        };
        let counts = Counts { start_time: Instant::now(), quota: Quota::new(config), omitted: Default::default() };
        Mutex::new(counts)
    });
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{component} {name}");
    let now_ns = u64::try_from(counts.start_time.elapsed().as_nanos()).unwrap_or(u64::MAX);
    match counts.quota.take(now_ns, &key) {
        Ok(()) => Some(counts.omitted.remove(&key).unwrap_or(0)),
        Err(_) => {
            *counts.omitted.entry(key).or_default() += 1;
            None
        }
    }
}

fn write(level: Level, component: &str, name: &str, text: &str) {
    // The level of a tracing event must be a constant.
    macro_rules! at {
        ($level:ident) => {
            match name.is_empty() {
                true => tracing::event!(target: TARGET, Level::$level, component, "{text}"),
                false => tracing::event!(target: TARGET, Level::$level, component, name, "{text}"),
            }
        };
    }
    match level {
        Level::ERROR => at!(ERROR),
        Level::WARN => at!(WARN),
        Level::INFO => at!(INFO),
        _ => at!(DEBUG),
    }
}

impl IsTerminal for GuestLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestLog {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for GuestLog {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_without_a_level_has_the_default_of_its_component() {
        for (line, want) in [
            ("error: it is lost", (Level::ERROR, "it is lost")),
            ("warn: it is late", (Level::WARN, "it is late")),
            ("info: it is there", (Level::INFO, "it is there")),
            ("debug: it is 7", (Level::DEBUG, "it is 7")),
            ("Error: it is lost", (Level::WARN, "Error: it is lost")),
            ("errors: 3", (Level::WARN, "errors: 3")),
        ] {
            assert_eq!(level_of(line, Level::WARN), want);
        }
    }

    #[test]
    fn lines_are_bounded_per_component() {
        let admitted = (0..1000).filter(|_| admit("test", "noisy").is_some()).count();
        assert!((100..200).contains(&admitted), "{admitted}");
        assert_eq!(admit("test", "quiet"), Some(0));
    }

    #[test]
    fn panic_and_its_following_lines_are_errors() {
        let log = GuestLog::built_in("test", "panics");
        let mut lines = log.0.lock().unwrap();
        lines.push(b"warn: before\nthread '<unnamed>' panicked at src/lib.rs:1:2:\nthe mess");
        assert!(lines.panicking);
        assert_eq!(lines.partial, b"the mess");
        lines.push(&vec![b'x'; 3 * LINE_BYTES_MAX]);
        assert!(lines.partial.len() <= LINE_BYTES_MAX);
    }
}
