//! The known name that was probably meant.

/// The longest name that is compared, in code points.
const NAME_CODE_POINTS_MAX: usize = 64;

/// The nearest of the names that are known, when it is so near that it was likely meant: a third of its letters may differ.
pub fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let simple = |name: &str| -> Vec<char> {
        let letters = name.chars().take(NAME_CODE_POINTS_MAX + 1).flat_map(char::to_lowercase);
        letters.filter(|letter| letter.is_alphanumeric()).collect()
    };
    let wanted = simple(name);
    if wanted.len() > NAME_CODE_POINTS_MAX {
        return None;
    }
    let distances = known.iter().map(|known| (distance(&wanted, &simple(known)), *known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance * 3 <= known.len()).then_some(known)
}

/// The nearest of the names that are known, as the part of a message after the wrong name: `" (did you mean `x`?)"`, or nothing.
pub fn suggestion(name: &str, known: &[&str]) -> String {
    nearest(name, known).map(|known| format!(" (did you mean `{known}`?)")).unwrap_or_default()
}

/// How many letters must be put in, taken out or replaced to make one name of the other (Levenshtein 1966).
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
    fn misspelled_name_has_its_neighbour() {
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
