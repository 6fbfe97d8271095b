//! The keys that verify tokens. A key has one algorithm, and a token must name that one.

use std::fmt;

use ed25519_dalek::pkcs8::DecodePublicKey as _;
use hmac::{Hmac, Mac as _};
use p256::ecdsa::signature::Verifier as _;
use sha2::Sha256;
use thiserror::Error;

use crate::key_form;

/// Fewest bytes in a shared secret: as many as the hash has (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;
/// Most bytes in a shared secret.
pub const SECRET_BYTES_MAX: usize = 1024;
/// Most keys that are valid at once.
pub const KEYS_MAX: usize = 32;
/// Most bytes in a `kid`.
pub const KEY_ID_BYTES_MAX: usize = 256;

/// A signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256 and a shared secret.
    Hs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519 (RFC 8037).
    EdDsa,
}

impl Algorithm {
    /// Whether the `alg` of a token or a JWK names this algorithm. EdDSA with Ed25519 has two names: `EdDSA` (RFC 8037)
    /// and `Ed25519` (RFC 9864).
    pub fn is_named(self, alg: &str) -> bool {
        match self {
            Self::Hs256 => alg == "HS256",
            Self::Es256 => alg == "ES256",
            Self::EdDsa => matches!(alg, "EdDSA" | "Ed25519"),
        }
    }

    /// The algorithm that an `alg` names.
    pub fn from_name(alg: &str) -> Option<Self> {
        [Self::Hs256, Self::Es256, Self::EdDsa].into_iter().find(|algorithm| algorithm.is_named(alg))
    }
}

/// A key for verification.
#[derive(Clone)]
pub struct Key {
    id: Option<Box<str>>,
    material: Material,
}

#[derive(Clone)]
enum Material {
    Hs256(Box<[u8]>),
    Es256(Box<p256::ecdsa::VerifyingKey>),
    EdDsa(Box<ed25519_dalek::VerifyingKey>),
}

/// Why a key, or a set of keys, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// A shared secret is too short to be secure, or too long.
    #[error("a shared secret must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, and has {bytes}")]
    SecretLength {
        /// Its length.
        bytes: usize,
    },
    /// A shared secret is an encoded key. Public keys are not secret.
    #[error("the shared secret is a public or private key ({form}), which must not be used as a secret")]
    SecretIsKey {
        /// The form of the key.
        form: &'static str,
    },
    /// A PEM block without the line that ends it.
    #[error("the block has no `-----END …-----` line of the same label")]
    PemEnd,
    /// A PEM block that is not base64.
    #[error("the block is not base64")]
    PemEncoding,
    /// A PEM block of something other than a public key.
    #[error("the block is a `{0}`; only `PUBLIC KEY` is read")]
    PemLabel(Box<str>),
    /// A public key of another type.
    #[error("the public key is neither P-256 (ES256) nor Ed25519 (EdDSA)")]
    Type,
    /// A private key.
    #[error("this is a private key; tokens are verified with the public one")]
    Private,
    /// A public key for which signatures can be forged.
    #[error("the public key is weak: its order is small")]
    Weak,
    /// A member of a JWK has the wrong type, length or encoding, or is missing.
    #[error("`{0}` is missing or wrong")]
    Member(&'static str),
    /// An item of a JWKS is not an object.
    #[error("a key must be an object")]
    NotAnObject,
    /// The `alg` of a JWK is not an algorithm of its type.
    #[error("`alg` is not the algorithm of the key")]
    Algorithm,
    /// A JWK has a `kty` or `crv` that is not supported.
    #[error("`{member}` `{value}` is not supported; P-256 (ES256), Ed25519 (EdDSA) and `oct` (HS256) are")]
    Unsupported {
        /// `kty` or `crv`.
        member: &'static str,
        /// Its value, shortened.
        value: Box<str>,
    },
    /// A JWK is for something other than verifying signatures, by its `use` or `key_ops`.
    #[error("the key is not for verifying signatures (`use`, `key_ops`)")]
    OtherUse,
    /// A `kid` is empty or too long.
    #[error("a `kid` must have 1 to {KEY_ID_BYTES_MAX} bytes")]
    Id,
    /// Two keys have the same `kid`.
    #[error("two keys have the `kid` `{0}`")]
    SameId(Box<str>),
    /// There are too many keys.
    #[error("there may be at most {KEYS_MAX} keys")]
    TooMany,
    /// There is no key.
    #[error("there is no key that can be used to verify tokens")]
    None,
}

