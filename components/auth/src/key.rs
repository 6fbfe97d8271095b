//! The keys that tokens are verified with. A key has one algorithm, and a token must name exactly that one.

use std::fmt;

use ed25519_dalek::pkcs8::DecodePublicKey as _;
use hmac::{Hmac, Mac as _};
use p256::ecdsa::signature::Verifier as _;
use sha2::Sha256;
use thiserror::Error;

use crate::jwks::{self, JwksError};

/// Fewest bytes in a shared secret: as many as the hash has (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;
/// Most bytes in a shared secret.
pub const SECRET_BYTES_MAX: usize = 1024;
/// Most bytes in a file of keys.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// Most keys that are valid at once.
pub const KEYS_MAX: usize = 32;
/// Most bytes in a `kid`.
pub const KEY_ID_BYTES_MAX: usize = 256;

/// How a token is signed.
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
    /// The name in a token's `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// A key.
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

/// Why a file has no keys for us.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// It is too large.
    #[error("a file of keys may have at most {FILE_BYTES_MAX} bytes, and has {bytes}")]
    TooLarge {
        /// How many it has.
        bytes: usize,
    },
    /// A shared secret is too short to be safe, or too long.
    #[error("a shared secret must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, and has {bytes}")]
    SecretLength {
        /// How many it has.
        bytes: usize,
    },
    /// A PEM file that cannot be read, or of a kind that is not known.
    #[error("the PEM is no public key of P-256 or Ed25519")]
    Pem,
    /// A private key, which does not belong here.
    #[error("the file has a private key; tokens are verified with the public one")]
    Private,
    /// A public key with which anybody can sign.
    #[error("the public key is weak: its order is small")]
    Weak,
    /// A `kid` is empty or too long.
    #[error("a `kid` must have 1 to {KEY_ID_BYTES_MAX} bytes")]
    Id,
    /// Two keys have the same `kid`.
    #[error("two keys have the `kid` `{0}`")]
    SameId(Box<str>),
    /// There are too many keys.
    #[error("there may be at most {KEYS_MAX} keys")]
    TooMany,
    /// There is no key that can be used.
    #[error("there is no key that can be used to verify tokens")]
    None,
    /// A JWKS that cannot be read.
    #[error(transparent)]
    Jwks(#[from] JwksError),
}

impl Key {
    /// A shared secret, for HS256.
    ///
    /// # Errors
    ///
    /// It is too short or too long.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        match secret.len() {
            SECRET_BYTES_MIN..=SECRET_BYTES_MAX => Ok(Self { id: None, material: Material::Hs256(secret.into()) }),
            bytes => Err(KeyError::SecretLength { bytes }),
        }
    }

    /// A public key as `SubjectPublicKeyInfo` in PEM (RFC 7468, section 13): of P-256 for ES256, of Ed25519 for EdDSA.
    ///
    /// # Errors
    ///
    /// It is no such key, a private one, or a weak one.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_pem(pem) {
            return Ok(Self { id: None, material: Material::Es256(Box::new(key)) });
        }
        match ed25519_dalek::VerifyingKey::from_public_key_pem(pem) {
            Ok(key) => Self::ed25519(&key.to_bytes()),
            Err(_) => Err(KeyError::Pem),
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

    /// With the id by which tokens name it.
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

    /// The id by which tokens name it.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The one algorithm that it is for.
    pub fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Hs256(_) => Algorithm::Hs256,
            Material::Es256(_) => Algorithm::Es256,
            Material::EdDsa(_) => Algorithm::EdDsa,
        }
    }

    /// Whether a signature is this key's.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Hs256(secret) => mac(secret, &[message]).verify_slice(signature).is_ok(),
            Material::Es256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            // Strict: small orders and more than one encoding of a signature are refused.
            Material::EdDsa(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
        }
    }
}

/// Says which key it is, and nothing that is secret.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

