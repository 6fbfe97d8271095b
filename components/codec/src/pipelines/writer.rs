//! Writes JSON member by member, so that values that are JSON text already are copied without parsing them.

use std::fmt::Write as _;

use serde::Serialize;

/// The writer of an object.
pub(super) struct Object<'o> {
    out: &'o mut String,
    is_first: bool,
}

impl<'o> Object<'o> {
    pub(super) fn begin(out: &'o mut String) -> Self {
        out.push('{');
        Self { out, is_first: true }
    }

    pub(super) fn end(self) {
        self.out.push('}');
    }

    fn name(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.is_first) {
            self.out.push(',');
        }
        value(self.out, name);
        self.out.push(':');
        self.out
    }

    /// Writes a member whose value is JSON text already.
    pub(super) fn raw(&mut self, name: &str, json: &str) -> &mut Self {
        self.name(name).push_str(json);
        self
    }

    /// Writes a member.
    pub(super) fn value<T: Serialize + ?Sized>(&mut self, name: &str, member: &T) -> &mut Self {
        value(self.name(name), member);
        self
    }

    /// Writes a duration in milliseconds, exact, without a fraction if it is whole.
    pub(super) fn milliseconds(&mut self, name: &str, ns: u64) -> &mut Self {
        let out = self.name(name);
        let (whole, part) = (ns / 1_000_000, ns % 1_000_000);
        if part == 0 {
            write!(out, "{whole}").expect("writing to a string cannot fail");
        } else {
            let digits = format!("{part:06}");
            write!(out, "{whole}.{}", digits.trim_end_matches('0')).expect("writing to a string cannot fail");
        }
        self
    }

    /// Writes a member that is an object.
    pub(super) fn object(&mut self, name: &str, write: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        let mut object = Object::begin(self.name(name));
        write(&mut object);
        object.end();
        self
    }

    /// Writes a member that is an array of objects.
    pub(super) fn array<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Object<'_>, T),
    ) -> &mut Self {
        let out = self.name(name);
        out.push('[');
        for (at, item) in items.into_iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            let mut object = Object::begin(out);
            write(&mut object, item);
            object.end();
        }
        out.push(']');
        self
    }
}

/// Appends a value; serializing its type cannot fail.
pub(super) fn value<T: Serialize + ?Sized>(out: &mut String, value: &T) {
    let text = serde_json::to_string(value).expect("a wire type has string keys and serializes");
    out.push_str(&text);
}

/// Writes an object as JSON text.
pub(super) fn object(write: impl FnOnce(&mut Object<'_>)) -> String {
    let mut out = String::new();
    let mut object = Object::begin(&mut out);
    write(&mut object);
    object.end();
    out
}