impl Key {
    /// A shared secret, for HS256.
    ///
    /// # Errors
    ///
    /// It is too short, too long, or a key in some encoding.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
            return Err(KeyError::SecretLength { bytes: secret.len() });
        }
        match key_form::key_form(secret, key_form::ENCODINGS_MAX) {
            Some(form) => Err(KeyError::SecretIsKey { form }),
            None => Ok(Self { id: None, material: Material::Hs256(secret.into()) }),
        }
    }

    /// A public key as `SubjectPublicKeyInfo` in DER (RFC 5280, section 4.1.2.7): of P-256 for ES256, of Ed25519 for
    /// EdDSA.
    ///
    /// # Errors
    ///
    /// The key is of another type, or weak.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(der) {
            return Ok(Self { id: None, material: Material::Es256(Box::new(key)) });
        }
        match ed25519_dalek::VerifyingKey::from_public_key_der(der) {
            Ok(key) => Self::ed25519(&key.to_bytes()),
            Err(_) => Err(KeyError::Type),
        }
    }

    /// A public key of P-256 by its two coordinates, big-endian.
    pub(crate) fn p256(x: &[u8; 32], y: &[u8; 32]) -> Option<Self> {
        let point = p256::EncodedPoint::from_affine_coordinates(x.into(), y.into(), false);
        let key = p256::ecdsa::VerifyingKey::from_encoded_point(&point).ok()?;
        Some(Self { id: None, material: Material::Es256(Box::new(key)) })
    }

    /// A public key of Ed25519.
    pub(crate) fn ed25519(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Weak)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self { id: None, material: Material::EdDsa(Box::new(key)) })
    }

    /// Sets the id of the key, which tokens name in `kid`.
    ///
    /// # Errors
    ///
    /// The id is empty or too long.
    pub fn with_id(self, id: &str) -> Result<Self, KeyError> {
        match id.len() {
            1..=KEY_ID_BYTES_MAX => Ok(Self { id: Some(id.into()), ..self }),
            _ => Err(KeyError::Id),
        }
    }

    /// The id of the key, which tokens name in `kid`.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The algorithm of the key.
    pub fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Hs256(_) => Algorithm::Hs256,
            Material::Es256(_) => Algorithm::Es256,
            Material::EdDsa(_) => Algorithm::EdDsa,
        }
    }

    /// Whether this is a shared secret whose bytes are a public key, raw or encoded.
    fn is_secret_of(&self, public: &Self) -> bool {
        let Material::Hs256(secret) = &self.material else { return false };
        let value = match &public.material {
            Material::Hs256(_) => return false,
            Material::Es256(key) => key.to_encoded_point(false).as_bytes().to_vec(),
            Material::EdDsa(key) => key.to_bytes().to_vec(),
        };
        // The whole point, or one of its coordinates.
        let is_part =
            |bytes: &[u8]| bytes.len() >= SECRET_BYTES_MIN && value.windows(bytes.len()).any(|part| part == bytes);
        let decodings = std::str::from_utf8(secret).map(key_form::decodings).unwrap_or_default();
        is_part(secret) || decodings.iter().any(|bytes| is_part(bytes))
    }

    /// Whether a signature is valid for this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Hs256(secret) => mac(secret, &[message]).verify_slice(signature).is_ok(),
            Material::Es256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            // `verify_strict` refuses keys of small order and non-canonical signatures.
            Material::EdDsa(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
        }
    }
}

/// Shows the id and the algorithm, without secrets.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

/// The valid keys. To rotate keys, read the file again and replace the set; keep the old key in it while tokens of it
/// are valid.
#[derive(Debug, Clone)]
pub struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// Creates a set.
    ///
    /// # Errors
    ///
    /// It is empty, too large, two keys have the same id, or one is a shared secret that is the public key of another.
    pub fn new(keys: Vec<Key>) -> Result<Self, KeyError> {
        match keys.len() {
            0 => return Err(KeyError::None),
            1..=KEYS_MAX => {}
            _ => return Err(KeyError::TooMany),
        }
        for (at, key) in keys.iter().enumerate() {
            if let Some(id) = &key.id
                && keys[..at].iter().any(|other| other.id.as_deref() == Some(id))
            {
                return Err(KeyError::SameId(id.clone()));
            }
            if keys.iter().any(|public| key.is_secret_of(public)) {
                return Err(KeyError::SecretIsKey { form: "the value of a public key of this server" });
            }
        }
        Ok(Self { keys })
    }

    /// The keys.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }
}

/// HMAC-SHA-256 over the concatenated parts.
pub(crate) fn mac(secret: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_or_repeated_key_id_is_refused() {
        let key = |id: &str| Key::from_secret(&[7; 32]).unwrap().with_id(id);
        assert_eq!(key("").unwrap_err(), KeyError::Id);
        assert_eq!(key(&"x".repeat(257)).unwrap_err(), KeyError::Id);
        let set = KeySet::new(vec![key("a").unwrap(), key("b").unwrap(), key("a").unwrap()]);
        assert_eq!(set.unwrap_err(), KeyError::SameId("a".into()));
    }

    #[test]
    fn secret_is_not_part_of_the_debug_form() {
        let key = Key::from_secret(b"0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "Key { id: None, algorithm: Hs256, .. }");
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        // The points of small order (RFC 7748, section 6, and their other encodings): for the first, every signature is
        // valid.
        let mut one = [0; 32];
        one[0] = 1;
        let mut minus_one = [0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        for bytes in [[0; 32], one, minus_one] {
            assert_eq!(Key::ed25519(&bytes).unwrap_err(), KeyError::Weak);
        }
        assert!(Key::p256(&[0; 32], &[0; 32]).is_none());
        assert!(Key::p256(&[1; 32], &[1; 32]).is_none());
    }

    #[test]
    fn secret_that_is_the_value_of_a_public_key_is_refused() {
        let key = Key::from_der(
            &[
                &hex("302a300506032b6570032100")[..],
                &hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
            ]
            .concat(),
        )
        .unwrap();
        for secret in [
            hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
            b"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a".to_vec(),
            b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".to_vec(),
            b"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".to_vec(),
        ] {
            let secret = Key::from_secret(&secret).unwrap();
            let set = KeySet::new(vec![secret, key.clone()]);
            assert!(matches!(set, Err(KeyError::SecretIsKey { .. })), "{set:?}");
        }
    }

    fn hex(digits: &str) -> Vec<u8> {
        key_form::decodings(digits).pop().unwrap()
    }
}
