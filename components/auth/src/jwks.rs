//! JSON Web Key Sets (RFC 7517) for the three algorithms.
//!
//! A key that is for something else, or of a type that is not known, is passed over, as section 5 asks. A key of a type that
//! is known and that is wrong, weak or private is an error: better no start than a start without a key that was meant.

use std::borrow::Cow;

use thiserror::Error;
use weir_codec::tree::Node;

use crate::{
    base64url,
    key::{Key, KeyError, SECRET_BYTES_MAX, SECRET_BYTES_MIN},
};

/// Most values in the JSON of a set.
const VALUES_MAX: usize = 4096;

/// Why a JWKS cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JwksError {
    /// It is no JSON, or names a member twice.
    #[error("the JWKS cannot be read: {0}")]
    Json(String),
    /// It is no object with an array `keys` of objects.
    #[error("a JWKS is an object with an array `keys` of objects")]
    Shape,
    /// A key has a member of the wrong type, length or encoding, or lacks one.
    #[error("key {at} of the JWKS: `{member}` is missing or wrong")]
    Member {
        /// Which key, from 0.
        at: usize,
        /// Which of its members.
        member: &'static str,
    },
    /// A key names an algorithm that is not that of its type.
    #[error("key {at} of the JWKS: `alg` is not the algorithm of the key")]
    Algorithm {
        /// Which key, from 0.
        at: usize,
    },
    /// A key is weak, too short or private.
    #[error("key {at} of the JWKS: {reason}")]
    Key {
        /// Which key, from 0.
        at: usize,
        /// Why.
        reason: Box<str>,
    },
}

/// The keys of a set that are for verifying tokens.
pub(crate) fn read(text: &[u8]) -> Result<Vec<Key>, JwksError> {
    let node = Node::read(text, VALUES_MAX).map_err(|error| JwksError::Json(error.to_string()))?;
    let Node::Object(members) = node else { return Err(JwksError::Shape) };
    let Some((_, Node::Array(nodes))) = members.into_iter().find(|(name, _)| name == "keys") else {
        return Err(JwksError::Shape);
    };
    let mut keys = Vec::new();
    for (at, node) in nodes.into_iter().enumerate() {
        let Node::Object(members) = node else { return Err(JwksError::Shape) };
        keys.extend(read_key(at, &Members { at, members })?);
    }
    Ok(keys)
}

fn read_key(at: usize, members: &Members<'_>) -> Result<Option<Key>, JwksError> {
    if !verifies(members)? {
        return Ok(None);
    }
    let curve = members.text("crv")?;
    let (key, algorithm) = match (members.text("kty")?, curve) {
        (Some("oct"), _) => (secret(members)?, "HS256"),
        (Some("EC"), Some("P-256")) => (p256(members)?, "ES256"),
        (Some("OKP"), Some("Ed25519")) => (ed25519(members)?, "EdDSA"),
        (Some(_), _) => return Ok(None),
        (None, _) => return Err(members.wrong("kty")),
    };
    if members.text("alg")?.is_some_and(|alg| alg != algorithm) {
        return Err(JwksError::Algorithm { at });
    }
    match members.text("kid")? {
        None => Ok(Some(key)),
        Some(id) => key.with_id(id).map(Some).map_err(|error| members.refused(&error)),
    }
}

/// Whether a key is for verifying, as far as it says.
fn verifies(members: &Members<'_>) -> Result<bool, JwksError> {
    if members.text("use")?.is_some_and(|what| what != "sig") {
        return Ok(false);
    }
    match members.get("key_ops") {
        None => Ok(true),
        Some(Node::Array(operations)) => Ok(operations.contains(&Node::Text(Cow::Borrowed("verify")))),
        Some(_) => Err(members.wrong("key_ops")),
    }
}

fn secret(members: &Members<'_>) -> Result<Key, JwksError> {
    let bytes = members.bytes("k")?;
    if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
        return Err(members.refused(&KeyError::SecretLength { bytes: bytes.len() }));
    }
    Key::from_secret(&bytes).map_err(|error| members.refused(&error))
}

fn p256(members: &Members<'_>) -> Result<Key, JwksError> {
    members.public()?;
    Key::p256(&members.coordinate("x")?, &members.coordinate("y")?).ok_or_else(|| members.wrong("y"))
}

fn ed25519(members: &Members<'_>) -> Result<Key, JwksError> {
    members.public()?;
    Key::ed25519(&members.coordinate("x")?).map_err(|error| members.refused(&error))
}

/// The members of a key.
struct Members<'a> {
    at: usize,
    members: Vec<(Cow<'a, str>, Node<'a>)>,
}

