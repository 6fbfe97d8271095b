//! Keys as environment variables.

use serde_json::Value;

use crate::Config;

/// The environment variable of a key: `http.listen` is `WEIR_HTTP_LISTEN`.
pub(crate) fn variable(key: &str) -> String {
    format!("WEIR_{}", key.replace('.', "_").to_uppercase())
}

/// Every key but those of `[model.NAME]`, `[[adapter]]` and `[[upstream]]`, with its variable and its value as text: the items of a list are separated by spaces.
pub fn variables(config: &Config) -> Vec<(String, String, String)> {
    let values = serde_json::to_value(config).unwrap_or_default();
    let value = |key: &str| key.split('.').try_fold(&values, |value, part| value.get(part));
    let entry = |key: String| {
        let text = text(value(&key)?);
        let variable = variable(&key);
        Some((key, variable, text))
    };
    leaves().into_iter().filter_map(entry).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Keys of which there are several tables, or none.
pub(crate) const TABLES: [&str; 2] = ["adapter", "upstream"];

/// The keys with a default value.
pub(crate) fn leaves() -> Vec<String> {
    fn collect(value: &Value, path: &str, out: &mut Vec<String>) {
        match value {
            Value::Object(map) if path != "model" => {
                for (name, value) in map {
                    collect(value, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, out);
                }
            }
            Value::Object(_) => {}
            Value::Array(_) if TABLES.contains(&path) => {}
            _ => out.push(path.to_string()),
        }
    }
    let mut out = Vec::new();
    collect(&serde_json::to_value(Config::default()).unwrap_or_default(), "", &mut out);
    out
}
