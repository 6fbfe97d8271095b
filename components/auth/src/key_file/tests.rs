use base64ct::{Base64, Base64UrlUnpadded, Encoding as _};
use expect_test::{Expect, expect};
use hmac::Mac as _;
use proptest::prelude::*;

use super::*;
use crate::key::{Algorithm, KEYS_MAX, KeySet};

const P256_PEM: &str = include_str!("../../tests/keys/p256.pub.pem");
const ED25519_PEM: &str = include_str!("../../tests/keys/ed25519.pub.pem");
const ED25519_JWK: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const OPEN_SSH: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea ann@example.org\n";

fn describe(file: Result<KeyFile, KeyFileError>) -> String {
    match file {
        Ok(file) => {
            let keys: Vec<String> = file.keys.iter().map(|key| format!("{:?}", key.algorithm())).collect();
            let skipped: Vec<String> = file.skipped.iter().map(|skipped| format!("\n{skipped}")).collect();
            keys.join(" ") + &skipped.concat()
        }
        Err(error) => error.to_string(),
    }
}

fn check(contents: impl AsRef<[u8]>, want: Expect) {
    want.assert_eq(&describe(read_keys(contents.as_ref())));
}

fn check_secrets(contents: impl AsRef<[u8]>, want: Expect) {
    want.assert_eq(&match read_secrets(contents.as_ref()) {
        Ok(keys) => format!("{} secrets", keys.len()),
        Err(error) => error.to_string(),
    });
}

