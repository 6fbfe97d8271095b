//! Suggestions for misspelled names.

/// The longest name that is compared, in code points.
const NAME_CODE_POINTS_MAX: usize = 64;

/// The nearest known name, if at most a third of its letters differ.
pub fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let simple = |name: &str| -> Vec<char> {
        let letters = name.chars().take(NAME_CODE_POINTS_MAX + 1).flat_map(char::to_lowercase);
        letters.filter(|letter| letter.is_alphanumeric()).collect()
    };
    let letters = simple(name);
    if letters.len() > NAME_CODE_POINTS_MAX {
        return None;
    }
    let distances = known.iter().map(|known| (distance(&letters, &simple(known)), *known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance * 3 <= known.len()).then_some(known)
}

/// The nearest known name as the part of a message after the wrong name: `" (did you mean `x`?)"`, or an empty text.
pub fn suggestion(name: &str, known: &[&str]) -> String {
    nearest(name, known).map(|known| format!(" (did you mean `{known}`?)")).unwrap_or_default()
}

/// The number of letters to insert, remove or replace to convert one name to the other (Levenshtein 1966).
fn distance(one: &[char], other: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let replaced = before + usize::from(a != b);
            before = row[j + 1];
            row[j + 1] = replaced.min(before + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_known_name_is_suggested() {
        let known = ["text", "include_sentiment", "include_summary", "include_entities", "chunk_size"];
        for (name, want) in [
            ("include_entity", Some("include_entities")),
            ("includeEntities", Some("include_entities")),
            ("chunksize", Some("chunk_size")),
            ("Text", Some("text")),
            ("txet", None),
            ("texts", Some("text")),
            ("model", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), want, "{name}");
        }
        assert_eq!(nearest(&"text".repeat(1000), &known), None);
        assert_eq!(nearest("text", &[]), None);
    }
}