/// The keys that are valid now. To rotate, read the file again and replace the set; keep old and new in it for as long as
/// tokens of the old are about.
#[derive(Debug, Clone)]
pub struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// A set.
    ///
    /// # Errors
    ///
    /// It is empty, too large, or two keys have the same id.
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
        }
        Ok(Self { keys })
    }

    /// The keys of a file: a JWKS (its first character is `{`), public keys in PEM, or else one shared secret, whose last
    /// end of line is not part of it.
    ///
    /// # Errors
    ///
    /// See [`KeyError`].
    pub fn from_file(contents: &[u8]) -> Result<Self, KeyError> {
        if contents.len() > FILE_BYTES_MAX {
            return Err(KeyError::TooLarge { bytes: contents.len() });
        }
        let text = contents.trim_ascii();
        if text.starts_with(b"{") {
            return Self::new(jwks::read(text)?);
        }
        if text.starts_with(b"-----BEGIN") {
            let text = std::str::from_utf8(text).map_err(|_| KeyError::Pem)?;
            return Self::new(pem_blocks(text).map(Key::from_pem).collect::<Result<_, _>>()?);
        }
        let secret = contents.strip_suffix(b"\n").unwrap_or(contents);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        Self::new(vec![Key::from_secret(secret)?])
    }

    /// The keys.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }
}

/// HMAC-SHA-256 over the parts, one behind the other.
pub(crate) fn mac(secret: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// The blocks of a PEM file, each with its two lines of dashes.
fn pem_blocks(text: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN";
    text.match_indices(BEGIN).map(move |(at, _)| {
        let rest = &text[at..];
        let end = rest[BEGIN.len()..].find(BEGIN).map_or(rest.len(), |end| end + BEGIN.len());
        rest[..end].trim_end()
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    const P256_PEM: &str = include_str!("../tests/keys/p256.pub.pem");
    const ED25519_PEM: &str = include_str!("../tests/keys/ed25519.pub.pem");

    fn check(contents: &[u8], want: Expect) {
        want.assert_eq(&match KeySet::from_file(contents) {
            Ok(set) => format!("{:?}", set.keys()),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn files() {
        check(&[b'x'; 32], expect!["[Key { id: None, algorithm: Hs256, .. }]"]);
        check(P256_PEM.as_bytes(), expect!["[Key { id: None, algorithm: Es256, .. }]"]);
        check(
            format!("{ED25519_PEM}\n{P256_PEM}").as_bytes(),
            expect!["[Key { id: None, algorithm: EdDsa, .. }, Key { id: None, algorithm: Es256, .. }]"],
        );
        check(b" {\"keys\":[]} ", expect!["there is no key that can be used to verify tokens"]);
    }

    #[test]
    fn files_that_are_refused() {
        check(b"", expect!["a shared secret must have 32 to 1024 bytes, and has 0"]);
        check(&[b'x'; 31], expect!["a shared secret must have 32 to 1024 bytes, and has 31"]);
        check(
            b"0123456789abcdef0123456789abcde\r\n",
            expect!["a shared secret must have 32 to 1024 bytes, and has 31"],
        );
        check(&vec![b'x'; FILE_BYTES_MAX + 1], expect!["a file of keys may have at most 262144 bytes, and has 262145"]);
        check(
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            expect!["the PEM is no public key of P-256 or Ed25519"],
        );
        check(
            include_bytes!("../tests/keys/p256.pem"),
            expect!["the file has a private key; tokens are verified with the public one"],
        );
        check(include_bytes!("../tests/keys/rsa.pub.pem"), expect!["the PEM is no public key of P-256 or Ed25519"]);
        check(include_bytes!("../tests/keys/p384.pub.pem"), expect!["the PEM is no public key of P-256 or Ed25519"]);
        check(&P256_PEM.repeat(KEYS_MAX + 1).into_bytes(), expect!["there may be at most 32 keys"]);
    }

    #[test]
    fn ids() {
        let key = |id: &str| Key::from_secret(&[7; 32]).unwrap().with_id(id);
        assert_eq!(key("").unwrap_err(), KeyError::Id);
        assert_eq!(key(&"x".repeat(257)).unwrap_err(), KeyError::Id);
        let set = KeySet::new(vec![key("a").unwrap(), key("b").unwrap(), key("a").unwrap()]);
        assert_eq!(set.unwrap_err(), KeyError::SameId("a".into()));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let key = Key::from_secret(b"0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "Key { id: None, algorithm: Hs256, .. }");
    }

    #[test]
    fn weak_keys() {
        // The points of small order (RFC 7748, section 6, and their other encodings): with the first, every signature fits.
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

    proptest! {
        #[test]
        fn no_file_can_hurt(contents in prop::collection::vec(any::<u8>(), 0..80), begin in 0usize..3) {
            let begin: &[u8] = [&b""[..], b"-----BEGIN PUBLIC KEY-----\n", b"{\"keys\":["][begin];
            let _ = KeySet::from_file(&[begin, &contents].concat());
        }
    }
}
