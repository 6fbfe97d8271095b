//! Tools: their description in the prompt, and tool calls in the generated text.
//!
//! Three formats are supported, chosen by the template of the model: `<tool_call>` around an object (Hermes, Qwen),
//! `[TOOL_CALLS]` before an array (Mistral), and a bare object (Llama 3). For a template without tools, the first one
//! is used.

use serde_json::{Value as Json, json};

use crate::tokenizer::Tokenizer;

/// The format of tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, once for each call.
    Hermes,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}, …]`
    Mistral,
    /// `{"name": …, "parameters": …}`, after `<|python_tag|>` or alone; further calls after `;`.
    Llama,
}

impl ToolFormat {
    /// The format that a template uses.
    pub fn of(template: &str) -> Self {
        if template.contains("<tool_call>") {
            Self::Hermes
        } else if template.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if template.contains("<|python_tag|>") || template.contains("\"parameters\"") {
            Self::Llama
        } else {
            Self::Hermes
        }
    }

    /// The marker that begins calls.
    pub fn marker(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Mistral => "[TOOL_CALLS]",
            Self::Llama => "<|python_tag|>",
        }
    }

    fn arguments_name(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral => "arguments",
            Self::Llama => "parameters",
        }
    }

    /// A Lark grammar of texts that are one or more calls of these tools.
    pub fn grammar(self, tools: &[Tool], tokenizer: &Tokenizer) -> String {
        let arguments = self.arguments_name();
        let call = |tool: &Tool| {
            json!({
                "type": "object",
                "properties": {"name": {"const": tool.name}, arguments: tool.parameters},
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Json> = tools.iter().map(call).collect();
        let object = match calls.as_slice() {
            [only] => only.clone(),
            _ => json!({"anyOf": calls}),
        };
        let schema = crate::constraint::compact(object);
        let literal = |text: &str| match tokenizer.token(text).filter(|token| tokenizer.is_control(*token)) {
            Some(token) => format!("<[{token}]>"),
            None => Json::from(text).to_string(),
        };
        match self {
            Self::Hermes => {
                let (begin, end) = (literal("<tool_call>"), literal("</tool_call>"));
                format!("start: call (\"\\n\" call)*\ncall: {begin} \"\\n\" json \"\\n\" {end}\njson: %json {schema}\n")
            }
            Self::Mistral => {
                let begin = literal("[TOOL_CALLS]");
                format!("start: {begin} \"[\" json (\", \" json)* \"]\"\njson: %json {schema}\n")
            }
            Self::Llama => format!("start: json\njson: %json {schema}\n"),
        }
    }
}

/// A tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// A JSON schema of its arguments.
    pub parameters: Json,
}

/// The tools of a request.
///
/// # Errors
///
/// The invalid member and the reason.
pub fn parse_tools(tools: &Json) -> Result<Vec<Tool>, String> {
    let Json::Array(tools) = tools else { return Err("tools is not an array".into()) };
    let parse = |(at, tool): (usize, &Json)| {
        if tool["type"] != "function" {
            return Err(format!("tools[{at}].type is {}, and must be `function`", tool["type"]));
        }
        let name = tool["function"]["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("tools[{at}].function.name is missing"))?;
        let parameters = match &tool["function"]["parameters"] {
            Json::Null => json!({"type": "object"}),
            schema @ Json::Object(_) => schema.clone(),
            _ => return Err(format!("tools[{at}].function.parameters is not an object")),
        };
        Ok(Tool { name: name.to_owned(), parameters })
    };
    tools.iter().enumerate().map(parse).collect()
}

/// Whether a model may or must call tools.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolChoice {
    /// It must not: the prompt does not describe tools.
    None,
    /// It may.
    Auto,
    /// It must call at least one of these.
    Required(Vec<Tool>),
}

/// The choice of a request.
///
/// # Errors
///
/// The choice is unknown, or names a tool that is not among `tools`.
pub fn parse_choice(choice: Option<&Json>, tools: &[Tool]) -> Result<ToolChoice, String> {
    let named = |name: &str| match tools.iter().find(|tool| tool.name == name) {
        Some(tool) => Ok(ToolChoice::Required(vec![tool.clone()])),
        None => Err(format!("tool_choice names the tool `{name}`, which is not among the tools")),
    };
    match choice {
        None | Some(Json::Null) => Ok(if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto }),
        Some(Json::String(word)) => match word.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto }),
            "required" | "any" if tools.is_empty() => Err(format!("tool_choice is `{word}`, and there are no tools")),
            "required" | "any" => Ok(ToolChoice::Required(tools.to_vec())),
            other => Err(format!("tool_choice is `{other}`; use none, auto, required or a tool")),
        },
        Some(Json::Object(fields)) => match fields.get("function").map(|function| &function["name"]) {
            Some(Json::String(name)) => named(name),
            _ => Err("tool_choice is an object without function.name".into()),
        },
        Some(_) => Err("tool_choice is neither a string nor an object".into()),
    }
}

/// The system message that describes tools to a model whose template has none, as in the template of Qwen.
pub fn instructions(tools: &Json) -> String {
    let mut text = String::from(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> XML tags:\n<tools>",
    );
    for tool in tools.as_array().into_iter().flatten() {
        text.push_str(&format!("\n{tool}"));
    }
    text.push_str(
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
         <args-json-object>}\n</tool_call>",
    );
    text
}

/// A part of the generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// The name of the next call.
    Name {
        /// The number of the call.
        call: u32,
        /// The name.
        name: String,
    },
    /// A part of the arguments of a call.
    Arguments {
        /// The number of the call.
        call: u32,
        /// JSON text.
        text: String,
    },
}

/// Finds tool calls in a text, incrementally.
#[derive(Debug, Clone)]
pub struct ToolParser {
    format: ToolFormat,
    state: State,
    /// Text that may be part of a marker or a call.
    pending: String,
    calls: u32,
    /// Calls whose object has ended.
    complete: u32,
}

#[derive(Debug, Clone)]
enum State {
    /// Nothing but white space so far.
    Begin,
    Text,
    /// Between the marker, objects and the end of calls.
    Calls,
    Object(ObjectScanner),
}

impl ToolParser {
    /// A parser for a format.
    pub fn new(format: ToolFormat) -> Self {
        Self { format, state: State::Begin, pending: String::new(), calls: 0, complete: 0 }
    }

    /// The number of complete calls.
    pub fn complete_calls(&self) -> u32 {
        self.complete
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        for char in text.chars() {
            self.push_char(char, &mut parts);
        }
        merge(parts)
    }

    /// Ends the text. Pending text that is not part of a call is returned.
    pub fn finish(&mut self) -> Vec<Part> {
        let is_text = matches!(self.state, State::Begin | State::Text) || self.is_undecided();
        let pending = std::mem::take(&mut self.pending);
        if is_text && !pending.is_empty() { vec![Part::Text(pending)] } else { Vec::new() }
    }

    /// Whether an object without a name so far is pending.
    fn is_undecided(&self) -> bool {
        matches!(&self.state, State::Object(scanner) if !scanner.has_name && !self.pending.is_empty())
    }

    fn push_char(&mut self, char: char, parts: &mut Vec<Part>) {
        match &mut self.state {
            State::Begin | State::Text => self.push_text(char, parts),
            State::Calls => {
                if char == '{' {
                    let mut scanner = ObjectScanner::default();
                    scanner.push(char);
                    self.pending.clear();
                    self.pending.push(char);
                    self.state = State::Object(scanner);
                    return;
                }
                // Between calls are separators and end marks; other text ends the calls.
                self.pending.push(char);
                let is_between = |text: &str| match self.format {
                    ToolFormat::Hermes => {
                        let text = text.trim_start();
                        "</tool_call>".starts_with(text)
                            || {
                                let rest = text.strip_prefix("</tool_call>").map(str::trim_start);
                                rest.is_some_and(|rest| {
                                    "<tool_call>".starts_with(rest) || rest.trim_end() == "<tool_call>"
                                })
                            }
                            || text.trim_end() == "<tool_call>"
                            || "<tool_call>".starts_with(text)
                    }
                    ToolFormat::Mistral => text.chars().all(|char| char.is_whitespace() || "[],".contains(char)),
                    ToolFormat::Llama => text.chars().all(|char| char.is_whitespace() || char == ';'),
                };
                if !is_between(&self.pending) {
                    let pending = std::mem::take(&mut self.pending);
                    let text = pending.trim_start().trim_start_matches("</tool_call>").trim_start().to_owned();
                    self.state = State::Text;
                    text.chars().for_each(|char| self.push_char(char, parts));
                }
            }
            State::Object(scanner) => {
                self.pending.push(char);
                let had_name = scanner.has_name;
                let scanned = scanner.push(char);
                if self.format == ToolFormat::Llama && scanner.is_other {
                    // The first member shows that the object is not a call: it is text.
                    let pending = std::mem::take(&mut self.pending);
                    self.state = State::Text;
                    parts.push(Part::Text(pending));
                    return;
                }
                if scanner.has_name && !had_name {
                    self.pending.clear();
                    parts.push(Part::Name { call: self.calls, name: scanner.name.clone() });
                    parts.push(Part::Arguments { call: self.calls, text: String::new() });
                    if !scanner.early.is_empty() {
                        parts.push(Part::Arguments { call: self.calls, text: std::mem::take(&mut scanner.early) });
                    }
                }
                if scanner.has_name && !scanned.is_empty() {
                    parts.push(Part::Arguments { call: self.calls, text: scanned });
                } else if !scanned.is_empty() {
                    scanner.early.push_str(&scanned);
                }
                if scanner.is_complete() {
                    if scanner.has_name {
                        if !scanner.has_arguments {
                            parts.push(Part::Arguments { call: self.calls, text: "{}".to_owned() });
                        }
                        self.calls += 1;
                        self.complete += 1;
                    } else {
                        // An object without a name is not a call.
                        parts.push(Part::Text(std::mem::take(&mut self.pending)));
                    }
                    self.pending.clear();
                    self.state = State::Calls;
                }
            }
        }
    }

    fn push_text(&mut self, char: char, parts: &mut Vec<Part>) {
        let is_begin = matches!(self.state, State::Begin);
        self.pending.push(char);
        let marker = self.format.marker();
        if let Some(at) = self.pending.find(marker) {
            let before = self.pending[..at].to_owned();
            self.pending.clear();
            if !before.trim().is_empty() {
                parts.push(Part::Text(before));
            }
            self.state = State::Calls;
            return;
        }
        if is_begin && self.format == ToolFormat::Llama && self.pending.trim_start() == "{" {
            let mut scanner = ObjectScanner::default();
            scanner.push('{');
            self.state = State::Object(scanner);
            return;
        }
        if is_begin && self.pending.trim().is_empty() {
            return;
        }
        let keep = self.pending.char_indices().map(|(at, _)| at).find(|at| marker.starts_with(&self.pending[*at..]));
        let pending = keep.map(|at| self.pending.split_off(at)).unwrap_or_default();
        let text = std::mem::replace(&mut self.pending, pending);
        if !text.is_empty() {
            self.state = State::Text;
            parts.push(Part::Text(text));
        }
    }
}

/// Joins neighbouring parts of the same kind.
fn merge(parts: Vec<Part>) -> Vec<Part> {
    let mut merged: Vec<Part> = Vec::new();
    for part in parts {
        match (merged.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more)) => text.push_str(&more),
            (Some(Part::Arguments { call, text }), Part::Arguments { call: same, text: more }) if *call == same => {
                text.push_str(&more);
            }
            (_, part) => merged.push(part),
        }
    }
    merged
}

/// Reads an object of a call, character by character.
#[derive(Debug, Clone, Default)]
struct ObjectScanner {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The current or last string in the outer object.
    string: String,
    /// The current member of the outer object, once its key is complete.
    key: Option<String>,
    /// Whether the current value is the arguments.
    in_arguments: bool,
    name: String,
    has_name: bool,
    has_arguments: bool,
    /// Whether the first member shows that the object is not a call.
    is_other: bool,
    members: u32,
    /// Arguments that came before the name.
    early: String,
}

impl ObjectScanner {
    fn is_complete(&self) -> bool {
        self.depth == 0
    }

    /// Adds a character; returns it if it is part of the arguments.
    fn push(&mut self, char: char) -> String {
        let was_outer = self.depth == 1;
        let in_arguments = self.in_arguments;
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if char == '\\' {
                self.escaped = true;
            } else if char == '"' {
                self.in_string = false;
            }
            if was_outer {
                match self.in_string {
                    true => self.string.push(char),
                    false => self.end_string(),
                }
            }
        } else {
            match char {
                '"' => {
                    self.in_string = true;
                    self.string.clear();
                }
                '{' | '[' => self.depth += 1,
                '}' | ']' => self.depth = self.depth.saturating_sub(1),
                ':' if was_outer && self.key.is_none() => {
                    let key = std::mem::take(&mut self.string);
                    self.in_arguments = matches!(key.as_str(), "arguments" | "parameters");
                    self.has_arguments |= self.in_arguments;
                    self.members += 1;
                    self.is_other |= self.members == 1
                        && !matches!(key.as_str(), "name" | "type" | "arguments" | "parameters" | "id");
                    self.key = Some(key);
                    return String::new();
                }
                ',' if was_outer => {
                    self.key = None;
                    self.in_arguments = false;
                    return String::new();
                }
                _ => {}
            }
            if self.depth == 0 {
                self.in_arguments = false;
                return String::new();
            }
        }
        let is_space = was_outer && !self.in_string && char.is_whitespace();
        if in_arguments && !is_space { char.to_string() } else { String::new() }
    }

    fn end_string(&mut self) {
        if self.key.as_deref() == Some("name") && !self.has_name {
            let name: Result<String, _> = serde_json::from_str(&format!("\"{}\"", self.string));
            self.name = name.unwrap_or_else(|_| self.string.clone());
            self.has_name = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(format: ToolFormat, text: &str, sizes: &[usize]) -> (String, Vec<(String, String)>) {
        let mut parser = ToolParser::new(format);
        let (mut parts, mut rest) = (Vec::new(), text);
        for size in sizes.iter().copied().chain(std::iter::repeat(1)) {
            if rest.is_empty() {
                break;
            }
            let at = rest.char_indices().nth(size.max(1)).map_or(rest.len(), |(at, _)| at);
            parts.extend(parser.push(&rest[..at]));
            rest = &rest[at..];
        }
        parts.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for part in parts {
            match part {
                Part::Text(more) => text.push_str(&more),
                Part::Name { call, name } => {
                    assert_eq!(call as usize, calls.len());
                    calls.push((name, String::new()));
                }
                Part::Arguments { call, text } => {
                    assert_eq!(call as usize + 1, calls.len());
                    calls[call as usize].1.push_str(&text);
                }
            }
        }
        (text, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    /// A format, the generated text, the visible text, and the calls.
    type Case = (ToolFormat, &'static str, &'static str, Vec<(String, String)>);

    fn cases() -> Vec<Case> {
        use ToolFormat::{Hermes, Llama, Mistral};
        vec![
            (Hermes, "No <tool> here.", "No <tool> here.", vec![]),
            (
                Hermes,
                "Wait.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"}\\\"\", \"y\": [1, {}]}}\n</tool_call>\n<tool_call>{\"name\":\"b\",\"arguments\":{}}</tool_call>",
                "Wait.\n",
                vec![call("a", "{\"x\": \"}\\\"\", \"y\": [1, {}]}"), call("b", "{}")],
            ),
            (
                Hermes,
                "<tool_call>{\"arguments\": {\"x\": 1}, \"name\": \"a\"}</tool_call> Done.",
                "Done.",
                vec![call("a", "{\"x\": 1}")],
            ),
            (Hermes, "<tool_call>{\"name\": \"now\"}</tool_call>", "", vec![call("now", "{}")]),
            (
                Mistral,
                "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {\"x\": 1}}, {\"name\": \"b\", \"arguments\": {}}]",
                "",
                vec![call("a", "{\"x\": 1}"), call("b", "{}")],
            ),
            (Llama, "{\"name\": \"a\", \"parameters\": {\"x\": 1}}", "", vec![call("a", "{\"x\": 1}")]),
            (Llama, "{\"city\": \"Bern\"} is an object", "{\"city\": \"Bern\"} is an object", vec![]),
            (
                Llama,
                "<|python_tag|>{\"name\": \"a\", \"parameters\": {}}; {\"name\": \"b\", \"parameters\": {}}",
                "",
                vec![call("a", "{}"), call("b", "{}")],
            ),
        ]
    }

    #[test]
    fn calls_of_every_format_are_found() {
        for (format, text, shown, calls) in cases() {
            assert_eq!(all(format, text, &[usize::MAX]), (shown.to_owned(), calls), "{text}");
        }
    }

    proptest! {
        #[test]
        fn calls_do_not_depend_on_the_pieces(sizes in prop::collection::vec(1usize..9, 0..60)) {
            for (format, text, shown, calls) in cases() {
                prop_assert_eq!(all(format, text, &sizes), (shown.to_owned(), calls));
            }
        }

        #[test]
        fn any_text_is_parsed(text in "[\\[\\]{}<>/tolca_\": ;,a]{0,40}") {
            for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama] {
                all(format, &text, &[3]);
            }
        }
    }

    #[test]
    fn object_without_a_name_is_text() {
        for (text, shown) in [
            ("<tool_call>{\"a\": 1}</tool_call>", "{\"a\": 1}"),
            ("<tool_call>\n{\"a\": {\"b\": 1}}\n</tool_call>", "{\"a\": {\"b\": 1}}"),
            ("<tool_call>{\"a\": ", "{\"a\": "),
        ] {
            for sizes in [&[1][..], &[usize::MAX]] {
                let (found, calls) = all(ToolFormat::Hermes, text, sizes);
                assert_eq!((found.as_str(), calls.is_empty()), (shown, true), "{text}");
            }
        }
    }

    #[test]
    fn choice_that_names_no_tool_is_refused() {
        let tools = parse_tools(&json!([{"type": "function", "function": {"name": "a"}}])).unwrap();
        assert_eq!(parse_choice(None, &tools), Ok(ToolChoice::Auto));
        assert_eq!(parse_choice(Some(&json!("none")), &tools), Ok(ToolChoice::None));
        assert!(matches!(parse_choice(Some(&json!("required")), &tools), Ok(ToolChoice::Required(_))));
        assert!(parse_choice(Some(&json!({"type": "function", "function": {"name": "b"}})), &tools).is_err());
        assert!(parse_choice(Some(&json!("required")), &[]).is_err());
    }
}
