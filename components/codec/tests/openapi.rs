//! Checks that `components/gateway/openapi.json` agrees with the wire types. `UPDATE=1 cargo test -p weir-codec --test openapi` regenerates
//! it.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use serde_json::{Value, json};
use weir_codec::{
    channels::route::CHANNEL_ROUTES, generation::route::GENERATION_ROUTES, http::route::ROUTES, openapi::document,
    pipelines::route::PIPELINE_ROUTES, transcripts::route::SESSION_ROUTES,
};

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../gateway/openapi.json")
}

#[test]
fn file_agrees_with_the_types() {
    let document = document(env!("CARGO_PKG_VERSION"));
    if env::var_os("UPDATE").is_some() {
        let text = serde_json::to_string_pretty(&document).expect("JSON");
        fs::write(file(), text + "\n").expect("the file can be written");
    }
    let text = fs::read_to_string(file()).expect("the file is there");
    let stored: Value = serde_json::from_str(&text).expect("the file is JSON");
    // Compared as values: the order of members depends on features that other crates enable.
    assert!(stored == document, "openapi.json is stale: run `UPDATE=1 cargo test -p weir-codec --test openapi`");
}

#[test]
fn each_route_is_described() {
    let document = document("0.0.0");
    let paths = document["paths"].as_object().expect("paths");
    let others = || CHANNEL_ROUTES.into_iter().chain(GENERATION_ROUTES).chain(SESSION_ROUTES).chain(PIPELINE_ROUTES);
    let other_paths: BTreeSet<_> = others().map(|(_, path)| path).collect();
    assert_eq!(paths.len(), ROUTES.len() + other_paths.len());
    for (path, route) in ROUTES {
        let method = if route.posts() { "post" } else { "get" };
        assert!(paths[path][method]["responses"].is_object(), "{path}");
    }
    for (method, path) in others() {
        assert!(paths[path][method.to_ascii_lowercase()]["responses"].is_object(), "{path}");
    }
}

#[test]
fn request_has_its_bounds_and_defaults() {
    let document = document("0.0.0");
    let request = &document["components"]["schemas"]["ProcessRequest"];
    assert_eq!(request["required"], json!(["text"]));
    let property = |name: &str| &request["properties"][name];
    assert_eq!((&property("text")["minLength"], &property("text")["maxLength"]), (&json!(10), &json!(5000)));
    assert_eq!(property("chunk_size")["minimum"], 50);
    assert_eq!(property("chunk_size")["maximum"], 500);
    assert_eq!(property("chunk_size")["default"], 200);
    assert_eq!(property("include_sentiment")["default"], true);
    assert_eq!(property("include_summary")["default"], true);
    assert_eq!(property("include_entities")["default"], false);
}

#[test]
fn references_resolve() {
    fn references<'a>(value: &'a Value, pointers: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                pointers.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|member| references(member, pointers));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, pointers)),
            _ => {}
        }
    }
    let document = document("0.0.0");
    let mut pointers = Vec::new();
    references(&document, &mut pointers);
    assert!(!pointers.is_empty());
    for reference in pointers {
        let pointer = reference.strip_prefix('#').expect("a reference within the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
