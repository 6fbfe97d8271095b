//! JSON Web Keys and sets of them (RFC 7517) for the three algorithms.
//!
//! An unusable key is skipped with its reason, as section 5 recommends: an issuer that adds a key of a new type must
//! not make the other keys unusable.

use std::borrow::Cow;

use thiserror::Error;
use weir_codec::json::tree::Node;

use crate::{
    base64url,
    key::{Algorithm, Key, KeyError},
    key_list::{KeyFile, KeyLocation, SkippedKey},
};

/// Most values in the JSON of a set.
const VALUES_MAX: usize = 4096;
/// Most characters of a value in an error.
const VALUE_CHARS_MAX: usize = 32;

/// Why a JWKS cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JwksError {
    /// It is not JSON, or names a member twice.
    #[error("the JWKS cannot be read: {0}")]
    Json(String),
    /// It is not a set, a key or an array.
    #[error("a JWKS is an object with an array `keys` of objects")]
    Shape,
}

/// Parses a JWKS, an array of JWKs, or a single JWK.
pub(crate) fn read(text: &str) -> Result<KeyFile, JwksError> {
    let node = Node::read(text.as_bytes(), VALUES_MAX).map_err(|error| JwksError::Json(error.to_string()))?;
    let nodes = match node {
        Node::Array(nodes) => nodes,
        Node::Object(mut members) => match members.iter().position(|(name, _)| name == "keys") {
            Some(at) => match members.swap_remove(at).1 {
                Node::Array(nodes) => nodes,
                _ => return Err(JwksError::Shape),
            },
            None if members.iter().any(|(name, _)| name == "kty") => vec![Node::Object(members)],
            None => return Err(JwksError::Shape),
        },
        _ => return Err(JwksError::Shape),
    };
    let mut file = KeyFile { keys: Vec::new(), skipped: Vec::new() };
    for (at, node) in nodes.into_iter().enumerate() {
        let key = match node {
            Node::Object(members) => read_key(&Members { members }),
            _ => Err(KeyError::NotAnObject),
        };
        match key {
            Ok(key) => file.keys.push(key),
            Err(reason) => file.skipped.push(SkippedKey { location: KeyLocation::Jwk(at), reason }),
        }
    }
    Ok(file)
}

fn read_key(members: &Members<'_>) -> Result<Key, KeyError> {
    if !verifies(members)? {
        return Err(KeyError::OtherUse);
    }
    let (kind, curve) = (members.text("kty")?.ok_or(KeyError::Member("kty"))?, members.text("crv")?);
    let key = match (kind, curve) {
        ("oct", _) => Key::from_secret(&members.bytes("k")?)?,
        ("EC", Some("P-256")) => p256(members)?,
        ("OKP", Some("Ed25519")) => ed25519(members)?,
        ("EC" | "OKP", Some(curve)) => return Err(unsupported("crv", curve)),
        ("EC" | "OKP", None) => return Err(KeyError::Member("crv")),
        _ => return Err(unsupported("kty", kind)),
    };
    if members.text("alg")?.is_some_and(|alg| Algorithm::from_name(alg) != Some(key.algorithm())) {
        return Err(KeyError::Algorithm);
    }
    match members.text("kid")? {
        None => Ok(key),
        Some(id) => key.with_id(id),
    }
}

/// Whether the members of a key allow verification.
fn verifies(members: &Members<'_>) -> Result<bool, KeyError> {
    if members.text("use")?.is_some_and(|purpose| purpose != "sig") {
        return Ok(false);
    }
    match members.get("key_ops") {
        None => Ok(true),
        Some(Node::Array(operations)) => Ok(operations.contains(&Node::Text(Cow::Borrowed("verify")))),
        Some(_) => Err(KeyError::Member("key_ops")),
    }
}

fn p256(members: &Members<'_>) -> Result<Key, KeyError> {
    members.check_public()?;
    Key::p256(&members.coordinate("x")?, &members.coordinate("y")?).ok_or(KeyError::Member("y"))
}

fn ed25519(members: &Members<'_>) -> Result<Key, KeyError> {
    members.check_public()?;
    Key::ed25519(&members.coordinate("x")?)
}

