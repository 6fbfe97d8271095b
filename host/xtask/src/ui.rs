//! Progress output: one line for each step with its time; on a terminal a spinner while it runs.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a running step prints a line if the output is not a terminal.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A running step. [`Step::done`] or [`Step::failed`] ends it with its line.
pub(crate) struct Step {
    name: String,
    started: Instant,
    last_message_at: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Begins a step and prints what it does.
    pub(crate) fn begin(name: &str, what: &str) -> Self {
        let started = Instant::now();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {prefix:<12} {elapsed:>5}  {wide_msg}") {
                spinner.set_style(style);
            }
            spinner.set_prefix(name.to_owned());
            spinner.set_message(what.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        if spinner.is_none() {
            eprintln!("..   {name:<12} {what}");
        }
        Self { name: name.to_owned(), started, last_message_at: started, spinner }
    }

    /// Shows the step's progress.
    pub(crate) fn show_progress(&mut self, message: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(message.to_owned());
        } else if self.last_message_at.elapsed() >= HEARTBEAT {
            self.last_message_at = Instant::now();
            eprintln!("     {:<12} {} so far: {message}", self.name, seconds(self.started.elapsed()));
        }
    }

    /// Prints a line.
    pub(crate) fn say(&self, line: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the step with success.
    pub(crate) fn done(self, result: &str) -> Duration {
        self.end("ok", result)
    }

    /// Ends the step with a failure.
    pub(crate) fn failed(self, why: &str) -> Duration {
        self.end("FAIL", why)
    }

    fn end(self, mark: &str, text: &str) -> Duration {
        let elapsed = self.started.elapsed();
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("{mark:<4} {:<12} {:>8}  {text}", self.name, seconds(elapsed));
        elapsed
    }
}

/// Ends a step with its result.
pub(crate) fn finish(step: Step, result: Result<String>) -> Result<()> {
    match result {
        Ok(line) => {
            step.done(&line);
            Ok(())
        }
        Err(error) => {
            step.failed("");
            Err(error)
        }
    }
}

/// A duration for people: `0.4 s`, `95 s`, `12 min 3 s`.
pub(crate) fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..=9 => format!("{:.1} s", elapsed.as_secs_f64()),
        s @ 10..=119 => format!("{s} s"),
        s => format!("{} min {} s", s / 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_formatted_by_its_size() {
        let read = |ms| seconds(Duration::from_millis(ms));
        assert_eq!([read(420), read(9_960), read(95_400), read(723_000)], ["0.4 s", "10.0 s", "95 s", "12 min 3 s"]);
    }
}
