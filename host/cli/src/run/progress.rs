//! Progress on standard error: a bar on a terminal, elsewhere a line every ten seconds.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

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
}

struct State {
    /// The lengths of the lines that were read and are not finished, in order.
    open: VecDeque<u64>,
    lines: u64,
    bytes: u64,
    last_line: Instant,
}

impl Progress {
    pub(crate) fn new(quiet: bool, bytes_total: Option<u64>) -> Self {
        let view = if quiet {
            ProgressView::Nothing
        } else if std::io::stderr().is_terminal() {
            ProgressView::Bar(bar(bytes_total))
        } else {
            ProgressView::Plain
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
            ProgressView::Plain => {
                if state.last_line.elapsed() >= PLAIN_EVERY {
                    state.last_line = Instant::now();
                    eprintln!(
                        "{} lines, {}{}",
                        HumanCount(state.lines),
                        self.rate(state.lines),
                        self.remaining(state.bytes)
                    );
                }
            }
        }
    }

    /// Shows the totals.
    pub(crate) fn finish(&self) {
        let lines = self.state.lock().unwrap_or_else(PoisonError::into_inner).lines;
        if let ProgressView::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
        if !matches!(self.view, ProgressView::Nothing) {
            let seconds = self.start.elapsed().as_secs_f64();
            eprintln!("{} lines in {seconds:.1} s, {}", HumanCount(lines), self.rate(lines));
        }
    }

    fn rate(&self, lines: u64) -> String {
        format!("{:.0} lines/s", lines as f64 / self.start.elapsed().as_secs_f64().max(1e-3))
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
