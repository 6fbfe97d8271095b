//! Forms from clients never panic: in the component a panic ends the instance with everything that it generates. The library catches its own
//! panics where they can be caught, so a hook counts them.

use std::cell::RefCell;
use std::sync::{LazyLock, Once};

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_generate::bindings::weir::stream::lm::Tokenizer as Vocabulary;
use weir_generate::constraint::{Constraints, NextTokens};
use weir_generate::tokenizer::{Tokenizer, byte_alphabet};
use weir_generate::types::Format;

thread_local! {
    /// The panics of a thread.
    static PANICS: RefCell<Vec<String>> = RefCell::default();
}
static HOOK: Once = Once::new();

/// Single bytes, some longer tokens, and one that ends a text.
static CONSTRAINTS: LazyLock<Constraints> = LazyLock::new(|| {
    let mut tokens: Vec<String> = vec!["<|end|>".into()];
    tokens.extend(byte_alphabet().into_iter().map(|(_, char)| char.to_string()));
    tokens.extend(["{\"", "\":", "true", "null", "12", "ab"].map(str::to_owned));
    let kinds = tokens.iter().enumerate().map(|(at, _)| if at == 0 { 3 } else { 1 }).collect();
    let vocabulary = Vocabulary {
        kind: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens,
        scores: Vec::new(),
        kinds,
        space_prefix: false,
        merges: Vec::new(),
    };
    Constraints::new(&Tokenizer::new(vocabulary, None).expect("a tokenizer"), &[0]).expect("constraints")
});

/// Follows a form with tokens that it allows, chosen by `choices`.
fn follow(form: &Format, choices: &[u8]) {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            before(info);
        }));
    });
    // One that was reported is no panic of this form.
    PANICS.take();
    if let Ok(mut constraint) = CONSTRAINTS.begin(form) {
        for choice in choices {
            let Ok(NextTokens::Allowed(mask)) = constraint.allowed() else { break };
            let allowed: Vec<u32> =
                (0..mask.len() as u32 * 8).filter(|token| mask[*token as usize / 8] & 1 << (token % 8) != 0).collect();
            let Some(token) = allowed.get(usize::from(*choice) % allowed.len().max(1)) else { break };
            if constraint.push(*token).unwrap_or(true) {
                break;
            }
        }
    }
    let panics = PANICS.take();
    assert!(panics.is_empty(), "{form:?}: {panics:?}");
}

/// Values that a schema might have where it should not.
fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        prop_oneof![Just(0), Just(-1), Just(1), Just(3), Just(100_000)].prop_map(Value::from),
        "[a-z#/$.*+(\\[{|\\\\^]{0,6}".prop_map(Value::from),
        prop_oneof![Just("string"), Just("object"), Just("array"), Just("integer"), Just("date-time"), Just("#")]
            .prop_map(Value::from),
    ]
}

fn schema() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 30] = [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "$ref",
        "$defs",
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "x-guidance",
        "a",
    ];
    let leaf = prop_oneof![
        4 => scalar(),
        1 => Just(json!({ "type": "string", "pattern": "^a+$" })),
        1 => Just(json!({ "type": "integer", "minimum": 5, "maximum": 3 })),
        1 => Just(json!({ "$ref": "#" })),
        1 => Just(json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] })),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(KEYS.to_vec()), inner), 0..5).prop_map(|members| {
                Value::Object(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

#[test]
fn refusal_names_the_reason_in_words() {
    for (form, want) in [
        (Format::JsonSchema(r##"{"$ref":"#"}"##.into()), "the schema cannot be used: no text has this form"),
        (Format::Grammar("start: start".into()), "the grammar cannot be used: no text has this form"),
        (Format::Regex("[^\\s\\S]".into()), "the regular expression cannot be used: no text has this form"),
    ] {
        assert_eq!(CONSTRAINTS.begin(&form).err().as_deref(), Some(want), "{form:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_schema_panics(schema in schema(), choices in prop::collection::vec(any::<u8>(), 0..24)) {
        follow(&Format::JsonSchema(schema.to_string()), &choices);
    }

    #[test]
    fn no_regular_expression_panics(
        regex in "([a-c.^$\\\\|()\\[\\]{}?*+0-9,&~-]|\\\\[pPdDwWsSbBx]|\\(\\?[:=!<]|\u{df}){0,12}",
        choices in prop::collection::vec(any::<u8>(), 0..24),
    ) {
        follow(&Format::Regex(regex), &choices);
    }

    #[test]
    fn no_grammar_panics(
        grammar in "(start: |[a-z]+: |\"[a-z]*\"|/[a-z*+\\[\\]]*/|[A-Z]+: |%[a-z]+ |\\{|\\}|\\[|\\]|[a-z]+|[A-Z]+|[|()?*+~]|[0-9]+|\\.\\.|\n){0,24}",
        choices in prop::collection::vec(any::<u8>(), 0..24),
    ) {
        follow(&Format::Grammar(grammar.clone()), &choices);
        follow(&Format::Grammar(format!("start: a\na: {grammar}\n")), &choices);
    }

    #[test]
    fn no_bytes_panic(text in "\\PC{0,40}") {
        follow(&Format::JsonSchema(text.clone()), &[0, 1, 2]);
        follow(&Format::Regex(text.clone()), &[0, 1, 2]);
        follow(&Format::Grammar(text), &[0, 1, 2]);
    }
}
