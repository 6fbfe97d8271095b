//! Progress on standard error: a bar on a terminal, elsewhere a line every ten seconds, as text or as JSON.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use weir_core::wording::plural_unless;

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressForm {
    /// Not at all.
    Quiet,
    /// For people.
    Text,
    /// As JSON objects, one a line.
    Json,
}

impl ProgressForm {
    /// The form that the flags `--quiet` and `--json` choose.
    pub(crate) fn of(quiet: bool, json: bool) -> Self {
        match (quiet, json) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Json,
            (false, false) => Self::Text,
        }
    }
}

/// Shows the progress of a run, by the bytes of the finished lines.
pub(crate) struct Progress {
    start: Instant,
    bytes_total: Option<u64>,
    view: ProgressView,
    state: Mutex<State>,
}

enum ProgressView {
    Nothing,
    Bar(ProgressBar),
    Plain,
    Json,
}

struct State {
    /// The lengths of the lines that were read and are not finished, in order.
    open: VecDeque<u64>,
    lines: u64,
    bytes: u64,
    last_line: Instant,
}

impl Progress {
    pub(crate) fn new(form: ProgressForm, bytes_total: Option<u64>) -> Self {
        let view = match form {
            ProgressForm::Quiet => ProgressView::Nothing,
            ProgressForm::Json => ProgressView::Json,
            ProgressForm::Text if std::io::stderr().is_terminal() => ProgressView::Bar(bar(bytes_total)),
            ProgressForm::Text => ProgressView::Plain,
        };
        let start = Instant::now();
        let state = Mutex::new(State { open: VecDeque::new(), lines: 0, bytes: 0, last_line: start });
        Self { start, bytes_total, view, state }
    }

    /// Records that a line was read.
    pub(crate) fn read(&self, bytes: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).open.push_back(bytes);
    }

    /// Records that the oldest unfinished line is finished.
    pub(crate) fn done(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lines += 1;
        state.bytes += state.open.pop_front().unwrap_or(0);
        match &self.view {
            ProgressView::Nothing => {}
            ProgressView::Bar(bar) => {
                bar.set_position(state.bytes);
                bar.set_message(self.rate(state.lines));
            }
            ProgressView::Plain | ProgressView::Json => {
                if state.last_line.elapsed() < PLAIN_EVERY {
                    return;
                }
                state.last_line = Instant::now();
                if matches!(self.view, ProgressView::Json) {
                    eprintln!("{}", self.json(state.lines));
                    return;
                }
                let (rate, remaining) = (self.rate(state.lines), self.remaining(state.bytes));
                eprintln!("{}, {rate}{remaining}", human_counted(state.lines, "line"));
            }
        }
    }

    /// Shows the totals. `failed` is the number of inputs with an error.
    pub(crate) fn finish(&self, failed: u64) {
        let lines = self.state.lock().unwrap_or_else(PoisonError::into_inner).lines;
        match &self.view {
            ProgressView::Nothing => return,
            ProgressView::Json => {
                let mut totals = self.json(lines);
                totals["failed"] = failed.into();
                eprintln!("{totals}");
                return;
            }
            ProgressView::Bar(bar) => bar.finish_and_clear(),
            ProgressView::Plain => {}
        }
        let seconds = self.start.elapsed().as_secs_f64();
        eprintln!("{} in {seconds:.1} s, {}", human_counted(lines, "line"), self.rate(lines));
    }

    fn rate(&self, lines: u64) -> String {
        let rate = self.lines_per_s(lines).round();
        format!("{rate:.0} {}/s", plural_unless(rate == 1.0, "line"))
    }

    fn lines_per_s(&self, lines: u64) -> f64 {
        lines as f64 / self.start.elapsed().as_secs_f64().max(1e-6)
    }

    fn json(&self, lines: u64) -> Value {
        let elapsed = self.start.elapsed();
        json!({ "lines": lines, "lines_per_s": self.lines_per_s(lines).round(), "elapsed_ms": milliseconds(elapsed) })
    }

    fn remaining(&self, bytes: u64) -> String {
        match self.bytes_total {
            Some(total) if bytes > 0 && total >= bytes => {
                let remaining = self.start.elapsed().as_secs_f64() * (total - bytes) as f64 / bytes as f64;
                format!(", {} left", HumanDuration(Duration::from_secs_f64(remaining)))
            }
            _ => String::new(),
        }
    }
}

fn bar(bytes_total: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes_total {
        Some(total) => (ProgressBar::new(total), "{bar:30} {percent:>3} %  {msg}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is a constant and valid"))
}

/// A duration in milliseconds, to the microsecond: a short file takes less than one millisecond.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A number of things with digits in groups, and the noun in the singular or in the plural.
pub(crate) fn human_counted(count: u64, noun: &str) -> String {
    format!("{} {}", HumanCount(count), plural_unless(count == 1, noun))
}
