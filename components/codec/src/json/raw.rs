//! A member of an object as JSON text without white space, for values that are passed through. Unlike in a tree, numbers keep their
//! digits and members their order.

use std::borrow::Cow;

/// A member's value as JSON text on one line, and its nesting depth: 0 for a scalar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) text: Box<str>,
    pub(crate) depth: usize,
}

/// The member of the object in `body`, which must have been checked with [`Node`](super::tree::Node).
pub(crate) fn member(body: &[u8], name: &str) -> Option<Raw> {
    let mut rest = skip_space(body).strip_prefix(b"{")?;
    loop {
        let key = skip_space(rest);
        let (key, after) = key.split_at_checked(string_bytes(key)?)?;
        rest = skip_space(after).strip_prefix(b":")?;
        let value = skip_space(rest);
        let (raw, bytes) = take_value(value)?;
        if key_is(key, name) {
            return Some(raw);
        }
        rest = skip_space(&value[bytes..]).strip_prefix(b",")?;
    }
}

fn key_is(quoted: &[u8], name: &str) -> bool {
    serde_json::from_slice::<Cow<'_, str>>(quoted).is_ok_and(|key| key == name)
}

fn skip_space(text: &[u8]) -> &[u8] {
    text.trim_ascii_start()
}

/// The length of the string at the beginning of a text, in bytes, with its quotes.
pub(crate) fn string_bytes(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    (text.first() == Some(&b'"')).then_some(())?;
    loop {
        at += text.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// The value at the beginning of a text, and its length there in bytes.
fn take_value(text: &[u8]) -> Option<(Raw, usize)> {
    let mut compact = Vec::new();
    let (mut at, mut open, mut depth) = (0, 0_usize, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                let bytes = string_bytes(&text[at..])?;
                compact.extend_from_slice(&text[at..at + bytes]);
                at += bytes;
                if open == 0 {
                    break;
                }
                continue;
            }
            b'{' | b'[' => {
                open += 1;
                depth = depth.max(open);
            }
            b'}' | b']' | b',' if open == 0 => break,
            b'}' | b']' => open -= 1,
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            compact.push(*byte);
        }
        at += 1;
        if open == 0 && matches!(byte, b'}' | b']') {
            break;
        }
    }
    Some((Raw { text: String::from_utf8(compact).ok()?.into(), depth }, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn member_is_returned_without_white_space() {
        let body =
            br#" { "a\"}" : "}{" , "me\u0074a":{ "x" : [ 1.10 , {} ] , "y z":"a  b\\" } ,"n": -1e400 , "t":true} "#;
        let text = |name| member(body, name).map(|raw| (raw.text.into_string(), raw.depth));
        assert_eq!(text("meta"), Some((r#"{"x":[1.10,{}],"y z":"a  b\\"}"#.to_owned(), 3)));
        assert_eq!(text("a\"}"), Some((r#""}{""#.to_owned(), 0)));
        assert_eq!(text("n"), Some(("-1e400".to_owned(), 0)));
        assert_eq!(text("t"), Some(("true".to_owned(), 0)));
        assert_eq!(text("x"), None);
        assert_eq!(member(b"{}", "x"), None);
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(serde_json::Value::from),
            any::<bool>().prop_map(serde_json::Value::from),
            "[\\\\\"{},\\]: \n]{0,6}|\\PC{0,4}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::hash_map("[a-c\"\\\\]{0,3}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn member_equals_that_of_a_tree(first in value(), second in value()) {
            let tree = serde_json::json!({ "a": first, "b": second });
            let body = serde_json::to_vec_pretty(&tree).expect("a tree is JSON");
            for name in ["a", "b"] {
                let raw = member(&body, name).expect("it is there");
                prop_assert_eq!(&*raw.text, serde_json::to_string(&tree[name]).expect("JSON"));
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(body in "[\\\\\"{},\\]\\[: a1]{0,40}") {
            let _ = member(body.as_bytes(), "a");
        }
    }
}
