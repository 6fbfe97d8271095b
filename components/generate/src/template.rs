//! Chat templates. They are untrusted programs in the files of models: they run with fuel, a bound of recursion and a
//! bound of output, and have access to nothing but the chat.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::Value as Json;
use thiserror::Error;

/// Maximum number of instructions in one rendering.
const FUEL: u64 = 1_000_000;
/// Maximum depth of recursion.
const RECURSION_MAX: usize = 64;
/// Maximum size of a template, in bytes.
const TEMPLATE_BYTES_MAX: usize = 256 << 10;
const NAME: &str = "chat";

/// Why a template fails.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// The template itself is invalid, for every request.
    #[error("the chat template of the model cannot be used: {0}")]
    Broken(String),
    /// The template refuses the chat.
    #[error("{0}")]
    Refused(String),
    /// It exceeds its bound of instructions or output.
    #[error("the chat template of the model takes too long or writes too much: {0}")]
    Exhausted(String),
}

/// A compiled template.
pub struct Template {
    environment: Environment<'static>,
    begin: String,
    end: String,
    /// Whether a system message is rendered at all.
    pub has_system: bool,
    /// Whether tools are rendered at all.
    pub has_tools: bool,
}

impl Template {
    /// Compiles a template. `begin` and `end` are the names of the tokens that begin and end a text.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Broken`] if it is too large or its syntax is invalid.
    pub fn new(source: &str, begin: &str, end: &str) -> Result<Self, TemplateError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            let bytes = source.len();
            return Err(TemplateError::Broken(format!("it has {bytes} bytes, and may have {TEMPLATE_BYTES_MAX}")));
        }
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| TemplateError::Broken(describe(&error)))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Broken(describe(&error)))?;
        let mut template = Self {
            environment,
            begin: begin.to_owned(),
            end: end.to_owned(),
            has_system: true,
            has_tools: source.contains("tools"),
        };
        const PROBE: &str = "weir-probe";
        let chat = serde_json::json!([{"role": "system", "content": PROBE}, {"role": "user", "content": "x"}]);
        template.has_system = template.render(&chat, None, 1 << 20).is_ok_and(|text| text.contains(PROBE));
        Ok(template)
    }

    /// Renders a chat to at most `bytes_max` bytes.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Refused`] or [`TemplateError::Exhausted`].
    pub fn render(&self, messages: &Json, tools: Option<&Json>, bytes_max: usize) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| TemplateError::Broken(describe(&error)))?;
        let context = context! {
            messages => value_of(messages),
            tools => tools.map(value_of),
            add_generation_prompt => true,
            bos_token => self.begin.as_str(),
            eos_token => self.end.as_str(),
        };
        let mut output = BoundedOutput { bytes: Vec::new(), bytes_max };
        let rendered = template.render_captured_to(context, &mut output).map(drop);
        let exhausted = output.bytes.len() >= bytes_max;
        match rendered {
            Ok(()) => String::from_utf8(output.bytes).map_err(|error| TemplateError::Broken(error.to_string())),
            Err(error) if error.kind() == ErrorKind::OutOfFuel || exhausted => {
                Err(TemplateError::Exhausted(describe(&error)))
            }
            Err(error) => Err(TemplateError::Refused(describe(&error))),
        }
    }
}

/// A JSON value as a value of the template.
fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value_of).collect::<Vec<_>>()),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), value_of(value)))),
    }
}

/// An output that fails beyond its bound.
struct BoundedOutput {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl std::io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = self.bytes_max - self.bytes.len().min(self.bytes_max);
        if bytes.len() > room {
            self.bytes.extend_from_slice(&bytes[..room]);
            return Err(std::io::Error::other(format!("the output has more than {} bytes", self.bytes_max)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The message of an error, without the source of the template.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line().filter(|_| error.detail().is_none()) {
        text.push_str(&format!(" in line {line}"));
    }
    text
}

fn raise_exception(text: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
}

/// JSON in the format of Python, as templates expect it: without escapes for HTML, and with spaces after `,` and `:`.
fn to_json(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let invalid = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    let _: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(&value).map_err(invalid)?;
    let mut text = String::new();
    write_json(&json, indent.map(|indent| indent.min(16)), 0, &mut text);
    Ok(text)
}

fn write_json(json: &Json, indent: Option<usize>, depth: usize, text: &mut String) {
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = |text: &mut String, at: usize| {
        if at > 0 {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
    };
    match json {
        Json::Array(items) if !items.is_empty() => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                comma(text, at);
                line(text, depth + 1);
                write_json(item, indent, depth + 1, text);
            }
            line(text, depth);
            text.push(']');
        }
        Json::Object(fields) if !fields.is_empty() => {
            text.push('{');
            for (at, (name, value)) in fields.iter().enumerate() {
                comma(text, at);
                line(text, depth + 1);
                text.push_str(&Json::from(name.as_str()).to_string());
                text.push_str(": ");
                write_json(value, indent, depth + 1, text);
            }
            line(text, depth);
            text.push('}');
        }
        other => text.push_str(&other.to_string()),
    }
}

/// The current date and time in UTC, with the directives of `strftime` that templates use.
fn strftime_now(format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let name = MONTHS[(month - 1) as usize % 12];
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            text.push(char);
            continue;
        }
        match chars.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('B') => text.push_str(name),
            Some('b') => text.push_str(&name[..3]),
            Some('H') => text.push_str(&format!("{:02}", seconds / 3600 % 24)),
            Some('M') => text.push_str(&format!("{:02}", seconds / 60 % 60)),
            Some('S') => text.push_str(&format!("{:02}", seconds % 60)),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// The date of a day since 1970 (Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    fn render(source: &str, messages: Json) -> Result<String, TemplateError> {
        Template::new(source, "<s>", "</s>").and_then(|template| template.render(&messages, None, 10_000))
    }

    #[test]
    fn chat_is_rendered_as_by_transformers() {
        let text = render(CHATML, json!([{"role": "user", "content": "Hi"}])).unwrap();
        assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn template_that_ignores_the_system_message_is_detected() {
        assert!(Template::new(CHATML, "", "").unwrap().has_system);
        let ignores = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}";
        assert!(!Template::new(ignores, "", "").unwrap().has_system);
    }

    #[test]
    fn template_without_end_runs_out_of_fuel() {
        let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% set x = b %}{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, json!([])), Err(TemplateError::Exhausted(_))));
        let wide = "{% for a in range(10000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}";
        assert!(matches!(render(wide, json!([])), Err(TemplateError::Exhausted(_))));
        let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
        assert!(render(deep, json!([])).is_err());
    }

    #[test]
    fn refusal_has_the_text_of_the_template() {
        let refuses = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}";
        let error = render(refuses, json!([{"role": "tool", "content": "x"}])).unwrap_err();
        assert_eq!(error, TemplateError::Refused("no role tool".into()));
    }

    #[test]
    fn methods_of_python_work() {
        let source = "{{ messages[0].content.strip().split('</think>')[-1].lstrip('\\n') }}{{ messages[0]|tojson }}";
        let text = render(source, json!([{"role": "user", "content": " a</think>\n<b> "}])).unwrap();
        assert_eq!(text, "<b>{\"role\": \"user\", \"content\": \" a</think>\\n<b> \"}");
    }

    #[test]
    fn days_since_1970_are_converted_to_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(20_786), (2026, 11, 29));
        assert_eq!(civil(11_016), (2000, 2, 29));
    }
}
