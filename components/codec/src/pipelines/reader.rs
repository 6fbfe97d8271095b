//! JSON objects read member by member; every mistake is told with its path, and what is left over is a mistake too.

use std::borrow::Cow;

use crate::{
    inference::task::unknown,
    json::tree::Node,
    pipelines::process_request::{ERRORS_MAX, FieldError, FieldReason},
};

/// The mistakes so far.
#[derive(Debug, Default)]
pub(super) struct Errors(Vec<FieldError>);

impl Errors {
    pub(super) fn push(&mut self, error: FieldError) {
        // One more than is shown says that there are more.
        if self.0.len() <= ERRORS_MAX {
            self.0.push(error);
        }
    }

    pub(super) fn tell(&mut self, path: &str, reason: FieldReason, what: &str) {
        self.push(FieldError::new(path, reason, format!("`{path}` {what}")));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// An object whose members are taken one by one.
pub(super) struct Members<'a> {
    path: String,
    members: Vec<(Cow<'a, str>, Node<'a>)>,
    known: Vec<&'static str>,
}

impl<'a> Members<'a> {
    pub(super) fn read(path: String, node: Node<'a>, errors: &mut Errors) -> Option<Self> {
        match node {
            Node::Object(members) => Some(Self { path, members, known: Vec::new() }),
            other => {
                errors.push(FieldError::wrong_type(path, "object", other.name()));
                None
            }
        }
    }

    /// The path of a member.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// True when there is such a member, not taken yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(key, _)| key == name)
    }

    /// A member as it is.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.known.push(name);
        let at = self.members.iter().position(|(key, _)| key == name)?;
        Some(self.members.remove(at).1)
    }

    /// Tells that a member is required.
    pub(super) fn missing(&self, name: &str, errors: &mut Errors) {
        errors.tell(&self.path(name), FieldReason::Missing, "is required");
    }

    /// A string of at most so many bytes.
    pub(super) fn text(&mut self, name: &'static str, bytes_max: usize, errors: &mut Errors) -> Option<String> {
        match self.take(name)? {
            Node::Text(text) if text.len() <= bytes_max => Some(text.into_owned()),
            Node::Text(text) => {
                let (bounds, bytes) = ((0, bytes_max as i64), text.len() as i64);
                let what = "have a length in bytes of";
                errors.push(FieldError::bounded(self.path(name), FieldReason::TooLong, what, bounds, bytes));
                None
            }
            other => {
                errors.push(FieldError::wrong_type(self.path(name), "string", other.name()));
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn required(&mut self, name: &'static str, bytes_max: usize, errors: &mut Errors) -> Option<String> {
        if !self.has(name) {
            self.known.push(name);
            self.missing(name, errors);
            return None;
        }
        self.text(name, bytes_max, errors)
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool, errors: &mut Errors) -> bool {
        match self.take(name) {
            None => default,
            Some(Node::Bool(flag)) => flag,
            Some(other) => {
                errors.push(FieldError::wrong_type(self.path(name), "boolean", other.name()));
                default
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        (min, max): (u64, u64),
        default: u64,
        errors: &mut Errors,
    ) -> u64 {
        match self.take(name) {
            None => default,
            Some(Node::Integer(number)) => match u64::try_from(number) {
                Ok(number) if (min..=max).contains(&number) => number,
                _ => {
                    let bounds = (min as i64, max as i64);
                    let error = FieldError::bounded(self.path(name), FieldReason::OutOfRange, "be", bounds, number);
                    errors.push(error);
                    default
                }
            },
            Some(other) => {
                errors.push(FieldError::wrong_type(self.path(name), "integer", other.name()));
                default
            }
        }
    }

    /// One of the names.
    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        all: &[T],
        name_of: impl Fn(T) -> &'static str,
        default: Option<T>,
        errors: &mut Errors,
    ) -> Option<T> {
        let path = self.path(name);
        match self.take(name) {
            None => {
                if default.is_none() {
                    self.missing(name, errors);
                }
                default
            }
            Some(Node::Text(text)) => {
                let chosen = all.iter().copied().find(|value| name_of(*value) == text);
                if chosen.is_none() {
                    let names: Vec<&str> = all.iter().map(|value| name_of(*value)).collect();
                    errors.tell(&path, FieldReason::NotAllowed, &format!("must be one of {}", names.join(", ")));
                }
                chosen
            }
            Some(other) => {
                errors.push(FieldError::wrong_type(path, "string", other.name()));
                None
            }
        }
    }

    /// The items of an array of at most so many, each with its path; none when it is absent or wrong.
    pub(super) fn items(
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
                let (bounds, count) = ((0, items_max as i64), items.len() as i64);
                errors.push(FieldError::bounded(
                    path,
                    FieldReason::TooLong,
                    "have a number of items of",
                    bounds,
                    count,
                ));
                None
            }
            other => {
                errors.push(FieldError::wrong_type(path, "array", other.name()));
                None
            }
        }
    }

    /// What was not taken is not known.
    pub(super) fn finish(self, errors: &mut Errors) {
        for (key, _) in &self.members {
            errors.push(unknown(self.path(key), &self.known));
        }
    }
}
