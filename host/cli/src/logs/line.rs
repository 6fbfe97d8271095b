//! The log as text: the time, the level, the message, and `name=value` for each field. On a terminal a line has the
//! time of day instead of the date and time, and is wrapped.

use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Columns of a line on a terminal.
const COLUMNS: usize = 80;

/// Formats events as lines.
pub(super) struct Lines {
    pub(super) is_terminal: bool,
    pub(super) colors: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut words = Words::default();
        event.record(&mut words);
        let level = event.metadata().level();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = match self.is_terminal {
            true => time_of_day(now.as_secs()),
            false => weir_codec::http::timestamp::rfc3339(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        };
        writer.write_str(&line(&time, *level, &words.in_order(), self.is_terminal, self.colors))
    }
}

/// A line, including its line end. If it is wrapped, no row is wider than [`COLUMNS`], unless it is a single long word.
fn line(time: &str, level: Level, words: &[String], folded: bool, colors: bool) -> String {
    let (on, off) = if colors { (color(level), "\x1b[0m") } else { ("", "") };
    let indent = time.len() + " ERROR ".len();
    let mut line = format!("{time} {on}{level:<5}{off} ");
    let mut column = indent;
    for (at, word) in words.iter().enumerate() {
        let width = word.chars().count();
        if at > 0 {
            if folded && column + 1 + width > COLUMNS {
                let _ = write!(line, "\n{:indent$}", "");
                column = indent;
            } else {
                line.push(' ');
                column += 1;
            }
        }
        line.push_str(word);
        column += width;
    }
    line.push('\n');
    line
}

fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// `HH:MM:SS`, in UTC.
fn time_of_day(unix_s: u64) -> String {
    let s = unix_s % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// The words of an event, between which a line may be wrapped.
#[derive(Default)]
struct Words {
    message: Vec<String>,
    fields: Vec<String>,
}

impl Words {
    fn in_order(mut self) -> Vec<String> {
        self.message.append(&mut self.fields);
        self.message
    }

    fn push(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.extend(printable(value).split(' ').map(str::to_owned)),
            name => self.fields.push(format!("{name}={}", quoted(value))),
        }
    }
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value);
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        self.push(field, &text);
    }

    /// Numbers, flags, and values that are formatted with `%`.
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, &format!("{value:?}"));
    }
}

/// A value as it is, or as a JSON string if its end would be ambiguous.
fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=');
    match !value.is_empty() && value.chars().all(plain) {
        true => value.to_owned(),
        false => serde_json::Value::from(value).to_string(),
    }
}

/// A text without line ends and terminal control characters.
fn printable(text: &str) -> String {
    super::printable::printable(text.trim_end()).replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use expect_test::expect;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct CapturedOutput(Arc<Mutex<Vec<u8>>>);

    impl io::Write for CapturedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for CapturedOutput {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn captured(lines: Lines, log: impl FnOnce()) -> String {
        let captured = CapturedOutput::default();
        let subscriber = tracing_subscriber::fmt().event_format(lines).with_writer(captured.clone()).finish();
        tracing::subscriber::with_default(subscriber, log);
        let captured = captured.0.lock().unwrap().clone();
        String::from_utf8(captured).unwrap()
    }

    #[test]
    fn ambiguous_values_are_written_as_json_strings_and_others_plain() {
        let text = captured(Lines { is_terminal: false, colors: false }, || {
            let path = std::path::Path::new("/models/a b");
            tracing::info!(name = "sentiment", n = 7, ok = true, x = 0.5, path = %path.display(), empty = "", "graph loaded");
            tracing::warn!("forged\n2026 INFO \u{1b}[31mline");
        });
        let mut lines = text.lines().map(|line| line.split_once(' ').unwrap());
        let (time, line) = lines.next().unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z') && time.contains('T'), "{time}");
        expect![[r#"INFO  graph loaded name=sentiment n=7 ok=true x=0.5 path="/models/a b" empty="""#]].assert_eq(line);
        expect![[r#"WARN  forged\n2026 INFO \u{1b}[31mline"#]].assert_eq(lines.next().unwrap().1);
        assert!(lines.next().is_none());
    }

    #[test]
    fn line_on_a_terminal_is_wrapped_at_eighty_columns() {
        let text = captured(Lines { is_terminal: true, colors: false }, || {
            let file = format!("/a/{}", "long/".repeat(20));
            tracing::info!(
                name = "sentiment",
                engine = "tract",
                ms = 123,
                file,
                "graph loaded after some time and so on"
            );
        });
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows.len() > 1, "{text}");
        for row in &rows {
            assert!(row.chars().count() <= 80 || row.trim_start().starts_with("file="), "{row}");
        }
        assert!(rows[1..].iter().all(|row| row.starts_with("               ")), "{text}");
        assert_eq!(rows[0].as_bytes()[2], b':');
    }

    #[test]
    fn colors_are_written_only_if_enabled() {
        for (colors, want) in [(true, true), (false, false)] {
            let text = captured(Lines { is_terminal: true, colors }, || tracing::error!("x"));
            assert_eq!(text.contains('\u{1b}'), want, "{text:?}");
        }
    }
}
