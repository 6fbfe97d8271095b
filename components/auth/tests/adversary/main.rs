//! Attacks: forged, stale and mutated tokens, reused tickets, ids of other users, two users in one request.

#![allow(clippy::unwrap_used)]

use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use hmac::{Hmac, Mac as _};
use p256::ecdsa::signature::Signer as _;
use proptest::prelude::*;
use sha2::Sha256;
use weir_auth::{
    api_key::{self, ApiKeys},
    credential::Credentials,
    guard::{AuthError, Authenticated, Guard, GuardError},
    identity::{Identity, NotFound},
    jws::JwsError,
    jwt::{LEEWAY_S_DEFAULT, RulesError, TokenError, TokenRules, Verifier},
    key::{Key, KeySet},
    key_file,
    scope::{Action, Scopes},
    ticket::{TicketError, TicketKeys},
};
use weir_codec::channels::route::Channel;

mod claims;
mod mutations;
mod requests;
mod signatures;

const LABEL: &str = "1f-2";
const NOW_S: u64 = 1_800_000_000;
const SECRET: &[u8] = b"an HS256 secret of the tests, long enough";
const P256: &str = include_str!("../keys/p256.pem");
const P256_PUBLIC: &str = include_str!("../keys/p256.pub.pem");
const ED25519: &str = include_str!("../keys/ed25519.pem");
const ED25519_PUBLIC: &str = include_str!("../keys/ed25519.pub.pem");
const CLAIMS: &str =
    r#"{"iss":"https://issuer.example","aud":"weir","sub":"ann","exp":1800000600,"scope":"openid read:workflow:*"}"#;

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    use base64ct::Encoding as _;
    base64ct::Base64UrlUnpadded::encode_string(bytes.as_ref())
}

fn hs256(message: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn es256(message: &[u8]) -> Vec<u8> {
    let key = p256::ecdsa::SigningKey::from_pkcs8_pem(P256).unwrap();
    let signature: p256::ecdsa::Signature = key.sign(message);
    signature.to_bytes().to_vec()
}

fn eddsa(message: &[u8]) -> Vec<u8> {
    use ed25519_dalek::Signer as _;
    ed25519_dalek::SigningKey::from_pkcs8_pem(ED25519).unwrap().sign(message).to_bytes().to_vec()
}

/// A token with the given header and claims, signed by `sign`.
fn token(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", base64url(header), base64url(claims));
    let signature = base64url(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A valid token with other claims.
fn claiming(claims: &str) -> String {
    token(r#"{"alg":"HS256","kid":"hs"}"#, claims, |message| hs256(message, SECRET))
}

/// A valid token with another header.
fn headed(header: &str) -> String {
    token(header, CLAIMS, |message| hs256(message, SECRET))
}

fn public(pem: &str) -> Key {
    key_file::read_keys(pem.as_bytes()).unwrap().keys.remove(0)
}

fn keys() -> KeySet {
    let key = |key: Key, id| key.with_id(id).unwrap();
    KeySet::new(vec![
        key(Key::from_secret(SECRET).unwrap(), "hs"),
        key(public(P256_PUBLIC), "es"),
        key(public(ED25519_PUBLIC), "ed"),
    ])
    .unwrap()
}

fn rules() -> TokenRules {
    TokenRules {
        issuers: vec!["https://issuer.example".to_owned()],
        audiences: vec!["weir".to_owned(), "https://weir.example".to_owned()],
        leeway_s: LEEWAY_S_DEFAULT,
    }
}

fn verifier() -> Verifier {
    Verifier::new(keys(), rules()).unwrap()
}

fn verify(token: &str) -> Result<Identity, TokenError> {
    verifier().verify(token, NOW_S)
}

fn refused(token: &str) -> TokenError {
    verify(token).expect_err(token)
}

/// The claims with one of them replaced or removed.
fn claims_with(claim: &str, value: Option<&str>) -> String {
    let mut claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(CLAIMS).unwrap();
    claims.remove(claim);
    let mut text = serde_json::to_string(&claims).unwrap();
    if let Some(value) = value {
        text.insert_str(1, &format!(r#""{claim}":{value},"#));
    }
    text
}

/// A guard with tokens, one API key for each of two users, and tickets.
struct Fixture {
    guard: Guard,
    ann: String,
    bob: String,
}

fn fixture() -> Fixture {
    let (ann, bob) = (api_key::generate(&[1; 32]), api_key::generate(&[2; 32]));
    let records = format!("a ann {} publish:workflow:*\nb bob {}\n", ann.hash, bob.hash);
    let api_keys = ApiKeys::from_file(records.as_bytes()).unwrap();
    let tickets = TicketKeys::new(&[&[5; 32]], 30).unwrap();
    let guard = Guard::closed(Some(verifier()), Some(api_keys), Some(tickets)).unwrap();
    Fixture { guard, ann: ann.key, bob: bob.key }
}

const PATH: &str = "/stream/workflow/42";

fn enter(guard: &Guard, headers: &[(&str, &str)], query: &str) -> Result<Authenticated, AuthError> {
    let credentials = Credentials::find(headers.iter().map(|(name, value)| (*name, value.as_bytes())), query).unwrap();
    guard.authenticate(&credentials, PATH, Some("weir.example"), NOW_S)
}
