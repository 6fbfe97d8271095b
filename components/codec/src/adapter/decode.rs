//! Decodes the payloads of records into items.

use std::borrow::Cow;

use serde::Serialize;

use super::{
    config::{AdapterConfig, Fields, Format},
    csv,
};
use crate::{
    http::lines::Lines,
    inference::{output::Id, request::explain},
    json::tree::Node,
    transcripts::input as transcript,
};

/// The header of a record that is one row of CSV: the row with the names of its columns. A driver that cuts files into rows sets it.
pub const CSV_COLUMNS_HEADER: &str = "weir-csv-columns";
/// The header of a refused record, with the reason as its value. A driver sets it when a part of its source cannot be cut into records.
pub const REFUSAL_HEADER: &str = "weir-refusal";
/// Longest payload, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// Maximum number of items of one payload.
pub const ITEMS_MAX: usize = 65_536;
/// Maximum number of JSON values of one payload.
const VALUES_MAX: usize = 1 << 20;

/// The input of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// The fields that are repeated in the result.
    pub metadata: ItemMetadata,
}

/// The fields of an item that are repeated in its result.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ItemMetadata {
    /// The id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// The language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Why a payload, or a part of one, is not an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Machine-readable code.
    pub code: &'static str,
    /// The reason, for people.
    pub reason: String,
}

/// One part of a payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded<T = Input> {
    /// Its bytes; `None` when it is the whole payload.
    pub bytes: Option<Vec<u8>>,
    /// The item, or why it is not one.
    pub item: Result<T, Refusal>,
}

fn refusal<T>(code: &'static str, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, reason: reason.into() })
}

/// Decodes a payload. `columns` is the value of [`CSV_COLUMNS_HEADER`]; with it, the payload has no row of column names. Blank lines
/// and an empty array give no items.
pub fn decode(config: &AdapterConfig, payload: &[u8], columns: Option<&[u8]>) -> Vec<Decoded> {
    if let Err(refusal) = check_length(payload) {
        return whole(Err(refusal));
    }
    match config.format {
        Format::Json => whole(json(config, payload)),
        Format::Text => whole(text(payload)),
        Format::Ndjson => parts_or_whole(lines(payload, |line| json(config, line))),
        Format::JsonArray => parts_or_whole(json_array(payload, |node, _| item(&config.fields, node))),
        Format::Csv => parts_or_whole(csv_rows(config, payload, columns)),
        Format::Avro | Format::Protobuf => whole(declined()),
    }
}

/// Decodes a payload into chunks of a transcript and ends, as `/v1/transcript` reads them.
pub fn decode_chunks(config: &AdapterConfig, payload: &[u8]) -> Vec<Decoded<transcript::Input>> {
    if let Err(refusal) = check_length(payload) {
        return whole(Err(refusal));
    }
    match config.format {
        Format::Json => whole(chunk(payload)),
        Format::Ndjson => parts_or_whole(lines(payload, chunk)),
        Format::JsonArray => parts_or_whole(json_array(payload, |_, bytes| chunk(bytes))),
        Format::Text | Format::Csv | Format::Avro | Format::Protobuf => whole(declined()),
    }
}

fn chunk(content: &[u8]) -> Result<transcript::Input, Refusal> {
    transcript::read(content).map_err(|refused| match refused.code {
        Cow::Borrowed(code) => Refusal { code, reason: refused.message },
        Cow::Owned(_) => Refusal { code: "invalid_chunk", reason: refused.message },
    })
}

fn check_length(payload: &[u8]) -> Result<(), Refusal> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        let reason = format!("the payload has {} bytes, and may have {PAYLOAD_BYTES_MAX}", payload.len());
        return refusal("payload_too_long", reason);
    }
    Ok(())
}

fn declined<T>() -> Result<T, Refusal> {
    refusal("format_declined", "this format is not decoded here")
}

fn whole<T>(item: Result<T, Refusal>) -> Vec<Decoded<T>> {
    vec![Decoded { bytes: None, item }]
}

fn parts_or_whole<T>(parts: Result<Vec<Decoded<T>>, Refusal>) -> Vec<Decoded<T>> {
    parts.unwrap_or_else(|refusal| whole(Err(refusal)))
}

fn too_many() -> Refusal {
    Refusal { code: "too_many_items", reason: format!("the payload has more than {ITEMS_MAX} items") }
}

fn text(payload: &[u8]) -> Result<Input, Refusal> {
    match std::str::from_utf8(payload) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
            Ok(Input { text, text_pair: None, metadata: ItemMetadata::default() })
        }
        Err(error) => refusal("not_utf8", format!("it is not UTF-8: byte {} does not fit", error.valid_up_to())),
    }
}

