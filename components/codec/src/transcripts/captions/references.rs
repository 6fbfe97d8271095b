//! Decodes character references (`&eacute;`, `&#39;`, `&#x27;`) by the HTML standard (section 13.2.5.72 and the following).
//!
//! WebVTT uses the rules for text outside of attributes: legacy names are also recognized without a semicolon, and the longest matching
//! name is used. Other text is literal.

use std::sync::OnceLock;

/// The named references of the HTML standard, one per line, sorted by bytes: the name, then its code points in hexadecimal. Names that are
/// recognized without a semicolon are also listed without it.
const NAMED: &str = include_str!("references.txt");

/// Length of the longest name, in bytes, with its semicolon.
const NAME_BYTES_MAX: usize = 32;

/// The characters of the numbers from 0x80 to 0x9F: those of windows-1252, if it defines one.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Appends the character of the reference at the beginning of `text`. Returns the length of the reference in bytes, or `None` if there is
/// no reference.
pub(super) fn decode(text: &str, out: &mut String) -> Option<usize> {
    let after = text.strip_prefix('&')?;
    match after.strip_prefix('#') {
        Some(number) => decode_numeric(number, out).map(|length| length + 2),
        None => decode_named(after, out).map(|length| length + 1),
    }
}

/// A text with its references decoded.
pub(super) fn decode_all(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let width = decode(rest, &mut out).unwrap_or_else(|| {
            out.push('&');
            1
        });
        rest = &rest[width..];
    }
    out.push_str(rest);
    out
}

/// Decodes `39;` or `x27;`; the semicolon may be missing.
fn decode_numeric(text: &str, out: &mut String) -> Option<usize> {
    let (digits, radix) = match text.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let count = digits.bytes().take_while(|byte| (*byte as char).is_digit(radix)).count();
    if count == 0 {
        return None;
    }
    // A number that overflows is not a character, as one above U+10FFFF.
    let number = u32::from_str_radix(&digits[..count], radix).unwrap_or(u32::MAX);
    out.push(match number {
        0x80..=0x9f => WINDOWS_1252[number as usize - 0x80],
        0 => char::REPLACEMENT_CHARACTER,
        _ => char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER),
    });
    let semicolon = digits[count..].starts_with(';');
    Some(text.len() - digits.len() + count + usize::from(semicolon))
}

/// Decodes the longest name at the beginning of `text`.
fn decode_named(text: &str, out: &mut String) -> Option<usize> {
    static TABLE: OnceLock<Vec<(&str, &str)>> = OnceLock::new();
    let table = TABLE.get_or_init(|| NAMED.lines().filter_map(|line| line.split_once(' ')).collect());
    let letters = text.bytes().take(NAME_BYTES_MAX).take_while(u8::is_ascii_alphanumeric).count();
    let semicolon = text[letters..].starts_with(';') && letters < NAME_BYTES_MAX;
    let longest = letters + usize::from(semicolon);
    (1..=longest).rev().find_map(|length| {
        let at = table.binary_search_by_key(&&text[..length], |(name, _)| name).ok()?;
        let code_points = table[at].1.split(' ').filter_map(|hex| u32::from_str_radix(hex, 16).ok());
        out.extend(code_points.filter_map(char::from_u32));
        Some(length)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_are_decoded_as_in_html() {
        for (text, want) in [
            ("O&#39;Brien &quot;caf&eacute;&quot;", "O'Brien \"café\""),
            ("&#x27;&#X2019;&#8217", "'’’"),
            ("&amp;lt; &lt;b&gt;", "&lt; <b>"),
            ("&notin; &notit; &not", "∉ ¬it; ¬"),
            ("&CounterClockwiseContourIntegral;&NotEqualTilde;", "∳≂\u{338}"),
            ("&eacute &Eacute;", "é É"),
            ("&#146;&#x80;&#129;", "’€\u{81}"),
            ("&#0;&#xD800;&#x110000;&#99999999999999999999;", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("AT&T R&D a & b &; &# &#x &#xg; &nosuchname; &", "AT&T R&D a & b &; &# &#x &#xg; &nosuchname; &"),
        ] {
            assert_eq!(decode_all(text), want, "{text}");
        }
    }

    #[test]
    fn each_name_of_the_table_is_decoded() {
        assert!(NAMED.lines().is_sorted_by_key(|line| line.split(' ').next()));
        for line in NAMED.lines() {
            let (name, code_points) = line.split_once(' ').unwrap();
            let want: String = code_points
                .split(' ')
                .map(|hex| char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap())
                .collect();
            assert_eq!(decode_all(&format!("&{name} ")), format!("{want} "));
            assert!(name.len() <= NAME_BYTES_MAX);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_decoded(text in "[&#xX0-9a-f;é a]{0,40}") {
            decode_all(&text);
        }
    }
}
