//! The manual: every key with its default and meaning, from the doc comments of the structs.

use serde_json::Value;

use crate::Config;
use crate::variables::{TABLES, variable};

/// A key, with its manual entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The key in the file, with dots: `http.listen`.
    pub name: String,
    /// The variable in the environment, `WEIR_HTTP_LISTEN`; empty if there is none.
    pub variable: String,
    /// The default as TOML; empty if there is none.
    pub default: String,
    /// The description.
    pub meaning: String,
}

/// Every key, ordered by name. Those of `[model.NAME]` appear once, with `NAME`; they have no variable.
pub fn keys() -> Vec<Key> {
    let schema = serde_json::to_value(schemars::schema_for!(Config)).unwrap_or_default();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut keys = Vec::new();
    walk(&schema, &schema, &defaults, "", &mut keys);
    keys
}

/// Whether the value of a key is one of several names, such as `events.store`.
pub(crate) fn is_choice(key: &str) -> bool {
    let schema = serde_json::to_value(schemars::schema_for!(Config)).unwrap_or_default();
    let node = key
        .split('.')
        .try_fold(&schema, |node, part| resolve(&schema, node).get("properties")?.get(part).map(optional));
    let is_name = |kind: &Value| kind.get("const").is_some_and(Value::is_string);
    node.map(|node| resolve(&schema, node)).is_some_and(|node| {
        let kinds = node.get("oneOf").and_then(Value::as_array);
        node.get("enum").is_some() || kinds.is_some_and(|kinds| kinds.iter().all(is_name))
    })
}

/// The keys as a Markdown table, as in `docs/reference/configuration.md`.
pub fn table_markdown() -> String {
    let mut table = String::from("| key | default | meaning |\n|---|---|---|\n");
    for key in keys() {
        table.push_str(&format!("| `{}` | {} | {} |\n", key.name, code(&key.default), key.meaning));
    }
    table
}

/// A configuration file that sets every key to its default. A key without a default is a comment.
pub fn template() -> String {
    template_with(&[])
}

/// [`template`], with other values for some keys: pairs of a key and its value in TOML.
pub fn template_with(values: &[(&str, &str)]) -> String {
    let mut text = String::from("# Every key, with its default. In the environment http.listen is WEIR_HTTP_LISTEN.\n");
    for (section, keys) in sections(&keys()) {
        // A section with NAME is a comment: the name is to be replaced. So are the tables of which there are none by default.
        let is_table = TABLES.contains(&section.split('.').next().unwrap_or_default());
        let comment = if section.contains("NAME") || is_table { "# " } else { "" };
        if !section.is_empty() {
            let title = if TABLES.contains(&section) { format!("[[{section}]]") } else { format!("[{section}]") };
            text.push_str(&format!("\n{comment}{title}\n"));
        }
        for (leaf, key) in keys {
            text.push_str(&format!("# {}\n", key.meaning));
            let value = values.iter().find(|(name, _)| *name == key.name);
            match (value, key.default.as_str()) {
                (Some((_, value)), default) => text.push_str(&format!("{leaf} = {value} # default: {default}\n")),
                (None, "") => text.push_str(&format!("# {leaf} = …\n")),
                (None, default) => text.push_str(&format!("{comment}{leaf} = {default}\n")),
            }
        }
    }
    text
}

/// The keys of each section with their last names, in the order of the first ones. A title begins another `[[table]]`, so it occurs once.
fn sections(keys: &[Key]) -> Vec<(&str, Vec<(&str, &Key)>)> {
    let mut sections: Vec<(&str, Vec<(&str, &Key)>)> = Vec::new();
    for key in keys {
        let (section, leaf) = key.name.rsplit_once('.').unwrap_or(("", &key.name));
        match sections.iter_mut().find(|(other, _)| *other == section) {
            Some((_, keys)) => keys.push((leaf, key)),
            None => sections.push((section, vec![(leaf, key)])),
        }
    }
    sections
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

fn walk(root: &Value, node: &Value, defaults: &Value, path: &str, keys: &mut Vec<Key>) {
    let node = resolve(root, node);
    if let Some(properties) = node.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let default = defaults.get(name).unwrap_or(&Value::Null);
            visit(root, property, default, &join(path, name), keys);
        }
    }
}

