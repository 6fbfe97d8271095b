//! Tokens: claims and key rotation.

use super::*;

fn refused_with(claim: &str, value: Option<&str>) -> TokenError {
    refused(&claiming(&claims_with(claim, value)))
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
    // Not JSON.
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
        let verified = verify(&claiming(&claims_with("exp", Some(exp))));
        assert_eq!(verified.is_ok(), good, "{exp}");
        if let Err(error) = verified {
            assert_eq!(error, TokenError::Expired, "{exp}");
        }
    }
    for (nbf, good) in
        [("1800000030", true), ("1800000031", false), ("1800000030.1", false), ("253402300799", false), ("0", true)]
    {
        let verified = verify(&claiming(&claims_with("nbf", Some(nbf))));
        assert_eq!(verified.map(|_| ()), if good { Ok(()) } else { Err(TokenError::NotYet) }, "{nbf}");
    }
    for claim in ["nbf", "iat"] {
        for value in ["\"0\"", "null", "-1", "1e300"] {
            assert_eq!(refused_with(claim, Some(value)), TokenError::Malformed { claim }, "{claim} {value}");
        }
    }
    // The extreme times of the clock.
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
        assert!(verify(&claiming(&claims_with("aud", Some(audience)))).is_ok(), "{audience}");
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
        let identity = verify(&claiming(&claims_with("scope", Some(scope)))).unwrap();
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
fn rotated_keys_verify_their_own_tokens() {
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
