//! Runs other programs inside of a step: their lines are the step's progress, and their output is stored for errors.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::files::on_path;
use crate::house::House;
use crate::ui::{Step, seconds};

/// Lines of a program's output that are stored.
const OUTPUT_LINES_MAX: usize = 20_000;
/// Lines of it in an error.
const FAILURE_LINES_MAX: usize = 200;

/// How often the step of a silent program is redrawn.
const TICK: Duration = Duration::from_secs(1);

/// How long a program may print nothing. One that prints nothing for longer hangs.
const SILENCE_MAX: Duration = Duration::from_secs(20 * 60);
/// How long output is read after the end of a program: processes that it left may hold its output open.
const OUTPUT_AFTER_END_MAX: Duration = Duration::from_secs(5);

/// The program that the build of the Kafka client needs ([`crate::make`]).
pub(crate) const MAKE: &str = "make";
/// Its path in the folder of the fetched package.
pub(crate) const MAKE_PROGRAM: &str = "prefix/usr/bin/make";

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processor time of a process, its threads included.
pub(crate) fn processor_time(id: u32) -> Result<Duration> {
    /// Linux reports in hundredths of a second to every program.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name of the program is in parentheses and may have spaces.
    let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |at: usize| fields.get(at).context("a field")?.parse::<u64>().context("ticks");
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / TICKS_PER_SECOND))
}

/// The output of a program.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) lines: VecDeque<String>,
}

impl Output {
    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(FAILURE_LINES_MAX);
        self.lines.iter().skip(from).map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// A program that runs in the workspace's root, without the variables that cargo sets for this program: some build scripts depend
/// on those variables and would run again.
pub(crate) fn program(house: &House, name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(&house.root).stdin(Stdio::null());
    for (key, _) in std::env::vars_os() {
        let Some(name) = key.to_str() else { continue };
        let set_by_cargo_run = name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || matches!(name, "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR");
        if set_by_cargo_run {
            command.env_remove(&key);
        }
    }
    command
}

/// Cargo of the pinned toolchain.
pub(crate) fn cargo(house: &House) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = program(house, cargo);
    command.env("CARGO_TERM_COLOR", "never").env("CARGO_TERM_PROGRESS_WHEN", "never");
    if let Some(folder) = make_folder(house) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([folder]);
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
    }
    command
}

/// Cargo of the nightly toolchain, without the variables by which this cargo selects the pinned one.
pub(crate) fn nightly_cargo(house: &House) -> Command {
    let mut command = program(house, "rustup");
    command.args(["run", "nightly", "cargo"]);
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command
}

/// The folder of the fetched `make`, if it is needed.
fn make_folder(house: &House) -> Option<PathBuf> {
    if on_path(&[MAKE]).is_some() {
        return None;
    }
    let program = house.keep().join(MAKE).join(MAKE_PROGRAM);
    program.exists().then(|| program.parent().map(PathBuf::from)).flatten()
}

/// Makes cargo print its progress although it does not write to a terminal: [`run`] parses it.
pub(crate) fn show_progress(command: &mut Command) {
    command.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", PROGRESS_COLUMNS);
}

/// Wide enough for the names of what is being compiled.
const PROGRESS_COLUMNS: &str = "160";

/// `Building [====>   ] 231/316: tract-core, redb` as `231 of 316, now tract-core, redb`; `None` for another line.
fn progress(line: &str) -> Option<String> {
    let (_, rest) = line.trim().strip_prefix("Building [")?.split_once("] ")?;
    let (counts, names) = rest.split_once(':').unwrap_or((rest, ""));
    let (done, all) = counts.trim().split_once('/')?;
    let (done, all): (u32, u32) = (done.parse().ok()?, all.parse().ok()?);
    let names = names.trim().trim_end_matches(['.', ',']);
    Some(if names.is_empty() { format!("{done} of {all}") } else { format!("{done} of {all}, now {names}") })
}

/// Runs a program to its end, showing its lines in `step`.
///
/// # Errors
/// It cannot be started, or printed nothing for [`SILENCE_MAX`] and was killed.
pub(crate) fn run(step: &mut Step, command: &mut Command) -> Result<Output> {
    run_within(step, command, SILENCE_MAX, OUTPUT_AFTER_END_MAX)
}

fn run_within(
    step: &mut Step,
    command: &mut Command,
    silence_max: Duration,
    after_end_max: Duration,
) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let (sender, lines) = channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, sender);
    }
    let mut output_lines = VecDeque::new();
    let mut message = String::new();
    let mut watch = Watch { ended: None, checked_at: Instant::now(), line_at: Instant::now() };
    let status = loop {
        let line = lines.recv_timeout(TICK);
        if matches!(line, Err(RecvTimeoutError::Disconnected)) {
            break child.wait().with_context(|| format!("cannot wait for `{name}`"))?;
        }
        let ended = watch.check(&mut child, line.is_ok()).with_context(|| format!("cannot wait for `{name}`"))?;
        if let Some(status) = ended.filter(|_| watch.ended_before(after_end_max)) {
            output_lines.push_back(format!("`{name}` has ended, and a process that it started holds its output open"));
            break status;
        }
        if ended.is_none() && watch.line_at.elapsed() >= silence_max {
            let _ = child.kill();
            let _ = child.wait();
            let tail = Output { success: false, lines: output_lines }.tail();
            bail!("{tail}\n`{name}` printed nothing for {} and was killed", seconds(silence_max));
        }
        let Ok(line) = line else {
            step.show_progress(&message);
            continue;
        };
        if let Some(progress) = progress(&line) {
            message = progress;
            step.show_progress(&message);
            continue;
        }
        let text = line.trim();
        // While cargo prints counts, lines of single crates are left out.
        let is_crate = text.starts_with("Compiling ") || text.starts_with("Checking ");
        if !text.is_empty() && (!is_crate || !message.contains(" of ")) {
            message = text.to_owned();
        }
        step.show_progress(&message);
        if output_lines.len() == OUTPUT_LINES_MAX {
            output_lines.pop_front();
        }
        output_lines.push_back(line);
    };
    Ok(Output { success: status.success(), lines: output_lines })
}