fn visit(root: &Value, property: &Value, default: &Value, path: &str, keys: &mut Vec<Key>) {
    let target = resolve(root, optional(property));
    if path == "adapter.errors" {
        let meaning = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
        let meaning = format!("{meaning} Its keys are those of `adapter.sink`.");
        keys.push(Key { name: path.to_owned(), variable: String::new(), default: String::new(), meaning });
    } else if let Some(kinds) = target.get("oneOf").and_then(Value::as_array)
        && kinds.iter().any(|kind| kind.pointer("/properties/kind").is_some())
    {
        visit_kinds(root, kinds, path, keys);
    } else if TABLES.contains(&path) {
        let item = resolve(root, target.get("items").unwrap_or(&Value::Null));
        let defaults = match path {
            "adapter" => serde_json::to_value(crate::Adapter::default()),
            _ => serde_json::to_value(crate::Upstream::default()),
        };
        walk(root, item, &defaults.unwrap_or_default(), path, keys);
    } else if target.get("properties").is_some() {
        walk(root, target, default, path, keys);
    } else if let Some(item) = target.get("additionalProperties")
        && resolve(root, item).get("properties").is_some()
    {
        walk(root, item, &Value::Null, &join(path, "NAME"), keys);
    } else {
        let meaning = property.get("description").or_else(|| target.get("description")).and_then(Value::as_str);
        keys.push(Key {
            name: path.to_string(),
            variable: if path.contains("NAME") { String::new() } else { variable(path) },
            default: toml(default),
            meaning: meaning.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "),
        });
    }
}

/// Adds the keys of a table whose `kind` selects its keys, for each kind.
fn visit_kinds(root: &Value, kinds: &[Value], path: &str, keys: &mut Vec<Key>) {
    let names: Vec<&str> =
        kinds.iter().filter_map(|kind| kind.pointer("/properties/kind/const").and_then(Value::as_str)).collect();
    keys.push(Key {
        name: join(path, "kind"),
        variable: String::new(),
        default: String::new(),
        meaning: format!("`{}`; the next keys are those of each kind.", names.join("`, `")),
    });
    for kind in kinds {
        let Some(name) = kind.pointer("/properties/kind/const").and_then(Value::as_str) else { continue };
        let content = resolve(root, kind);
        let mut kind_keys = Vec::new();
        if let Some(properties) = content.get("properties").and_then(Value::as_object) {
            for (key, property) in properties.iter().filter(|(key, _)| *key != "kind") {
                let default = property.get("default").unwrap_or(&Value::Null);
                visit(root, property, default, &join(path, key), &mut kind_keys);
            }
        }
        keys.extend(kind_keys.into_iter().map(|key| Key { meaning: format!("Of `{name}`: {}", key.meaning), ..key }));
    }
}

/// The schema of an optional value.
fn optional(property: &Value) -> &Value {
    let one = property.get("anyOf").and_then(Value::as_array).and_then(|any| any.first());
    one.unwrap_or(property)
}

fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    match node.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) {
        Some(pointer) => root.pointer(pointer).unwrap_or(node),
        None => node,
    }
}

fn toml(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(key, value)| format!("{} = {}", Value::from(key.as_str()), toml(value))).collect();
            format!("{{{}}}", members.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    const PAGE: &str = "\
# Configuration

<!-- Generated from the doc comments of host/config: UPDATE_EXPECT=1 cargo test --release -p weir-config -->

A setting has a key such as `http.listen`. Its value comes from, in this order, each source overriding those before it:

1. the default;
2. the TOML file of `--config FILE` (or the variable `WEIR_CONFIG`);
3. the environment: `http.listen` is `WEIR_HTTP_LISTEN`; aliases are `STREAMING_CONFIG_FILE` of `WEIR_CONFIG`, `STREAMING_LOG_LEVEL` of
   `WEIR_LOG_LEVEL`, `STREAMING_CACHE_DIR` of `WEIR_MODELS_DIR`, and `STREAMING_MODEL` of the flag `--model` of `weir stream`;
4. flags: `--set http.listen=127.0.0.1:8081`, and the flags of their own that the [command line](cli.md) has.

An unknown key is an error that names the nearest one. `weir config` prints a file with every key, its default and its
meaning; `weir config --effective FILE` prints the configuration that a file and the environment give. Names carry their
unit: `_ms`, `_bytes`, `_percent`; `_max` is the greatest value allowed.

";

    #[test]
    fn reference_page_has_every_key() {
        let page = format!("{PAGE}{}", table_markdown());
        expect_file!["../../../docs/reference/configuration.md"].assert_eq(&page);
    }

    #[test]
    fn each_leaf_is_documented() {
        let keys = keys();
        for leaf in crate::variables::leaves() {
            let key = keys.iter().find(|key| key.name == leaf).unwrap_or_else(|| panic!("{leaf} is not in the manual"));
            assert!(!key.meaning.is_empty(), "{leaf} has no meaning");
        }
        assert!(keys.iter().any(|key| key.name == "model.NAME.path"));
    }
}
