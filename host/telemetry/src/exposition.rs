//! A reader of the exposition format of Prometheus, as servers of this project write it.

use std::borrow::Cow;

/// A line with a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// The name of the metric, of histograms with `_bucket`, `_sum` or `_count`.
    pub name: &'a str,
    /// The labels with their values as they are written, without the braces.
    pub label_text: &'a str,
    /// The value.
    pub value: f64,
}

/// The samples of a text. Lines that are not understood are left out.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(Sample::read)
}

impl<'a> Sample<'a> {
    /// Reads a line; none if it is a comment, or not understood.
    pub fn read(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let (name, label_text) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        Some(Self { name, label_text, value })
    }

    /// The labels and their values; none if they are not understood.
    pub fn labels(&self) -> Option<Vec<(&'a str, Cow<'a, str>)>> {
        let mut rest = self.label_text;
        let mut labels = Vec::new();
        while !rest.is_empty() {
            let (name, after) = rest.split_once("=\"")?;
            let end = value_end(after)?;
            let (value, after) = (&after[..end], &after[end + 1..]);
            labels.push((name, if value.contains('\\') { unescape(value).into() } else { value.into() }));
            rest = after.trim_start_matches(',');
        }
        Some(labels)
    }

    /// The value of a label, if there is one.
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        self.labels()?.into_iter().find(|(label, _)| *label == name).map(|(_, value)| value)
    }
}

/// The position of the quote that ends a value.
fn value_end(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (end, '"') => return Some(end),
            (_, '\\') => drop(characters.next()?),
            _ => {}
        }
    }
}

/// A value without its escapes, of which each has its character.
fn unescape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => text.push('\n'),
                other => text.extend(other),
            },
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_names_labels_and_values() {
        let text = "# HELP x y\n# TYPE x gauge\nweir_adapter_state{adapter=\"a\",state=\"running\"} 1\n\
                    weir_http_requests_open 3\n\nx -1.5\nbroken\nx{a=\"1\" 2\n";
        let all: Vec<Sample<'_>> = samples(text).collect();
        let sample = |name, label_text, value| Sample { name, label_text, value };
        let labels = "adapter=\"a\",state=\"running\"";
        let expected = [
            sample("weir_adapter_state", labels, 1.0),
            sample("weir_http_requests_open", "", 3.0),
            sample("x", "", -1.5),
        ];
        assert_eq!(all, expected);
        assert_eq!(all[0].labels(), Some(vec![("adapter", "a".into()), ("state", "running".into())]));
        assert_eq!((all[0].label("state"), all[0].label("model")), (Some("running".into()), None));
        assert_eq!(all[1].labels(), Some(Vec::new()));
    }

    #[test]
    fn values_of_labels_are_unescaped() {
        let labels = |text| Sample { name: "x", label_text: text, value: 0.0 }.labels();
        let path = ("path", Cow::from("a \"b\", c\\\nd"));
        assert_eq!(labels(r#"method="GET",path="a \"b\", c\\\nd""#), Some(vec![("method", "GET".into()), path]));
        for text in ["a", "a=1", "a=\"", "a=\"b", "a=\"b\\", "a=\"b\\\""] {
            assert_eq!(labels(text), None, "{text}");
        }
    }
}
