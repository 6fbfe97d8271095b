//! The fields of an object, taken one by one; what is wrong with any is listed.

use std::borrow::Cow;

use crate::{
    inference::task::unknown,
    json::tree::Node,
    pipelines::process_request::{ERRORS_MAX, FieldError, FieldReason},
};

/// What is left of an object, and what was wrong so far.
pub(super) struct Fields<'a, 'e> {
    /// What stands before the names of its fields, with a point at its end.
    place: String,
    members: Vec<(Cow<'a, str>, Node<'a>)>,
    errors: &'e mut Vec<FieldError>,
}

impl<'a, 'e> Fields<'a, 'e> {
    /// The fields of a node that must be an object.
    pub(super) fn new(place: String, node: Node<'a>, errors: &'e mut Vec<FieldError>) -> Self {
        let members = match node {
            Node::Object(members) => members,
            node => {
                let field = place.trim_end_matches('.').to_owned();
                errors.push(FieldError::wrong_type(field, "object", node.name()));
                Vec::new()
            }
        };
        Self { place, members, errors }
    }

    fn field(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// A field; null is the same as none.
    fn take(&mut self, name: &str) -> Option<Node<'a>> {
        let at = self.members.iter().position(|(key, _)| key == name)?;
        Some(self.members.remove(at).1).filter(|node| *node != Node::Null)
    }

    /// Notes that a field has another type.
    fn wrong<T>(&mut self, name: &str, expected: &'static str, got: &Node<'_>) -> Option<T> {
        let field = self.field(name);
        self.errors.push(FieldError::wrong_type(field, expected, got.name()));
        None
    }

    /// Notes that a field is wrong.
    pub(super) fn refuse(&mut self, name: &str, reason: FieldReason, message: String) {
        let field = self.field(name);
        self.errors.push(FieldError::new(field, reason, message));
    }

    /// A number of any kind.
    pub(super) fn number(&mut self, name: &str, to: &mut f64) {
        let value = match self.take(name) {
            None => None,
            Some(Node::Integer(value)) => Some(value as f64),
            Some(Node::Number(value)) => Some(value),
            Some(node) => self.wrong(name, "number", &node),
        };
        *to = value.unwrap_or(*to);
    }

    /// A whole number that is not negative.
    pub(super) fn whole<T: TryFrom<i64>>(&mut self, name: &str, to: &mut T) {
        let Some(node) = self.take(name) else { return };
        let Node::Integer(value) = node else {
            self.wrong::<T>(name, "integer", &node);
            return;
        };
        match T::try_from(value) {
            Ok(value) => *to = value,
            Err(_) => {
                let field = self.field(name);
                let bounds = (0, i64::from(u32::MAX));
                self.errors.push(FieldError::bounded(field, FieldReason::OutOfRange, "be", bounds, value));
            }
        }
    }

    /// True or false.
    pub(super) fn flag(&mut self, name: &str, to: &mut bool) {
        let value = match self.take(name) {
            None => None,
            Some(Node::Bool(value)) => Some(value),
            Some(node) => self.wrong(name, "boolean", &node),
        };
        *to = value.unwrap_or(*to);
    }

    /// A list of strings.
    pub(super) fn names(&mut self, name: &str) -> Option<Vec<String>> {
        let items = match self.take(name)? {
            Node::Array(items) => items,
            node => return self.wrong(name, "array", &node),
        };
        let mut names = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            match item {
                Node::Text(text) => names.push(text.into_owned()),
                node => return self.wrong(&format!("{name}[{at}]"), "string", &node),
            }
        }
        Some(names)
    }

    /// An object within; its fields are read by `read`.
    pub(super) fn object(&mut self, name: &str, read: impl FnOnce(&mut Fields<'a, '_>)) {
        let Some(node) = self.take(name) else { return };
        let mut fields = Fields::new(format!("{}{name}.", self.place), node, self.errors);
        read(&mut fields);
    }

    /// The names of all fields that are left.
    pub(super) fn keys(&self) -> Vec<String> {
        self.members.iter().map(|(key, _)| key.clone().into_owned()).collect()
    }

    /// Notes what is left as unknown.
    pub(super) fn rest(&mut self, known: &[&str]) {
        for (key, _) in std::mem::take(&mut self.members).into_iter().take(ERRORS_MAX + 1) {
            self.errors.push(unknown(format!("{}{key}", self.place), known));
        }
    }
}