/// Whether a program has ended, and when it printed its last line.
struct Watch {
    ended: Option<(ExitStatus, Instant)>,
    checked_at: Instant,
    line_at: Instant,
}

impl Watch {
    /// Looks once per [`TICK`]; returns the status of a program that has ended.
    fn check(&mut self, child: &mut Child, has_line: bool) -> std::io::Result<Option<ExitStatus>> {
        let now = Instant::now();
        if has_line {
            self.line_at = now;
        }
        if self.ended.is_none() && now.duration_since(self.checked_at) >= TICK {
            self.checked_at = now;
            self.ended = child.try_wait()?.map(|status| (status, now));
        }
        Ok(self.ended.map(|(status, _)| status))
    }

    fn ended_before(&self, elapsed: Duration) -> bool {
        self.ended.is_some_and(|(_, at)| at.elapsed() >= elapsed)
    }
}

/// As [`run`]; a failing program is an error with the end of its output.
pub(crate) fn check(step: &mut Step, command: &mut Command) -> Result<Output> {
    let command_line = command_line(command);
    let output = run(step, command)?;
    if !output.success {
        bail!("{}\n`{command_line}` failed", output.tail());
    }
    // Cargo repeats the warnings of a crate in every build, so they stay visible until they are fixed.
    for line in output.lines.iter().filter(|line| line.starts_with("warning: ")) {
        step.say(line);
    }
    Ok(output)
}

/// The standard output of a short program, trimmed; an error if it fails.
pub(crate) fn stdout_of(command: &mut Command) -> Result<String> {
    let command_line = command_line(command);
    let output = command.stderr(Stdio::piped()).output().with_context(|| format!("cannot start `{command_line}`"))?;
    if !output.status.success() {
        bail!("{}\n`{command_line}` failed", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command line for messages.
fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    if let Some((_, name)) = line.rsplit_once('/') {
        line = name.to_owned();
    }
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// Sends a program's output line by line. A carriage return also ends a line, since progress overwrites itself.
fn forward(from: impl Read + Send + 'static, to: Sender<String>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        let mut after_return = false;
        while let Ok(bytes) = from.fill_buf() {
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (is_last, is_return) = (bytes.is_empty(), end.is_some_and(|index| bytes[index] == b'\r'));
            line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            let used = end.map_or(bytes.len(), |index| index + 1);
            from.consume(used);
            if end.is_some() || is_last {
                let text = String::from_utf8_lossy(&line).replace(ERASE_LINE, "");
                // A line feed after a carriage return ends no other line.
                let is_nothing = text.is_empty() && (is_return || is_last || after_return);
                if !is_nothing && to.send(text).is_err() || is_last {
                    break;
                }
                line.clear();
                after_return = is_return;
            }
        }
    });
}

/// What cargo writes before it draws its progress again.
const ERASE_LINE: &str = "\u{1b}[K";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_has_the_output_of_both_streams() {
        let mut step = Step::begin("test", "a failing program");
        let error = check(&mut step, Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("out") && text.contains("err") && text.ends_with("exit 3` failed"), "{text}");
        step.done("failed as it should");
    }

    #[test]
    fn process_that_is_left_behind_does_not_hold_up_its_step() {
        let mut step = Step::begin("test", "a program that leaves a process");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & echo $!; exit 3"]);
        let output = run_within(&mut step, &mut command, SILENCE_MAX, Duration::from_millis(100)).unwrap();
        step.done("");
        Command::new("sh").args(["-c", &format!("kill {}", output.lines[0])]).status().unwrap();
        assert!(!output.success && output.tail().ends_with("holds its output open"), "{}", output.tail());
    }

    #[test]
    fn silent_program_is_killed() {
        let mut step = Step::begin("test", "a program that hangs");
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; exec sleep 60"]);
        let error = run_within(&mut step, &mut command, Duration::from_secs(1), OUTPUT_AFTER_END_MAX).unwrap_err();
        step.done("");
        assert_eq!(error.to_string(), "begun\n`sh` printed nothing for 1.0 s and was killed");
    }

    #[test]
    fn lines_end_at_line_feeds_and_carriage_returns() {
        let (sender, lines) = channel();
        forward(std::io::Cursor::new(b"one\r\x1b[Ktwo\r\n\nthree\nend".to_vec()), sender);
        let lines: Vec<String> = lines.iter().collect();
        assert_eq!(lines, ["one", "two", "", "three", "end"]);
    }

    #[test]
    fn progress_of_cargo_is_read() {
        let read = |line| progress(line);
        assert_eq!(
            read("    Building [=======>   ] 231/316: tract-core, redb").as_deref(),
            Some("231 of 316, now tract-core, redb")
        );
        assert_eq!(read("Building [>  ] 0/9").as_deref(), Some("0 of 9"));
        assert_eq!(read("Building [>  ] 0/9: weir(bin)...").as_deref(), Some("0 of 9, now weir(bin)"));
        assert_eq!(read("   Compiling tract-core v0.23.9"), None);
        assert_eq!(read("Building [what"), None);
    }

    #[test]
    fn missing_program_is_named() {
        let error = stdout_of(&mut Command::new("weir-no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `weir-no-such-program`");
    }
}
