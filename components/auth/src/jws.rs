//! JSON Web Signatures in compact form (RFC 7515, section 7.1): a signed payload, which is parsed only after its
//! signature is verified by one of the keys.

use std::borrow::Cow;

use thiserror::Error;
use weir_codec::json::tree::Node;

use crate::{
    base64url,
    key::{Algorithm, Key, KeySet},
};

/// Most bytes in a token.
pub const TOKEN_BYTES_MAX: usize = 8192;
/// Most values in a header.
const HEADER_VALUES_MAX: usize = 64;

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JwsError {
    /// It is too long.
    #[error("a token may have at most {TOKEN_BYTES_MAX} bytes, and has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It does not have three parts in base64url without padding.
    #[error("a token has three parts in base64url, separated by dots")]
    Parts,
    /// The header is not a JSON object, repeats a member, or has one of the wrong type.
    #[error("the token's header cannot be read")]
    Header,
    /// The header has critical members that are not supported.
    #[error("the token has an unknown critical header")]
    Critical,
    /// `typ` names another type.
    #[error("the token is of another type")]
    Type,
    /// The algorithm is not that of the key; `none` never is.
    #[error("the token's algorithm is not that of its key")]
    Algorithm,
    /// No key has the id in `kid`.
    #[error("the token names an unknown key")]
    UnknownKey,
    /// The signature is invalid.
    #[error("the token's signature is invalid")]
    Signature,
}

/// Verifies a token with the keys; returns its payload.
///
/// # Errors
///
/// See [`JwsError`].
pub fn verify(token: &str, keys: &KeySet) -> Result<Vec<u8>, JwsError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(JwsError::TooLong { bytes: token.len() });
    }
    // The last dot separates the signed text from the signature.
    let (signed, signature) = token.rsplit_once('.').ok_or(JwsError::Parts)?;
    let (header, payload) = signed.split_once('.').ok_or(JwsError::Parts)?;
    let part = |text: &str| match text {
        "" => Err(JwsError::Parts),
        // A dot is not in the alphabet, so there are exactly three parts.
        text => base64url::decode(text).ok_or(JwsError::Parts),
    };
    let (header, payload) = (part(header)?, part(payload)?);
    let header = Header::read(&header)?;
    // An unsigned token has an empty signature, and the algorithm `none`.
    if signature.is_empty() {
        return Err(if header.algorithm_is_known() { JwsError::Signature } else { JwsError::Algorithm });
    }
    let signature = part(signature)?;
    let mut candidates = keys.keys().iter().filter(|key| header.allows(key)).peekable();
    if candidates.peek().is_none() {
        return Err(JwsError::UnknownKey);
    }
    let mut matching = candidates.filter(|key| key.algorithm().is_named(&header.algorithm)).peekable();
    if matching.peek().is_none() {
        return Err(JwsError::Algorithm);
    }
    if !matching.any(|key| key.verifies(signed.as_bytes(), &signature)) {
        return Err(JwsError::Signature);
    }
    Ok(payload)
}

/// The header. It is read before the signature is verified, and only selects the key.
struct Header<'a> {
    algorithm: Cow<'a, str>,
    key_id: Option<Cow<'a, str>>,
}

impl<'a> Header<'a> {
    fn read(json: &'a [u8]) -> Result<Self, JwsError> {
        let Ok(Node::Object(members)) = Node::read(json, HEADER_VALUES_MAX) else { return Err(JwsError::Header) };
        let (mut algorithm, mut key_id) = (None, None);
        for (name, value) in members {
            match (&*name, value) {
                ("alg", Node::Text(text)) => algorithm = Some(text),
                ("kid", Node::Text(text)) => key_id = Some(text),
                ("typ", Node::Text(text)) if is_token(&text) => {}
                ("typ", Node::Text(_)) => return Err(JwsError::Type),
                ("alg" | "kid" | "typ", _) => return Err(JwsError::Header),
                // `b64` changes the signed text (RFC 7797), and must be listed in `crit`.
                ("crit" | "b64", _) => return Err(JwsError::Critical),
                // Keys in the token's header (`jwk`, `jku`, `x5c`, `x5u`) are ignored.
                _ => {}
            }
        }
        Ok(Self { algorithm: algorithm.ok_or(JwsError::Header)?, key_id })
    }

    /// Whether a key may have signed the token: its id is `kid`, or the header or the key has no id.
    fn allows(&self, key: &Key) -> bool {
        match (&self.key_id, key.id()) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        }
    }

    fn algorithm_is_known(&self) -> bool {
        Algorithm::from_name(&self.algorithm).is_some()
    }
}

/// The types of access tokens (RFC 7519, section 5.1; RFC 9068, section 2.1). Other types are not access tokens.
fn is_token(kind: &str) -> bool {
    ["JWT", "at+jwt", "application/at+jwt"].iter().any(|known| kind.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HS256: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    const EDDSA: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

    fn keys() -> KeySet {
        let jwks = r#"{"keys":[
            {"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"},
            {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
            {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        KeySet::new(crate::key_file::read_keys(jwks.as_bytes()).unwrap().keys).unwrap()
    }

    #[test]
    fn vectors_of_the_standards_verify() {
        // RFC 7515, A.1 and A.3; RFC 8037, A.4 and A.5.
        let joe = b"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";
        assert_eq!(verify(HS256, &keys()).as_deref(), Ok(&joe[..]));
        assert_eq!(verify(ES256, &keys()).as_deref(), Ok(&joe[..]));
        assert_eq!(verify(EDDSA, &keys()).as_deref(), Ok(&b"Example of Ed25519 signing"[..]));
    }

    #[test]
    fn changed_character_fails_verification() {
        for token in [HS256, ES256, EDDSA] {
            for at in 0..token.len() {
                let mut bytes = token.as_bytes().to_vec();
                bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                let changed = String::from_utf8(bytes).unwrap();
                assert!(verify(&changed, &keys()).is_err(), "{at}");
                assert!(verify(&token[..at], &keys()).is_err(), "cut at {at}");
            }
        }
    }
}
