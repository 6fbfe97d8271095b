//! Mutated and random credentials.

use super::*;

fn mutated(text: String) -> impl Strategy<Value = String> {
    let length = text.len();
    prop::collection::vec((0..length, 0u8..5, "[A-Za-z0-9._=-]"), 1..4).prop_map(move |changes| {
        let mut bytes = text.clone().into_bytes();
        for (at, how, by) in changes {
            let at = at.min(bytes.len().saturating_sub(1));
            let by = by.as_bytes()[0];
            match how {
                0 => bytes[at] = by,
                1 => bytes.insert(at, by),
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
                3 => bytes.truncate(at.max(1)),
                _ => bytes.extend_from_slice(&[by]),
            }
        }
        String::from_utf8(bytes).unwrap()
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
        // ES256 has many valid signatures of a token, but only the private key can create them.
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
    fn claims_of_any_shape_are_accepted_or_refused(
        name in "iss|aud|sub|exp|nbf|iat|scope",
        value in "-?[0-9]{1,20}(\\.[0-9]{1,3})?(e[0-9]{1,2})?|\"[a-z :*]{0,8}\"|null|true|\\[(\"weir\"|1)?\\]|\\{\\}",
    ) {
        if let Ok(identity) = verify(&claiming(&claims_with(&name, Some(&value)))) {
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
        let Fixture { guard, .. } = fixture();
        let bearer = bearer.map(|token| format!("Bearer {token}"));
        let headers = [("authorization", &bearer), ("cookie", &cookie)];
        let headers = headers.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?.as_bytes())));
        if let Ok(credentials) = Credentials::find(headers, &query) {
            prop_assert!(guard.authenticate(&credentials, PATH, None, NOW_S).is_err());
        }
    }
}