fn unsupported(member: &'static str, value: &str) -> KeyError {
    let value: String = value.chars().filter(|c| !c.is_control()).take(VALUE_CHARS_MAX).collect();
    KeyError::Unsupported { member, value: value.into() }
}

/// The members of a key.
struct Members<'a> {
    members: Vec<(Cow<'a, str>, Node<'a>)>,
}

impl Members<'_> {
    fn get(&self, name: &str) -> Option<&Node<'_>> {
        self.members.iter().find(|(other, _)| other == name).map(|(_, node)| node)
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, KeyError> {
        match self.get(name) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(_) => Err(KeyError::Member(name)),
        }
    }

    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, KeyError> {
        self.text(name)?.and_then(base64url::decode).ok_or(KeyError::Member(name))
    }

    fn coordinate(&self, name: &'static str) -> Result<[u8; 32], KeyError> {
        self.bytes(name)?.try_into().map_err(|_| KeyError::Member(name))
    }

    fn check_public(&self) -> Result<(), KeyError> {
        if self.get("d").is_some() { Err(KeyError::Private) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use crate::{key::KeySet, key_file};

    /// The public keys of RFC 7515, A.3.1 and RFC 8037, A.2, and the secret of RFC 7515, A.1.1.
    const EC: &str = r#""kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;
    const OKP: &str = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
    const OCT: &str =
        r#""kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow""#;

    fn set(keys: &[&str]) -> String {
        let keys: Vec<String> = keys.iter().map(|key| format!("{{{key}}}")).collect();
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    fn check(text: &str, want: Expect) {
        want.assert_eq(&match key_file::read_keys(text.as_bytes()) {
            Ok(file) => {
                let skipped: Vec<String> = file.skipped.iter().map(|skipped| format!("\n{skipped}")).collect();
                let set = KeySet::new(file.keys).map(|set| format!("{:?}", set.keys()));
                set.unwrap_or_else(|error| error.to_string()) + &skipped.concat()
            }
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn keys_of_the_three_algorithms_are_read() {
        let (ec, okp, oct) = (
            format!("{EC},\"kid\":\"1\""),
            format!("{OKP},\"alg\":\"EdDSA\""),
            format!("{OCT},\"key_ops\":[\"verify\"]"),
        );
        check(&set(&[&format!("{OKP},\"alg\":\"Ed25519\"")]), expect!["[Key { id: None, algorithm: EdDsa, .. }]"]);
        check(
            &format!("[{{{EC}}}, {{{OKP}}}]"),
            expect!["[Key { id: None, algorithm: Es256, .. }, Key { id: None, algorithm: EdDsa, .. }]"],
        );
        check(&format!("\u{feff}\r\n{{{EC}}}\r\n"), expect!["[Key { id: None, algorithm: Es256, .. }]"]);
        check(
            &set(&[&ec, &okp, &oct]),
            expect![[
                r#"[Key { id: Some("1"), algorithm: Es256, .. }, Key { id: None, algorithm: EdDsa, .. }, Key { id: None, algorithm: Hs256, .. }]"#
            ]],
        );
    }

    #[test]
    fn keys_for_another_use_or_of_another_type_are_skipped_with_a_reason() {
        let enc = format!("{EC},\"use\":\"enc\"");
        let sign = format!("{OCT},\"key_ops\":[\"sign\"]");
        let rsa = r#""kty":"RSA","n":"AQ","e":"AQAB""#;
        let other = r#""kty":"OKP","crv":"X25519","x":"AA""#;
        check(
            &set(&[&enc, &sign, rsa, other, OKP]),
            expect![[r#"
            [Key { id: None, algorithm: EdDsa, .. }]
            key 0 of the JWKS: the key is not for verifying signatures (`use`, `key_ops`)
            key 1 of the JWKS: the key is not for verifying signatures (`use`, `key_ops`)
            key 2 of the JWKS: `kty` `RSA` is not supported; P-256 (ES256), Ed25519 (EdDSA) and `oct` (HS256) are
            key 3 of the JWKS: `crv` `X25519` is not supported; P-256 (ES256), Ed25519 (EdDSA) and `oct` (HS256) are"#]],
        );
        check(
            &set(&[rsa]),
            expect![
                "the file has no key that can verify tokens: key 0 of the JWKS: `kty` `RSA` is not supported; P-256 (ES256), Ed25519 (EdDSA) and `oct` (HS256) are"
            ],
        );
    }

    #[test]
    fn sets_without_a_usable_key_are_refused() {
        check("{}", expect!["a JWKS is an object with an array `keys` of objects"]);
        check(r#"{"keys":{}}"#, expect!["a JWKS is an object with an array `keys` of objects"]);
        check(
            r#"{"keys":[1]}"#,
            expect!["the file has no key that can verify tokens: key 0 of the JWKS: a key must be an object"],
        );
        check(
            r#"{"keys":[],"keys":[]}"#,
            expect!["the JWKS cannot be read: the key `keys` appears twice, the second time at line 1, column 17"],
        );
        check(
            &set(&[&format!("{EC},\"x\":\"AA\"")]),
            expect!["the JWKS cannot be read: the key `x` appears twice, the second time at line 1, column 138"],
        );
        check(
            &set(&[r#""crv":"P-256""#]),
            expect!["the file has no key that can verify tokens: key 0 of the JWKS: `kty` is missing or wrong"],
        );
        check(
            &set(&[OKP, r#""kty":"EC","crv":"P-256","x":"AA","y":"AA""#]),
            expect![[r#"
                [Key { id: None, algorithm: EdDsa, .. }]
                key 1 of the JWKS: `x` is missing or wrong"#]],
        );
        check(
            &set(&[&EC.replace("x_FE", "x_FF")]),
            expect!["the file has no key that can verify tokens: key 0 of the JWKS: `y` is missing or wrong"],
        );
        check(
            &set(&[&OKP.replace("HURo", "HURo=")]),
            expect!["the file has no key that can verify tokens: key 0 of the JWKS: `x` is missing or wrong"],
        );
        check(
            &set(&[r#""kty":"oct","k":1"#]),
            expect!["the file has no key that can verify tokens: key 0 of the JWKS: `k` is missing or wrong"],
        );
        check(
            &set(&[r#""kty":"oct","k":"c2VjcmV0""#]),
            expect![
                "the file has no key that can verify tokens: key 0 of the JWKS: a shared secret must have 32 to 1024 bytes, and has 6"
            ],
        );
        check(
            &set(&[&format!("{EC},\"alg\":\"HS256\"")]),
            expect![
                "the file has no key that can verify tokens: key 0 of the JWKS: `alg` is not the algorithm of the key"
            ],
        );
        check(
            &set(&[&format!("{OCT},\"alg\":\"none\"")]),
            expect![
                "the file has no key that can verify tokens: key 0 of the JWKS: `alg` is not the algorithm of the key"
            ],
        );
        check(
            &set(&[&format!("{EC},\"d\":\"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI\"")]),
            expect![
                "the file has no key that can verify tokens: key 0 of the JWKS: this is a private key; tokens are verified with the public one"
            ],
        );
        check(
            &set(&[r#""kty":"OKP","crv":"Ed25519","x":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA""#]),
            expect![
                "the file has no key that can verify tokens: key 0 of the JWKS: the public key is weak: its order is small"
            ],
        );
        let twice = [format!("{EC},\"kid\":\"1\""), format!("{OKP},\"kid\":\"1\"")];
        check(&set(&[&twice[0], &twice[1]]), expect!["two keys have the `kid` `1`"]);
        check(&set(&[OKP; 33]), expect!["there may be at most 32 keys"]);
        check(
            &format!(r#"{{"keys":{}}}"#, "[".repeat(200)),
            expect!["the JWKS cannot be read: the body is nested too deeply at line 1, column 135"],
        );
        let many = format!(r#"{{"keys":[],"x":[{}1]}}"#, "1,".repeat(5000));
        check(&many, expect!["the JWKS cannot be read: the body is not JSON: too many values at line 1, column 8202"]);
    }

    proptest! {
        #[test]
        fn arbitrary_key_set_is_parsed_or_refused(key in "(\"(kty|crv|x|y|k|alg|use|key_ops|kid)\":(\"(EC|OKP|oct|P-256|Ed25519|[A-Za-z0-9_-]{43})\"|1|\\[\\]|null),?){0,7}") {
            let _ = key_file::read_keys(set(&[&key]).as_bytes());
        }
    }
}
