//! The reader of JSON objects: members are read by name and type, errors are recorded with their path, and members that were not read
//! can be reported as unknown.

use std::borrow::Cow;

use super::{
    JsonError, field,
    field::{ERRORS_MAX, FieldError, FieldReason, RequestError, unknown},
    tree::Node,
};

/// The errors of a body so far.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    /// Records an error, up to one more than a response shows. The additional error marks the list as truncated.
    pub(crate) fn push(&mut self, error: FieldError) {
        if self.0.len() <= ERRORS_MAX {
            self.0.push(error);
        }
    }

    /// Records an error whose message begins with the path of the member.
    pub(crate) fn push_at(&mut self, path: &str, reason: FieldReason, what: &str) {
        self.push(FieldError::new(path, reason, format!("`{path}` {what}")));
    }

    /// Records that a member has the wrong type.
    pub(crate) fn push_type(&mut self, path: impl Into<Box<str>>, expected: &'static str, got: &Node<'_>) {
        self.push(FieldError::wrong_type(path, expected, got.name()));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }

    /// Returns `read` if there are no errors.
    ///
    /// # Errors
    ///
    /// The recorded errors.
    pub(crate) fn finish<T>(self, read: T) -> Result<T, RequestError> {
        if self.0.is_empty() { Ok(read) } else { Err(RequestError::Invalid(self.0)) }
    }
}

/// An object whose members are taken one by one.
#[derive(Debug)]
pub(crate) struct Members<'a> {
    /// The path of the object; empty for a body.
    path: String,
    members: Vec<(Cow<'a, str>, Node<'a>)>,
    /// The names that were read, in their order.
    known: Vec<&'static str>,
    /// Members that are null count as absent.
    null_is_absent: bool,
}

impl<'a> Members<'a> {
    /// The members of a body, which must be an object. The contents of arrays and objects in it are checked and dropped. Unknown members
    /// are reported in the order of their names.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object.
    pub(crate) fn of_body(body: &'a [u8]) -> Result<Self, JsonError> {
        match Node::read_shallow(body)? {
            Node::Object(mut members) => {
                members.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
                Ok(Self::new(String::new(), members))
            }
            Node::Integer(_) => Err(JsonError::NotAnObject { got: "number" }),
            other => Err(JsonError::NotAnObject { got: other.name() }),
        }
    }

    /// The members of a body, which must be an object of at most `values_max` values.
    ///
    /// # Errors
    ///
    /// The body is not such a JSON object.
    pub(crate) fn of_whole_body(body: &'a [u8], values_max: usize) -> Result<Self, JsonError> {
        match Node::read(body, values_max)? {
            Node::Object(mut members) => {
                members.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
                Ok(Self::new(String::new(), members))
            }
            other => Err(JsonError::NotAnObject { got: other.name() }),
        }
    }

    /// The members of a body, which must be an object of at most `values_max` values, in the order of the body. Members that are null count
    /// as absent.
    ///
    /// # Errors
    ///
    /// The body is not such a JSON object.
    pub(crate) fn of_lenient_body(body: &'a [u8], values_max: usize) -> Result<Self, JsonError> {
        match Node::read(body, values_max)? {
            Node::Object(members) => Ok(Self::new(String::new(), members).with_null_as_absent()),
            other => Err(JsonError::NotAnObject { got: other.name() }),
        }
    }

    /// The members of the node at a path; `None` when it is not an object, which is recorded.
    pub(crate) fn of_node(path: String, node: Node<'a>, errors: &mut Errors) -> Option<Self> {
        match node {
            Node::Object(members) => Some(Self::new(path, members)),
            other => {
                errors.push_type(path, "object", &other);
                None
            }
        }
    }

    fn new(path: String, members: Vec<(Cow<'a, str>, Node<'a>)>) -> Self {
        Self { path, members, known: Vec::new(), null_is_absent: false }
    }

    /// Treats members that are null as absent.
    pub(crate) fn with_null_as_absent(self) -> Self {
        Self { null_is_absent: true, ..self }
    }

