//! Suggestions for mistyped names.

use crate::manual::keys;

/// The key or section that `name` probably means if it is mistyped, lacks its section or has hyphens. In keys of
/// `[model.NAME]`, NAME is replaced by the model in `name`.
pub fn suggest_key(name: &str) -> Option<String> {
    let keys = keys_of_model(name);
    let sections = keys.iter().filter_map(|key| key.split('.').next());
    suggest(name, keys.iter().map(String::as_str).chain(sections)).map(str::to_owned)
}

/// Whether `name` is a key of the configuration.
pub(crate) fn is_key(name: &str) -> bool {
    keys_of_model(name).iter().any(|key| key == name)
}

/// Every key; in those of `[model.NAME]`, NAME is replaced by the model in `name`, if it has one.
fn keys_of_model(name: &str) -> Vec<String> {
    let model = name.strip_prefix("model.").and_then(|rest| rest.split('.').next()).unwrap_or("NAME");
    keys().into_iter().map(|key| key.name.replace(".NAME.", &format!(".{model}."))).collect()
}

/// The candidate that `name` probably means; `None` if none is similar.
pub fn suggest<'a>(name: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let plain = name.to_lowercase().replace('-', "_");
    let is_last = |key: &&str| key.rsplit_once('.').is_some_and(|(_, last)| last == plain);
    let mut with_section = candidates.clone().filter(is_last);
    if let Some(only) = with_section.next().filter(|_| with_section.next().is_none()) {
        return Some(only);
    }
    let near = candidates.map(|candidate| (distance(&plain, candidate), candidate)).min()?;
    // A third of the letters may be wrong, and at least one.
    (near.0 * 3 <= plain.chars().count().max(3)).then_some(near.1)
}

/// The optimal string alignment distance: insertions, removals, replacements, and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        for (name, want) in [
            ("http.request_max", Some("http.requests_max")),
            ("http.reqeusts_max", Some("http.requests_max")),
            ("htp.requests_max", Some("http.requests_max")),
            ("http.requests-max", Some("http.requests_max")),
            ("requests_max", Some("http.requests_max")),
            ("requests-max", Some("http.requests_max")),
            ("HTTP.LISTEN", Some("http.listen")),
            ("htp", Some("http")),
            ("model.mine.pth", Some("model.mine.path")),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(suggest_key(name).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "", 3), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
