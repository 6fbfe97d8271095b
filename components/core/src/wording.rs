//! The forms of names and dimensions in messages, instead of the `Debug` forms of Rust, which are for developers.

use std::fmt::{self, Display, Write as _};

/// The most characters of a name that are shown.
const NAME_CHARS_MAX: usize = 64;

/// A name from a file or a guest in double quotes, with at most 64 characters, and control characters escaped as in JSON.
pub fn quoted(name: &(impl AsRef<str> + ?Sized)) -> impl Display {
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
pub fn listed<T: Display>(sizes: &[T]) -> impl Display {
    fmt::from_fn(move |f| {
        f.write_char('[')?;
        for (index, size) in sizes.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            size.fmt(f)?;
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
        check("input_ids", "\"input_ids\"");
        check("l'été 日本", "\"l'été 日本\"");
        check("a\"b\\c\n\u{1b}[31m", "\"a\\\"b\\\\c\\n\\u001b[31m\"");
        check(&"x".repeat(500), &format!("\"{}\"…", "x".repeat(64)));
    }

    #[test]
    fn dimensions_are_in_brackets() {
        assert_eq!(listed(&[2_usize, 3]).to_string(), "[2, 3]");
        assert_eq!(listed::<u32>(&[]).to_string(), "[]");
    }
}