fn json(config: &AdapterConfig, payload: &[u8]) -> Result<Input, Refusal> {
    match Node::read(payload, VALUES_MAX) {
        Ok(node) => item(&config.fields, &node),
        Err(error) => {
            let (code, reason) = explain(&error);
            refusal(code, reason)
        }
    }
}

fn lines<T>(payload: &[u8], read: impl Fn(&[u8]) -> Result<T, Refusal>) -> Result<Vec<Decoded<T>>, Refusal> {
    let (mut lines, mut rest, mut parts) = (Lines::new(PAYLOAD_BYTES_MAX), payload, Vec::new());
    let mut part = |content: Option<&[u8]>| -> Result<(), Refusal> {
        if parts.len() == ITEMS_MAX {
            return Err(too_many());
        }
        let content = content.unwrap_or_default();
        parts.push(Decoded { bytes: Some(content.to_vec()), item: read(content) });
        Ok(())
    };
    while let Some(line) = lines.next_line(&mut rest) {
        part(line.content)?;
    }
    if let Some(line) = lines.last_line() {
        part(line.content)?;
    }
    Ok(parts)
}

fn json_array<T>(
    payload: &[u8],
    read: impl Fn(&Node<'_>, &[u8]) -> Result<T, Refusal>,
) -> Result<Vec<Decoded<T>>, Refusal> {
    let nodes = match Node::read(payload, VALUES_MAX) {
        Ok(Node::Array(nodes)) => nodes,
        Ok(other) => return refusal("not_an_array", format!("it is {}; an array was expected", other.name())),
        Err(error) => {
            let (code, reason) = explain(&error);
            return refusal(code, reason);
        }
    };
    if nodes.len() > ITEMS_MAX {
        return Err(too_many());
    }
    let texts = elements(payload);
    let part = |(node, bytes): (&Node<'_>, &[u8])| Decoded { bytes: Some(bytes.to_vec()), item: read(node, bytes) };
    Ok(nodes.iter().zip(texts).map(part).collect())
}

/// The elements of a valid JSON array, as bytes of the payload.
fn elements(array: &[u8]) -> Vec<&[u8]> {
    let array = array.trim_ascii();
    let inside = array.get(1..array.len().saturating_sub(1)).unwrap_or_default();
    let (mut elements, mut begin, mut depth) = (Vec::new(), 0, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in inside.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                elements.push(inside[begin..at].trim_ascii());
                begin = at + 1;
            }
            _ => {}
        }
    }
    elements.push(inside[begin..].trim_ascii());
    elements
}

/// Builds an item from a JSON value: a string is its text, an object has its fields.
fn item(fields: &Fields, node: &Node<'_>) -> Result<Input, Refusal> {
    let metadata = ItemMetadata::default();
    let members = match node {
        Node::Text(text) => return Ok(Input { text: text.clone().into_owned(), text_pair: None, metadata }),
        Node::Object(_) => node,
        other => return refusal("invalid_item", format!("it is {}; an object or a string was expected", other.name())),
    };
    let Some(text) = string(members, &fields.text, "text")? else {
        return refusal("text_missing", format!("there is no text at `{}`", fields.text));
    };
    let id = match value_at(members, &fields.id) {
        None | Some(Node::Null) => None,
        Some(Node::Text(id)) => Some(Id::Text(id.clone().into_owned())),
        Some(Node::Integer(id)) => Some(Id::Number(*id)),
        Some(other) => {
            let reason = format!("the id at `{}` is {}; a string or an integer was expected", fields.id, other.name());
            return refusal("invalid_item", reason);
        }
    };
    let metadata = ItemMetadata {
        id,
        language: string(members, &fields.language, "language")?,
        user: string(members, &fields.user, "user")?,
    };
    Ok(Input { text, text_pair: string(members, &fields.text_pair, "second text")?, metadata })
}

fn string(members: &Node<'_>, field: &str, what: &str) -> Result<Option<String>, Refusal> {
    match value_at(members, field) {
        None | Some(Node::Null) => Ok(None),
        Some(Node::Text(text)) => Ok(Some(text.clone().into_owned())),
        Some(other) => {
            refusal("invalid_item", format!("the {what} at `{field}` is {}; a string was expected", other.name()))
        }
    }
}

/// The value at a JSON pointer, or the value of a member by its name.
fn value_at<'a, 'b>(node: &'b Node<'a>, field: &str) -> Option<&'b Node<'a>> {
    if field.is_empty() {
        return None;
    }
    let Some(pointer) = field.strip_prefix('/') else { return member(node, field) };
    pointer.split('/').try_fold(node, |node, token| {
        let token = token.replace("~1", "/").replace("~0", "~");
        match node {
            // An index has no leading zero (RFC 6901, section 4).
            Node::Array(items) if token == "0" || !token.starts_with(['0', '+']) => {
                items.get(token.parse::<usize>().ok()?)
            }
            node => member(node, &token),
        }
    })
}