impl Members<'_> {
    fn get(&self, name: &str) -> Option<&Node<'_>> {
        self.members.iter().find(|(other, _)| other == name).map(|(_, node)| node)
    }

    fn wrong(&self, member: &'static str) -> JwksError {
        JwksError::Member { at: self.at, member }
    }

    fn refused(&self, error: &KeyError) -> JwksError {
        JwksError::Key { at: self.at, reason: error.to_string().into() }
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, JwksError> {
        match self.get(name) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name)),
        }
    }

    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, JwksError> {
        self.text(name)?.and_then(base64url::decode).ok_or_else(|| self.wrong(name))
    }

    fn coordinate(&self, name: &'static str) -> Result<[u8; 32], JwksError> {
        self.bytes(name)?.try_into().map_err(|_| self.wrong(name))
    }

    fn public(&self) -> Result<(), JwksError> {
        if self.get("d").is_some() { Err(self.refused(&KeyError::Private)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use crate::key::KeySet;

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
        want.assert_eq(&match KeySet::from_file(text.as_bytes()) {
            Ok(set) => format!("{:?}", set.keys()),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn keys_of_the_three_algorithms() {
        let (ec, okp, oct) = (
            format!("{EC},\"kid\":\"1\""),
            format!("{OKP},\"alg\":\"EdDSA\""),
            format!("{OCT},\"key_ops\":[\"verify\"]"),
        );
        check(
            &set(&[&ec, &okp, &oct]),
            expect![[
                r#"[Key { id: Some("1"), algorithm: Es256, .. }, Key { id: None, algorithm: EdDsa, .. }, Key { id: None, algorithm: Hs256, .. }]"#
            ]],
        );
    }

    #[test]
    fn keys_for_something_else_are_passed_over() {
        let enc = format!("{EC},\"use\":\"enc\"");
        let sign = format!("{OCT},\"key_ops\":[\"sign\"]");
        let rsa = r#""kty":"RSA","n":"AQ","e":"AQAB""#;
        let other = r#""kty":"OKP","crv":"X25519","x":"AA""#;
        check(&set(&[&enc, &sign, rsa, other, OKP]), expect!["[Key { id: None, algorithm: EdDsa, .. }]"]);
        check(&set(&[rsa]), expect!["there is no key that can be used to verify tokens"]);
    }

    #[test]
    fn sets_that_are_refused() {
        check("{}", expect!["a JWKS is an object with an array `keys` of objects"]);
        check(r#"{"keys":{}}"#, expect!["a JWKS is an object with an array `keys` of objects"]);
        check(r#"{"keys":[1]}"#, expect!["a JWKS is an object with an array `keys` of objects"]);
        check(
            r#"{"keys":[],"keys":[]}"#,
            expect!["the JWKS cannot be read: the key `keys` appears twice, the second time at line 1, column 17"],
        );
        check(
            &set(&[&format!("{EC},\"x\":\"AA\"")]),
            expect!["the JWKS cannot be read: the key `x` appears twice, the second time at line 1, column 138"],
        );
        check(&set(&[r#""crv":"P-256""#]), expect!["key 0 of the JWKS: `kty` is missing or wrong"]);
        check(
            &set(&[OKP, r#""kty":"EC","crv":"P-256","x":"AA","y":"AA""#]),
            expect!["key 1 of the JWKS: `x` is missing or wrong"],
        );
        check(&set(&[&EC.replace("x_FE", "x_FF")]), expect!["key 0 of the JWKS: `y` is missing or wrong"]);
        check(&set(&[&OKP.replace("HURo", "HURo=")]), expect!["key 0 of the JWKS: `x` is missing or wrong"]);
        check(&set(&[r#""kty":"oct","k":1"#]), expect!["key 0 of the JWKS: `k` is missing or wrong"]);
        check(
            &set(&[r#""kty":"oct","k":"c2VjcmV0""#]),
            expect!["key 0 of the JWKS: a shared secret must have 32 to 1024 bytes, and has 6"],
        );
        check(
            &set(&[&format!("{EC},\"alg\":\"HS256\"")]),
            expect!["key 0 of the JWKS: `alg` is not the algorithm of the key"],
        );
        check(
            &set(&[&format!("{OCT},\"alg\":\"none\"")]),
            expect!["key 0 of the JWKS: `alg` is not the algorithm of the key"],
        );
        check(
            &set(&[&format!("{EC},\"d\":\"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI\"")]),
            expect!["key 0 of the JWKS: the file has a private key; tokens are verified with the public one"],
        );
        check(
            &set(&[r#""kty":"OKP","crv":"Ed25519","x":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA""#]),
            expect!["key 0 of the JWKS: the public key is weak: its order is small"],
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
        fn no_set_can_hurt(key in "(\"(kty|crv|x|y|k|alg|use|key_ops|kid)\":(\"(EC|OKP|oct|P-256|Ed25519|[A-Za-z0-9_-]{43})\"|1|\\[\\]|null),?){0,7}") {
            let _ = KeySet::from_file(set(&[&key]).as_bytes());
        }
    }
}