fn der(pem: &str) -> Vec<u8> {
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    Base64::decode_vec(&base64).unwrap()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn public_keys_in_every_accepted_form_are_read() {
    check(P256_PEM, expect!["Es256"]);
    check(format!("{ED25519_PEM}\n{P256_PEM}"), expect!["EdDsa Es256"]);
    check(format!("\u{feff}{}", P256_PEM.replace('\n', "\r\n")), expect!["Es256"]);
    check(
        format!("# the issuer's key, see -----BEGIN below\n\n{P256_PEM}trailing text\n{ED25519_PEM}"),
        expect!["Es256 EdDsa"],
    );
    check(P256_PEM.replace('\n', "\n    "), expect!["Es256"]);
    let one_line = P256_PEM
        .replace("-----\n", "\u{1}")
        .replace('\n', "")
        .replace('\u{1}', "-----\n")
        .replace("-----END", "\n-----END");
    check(one_line, expect!["Es256"]);
    check(ED25519_JWK, expect!["EdDsa"]);
    check(format!("[{ED25519_JWK}]"), expect!["EdDsa"]);
    check(format!("\u{feff}{{\"keys\": [\r\n{ED25519_JWK}\r\n]}}\r\n"), expect!["EdDsa"]);
}

#[test]
fn file_in_another_form_is_refused_with_the_reason() {
    check("", expect!["the file is empty"]);
    check(" \r\n", expect!["the file is empty"]);
    check("\u{feff}", expect!["the file is empty"]);
    check(
        [b'x'; 32],
        expect![
            "the file is neither a JWKS, a JWK nor PEM; a shared secret for HS256 belongs in the file `token_secrets`, one per line, or in a JWK with `kty` `oct`"
        ],
    );
    check(
        "a shared secret that is long enough for HS256\n",
        expect![
            "the file is neither a JWKS, a JWK nor PEM; a shared secret for HS256 belongs in the file `token_secrets`, one per line, or in a JWK with `kty` `oct`"
        ],
    );
    check(OPEN_SSH, expect!["the file is an OpenSSH key; write it as PEM (`-----BEGIN PUBLIC KEY-----`) or as a JWK"]);
    check(
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABB ann",
        expect!["the file is an OpenSSH key; write it as PEM (`-----BEGIN PUBLIC KEY-----`) or as a JWK"],
    );
    check(
        "---- BEGIN SSH2 PUBLIC KEY ----\nAAAAC3NzaC1lZDI1NTE5\n---- END SSH2 PUBLIC KEY ----",
        expect!["the file is an OpenSSH key; write it as PEM (`-----BEGIN PUBLIC KEY-----`) or as a JWK"],
    );
    check(
        der(P256_PEM),
        expect![
            "the file is binary (DER); convert it to PEM: `openssl pkey -pubin -inform DER -in FILE -out token_keys`"
        ],
    );
    check(
        der(ED25519_PEM),
        expect![
            "the file is binary (DER); convert it to PEM: `openssl pkey -pubin -inform DER -in FILE -out token_keys`"
        ],
    );
    check(utf16(P256_PEM), expect!["the file is UTF-16 or binary; save it as UTF-8 text"]);
    check(
        [b"\xff\xfe".to_vec(), utf16(ED25519_JWK)].concat(),
        expect!["the file is UTF-16 or binary; save it as UTF-8 text"],
    );
    check(
        P256_PEM.replace("-----BEGIN", "BEGIN"),
        expect![
            "the file is neither a JWKS, a JWK nor PEM; a shared secret for HS256 belongs in the file `token_secrets`, one per line, or in a JWK with `kty` `oct`"
        ],
    );
    check(
        format!("// keys\n{ED25519_JWK}"),
        expect![
            "the file is neither a JWKS, a JWK nor PEM; a shared secret for HS256 belongs in the file `token_secrets`, one per line, or in a JWK with `kty` `oct`"
        ],
    );
    check(
        format!("\"{}\"", "x".repeat(40)),
        expect![
            "the file is neither a JWKS, a JWK nor PEM; a shared secret for HS256 belongs in the file `token_secrets`, one per line, or in a JWK with `kty` `oct`"
        ],
    );
    check("{\"issuer\": \"https://issuer.example\"}", expect!["a JWKS is an object with an array `keys` of objects"]);
    check(vec![b'x'; FILE_BYTES_MAX + 1], expect!["the file has 262145 bytes, and may have at most 262144"]);
}

#[test]
fn pem_without_a_usable_key_is_refused_with_the_reason() {
    check(
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        expect![
            "the file has no key that can verify tokens: PEM block at line 1: the public key is neither P-256 (ES256) nor Ed25519 (EdDSA)"
        ],
    );
    check(
        "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----",
        expect!["the file has no key that can verify tokens: PEM block at line 1: the block is not base64"],
    );
    check(
        P256_PEM.replace("END PUBLIC", "END PUBLISH"),
        expect![
            "the file has no key that can verify tokens: PEM block at line 1: the block has no `-----END …-----` line of the same label"
        ],
    );
    check(
        include_str!("../../tests/keys/p256.pem"),
        expect![
            "the file has no key that can verify tokens: PEM block at line 1: this is a private key; tokens are verified with the public one"
        ],
    );
    check(
        include_str!("../../tests/keys/rsa.pub.pem"),
        expect![
            "the file has no key that can verify tokens: PEM block at line 1: the public key is neither P-256 (ES256) nor Ed25519 (EdDSA)"
        ],
    );
    check(
        include_str!("../../tests/keys/p384.pub.pem"),
        expect![
            "the file has no key that can verify tokens: PEM block at line 1: the public key is neither P-256 (ES256) nor Ed25519 (EdDSA)"
        ],
    );
    check(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        expect![
            "the file has no key that can verify tokens: PEM block at line 1: the block is a `CERTIFICATE`; only `PUBLIC KEY` is read"
        ],
    );
}

#[test]
fn unusable_key_is_skipped_beside_a_usable_one() {
    let rsa = include_str!("../../tests/keys/rsa.pub.pem");
    let private = include_str!("../../tests/keys/p256.pem");
    check(
        format!("{rsa}{private}{P256_PEM}"),
        expect![[r#"
        Es256
        PEM block at line 1: the public key is neither P-256 (ES256) nor Ed25519 (EdDSA)
        PEM block at line 10: this is a private key; tokens are verified with the public one"#]],
    );
    // A truncated block does not hide the next one.
    let truncated: String = P256_PEM.lines().take(2).map(|line| format!("{line}\n")).collect();
    check(
        format!("{truncated}{ED25519_PEM}"),
        expect![[r#"
        EdDsa
        PEM block at line 1: the block has no `-----END …-----` line of the same label"#]],
    );
    check(
        format!(
            r#"{{"keys":[1,{{}},{{"kty":"RSA","n":"AQ","e":"AQAB"}},{{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}},{ED25519_JWK}]}}"#
        ),
        expect![[r#"
            EdDsa
            key 0 of the JWKS: a key must be an object
            key 1 of the JWKS: `kty` is missing or wrong
            key 2 of the JWKS: `kty` `RSA` is not supported; P-256 (ES256), Ed25519 (EdDSA) and `oct` (HS256) are
            key 3 of the JWKS: `crv` `P-384` is not supported; P-256 (ES256), Ed25519 (EdDSA) and `oct` (HS256) are"#]],
    );
}

#[test]
fn secrets_are_read_line_by_line() {
    check_secrets("a shared secret that is long enough for HS256", expect!["1 secrets"]);
    check_secrets(
        "\u{feff}the first of two secrets of thirty-two bytes\r\n\r\nthe second of two secrets of thirty-two bytes\r\n",
        expect!["2 secrets"],
    );
    let secrets = read_secrets(b"  spaces belong to a secret of a line   \r\n").unwrap();
    assert!(secrets[0].verifies(
        b"message",
        &crate::key::mac(b"  spaces belong to a secret of a line   ", &[b"message"]).finalize().into_bytes()
    ));
    check_secrets("", expect!["the file is empty"]);
    check_secrets("\n\n", expect!["the file is empty"]);
    check_secrets(
        "0123456789abcdef0123456789abcdef\nshort\n",
        expect!["line 2: a shared secret must have 32 to 1024 bytes, and has 5"],
    );
    check_secrets("x".repeat(1025), expect!["line 1: a shared secret must have 32 to 1024 bytes, and has 1025"]);
    check_secrets(b"\xff".repeat(32), expect!["the file is not UTF-8 (byte 0); save it as UTF-8 text"]);
}

#[test]
fn public_key_in_the_file_of_secrets_is_refused() {
    for (name, contents) in public_key_files() {
        match read_secrets(&contents) {
            Err(KeyFileError::KeyAmongSecrets { .. } | KeyFileError::Text(_)) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    check_secrets(
        P256_PEM,
        expect!["line 1 resembles a public or private key (PEM); a public key belongs in the file `token_keys`"],
    );
    check_secrets(
        "{\n  \"kty\": \"OKP\",\n  \"crv\": \"Ed25519\"\n}",
        expect!["line 2 resembles a public or private key (JWK); a public key belongs in the file `token_keys`"],
    );
    check_secrets(
        OPEN_SSH,
        expect!["line 1 resembles a public or private key (OpenSSH); a public key belongs in the file `token_keys`"],
    );
    check_secrets(
        Base64::encode_string(&der(ED25519_PEM)),
        expect!["line 1 resembles a public or private key (DER); a public key belongs in the file `token_keys`"],
    );
}

/// Public keys in the forms that common tools write.
fn public_key_files() -> Vec<(&'static str, Vec<u8>)> {
    let base64 = Base64::encode_string(&der(P256_PEM));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    vec![
        ("PEM", P256_PEM.into()),
        ("PEM after a BOM", format!("\u{feff}{P256_PEM}").into()),
        ("PEM after a comment", format!("# key\n{P256_PEM}").into()),
        ("PEM with escaped line ends", P256_PEM.replace('\n', "\\n").into()),
        ("PEM in UTF-16", utf16(P256_PEM)),
        ("PEM in base64", Base64::encode_string(P256_PEM.as_bytes()).into()),
        ("PEM without its first line", P256_PEM.split_once('\n').unwrap().1.into()),
        ("PEM without its dashes", base64.as_bytes().chunks(64).collect::<Vec<_>>().join(&b'\n')),
        ("JWK", ED25519_JWK.into()),
        ("JWKS after a BOM", format!("\u{feff}{{\"keys\":[{ED25519_JWK}]}}").into()),
        ("array of JWKs", format!("[{ED25519_JWK}]").into()),
        ("JWK in base64url", Base64UrlUnpadded::encode_string(ED25519_JWK.as_bytes()).into()),
        ("JWK in UTF-16", utf16(ED25519_JWK)),
        ("OpenSSH", OPEN_SSH.into()),
        ("OpenSSH with options", format!("restrict,pty {OPEN_SSH}").into()),
        ("OpenSSH without its type", OPEN_SSH.split(' ').nth(1).unwrap().into()),
        ("DER of P-256", der(P256_PEM)),
        ("DER of Ed25519", der(ED25519_PEM)),
        ("DER in base64", base64.into()),
        ("DER in hexadecimal digits", hex(&der(ED25519_PEM)).into()),
    ]
}

#[test]
fn public_key_in_any_form_is_never_a_shared_secret() {
    for (name, contents) in public_key_files() {
        let algorithms = |keys: &[Key]| keys.iter().map(Key::algorithm).collect::<Vec<_>>();
        if let Ok(file) = read_keys(&contents) {
            assert!(!algorithms(&file.keys).contains(&Algorithm::Hs256), "{name}");
        }
        assert!(read_secrets(&contents).is_err(), "{name}");
        // Declared as a secret by its `kty`.
        let jwk = format!(r#"{{"kty":"oct","k":"{}"}}"#, Base64UrlUnpadded::encode_string(&contents));
        assert!(read_keys(jwk.as_bytes()).is_err(), "{name} in a JWK");
    }
}

#[test]
fn more_keys_than_the_bound_are_refused() {
    let keys = read_keys(P256_PEM.repeat(KEYS_MAX + 1).as_bytes()).unwrap().keys;
    assert_eq!(KeySet::new(keys).unwrap_err().to_string(), "there may be at most 32 keys");
}

proptest! {
    #[test]
    fn arbitrary_file_is_parsed_or_refused(
        contents in prop::collection::vec(any::<u8>(), 0..80),
        begin in prop::sample::select(vec!["", "-----BEGIN PUBLIC KEY-----\n", "{\"keys\":[", "[{", "\u{feff}", "ssh-", "0\u{2}"]),
    ) {
        let contents = [begin.as_bytes(), &contents].concat();
        if let Ok(file) = read_keys(&contents) {
            // Random bytes are never declared as a secret.
            prop_assert!(file.keys.iter().all(|key| key.algorithm() != Algorithm::Hs256));
        }
        let _ = read_secrets(&contents);
    }

    #[test]
    fn random_secrets_are_accepted_in_every_encoding(secret: [u8; 32]) {
        for text in [
            Base64::encode_string(&secret),
            Base64UrlUnpadded::encode_string(&secret),
            secret.iter().map(|byte| format!("{byte:02x}")).collect(),
        ] {
            prop_assert_eq!(read_secrets(text.as_bytes()).map(|keys| keys.len()), Ok(1), "{}", text);
        }
    }
}