fn member<'a, 'b>(node: &'b Node<'a>, name: &str) -> Option<&'b Node<'a>> {
    match node {
        Node::Object(members) => members.iter().find(|(key, _)| key == name).map(|(_, member)| member),
        _ => None,
    }
}

/// The indexes of the columns of an item's fields.
struct Columns {
    text: usize,
    text_pair: Option<usize>,
    id: Option<usize>,
    language: Option<usize>,
    user: Option<usize>,
    count: usize,
}

impl Columns {
    fn new(config: &AdapterConfig, head: &[u8]) -> Result<Self, Refusal> {
        let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
        let names = csv::fields(head, config.delimiter as u8)
            .map_err(|error| Refusal { code: "malformed_csv", reason: format!("the names of the columns: {error}") })?;
        let column = |field: &str| {
            let name = field.strip_prefix('/').unwrap_or(field);
            names.iter().position(|other| !name.is_empty() && other.trim() == name)
        };
        let fields = &config.fields;
        let Some(text) = column(&fields.text) else {
            let name = fields.text.strip_prefix('/').unwrap_or(&fields.text);
            return refusal("column_missing", format!("there is no column `{name}`; there are {}", names.join(", ")));
        };
        Ok(Self {
            text,
            text_pair: column(&fields.text_pair),
            id: column(&fields.id),
            language: column(&fields.language),
            user: column(&fields.user),
            count: names.len(),
        })
    }

    fn item(&self, row: &[u8], delimiter: u8) -> Result<Input, Refusal> {
        let cells = csv::fields(row, delimiter)
            .map_err(|error| Refusal { code: "malformed_csv", reason: error.to_string() })?;
        if cells.len() != self.count {
            let reason = format!("the row has {} fields, and there are {} columns", cells.len(), self.count);
            return refusal("malformed_csv", reason);
        }
        let cell = |at: Option<usize>| at.map(|at| cells[at].clone().into_owned()).filter(|cell| !cell.is_empty());
        let metadata =
            ItemMetadata { id: cell(self.id).map(Id::Text), language: cell(self.language), user: cell(self.user) };
        Ok(Input { text: cells[self.text].clone().into_owned(), text_pair: cell(self.text_pair), metadata })
    }
}

fn csv_rows(config: &AdapterConfig, payload: &[u8], columns: Option<&[u8]>) -> Result<Vec<Decoded>, Refusal> {
    let mut rows = split_rows(payload).into_iter();
    let columns = match columns.or_else(|| rows.next()) {
        Some(head) => Columns::new(config, head)?,
        None => return Ok(Vec::new()),
    };
    let mut parts = Vec::new();
    for row in rows.filter(|row| !csv::without_end(row).is_empty()) {
        if parts.len() == ITEMS_MAX {
            return Err(too_many());
        }
        let item = columns.item(row, config.delimiter as u8);
        parts.push(Decoded { bytes: Some(csv::without_end(row).to_vec()), item });
    }
    Ok(parts)
}

