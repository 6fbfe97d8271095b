//! A pipeline step as a component: masks digits and e-mail addresses in all texts of its input, a JSON value.
//!
//! ```sh
//! cargo build --release --target wasm32-wasip2 -p step-example
//! ```

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        path: "../../wit",
        world: "step-component",
        generate_all,
    });
}

use bindings::exports::weir::stream::step::{Failure, Guest};
use serde_json::Value;

struct Mask;
bindings::export!(Mask with_types_in bindings);

impl Guest for Mask {
    async fn run(input: String, config: String) -> Result<String, Failure> {
        let mut value: Value = serde_json::from_str(&input).map_err(|error| failure("input", &error.to_string()))?;
        let config: Value = serde_json::from_str(&config).map_err(|error| failure("config", &error.to_string()))?;
        let mask = match &config["mask"] {
            Value::Null => "*",
            Value::String(mask) => mask,
            other => return Err(failure("config", &format!("`mask` is {other}, not a text"))),
        };
        mask_texts(&mut value, mask);
        Ok(value.to_string())
    }
}

fn failure(code: &str, message: &str) -> Failure {
    Failure { code: code.to_owned(), message: message.to_owned(), retryable: false }
}

/// Masks all texts of a value, at any depth.
fn mask_texts(value: &mut Value, mask: &str) {
    match value {
        Value::String(text) => *text = masked(text, mask),
        Value::Array(items) => items.iter_mut().for_each(|item| mask_texts(item, mask)),
        Value::Object(members) => members.values_mut().for_each(|member| mask_texts(member, mask)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Masks words that contain an `@`, and digits in other words.
fn masked(text: &str, mask: &str) -> String {
    let words = text.split(' ').map(|word| {
        if word.contains('@') {
            return mask.repeat(word.chars().count());
        }
        word.chars().map(|it| if it.is_numeric() { mask.to_owned() } else { it.to_string() }).collect()
    });
    words.collect::<Vec<String>>().join(" ")
}