    /// The path of a member.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// True when the object has a member, null included, that was not taken yet.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(key, _)| key == name)
    }

    /// True when the object has the member and it is null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.members.iter().any(|(key, node)| key == name && *node == Node::Null)
    }

    /// The names of the members that were not taken yet, in their order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.members.iter().map(|(key, _)| key.clone().into_owned()).collect()
    }

    /// Takes a member of any type.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.known.push(name);
        self.remove(name)
    }

    /// Takes a member of any type, whose name the client chose.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Node<'a>> {
        let at = self.members.iter().position(|(key, _)| key == name)?;
        let node = self.members.remove(at).1;
        (!self.null_is_absent || node != Node::Null).then_some(node)
    }

    /// Records an error if a required member is absent. Returns true if it is present.
    pub(crate) fn require(&self, name: &str, errors: &mut Errors) -> bool {
        let is_present = self.has(name);
        if !is_present {
            errors.push_at(&self.path(name), FieldReason::Missing, "is required");
        }
        is_present
    }

    /// Takes a string.
    pub(crate) fn text(&mut self, name: &'static str, errors: &mut Errors) -> Option<String> {
        match self.take(name)? {
            Node::Text(text) => Some(text.into_owned()),
            other => {
                errors.push_type(self.path(name), "string", &other);
                None
            }
        }
    }

    /// Takes a string of at most `bytes_max` bytes.
    pub(crate) fn text_bytes(&mut self, name: &'static str, bytes_max: usize, errors: &mut Errors) -> Option<String> {
        let text = self.text(name, errors)?;
        let is_valid = text.len() <= bytes_max;
        if !is_valid {
            let (bounds, what) = ((0, bytes_max as i64), "have a length in bytes of");
            errors.push(FieldError::bounded(self.path(name), FieldReason::TooLong, what, bounds, text.len() as i64));
        }
        is_valid.then_some(text)
    }

    /// Takes a required string of at most `bytes_max` bytes.
    pub(crate) fn required_text_bytes(
        &mut self,
        name: &'static str,
        bytes_max: usize,
        errors: &mut Errors,
    ) -> Option<String> {
        if !self.require(name, errors) {
            self.known.push(name);
            return None;
        }
        self.text_bytes(name, bytes_max, errors)
    }

    /// Takes a boolean.
    pub(crate) fn boolean(&mut self, name: &'static str, errors: &mut Errors) -> Option<bool> {
        match self.take(name)? {
            Node::Bool(flag) => Some(flag),
            other => {
                errors.push_type(self.path(name), "boolean", &other);
                None
            }
        }
    }

    /// Takes a number, whole or not.
    pub(crate) fn number(&mut self, name: &'static str, errors: &mut Errors) -> Option<f64> {
        match self.take(name)? {
            Node::Integer(number) => Some(number as f64),
            Node::Number(number) => Some(number),
            other => {
                errors.push_type(self.path(name), "number", &other);
                None
            }
        }
    }

    /// Takes a whole number.
    pub(crate) fn integer(&mut self, name: &'static str, errors: &mut Errors) -> Option<i64> {
        match self.take(name)? {
            Node::Integer(number) => Some(number),
            other => {
                errors.push_type(self.path(name), "integer", &other);
                None
            }
        }
    }

    /// Takes a whole number within inclusive bounds.
    pub(crate) fn integer_within(
        &mut self,
        name: &'static str,
        (min, max): (i64, i64),
        errors: &mut Errors,
    ) -> Option<i64> {
        let number = self.integer(name, errors)?;
        let is_valid = (min..=max).contains(&number);
        if !is_valid {
            errors.push(FieldError::bounded(self.path(name), FieldReason::OutOfRange, "be", (min, max), number));
        }
        is_valid.then_some(number)
    }

    /// Takes a string that is the name of one of the values.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        all: &[T],
        name_of: impl Fn(T) -> &'static str,
        errors: &mut Errors,
    ) -> Option<T> {
        let text = self.text(name, errors)?;
        let chosen = all.iter().copied().find(|value| name_of(*value) == text);
        if chosen.is_none() {
            let names: Vec<&str> = all.iter().map(|value| name_of(*value)).collect();
            errors.push_at(&self.path(name), FieldReason::NotAllowed, &field::one_of(&text, &names));
        }
        chosen
    }

    /// Takes an array of at most `items_max` items, each with its path; `None` when it is absent or invalid.
    pub(crate) fn items(
        &mut self,
        name: &'static str,
        items_max: usize,
        errors: &mut Errors,
    ) -> Option<Vec<(String, Node<'a>)>> {
        let path = self.path(name);
        match self.take(name)? {
            Node::Array(items) if items.len() <= items_max => {
                Some(items.into_iter().enumerate().map(|(at, item)| (format!("{path}[{at}]"), item)).collect())
            }
            Node::Array(items) => {
                let (bounds, what) = ((0, items_max as i64), "have a number of items of");
                errors.push(FieldError::bounded(path, FieldReason::TooLong, what, bounds, items.len() as i64));
                None
            }
            other => {
                errors.push_type(path, "array", &other);
                None
            }
        }
    }

    /// Takes an array of strings; `None` when it is absent or invalid.
    pub(crate) fn names_of(&mut self, name: &'static str, errors: &mut Errors) -> Option<Vec<String>> {
        self.known.push(name);
        self.texts(name, errors)
    }

    /// Takes an array of strings, whose name the client may have chosen; `None` when it is absent or invalid.
    pub(crate) fn texts(&mut self, name: &str, errors: &mut Errors) -> Option<Vec<String>> {
        let path = self.path(name);
        let items = match self.remove(name)? {
            Node::Array(items) => items,
            other => {
                errors.push_type(path, "array", &other);
                return None;
            }
        };
        let mut texts = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            match item {
                Node::Text(text) => texts.push(text.into_owned()),
                other => {
                    errors.push_type(format!("{path}[{at}]"), "string", &other);
                    return None;
                }
            }
        }
        Some(texts)
    }

    /// Takes an object; `None` when it is absent or invalid.
    pub(crate) fn object(&mut self, name: &'static str, errors: &mut Errors) -> Option<Members<'a>> {
        let (path, null_is_absent) = (self.path(name), self.null_is_absent);
        let node = self.take(name)?;
        Members::of_node(path, node, errors).map(|members| Self { null_is_absent, ..members })
    }

    /// Records the remaining members as unknown; the errors list the names that were read.
    pub(crate) fn finish(self, errors: &mut Errors) {
        let known = self.known.clone();
        self.finish_with(&known, errors);
    }

    /// Records the remaining members as unknown; the errors list `known`.
    pub(crate) fn finish_with(self, known: &[&str], errors: &mut Errors) {
        for (key, _) in &self.members {
            errors.push(unknown(self.path(key), known));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(body: &[u8], want: Expect) {
        want.assert_eq(&match Members::of_body(body) {
            Ok(members) => format!("{:?}", members.members.into_iter().collect::<BTreeMap<_, _>>()),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn members_have_their_types_and_contents_are_dropped() {
        check(
            br#"{"a":null,"b":true,"c":-3,"d":1.5,"e":2e2,"f":"x\n\ud83d\ude00","g":[1,{}],"h":{"i":1}}"#,
            expect![[
                r#"{"a": Null, "b": Bool(true), "c": Integer(-3), "d": Number(1.5), "e": Integer(200), "f": Text("x\n😀"), "g": Array([]), "h": Object([])}"#
            ]],
        );
        check(b" { } ", expect!["{}"]);
        check(
            br#"{"n":1e300,"m":18446744073709551615}"#,
            expect![[r#"{"m": Number(1.8446744073709552e19), "n": Number(1e300)}"#]],
        );
    }

    #[test]
    fn malformed_json_is_refused_with_its_position() {
        check(b"", expect!["the body is empty; JSON was expected"]);
        check(b" \r\n\t", expect!["the body is empty; JSON was expected"]);
        check(b"\xef\xbb\xbf{}", expect!["the body is not JSON: expected value at line 1, column 1"]);
        check(b"{\"a\":\"\xff\"}", expect!["the body is not UTF-8: byte 6 does not fit"]);
        check(
            b"{\n \"a\": tru }",
            expect!["the body is not JSON: expected `true`, `false` or `null` at line 2, column 10"],
        );
        check(b"{\"a\":1", expect!["the body is not JSON: it ends in the middle of an object at line 1, column 6"]);
        check(b"{\"a\":1}}", expect!["the body is not JSON: trailing characters at line 1, column 8"]);
        check(b"{\"a\":1,}", expect!["the body is not JSON: trailing comma at line 1, column 8"]);
        check(b"{'a':1}", expect!["the body is not JSON: key must be a string at line 1, column 2"]);
        check(
            b"{\"a\":\"\x00\"}",
            expect![[
                r#"the body is not JSON: control character (\u0000-\u001F) found while parsing a string at line 1, column 7"#
            ]],
        );
        check(b"{\"a\":1e999}", expect!["the body is not JSON: number out of range at line 1, column 10"]);
        check(
            br#"{"a":"\ud800 x"}"#,
            expect![[r#"a `\u` escape at line 1, column 13 is half of a surrogate pair without the other half"#]],
        );
        check(
            br#"{"a":"\udc00"}"#,
            expect![[r#"a `\u` escape at line 1, column 12 is half of a surrogate pair without the other half"#]],
        );
        check(
            br#"{"a":"\ud800\ud800"}"#,
            expect![[r#"a `\u` escape at line 1, column 18 is half of a surrogate pair without the other half"#]],
        );
        check(br#"{"a":"\uZZZZ"}"#, expect!["the body is not JSON: invalid escape at line 1, column 12"]);
    }

    #[test]
    fn keys_are_unique_at_every_depth() {
        check(br#"{"a":1,"a":2}"#, expect!["the key `a` appears twice, the second time at line 1, column 10"]);
        check(
            br#"{"a":{"b":[{"c":1,"c":2}]}}"#,
            expect!["the key `c` appears twice, the second time at line 1, column 21"],
        );
        check(
            format!(r#"{{"{0}":1,"{0}":2}}"#, "k".repeat(1000)).as_bytes(),
            expect![
                "the key `kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk` appears twice, the second time at line 1, column 2008"
            ],
        );
    }

    #[test]
    fn value_that_is_not_an_object_is_refused() {
        check(b"null", expect!["the body is null; a JSON object was expected"]);
        check(b"true", expect!["the body is a boolean; a JSON object was expected"]);
        check(b"-1", expect!["the body is a number; a JSON object was expected"]);
        check(b"1", expect!["the body is a number; a JSON object was expected"]);
        check(b"1.5", expect!["the body is a number; a JSON object was expected"]);
        check(b"\"text\"", expect!["the body is a string; a JSON object was expected"]);
        check(b"[{}]", expect!["the body is an array; a JSON object was expected"]);
    }

    #[test]
    fn depth_is_bounded() {
        check("[".repeat(100_000).as_bytes(), expect!["the body is nested too deeply at line 1, column 128"]);
        check(
            format!("{{\"x\":{}", "[".repeat(100_000)).as_bytes(),
            expect!["the body is nested too deeply at line 1, column 132"],
        );
        check(
            format!("{{\"x\":{}", "{\"x\":".repeat(100_000)).as_bytes(),
            expect!["the body is nested too deeply at line 1, column 636"],
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Members::of_body(&body);
        }

        #[test]
        fn arbitrary_string_reads_back(text in any::<String>()) {
            let body = serde_json::to_vec(&serde_json::json!({ "text": text })).expect("a string");
            let mut members = Members::of_body(&body).expect("an object");
            prop_assert_eq!(members.take("text"), Some(Node::Text(text.into())));
        }
    }
}
