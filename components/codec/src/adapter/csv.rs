//! CSV (RFC 4180): rows and fields. Rows end with LF or CR LF; a field in quotes may have separators and line ends.

use std::borrow::Cow;

use thiserror::Error;

/// Finds the ends of rows in bytes that arrive in pieces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowScanner {
    quoted: bool,
}

impl RowScanner {
    /// The length of the first row with its line end, in bytes; `None` when it does not end in these bytes. All of them belong to the
    /// row then, and the next call must continue after them.
    pub fn row_bytes(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => self.quoted = !self.quoted,
                b'\n' if !self.quoted => return Some(at + 1),
                _ => {}
            }
        }
        None
    }
}

/// Why a row cannot be split into fields.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CsvError {
    /// The row is not UTF-8.
    #[error("it is not UTF-8: byte {at} does not fit")]
    NotUtf8 {
        /// Index of the first byte that is not UTF-8.
        at: usize,
    },
    /// A field begins with a quote and has no closing quote.
    #[error("field {field} begins with a quote and has no closing one")]
    Unclosed {
        /// The number of the field, from 1.
        field: usize,
    },
    /// A field has text after its closing quote.
    #[error("field {field} has text after its closing quote; double a quote that is part of the text")]
    AfterQuote {
        /// The number of the field, from 1.
        field: usize,
    },
}

/// Removes the line end of a row.
pub fn without_end(row: &[u8]) -> &[u8] {
    let row = row.strip_suffix(b"\n").unwrap_or(row);
    row.strip_suffix(b"\r").unwrap_or(row)
}

/// The fields of a row.
///
/// # Errors
///
/// [`CsvError`]
pub fn fields(row: &[u8], delimiter: u8) -> Result<Vec<Cow<'_, str>>, CsvError> {
    let row = std::str::from_utf8(without_end(row)).map_err(|error| CsvError::NotUtf8 { at: error.valid_up_to() })?;
    let delimiter = char::from(delimiter);
    let (mut fields, mut rest) = (Vec::new(), row);
    loop {
        let number = fields.len() + 1;
        let (field, after) = match rest.strip_prefix('"') {
            None => match rest.split_once(delimiter) {
                Some((field, after)) => (Cow::Borrowed(field), Some(after)),
                None => (Cow::Borrowed(rest), None),
            },
            Some(inside) => {
                let (field, behind) = quoted(inside).ok_or(CsvError::Unclosed { field: number })?;
                match behind.strip_prefix(delimiter) {
                    Some(after) => (field, Some(after)),
                    None if behind.is_empty() => (field, None),
                    None => return Err(CsvError::AfterQuote { field: number }),
                }
            }
        };
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// The text up to the closing quote, and the text after it.
fn quoted(inside: &str) -> Option<(Cow<'_, str>, &str)> {
    let (mut text, mut rest) = (Cow::Borrowed(""), inside);
    loop {
        let (before, after) = rest.split_once('"')?;
        if text.is_empty() {
            text = Cow::Borrowed(before)
        } else {
            text.to_mut().push_str(before)
        }
        match after.strip_prefix('"') {
            Some(after) => {
                text.to_mut().push('"');
                rest = after;
            }
            None => return Some((text, after)),
        }
    }
}

/// A row of fields, quoted where they need it, without a line end.
pub fn row<'a>(fields: impl IntoIterator<Item = &'a str>, delimiter: u8) -> String {
    let delimiter = char::from(delimiter);
    let mut row = String::new();
    for (at, field) in fields.into_iter().enumerate() {
        if at > 0 {
            row.push(delimiter);
        }
        if field.contains([delimiter, '"', '\n', '\r']) {
            row.push('"');
            row.push_str(&field.replace('"', "\"\""));
            row.push('"');
        } else {
            row.push_str(field);
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn row_is_split_into_its_fields() {
        for (row, want) in [
            ("a,b\r\n", vec!["a", "b"]),
            ("", vec![""]),
            (",", vec!["", ""]),
            ("\"a,b\",\"c\"\"d\"\n", vec!["a,b", "c\"d"]),
            ("\"\",\"x\ny\"", vec!["", "x\ny"]),
            ("a\"b,c", vec!["a\"b", "c"]),
        ] {
            assert_eq!(fields(row.as_bytes(), b',').unwrap(), want, "{row}");
        }
        assert_eq!(fields(b"a,\"b", b','), Err(CsvError::Unclosed { field: 2 }));
        assert_eq!(fields(b"\"a\"b", b','), Err(CsvError::AfterQuote { field: 1 }));
        assert_eq!(fields(b"a,\xff", b','), Err(CsvError::NotUtf8 { at: 2 }));
    }

    proptest! {
        #[test]
        fn written_rows_are_read_back(cells in prop::collection::vec("[a,\"\n\r;x]{0,6}", 1..5), cut in any::<prop::sample::Index>()) {
            let text = row(cells.iter().map(String::as_str), b',') + "\n";
            prop_assert_eq!(fields(text.as_bytes(), b',').unwrap(), cells.iter().map(|c| c.as_str()).collect::<Vec<_>>());
            // The row ends at its own line end, wherever the bytes are cut.
            let both = format!("{text}next");
            let (first, second) = both.as_bytes().split_at(cut.index(both.len()));
            let mut scanner = RowScanner::default();
            let length = scanner.row_bytes(first).or_else(|| scanner.row_bytes(second).map(|length| first.len() + length));
            prop_assert_eq!(length, Some(text.len()));
        }

        #[test]
        fn any_bytes_are_fields_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = fields(&bytes, b',');
        }
    }
}
