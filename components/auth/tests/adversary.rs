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

const LABEL: &str = "1f-2";
const NOW_S: u64 = 1_800_000_000;
const SECRET: &[u8] = b"an HS256 secret of the tests, long enough";
const P256: &str = include_str!("keys/p256.pem");
const P256_PUBLIC: &str = include_str!("keys/p256.pub.pem");
const ED25519: &str = include_str!("keys/ed25519.pem");
const ED25519_PUBLIC: &str = include_str!("keys/ed25519.pub.pem");
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

#[test]
fn token_of_each_algorithm_is_accepted() {
    for token in [
        token(r#"{"alg":"HS256","typ":"JWT","kid":"hs"}"#, CLAIMS, |message| hs256(message, SECRET)),
        token(r#"{"alg":"ES256","typ":"at+jwt","kid":"es"}"#, CLAIMS, es256),
        token(r#"{"alg":"EdDSA","kid":"ed"}"#, CLAIMS, eddsa),
        // Without `kid`, the key is found by its algorithm.
        token(r#"{"alg":"EdDSA"}"#, CLAIMS, eddsa),
        // The other name of EdDSA with Ed25519 (RFC 9864).
        token(r#"{"alg":"Ed25519","kid":"ed"}"#, CLAIMS, eddsa),
        token(r#"{"alg":"Ed25519"}"#, CLAIMS, eddsa),
    ] {
        let identity = verify(&token).unwrap();
        assert_eq!((identity.user(), identity.expires_at_s()), ("ann", Some(NOW_S + 600)));
        assert_eq!(identity.scopes().to_string(), "read:workflow:*");
    }
}

#[test]
fn token_without_an_algorithm_is_refused() {
    const ALGORITHM: TokenError = TokenError::Jws(JwsError::Algorithm);
    let (header, claims) = (base64url(r#"{"alg":"none"}"#), base64url(CLAIMS));
    for none in [
        "none", "None", "NONE", "nOnE", "none ", "", "null", "HS256 ", "hs256", "HS512", "RS256", "ES384", "ES256K",
        "Ed448", "ed25519",
    ] {
        let header = format!(r#"{{"alg":"{none}"}}"#);
        for signature in [&b""[..], b"x", &[0; 32], &[0; 64]] {
            assert_eq!(refused(&token(&header, CLAIMS, |_| signature.to_vec())), ALGORITHM, "{none}");
        }
        assert_eq!(refused(&token(&header, CLAIMS, |message| hs256(message, SECRET))), ALGORITHM, "{none}");
        assert_eq!(refused(&token(&header, CLAIMS, |message| hs256(message, b""))), ALGORITHM, "{none}");
    }
    const PARTS: TokenError = TokenError::Jws(JwsError::Parts);
    for bare in
        [format!("{header}.{claims}"), format!(".{claims}."), format!("{header}.."), "..".to_owned(), String::new()]
    {
        assert_eq!(refused(&bare), PARTS, "{bare}");
    }
    for header in
        [r#"{"alg":null}"#, r#"{"alg":["HS256"]}"#, r#"{"alg":0}"#, "{}", "[]", "null", "", r#"{"alg":"HS256"} x"#]
    {
        let error = refused(&headed(header));
        assert!(matches!(error, TokenError::Jws(JwsError::Header | JwsError::Parts)), "{header}: {error}");
    }
}

#[test]
fn public_key_is_not_a_secret() {
    // The token says HS256, and the secret is what everybody knows: in every form in which a server may hold it.
    let der = |pem: &str| {
        use base64ct::Encoding as _;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        base64ct::Base64::decode_vec(&body).unwrap()
    };
    for (pem, kid) in [(P256_PUBLIC, "es"), (ED25519_PUBLIC, "ed")] {
        for secret in [pem.as_bytes().to_vec(), pem.trim_end().as_bytes().to_vec(), der(pem)] {
            for header in [format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#), r#"{"alg":"HS256"}"#.to_owned()] {
                let error = refused(&token(&header, CLAIMS, |message| hs256(message, &secret)));
                let known = matches!(error, TokenError::Jws(JwsError::Algorithm | JwsError::Signature));
                assert!(known, "{error}");
            }
        }
    }
    for kid in ["hs", "es"] {
        let header = format!(r#"{{"alg":"Ed25519","kid":"{kid}"}}"#);
        assert_eq!(refused(&token(&header, CLAIMS, eddsa)), TokenError::Jws(JwsError::Algorithm));
    }
    // And a set of public keys alone takes no HS256 at all.
    let public = KeySet::new(vec![public(P256_PUBLIC)]).unwrap();
    let verifier = Verifier::new(public, rules()).unwrap();
    let forged = token(r#"{"alg":"HS256"}"#, CLAIMS, |message| hs256(message, P256_PUBLIC.as_bytes()));
    assert_eq!(verifier.verify(&forged, NOW_S), Err(TokenError::Jws(JwsError::Algorithm)));
}

#[test]
fn token_of_another_key_is_refused() {
    let wrong = |header: &str| refused(&token(header, CLAIMS, eddsa));
    assert_eq!(wrong(r#"{"alg":"EdDSA","kid":"other"}"#), TokenError::Jws(JwsError::UnknownKey));
    assert_eq!(wrong(r#"{"alg":"EdDSA","kid":""}"#), TokenError::Jws(JwsError::UnknownKey));
    assert_eq!(wrong(r#"{"alg":"EdDSA","kid":"../../etc/passwd"}"#), TokenError::Jws(JwsError::UnknownKey));
    assert_eq!(wrong(r#"{"alg":"EdDSA","kid":"es"}"#), TokenError::Jws(JwsError::Algorithm));
    assert_eq!(wrong(r#"{"alg":"ES256","kid":"es"}"#), TokenError::Jws(JwsError::Signature));
    assert_eq!(wrong(r#"{"alg":"EdDSA","kid":["ed"]}"#), TokenError::Jws(JwsError::Header));
    // A key that the token itself brings is not looked at.
    let own = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let sign = |message: &[u8]| ed25519_dalek::Signer::sign(&own, message).to_bytes().to_vec();
    let jwk = format!(
        r#"{{"alg":"EdDSA","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{}"}}}}"#,
        base64url(own.verifying_key().to_bytes())
    );
    assert_eq!(refused(&token(&jwk, CLAIMS, sign)), TokenError::Jws(JwsError::Signature));
}

#[test]
fn malformed_signature_is_refused() {
    const SIGNATURE: TokenError = TokenError::Jws(JwsError::Signature);
    let es = r#"{"alg":"ES256","kid":"es"}"#;
    // All zeros once passed for a signature of anything, in other libraries; r and s of the order, one and all ones.
    let order = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad,
        0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let mut one = [0; 32];
    one[31] = 1;
    for half in [[0; 32], order, one, [0xff; 32]] {
        for other in [[0; 32], order, one, [0xff; 32]] {
            assert_eq!(refused(&token(es, CLAIMS, |_| [half, other].concat())), SIGNATURE);
        }
    }
    for bytes in [1, 31, 32, 63, 65, 70, 72, 128] {
        assert_eq!(refused(&token(es, CLAIMS, |_| vec![1; bytes])), SIGNATURE);
        assert_eq!(refused(&token(r#"{"alg":"EdDSA","kid":"ed"}"#, CLAIMS, |_| vec![1; bytes])), SIGNATURE);
        assert_eq!(refused(&token(r#"{"alg":"HS256","kid":"hs"}"#, CLAIMS, |_| vec![1; bytes])), SIGNATURE);
    }
    // In DER, as other protocols have it.
    let der =
        |message: &[u8]| p256::ecdsa::Signature::from_slice(&es256(message)).unwrap().to_der().as_bytes().to_vec();
    assert_eq!(refused(&token(es, CLAIMS, der)), SIGNATURE);
    // A part of the right HMAC, and more than it.
    let cut = |bytes: usize| move |message: &[u8]| hs256(message, SECRET)[..bytes].to_vec();
    let hs = r#"{"alg":"HS256","kid":"hs"}"#;
    assert_eq!(refused(&token(hs, CLAIMS, cut(16))), SIGNATURE);
    assert_eq!(refused(&token(hs, CLAIMS, cut(31))), SIGNATURE);
    assert_eq!(refused(&token(hs, CLAIMS, |message| [hs256(message, SECRET), vec![0]].concat())), SIGNATURE);
    // s + the order of Ed25519's group: another text for the same signature.
    let twisted = token(r#"{"alg":"EdDSA","kid":"ed"}"#, CLAIMS, |message| {
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut signature = eddsa(message);
        let mut carry = 0;
        for (byte, add) in signature[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        signature
    });
    assert_eq!(refused(&twisted), SIGNATURE);
}

#[test]
fn unsupported_header_is_refused() {
    for (header, want) in [
        (r#"{"alg":"HS256","kid":"hs","crit":["exp"]}"#, JwsError::Critical),
        (r#"{"alg":"HS256","kid":"hs","crit":[]}"#, JwsError::Critical),
        (r#"{"alg":"HS256","kid":"hs","b64":false}"#, JwsError::Critical),
        (r#"{"alg":"HS256","kid":"hs","typ":"secevent+jwt"}"#, JwsError::Type),
        (r#"{"alg":"HS256","kid":"hs","typ":"dpop+jwt"}"#, JwsError::Type),
        (r#"{"alg":"HS256","kid":"hs","typ":1}"#, JwsError::Header),
        (r#"{"alg":"none","kid":"hs","alg":"HS256"}"#, JwsError::Header),
        (r#"{"alg":"HS256","kid":"hs","\u0061lg":"none"}"#, JwsError::Header),
        (r#"{"alg":"HS256","kid":"hs","kid":"es"}"#, JwsError::Header),
        (r#"{"alg":"HS256","kid":"hs","x":{"a":1,"a":2}}"#, JwsError::Header),
    ] {
        assert_eq!(refused(&headed(header)), TokenError::Jws(want), "{header}");
    }
    let many = format!(r#"{{"alg":"HS256","kid":"hs","x":[{}0]}}"#, "0,".repeat(100));
    let deep = format!(r#"{{"alg":"HS256","kid":"hs","x":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    for header in [many, deep] {
        assert_eq!(refused(&headed(&header)), TokenError::Jws(JwsError::Header));
    }
}

#[test]
fn malformed_token_is_refused() {
    const PARTS: TokenError = TokenError::Jws(JwsError::Parts);
    let good = claiming(CLAIMS);
    assert!(verify(&good).is_ok());
    let (head, signature) = good.rsplit_once('.').unwrap();
    for text in [
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.AAAA"),
        format!("{good}="),
        format!(" {good}"),
        format!("{good}\n"),
        good.replace('.', ".."),
        good.replacen('.', ".\n", 1),
        format!("{head}.{}", signature.replace(['-', '_'], "+")) + "+",
        "a.b".to_owned(),
        "é.é.é".to_owned(),
    ] {
        assert_eq!(refused(&text), PARTS, "{text}");
    }
    for end in 0..good.len() {
        assert!(verify(&good[..end]).is_err(), "cut at {end}");
    }
    // The last character has bits to spare: other texts of the same bytes are refused.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let same: Vec<char> =
        alphabet.chars().filter(|last| verify(&format!("{}{last}", &good[..good.len() - 1])).is_ok()).collect();
    assert_eq!(same, [good.chars().last().unwrap()]);
    let huge = format!("{}.{}.{}", "A".repeat(3000), "A".repeat(3000), "A".repeat(3000));
    assert_eq!(refused(&huge), TokenError::Jws(JwsError::TooLong { bytes: 9002 }));
}

/// The claims with one of them replaced or removed.
fn with(claim: &str, value: Option<&str>) -> String {
    let mut claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(CLAIMS).unwrap();
    claims.remove(claim);
    let mut text = serde_json::to_string(&claims).unwrap();
    if let Some(value) = value {
        text.insert_str(1, &format!(r#""{claim}":{value},"#));
    }
    text
}

fn refused_with(claim: &str, value: Option<&str>) -> TokenError {
    refused(&claiming(&with(claim, value)))
}

#[test]
fn token_is_accepted_only_within_its_times() {
    const EXP: TokenError = TokenError::Malformed { claim: "exp" };
    assert_eq!(refused_with("exp", None), TokenError::Missing { claim: "exp" });
    for value in [
        "\"1800000600\"",
        "null",
        "true",
        "[]",
        "{}",
        "-1",
        "-1800000600",
        "-0.5",
        "1e300",
        "9223372036854775807",
        "18446744073709551615",
        "1e18",
        "253402300800",
        "[1800000600]",
    ] {
        assert_eq!(refused_with("exp", Some(value)), EXP, "{value}");
    }
    // No JSON at all.
    for value in ["NaN", "Infinity", "1e999", "0x6b49d200", "+1800000600", "01800000600", "1_800_000_600"] {
        assert_eq!(refused_with("exp", Some(value)), TokenError::Claims, "{value}");
    }
    for (exp, good) in [
        ("1799999971", true),
        ("1799999970", false),
        ("1799999970.9", false),
        ("0", false),
        ("1", false),
        ("1800000000.5", true),
        ("1.8e9", true),
    ] {
        let verified = verify(&claiming(&with("exp", Some(exp))));
        assert_eq!(verified.is_ok(), good, "{exp}");
        if let Err(error) = verified {
            assert_eq!(error, TokenError::Expired, "{exp}");
        }
    }
    for (nbf, good) in
        [("1800000030", true), ("1800000031", false), ("1800000030.1", false), ("253402300799", false), ("0", true)]
    {
        let verified = verify(&claiming(&with("nbf", Some(nbf))));
        assert_eq!(verified.map(|_| ()), if good { Ok(()) } else { Err(TokenError::NotYet) }, "{nbf}");
    }
    for claim in ["nbf", "iat"] {
        for value in ["\"0\"", "null", "-1", "1e300"] {
            assert_eq!(refused_with(claim, Some(value)), TokenError::Malformed { claim }, "{claim} {value}");
        }
    }
    // A clock at either end of time.
    let good = claiming(CLAIMS);
    assert_eq!(verifier().verify(&good, u64::MAX), Err(TokenError::Expired));
    assert!(verifier().verify(&good, 0).is_ok());
}

#[test]
fn token_of_another_issuer_or_audience_is_refused() {
    assert_eq!(refused_with("iss", None), TokenError::Missing { claim: "iss" });
    for issuer in
        ["\"https://issuer.example/\"", "\"https://issuer.example.evil\"", "\"HTTPS://ISSUER.EXAMPLE\"", "\"\""]
    {
        assert_eq!(refused_with("iss", Some(issuer)), TokenError::Issuer, "{issuer}");
    }
    for issuer in ["null", "[\"https://issuer.example\"]", "1"] {
        assert_eq!(refused_with("iss", Some(issuer)), TokenError::Malformed { claim: "iss" }, "{issuer}");
    }
    assert_eq!(refused_with("aud", None), TokenError::Missing { claim: "aud" });
    for audience in ["\"other\"", "\"Weir\"", "\"weir \"", "\"\"", "[]", "[\"other\",\"wei\"]"] {
        assert_eq!(refused_with("aud", Some(audience)), TokenError::Audience, "{audience}");
    }
    for audience in ["null", "1", "{}", "{\"weir\":1}", "[\"weir\",1]", "[[\"weir\"]]"] {
        assert_eq!(refused_with("aud", Some(audience)), TokenError::Malformed { claim: "aud" }, "{audience}");
    }
    for audience in ["[\"other\",\"weir\"]", "[\"https://weir.example\"]"] {
        assert!(verify(&claiming(&with("aud", Some(audience)))).is_ok(), "{audience}");
    }
}

#[test]
fn user_and_scopes_are_read_from_claims() {
    assert_eq!(refused_with("sub", None), TokenError::Missing { claim: "sub" });
    for user in ["null", "1", "\"\"", "\"a b\"", "\"a\\u0000\"", "\"..\"", "\"*\"", "\"a\\nb\"", "\"é\""] {
        assert_eq!(refused_with("sub", Some(user)), TokenError::Malformed { claim: "sub" }, "{user}");
    }
    for (scope, want) in [
        ("\"\"", ""),
        ("\"admin\"", "admin"),
        ("\"Admin ADMIN admin: *\"", ""),
        ("[\"read:*:*\",\"publish:file:a openid\"]", "read:*:*"),
        ("\"read:workflow:* write:x\"", "read:workflow:*"),
    ] {
        let identity = verify(&claiming(&with("scope", Some(scope)))).unwrap();
        let want = if scope.starts_with('[') { "read:*:* publish:file:a" } else { want };
        assert_eq!(identity.scopes().to_string(), want, "{scope}");
    }
    let many = format!("\"{}\"", "admin ".repeat(65));
    for scope in ["null", "1", "{}", "[1]", &many] {
        assert_eq!(refused_with("scope", Some(scope)), TokenError::Malformed { claim: "scope" }, "{scope}");
    }
}

#[test]
fn ambiguous_claims_are_refused() {
    for claims in [
        r#"{"sub":"ann","sub":"bob"}"#.to_owned(),
        CLAIMS.replace(r#""sub":"ann""#, r#""sub":"ann","s\u0075b":"root""#),
        CLAIMS.replace('}', r#","x":{"a":1,"a":2}}"#),
        format!("{CLAIMS}{CLAIMS}"),
        format!("\u{feff}{CLAIMS}"),
        "[]".to_owned(),
        "\"\"".to_owned(),
        CLAIMS.replace("ann", "\\ud800"),
        CLAIMS.replace('}', &format!(r#","x":{}{}}}"#, "[".repeat(500), "]".repeat(500))),
        CLAIMS.replace('}', &format!(r#","x":[{}0]}}"#, "0,".repeat(1500))),
    ] {
        assert_eq!(refused(&claiming(&claims)), TokenError::Claims, "{claims}");
    }
    let latin = token(r#"{"alg":"HS256"}"#, "x", |_| Vec::new());
    let signed = format!("{}.{}", latin.split('.').next().unwrap(), base64url(b"{\"sub\":\"\xe9\"}"));
    let broken = format!("{signed}.{}", base64url(hs256(signed.as_bytes(), SECRET)));
    assert_eq!(refused(&broken), TokenError::Claims);
}

#[test]
fn keys_are_rotated() {
    let old = claiming(CLAIMS);
    let new = token(r#"{"alg":"HS256","kid":"hs2"}"#, CLAIMS, |message| hs256(message, &[9; 32]));
    let key = |secret: &[u8], id| Key::from_secret(secret).unwrap().with_id(id).unwrap();
    let mut verifier = verifier();
    assert!(verifier.verify(&old, NOW_S).is_ok() && verifier.verify(&new, NOW_S).is_err());
    verifier.set_keys(KeySet::new(vec![key(SECRET, "hs"), key(&[9; 32], "hs2")]).unwrap());
    assert!(verifier.verify(&old, NOW_S).is_ok() && verifier.verify(&new, NOW_S).is_ok());
    verifier.set_keys(KeySet::new(vec![key(&[9; 32], "hs2")]).unwrap());
    assert_eq!(verifier.verify(&old, NOW_S), Err(TokenError::Jws(JwsError::UnknownKey)));
    assert!(verifier.verify(&new, NOW_S).is_ok());
}

#[test]
fn rules_that_accept_every_token_are_refused() {
    let with = |change: fn(&mut TokenRules)| {
        let mut rules = rules();
        change(&mut rules);
        Verifier::new(keys(), rules).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(|rules| rules.issuers.clear()), RulesError::Issuers);
    assert_eq!(with(|rules| rules.issuers.push(String::new())), RulesError::Issuers);
    assert_eq!(with(|rules| rules.audiences.clear()), RulesError::Audiences);
    assert_eq!(with(|rules| rules.leeway_s = 301), RulesError::Leeway);
}

/// A guard with tokens, one API key for each of two users, and tickets.
struct Door {
    guard: Guard,
    ann: String,
    bob: String,
}

fn door() -> Door {
    let (ann, bob) = (api_key::generate(&[1; 32]), api_key::generate(&[2; 32]));
    let records = format!("a ann {} publish:workflow:*\nb bob {}\n", ann.hash, bob.hash);
    let api_keys = ApiKeys::from_file(records.as_bytes()).unwrap();
    let tickets = TicketKeys::new(&[&[5; 32]], 30).unwrap();
    let guard = Guard::closed(Some(verifier()), Some(api_keys), Some(tickets)).unwrap();
    Door { guard, ann: ann.key, bob: bob.key }
}

const PATH: &str = "/stream/workflow/42";

fn enter(guard: &Guard, headers: &[(&str, &str)], query: &str) -> Result<Authenticated, AuthError> {
    let shown = Credentials::find(headers.iter().map(|(name, value)| (*name, value.as_bytes())), query).unwrap();
    guard.authenticate(&shown, PATH, Some("weir.example"), NOW_S)
}

fn user(entry: Authenticated) -> String {
    match entry {
        Authenticated::Identity(identity) => identity.user().to_owned(),
        Authenticated::Ticket(unclaimed) => unclaimed.into_identity(true, LABEL).unwrap().user().to_owned(),
    }
}

#[test]
fn each_credential_kind_authenticates() {
    let Door { guard, ann, bob } = door();
    let jwt = claiming(CLAIMS);
    for (headers, want) in [
        (vec![("authorization", format!("Bearer {jwt}"))], "ann"),
        (vec![("authorization", format!("Bearer {bob}"))], "bob"),
        (vec![("cookie", format!("__Host-weir={jwt}"))], "ann"),
        (vec![("cookie", format!("x=y; __Host-weir={bob}"))], "bob"),
        (vec![("authorization", format!("Bearer {ann}")), ("cookie", format!("__Host-weir={jwt}"))], "ann"),
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(user(enter(&guard, &headers, "").unwrap()), want);
    }
    assert_eq!(enter(&guard, &[], ""), Err(AuthError::Missing));
    let error = enter(&guard, &[("authorization", "Bearer weir_AAAA")], "").unwrap_err();
    assert!(matches!(error, AuthError::ApiKey(_)));
}

#[test]
fn credentials_of_two_users_are_refused() {
    let Door { guard, ann, bob } = door();
    let (bearer, cookie) = (format!("Bearer {ann}"), format!("__Host-weir={bob}"));
    let both = [("authorization", bearer.as_str()), ("cookie", cookie.as_str())];
    assert_eq!(enter(&guard, &both, ""), Err(AuthError::TwoUsers));
    let Ok(Authenticated::Identity(identity)) = enter(&guard, &both[1..], "") else { panic!("bob is known") };
    let ticket = guard.issue_ticket(&identity, PATH, None, &[6; 16], LABEL, NOW_S).unwrap().ticket;
    let query = format!("ticket={ticket}");
    assert_eq!(enter(&guard, &both[..1], &query), Err(AuthError::TwoUsers));
    assert_eq!(user(enter(&guard, &both[1..], &query).unwrap()), "bob");
    // Something forged beside something good.
    let forged = [("authorization", bearer.as_str()), ("cookie", "__Host-weir=eyJhbGciOiJub25lIn0.e30.x")];
    assert!(matches!(enter(&guard, &forged, ""), Err(AuthError::Token(_))));
    assert!(matches!(enter(&guard, &both[..1], "ticket=wt1.AAAA.AAAA"), Err(AuthError::Ticket(TicketError::Forged))));
}

#[test]
fn ticket_is_accepted_for_one_path_once() {
    let Door { guard, bob, .. } = door();
    let bearer = format!("Bearer {bob}");
    let Ok(Authenticated::Identity(identity)) = enter(&guard, &[("authorization", &bearer)], "") else {
        panic!("bob is known")
    };
    let ticket = guard.issue_ticket(&identity, PATH, None, &[6; 16], LABEL, NOW_S).unwrap().ticket;
    let query = format!("ticket={ticket}");
    // A store that has seen the id says so.
    let mut claims = std::collections::BTreeSet::new();
    let mut open = |query: &str| match enter(&guard, &[], query)? {
        Authenticated::Identity(identity) => Ok(identity),
        Authenticated::Ticket(unclaimed) => {
            let first = claims.insert(unclaimed.id().to_owned());
            Ok::<_, AuthError>(unclaimed.into_identity(first, LABEL)?)
        }
    };
    assert_eq!(open(&query).unwrap(), identity);
    assert_eq!(open(&query), Err(AuthError::Ticket(TicketError::Used)));
    let elsewhere = guard.issue_ticket(&identity, "/stream/workflow/43", None, &[7; 16], LABEL, NOW_S).unwrap().ticket;
    assert_eq!(open(&format!("ticket={elsewhere}")), Err(AuthError::Ticket(TicketError::OtherPath)));
    let late = guard.authenticate(&Credentials::find([], &query).unwrap(), PATH, None, NOW_S + 30);
    assert_eq!(late, Err(AuthError::Ticket(TicketError::Expired)));
    // A ticket is no bearer token, and a bearer token no ticket.
    let as_bearer = format!("Bearer {ticket}");
    assert!(matches!(enter(&guard, &[("authorization", &as_bearer)], ""), Err(AuthError::Token(_))));
    let none = Guard::closed(Some(verifier()), None, None).unwrap();
    assert_eq!(enter(&none, &[], &query), Err(AuthError::NotAccepted("tickets")));
}

#[test]
fn kind_of_credential_that_is_not_configured_is_refused() {
    let Door { ann, .. } = door();
    let api_key = format!("Bearer {ann}");
    let jwt = format!("Bearer {}", claiming(CLAIMS));
    let tokens = Guard::closed(Some(verifier()), None, None).unwrap();
    assert_eq!(enter(&tokens, &[("authorization", &api_key)], ""), Err(AuthError::NotAccepted("API keys")));
    let records = format!("a ann {}", api_key::generate(&[1; 32]).hash);
    let keys = Guard::closed(None, Some(ApiKeys::from_file(records.as_bytes()).unwrap()), None).unwrap();
    assert_eq!(enter(&keys, &[("authorization", &jwt)], ""), Err(AuthError::NotAccepted("tokens")));
    assert_eq!(user(enter(&keys, &[("authorization", &api_key)], "").unwrap()), "ann");
    assert_eq!(Guard::closed(None, None, None).unwrap_err(), GuardError::NoKeys);
    assert_eq!(Guard::closed(None, Some(ApiKeys::default()), None).unwrap_err(), GuardError::NoKeys);
}

#[test]
fn server_without_authentication_accepts_loopback_only() {
    assert_eq!(Guard::open(false).unwrap_err(), GuardError::NotLoopback);
    let guard = Guard::open(true).unwrap();
    let enter = |host| guard.authenticate(&Credentials::default(), PATH, host, NOW_S);
    for host in [None, Some("localhost:8080"), Some("127.0.0.1")] {
        assert_eq!(user(enter(host).unwrap()), "local");
    }
    // A page whose name was made to lead here.
    assert_eq!(enter(Some("evil.example:8080")), Err(AuthError::HostNotLoopback));
}

#[test]
fn forbidden_and_unknown_ids_have_the_same_error() {
    let Door { guard, bob, .. } = door();
    let bearer = format!("Bearer {bob}");
    let Ok(Authenticated::Identity(bob)) = enter(&guard, &[("authorization", &bearer)], "") else {
        panic!("bob is known")
    };
    let channel = |name: &str| Channel::from_name(name).unwrap();
    for name in ["workflow:42", "file:42", "pipeline:42", "session:42", "user:ann", "user:bob2", "user:Bob"] {
        for owner in [None, Some("ann"), Some("bo"), Some("bobb"), Some("")] {
            for action in Action::ALL {
                assert_eq!(bob.authorize(action, &channel(name), owner), Err(NotFound), "{name} {owner:?}");
            }
        }
    }
    assert_eq!(bob.authorize(Action::Read, &channel("user:bob"), Some("ann")), Ok(()));
}

/// A mutated token or ticket.
fn mutated(text: String) -> impl Strategy<Value = String> {
    let length = text.len();
    prop::collection::vec((0..length, 0u8..5, "[A-Za-z0-9._=-]"), 1..4).prop_map(move |changes| {
        let mut bent = text.clone().into_bytes();
        for (at, how, by) in changes {
            let at = at.min(bent.len().saturating_sub(1));
            let by = by.as_bytes()[0];
            match how {
                0 => bent[at] = by,
                1 => bent.insert(at, by),
                2 if bent.len() > 1 => drop(bent.remove(at)),
                3 => bent.truncate(at.max(1)),
                _ => bent.extend_from_slice(&[by]),
            }
        }
        String::from_utf8(bent).unwrap()
    })
}

proptest! {
    #[test]
    fn mutated_token_is_refused(
        token in prop_oneof![
            mutated(claiming(CLAIMS)),
            mutated(token(r#"{"alg":"ES256","kid":"es"}"#, CLAIMS, es256)),
            mutated(token(r#"{"alg":"EdDSA","kid":"ed"}"#, CLAIMS, eddsa)),
        ],
    ) {
        // ES256 may be signed anew with another signature of the same token; that takes the key, which nobody here has.
        if verify(&token).is_ok() {
            let good = [
                claiming(CLAIMS),
                self::token(r#"{"alg":"ES256","kid":"es"}"#, CLAIMS, es256),
                self::token(r#"{"alg":"EdDSA","kid":"ed"}"#, CLAIMS, eddsa),
            ];
            prop_assert!(good.contains(&token), "{}", token);
        }
    }

    #[test]
    fn random_text_is_not_a_token(token in "\\PC{0,60}|[A-Za-z0-9_-]{0,30}(\\.[A-Za-z0-9_-]{0,30}){0,4}") {
        prop_assert!(verify(&token).is_err());
    }

    #[test]
    fn header_without_the_secret_is_refused(
        members in prop::collection::vec(
            ("alg|kid|typ|crit|jwk|b64|x", "\"(HS256|ES256|EdDSA|none|hs|es|ed|JWT)\"|null|0|\\[\\]|\\{\\}"),
            0..5,
        ),
        signature in prop::collection::vec(any::<u8>(), 0..70),
    ) {
        let members: Vec<String> = members.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
        let header = format!("{{{}}}", members.join(","));
        prop_assert!(verify(&token(&header, CLAIMS, |_| signature.clone())).is_err());
    }

    #[test]
    fn claims_of_any_shape_are_read_or_refused(
        name in "iss|aud|sub|exp|nbf|iat|scope",
        value in "-?[0-9]{1,20}(\\.[0-9]{1,3})?(e[0-9]{1,2})?|\"[a-z :*]{0,8}\"|null|true|\\[(\"weir\"|1)?\\]|\\{\\}",
    ) {
        if let Ok(identity) = verify(&claiming(&with(&name, Some(&value)))) {
            prop_assert!(identity.expires_at_s().is_some_and(|expires_at_s| expires_at_s + LEEWAY_S_DEFAULT > NOW_S));
            prop_assert!(!identity.user().is_empty());
        }
    }

    #[test]
    fn request_without_a_key_is_refused(
        bearer in prop::option::of("[A-Za-z0-9._~+/=-]{0,50}"),
        cookie in prop::option::of("(__Host-weir=|; |[a-zA-Z0-9=.-]){0,20}"),
        query in "(ticket=(wt1\\.[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{43})?|&|[a-z=]){0,4}",
    ) {
        let Door { guard, .. } = door();
        let bearer = bearer.map(|token| format!("Bearer {token}"));
        let headers = [("authorization", &bearer), ("cookie", &cookie)];
        let headers = headers.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?.as_bytes())));
        if let Ok(shown) = Credentials::find(headers, &query) {
            prop_assert!(guard.authenticate(&shown, PATH, None, NOW_S).is_err());
        }
    }
}

#[test]
fn limited_ticket_authorizes_only_its_scopes() {
    let Door { guard, ann, .. } = door();
    let bearer = format!("Bearer {ann}");
    let Ok(Authenticated::Identity(ann)) = enter(&guard, &[("authorization", &bearer)], "") else {
        panic!("ann is known")
    };
    let limit = Some(Scopes::read(["read:workflow:42"]).unwrap());
    let ticket = guard.issue_ticket(&ann, PATH, limit, &[6; 16], LABEL, NOW_S).unwrap().ticket;
    let Ok(Authenticated::Ticket(unclaimed)) = enter(&guard, &[], &format!("ticket={ticket}")) else {
        panic!("a ticket")
    };
    let opened = unclaimed.into_identity(true, LABEL).unwrap();
    let channel = |name: &str| Channel::from_name(name).unwrap();
    assert_eq!(opened.authorize(Action::Read, &channel("workflow:42"), Some("ann")), Ok(()));
    assert_eq!(opened.authorize(Action::Publish, &channel("workflow:42"), Some("ann")), Err(NotFound));
    assert_eq!(opened.authorize(Action::Read, &channel("user:ann"), None), Err(NotFound));
    assert_eq!(opened.authorize(Action::Read, &channel("workflow:43"), Some("ann")), Err(NotFound));
}