fn split_rows(payload: &[u8]) -> Vec<&[u8]> {
    let (mut rows, mut rest) = (Vec::new(), payload);
    while !rest.is_empty() {
        let length = csv::RowScanner::default().row_bytes(rest).unwrap_or(rest.len());
        let (row, after) = rest.split_at(length);
        rows.push(row);
        rest = after;
    }
    rows
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn config(format: Format) -> AdapterConfig {
        AdapterConfig { format, ..AdapterConfig::default() }
    }

    fn check(config: &AdapterConfig, payload: &str, columns: Option<&str>, expect: Expect) {
        let parts = decode(config, payload.as_bytes(), columns.map(str::as_bytes));
        let lines: Vec<String> = parts
            .into_iter()
            .map(|part| {
                let bytes =
                    part.bytes.map(|bytes| format!(" of {}", String::from_utf8_lossy(&bytes))).unwrap_or_default();
                match part.item {
                    Ok(Input { text, text_pair, metadata }) => {
                        let metadata = serde_json::to_string(&metadata).unwrap();
                        format!("{text:?} {text_pair:?} {metadata}{bytes}")
                    }
                    Err(Refusal { code, reason }) => format!("{code}: {reason}{bytes}"),
                }
            })
            .collect();
        expect.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn json_text_is_read_at_its_pointer() {
        let plain = config(Format::Json);
        check(&plain, r#""a""#, None, expect![[r#""a" None {}"#]]);
        check(
            &plain,
            r#"{"text":"a","id":7,"language":"en","user":"u","x":[1]}"#,
            None,
            expect![[r#""a" None {"id":7,"language":"en","user":"u"}"#]],
        );
        check(&plain, r#"{"txt":"a"}"#, None, expect!["text_missing: there is no text at `/text`"]);
        check(
            &plain,
            r#"{"text":1}"#,
            None,
            expect!["invalid_item: the text at `/text` is integer; a string was expected"],
        );
        check(
            &plain,
            r#"{"text":"a","id":[]}"#,
            None,
            expect!["invalid_item: the id at `/id` is array; a string or an integer was expected"],
        );
        check(&plain, "", None, expect!["malformed_json: it is empty"]);
        check(&plain, "[1]", None, expect!["invalid_item: it is array; an object or a string was expected"]);
        check(
            &plain,
            "{",
            None,
            expect!["malformed_json: it is not JSON: it ends in the middle of an object at column 1"],
        );
        let mut deep = config(Format::Json);
        deep.fields.text = "/a~1b/1/t".to_owned();
        deep.fields.text_pair = "pair".to_owned();
        check(&deep, r#"{"a/b":[0,{"t":"x"}],"pair":"y"}"#, None, expect![[r#""x" Some("y") {}"#]]);
        check(&deep, r#"{"a/b":{"1":{"t":"x"}}}"#, None, expect![[r#""x" None {}"#]]);
        check(&deep, r#"{"a/b":[0]}"#, None, expect!["text_missing: there is no text at `/a~1b/1/t`"]);
    }

    #[test]
    fn each_item_of_a_payload_has_its_own_bytes() {
        check(
            &config(Format::Ndjson),
            "{\"text\":\"a\"}\n\nx\r\n\"b\"",
            None,
            expect![[r#"
            "a" None {} of {"text":"a"}
            malformed_json: it is not JSON: expected value at column 1 of x
            "b" None {} of "b""#]],
        );
        check(&config(Format::Ndjson), "\n\n", None, expect![""]);
        check(
            &config(Format::JsonArray),
            r#" [ "a,\"]" , {"text": "b", "x":[1.10,{}]},3 ] "#,
            None,
            expect![[r#"
            "a,\"]" None {} of "a,\"]"
            "b" None {} of {"text": "b", "x":[1.10,{}]}
            invalid_item: it is integer; an object or a string was expected of 3"#]],
        );
        check(&config(Format::JsonArray), "[]", None, expect![""]);
        check(&config(Format::JsonArray), "{}", None, expect!["not_an_array: it is object; an array was expected"]);
    }

    #[test]
    fn csv_text_is_read_from_its_column() {
        let csv = config(Format::Csv);
        check(
            &csv,
            "id,text\r\n1,\"a, \"\"b\"\"\nc\"\r\n\r\n2,x\n3\n",
            None,
            expect![[r#"
            "a, \"b\"\nc" None {"id":"1"} of 1,"a, ""b""
            c"
            "x" None {"id":"2"} of 2,x
            malformed_csv: the row has 1 fields, and there are 2 columns of 3"#]],
        );
        check(&csv, "1,a\n", Some("\u{feff}id,text\n"), expect![[r#""a" None {"id":"1"} of 1,a"#]]);
        check(&csv, "a,b\n1,2\n", None, expect!["column_missing: there is no column `text`; there are a, b"]);
        check(&csv, "", None, expect![""]);
    }

    #[test]
    fn payload_in_text_format_is_the_text() {
        check(&config(Format::Text), "\u{feff}a\nb", None, expect![[r#""a\nb" None {}"#]]);
        let parts = decode(&config(Format::Text), b"a\xff", None);
        assert_eq!(parts[0].item.as_ref().unwrap_err().code, "not_utf8");
        let parts = decode(&config(Format::Text), &vec![b'a'; PAYLOAD_BYTES_MAX + 1], None);
        assert_eq!(parts[0].item.as_ref().unwrap_err().code, "payload_too_long");
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), format in 0usize..5) {
            let format = [Format::Json, Format::Ndjson, Format::JsonArray, Format::Text, Format::Csv][format];
            let _ = decode(&config(format), &bytes, None);
        }

        #[test]
        fn every_element_of_an_array_is_a_part(texts in prop::collection::vec(any::<String>(), 0..6)) {
            let array = serde_json::to_vec_pretty(&texts).unwrap();
            let parts = decode(&config(Format::JsonArray), &array, None);
            let read: Vec<String> = parts.iter().map(|part| part.item.as_ref().unwrap().text.clone()).collect();
            prop_assert_eq!(&read, &texts);
            for (part, text) in parts.iter().zip(&texts) {
                let bytes = part.bytes.as_ref().unwrap();
                prop_assert_eq!(&serde_json::from_slice::<String>(bytes).unwrap(), text);
            }
        }
    }
}
