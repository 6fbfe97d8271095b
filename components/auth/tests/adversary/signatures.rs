//! Tokens: algorithms, keys and form.

use super::*;

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
    // A token with HS256 whose secret is a public key, in every form in which a server may store it.
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
    // A set with public keys only accepts no HS256 token.
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
    // A key in the token's own header is ignored.
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
    // Some libraries accepted a signature of zeros for any text. Also r and s equal to the order of the group, one, and
    // all ones.
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
    // In DER, as in other protocols.
    let der =
        |message: &[u8]| p256::ecdsa::Signature::from_slice(&es256(message)).unwrap().to_der().as_bytes().to_vec();
    assert_eq!(refused(&token(es, CLAIMS, der)), SIGNATURE);
    // A truncated HMAC, and one with an additional byte.
    let truncated = |bytes: usize| move |message: &[u8]| hs256(message, SECRET)[..bytes].to_vec();
    let hs = r#"{"alg":"HS256","kid":"hs"}"#;
    assert_eq!(refused(&token(hs, CLAIMS, truncated(16))), SIGNATURE);
    assert_eq!(refused(&token(hs, CLAIMS, truncated(31))), SIGNATURE);
    assert_eq!(refused(&token(hs, CLAIMS, |message| [hs256(message, SECRET), vec![0]].concat())), SIGNATURE);
    // s plus the order of Ed25519's group, which is equivalent but not canonical.
    let non_canonical = token(r#"{"alg":"EdDSA","kid":"ed"}"#, CLAIMS, |message| {
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
    assert_eq!(refused(&non_canonical), SIGNATURE);
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
    // The last character has unused bits; other texts of the same bytes are refused.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let same: Vec<char> =
        alphabet.chars().filter(|last| verify(&format!("{}{last}", &good[..good.len() - 1])).is_ok()).collect();
    assert_eq!(same, [good.chars().last().unwrap()]);
    let huge = format!("{}.{}.{}", "A".repeat(3000), "A".repeat(3000), "A".repeat(3000));
    assert_eq!(refused(&huge), TokenError::Jws(JwsError::TooLong { bytes: 9002 }));
}
