//! The forms of names and dimensions in messages, where Rust's `Debug` forms, which are for developers, would be wrong.

use std::fmt::{self, Display, Write as _};

/// Characters of a name that are shown.
const NAME_CHARS_MAX: usize = 64;

/// A name in a file, in double quotes: bounded, and with control characters as JSON writes them.
pub(crate) fn quoted(name: &(impl AsRef<str> + ?Sized)) -> impl Display {
    let name = name.as_ref();
    let end = name.char_indices().nth(NAME_CHARS_MAX).map(|(end, _)| end);
    fmt::from_fn(move |f| {
        f.write_char('"')?;
        for character in name[..end.unwrap_or(name.len())].chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                control if control.is_control() => write!(f, "\\u{:04x}", u32::from(control))?,
                character => f.write_char(character)?,
            }
        }
        f.write_char('"')?;
        if end.is_some() { f.write_char('…') } else { Ok(()) }
    })
}

/// Dimensions in brackets: `[2, 3]`.
pub(crate) fn listed(sizes: &[u64]) -> impl Display {
    fmt::from_fn(move |f| {
        f.write_char('[')?;
        for (index, size) in sizes.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{size}")?;
        }
        f.write_char(']')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_quoted_bounded_and_on_one_line() {
        let check = |name: &str, expected: &str| assert_eq!(quoted(name).to_string(), expected);
        check("blk.0.attn_q.weight", "\"blk.0.attn_q.weight\"");
        check("a\"b\\c\n\u{1b}[31m", "\"a\\\"b\\\\c\\n\\u001b[31m\"");
        check(&"x".repeat(500), &format!("\"{}\"…", "x".repeat(64)));
    }

    #[test]
    fn dimensions_are_in_brackets() {
        assert_eq!(listed(&[2, 3]).to_string(), "[2, 3]");
        assert_eq!(listed(&[]).to_string(), "[]");
    }
}
