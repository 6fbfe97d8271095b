//! JSON Web Tokens (RFC 7519) as bearer tokens: who signed them, for whom, and until when.

use std::borrow::Cow;

use thiserror::Error;
use weir_codec::{channels::route::check_id, json::tree::Node};

use crate::{
    identity::Identity,
    jws::{self, JwsError},
    key::KeySet,
    scope::Scopes,
};

/// Most values in the claims.
const CLAIMS_VALUES_MAX: usize = 1024;
/// The last second of the year 9999; a time later than that is a mistake.
const SECONDS_MAX: u64 = 253_402_300_799;
/// Longest leeway.
pub const LEEWAY_S_MAX: u64 = 300;
/// The leeway unless told.
pub const LEEWAY_S_DEFAULT: u64 = 30;

/// What a token must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// The issuers; `iss` must be one of them, letter by letter.
    pub issuers: Vec<String>,
    /// Who we are; `aud` must be or have one of them.
    pub audiences: Vec<String>,
    /// How far the issuer's clock may be from ours, in seconds; at most [`LEEWAY_S_MAX`].
    pub leeway_s: u64,
}

/// Rules that would let anything pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RulesError {
    /// No issuer, or an empty one.
    #[error("tokens need an issuer that is named")]
    Issuers,
    /// No audience, or an empty one.
    #[error("tokens need an audience that is named")]
    Audiences,
    /// The leeway is too long.
    #[error("the leeway may be at most {LEEWAY_S_MAX} s")]
    Leeway,
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It is not signed as it must be.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// The claims are no JSON object, or name one twice.
    #[error("the token's claims cannot be read")]
    Claims,
    /// A claim is missing.
    #[error("the token has no `{claim}`")]
    Missing {
        /// Which.
        claim: &'static str,
    },
    /// A claim has the wrong type, or a value that none has.
    #[error("the token's `{claim}` is not as it must be")]
    Malformed {
        /// Which.
        claim: &'static str,
    },
    /// It was good once.
    #[error("the token has expired")]
    Expired,
    /// It will be good.
    #[error("the token is not valid yet")]
    NotYet,
    /// It is of an issuer that is not ours.
    #[error("the token is of another issuer")]
    Issuer,
    /// It is for somebody else.
    #[error("the token is for another audience")]
    Audience,
}

/// Verifies tokens.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: KeySet,
    rules: TokenRules,
}

impl Verifier {
    /// A verifier.
    ///
    /// # Errors
    ///
    /// The rules name no issuer or no audience, or too long a leeway.
    pub fn new(keys: KeySet, rules: TokenRules) -> Result<Self, RulesError> {
        let named = |names: &[String]| !names.is_empty() && names.iter().all(|name| !name.is_empty());
        if !named(&rules.issuers) {
            return Err(RulesError::Issuers);
        }
        if !named(&rules.audiences) {
            return Err(RulesError::Audiences);
        }
        if rules.leeway_s > LEEWAY_S_MAX {
            return Err(RulesError::Leeway);
        }
        Ok(Self { keys, rules })
    }

    /// Takes other keys: those of before are good no more unless they are among them.
    pub fn set_keys(&mut self, keys: KeySet) {
        self.keys = keys;
    }

    /// Whose token it is. `now_s` is the time in seconds since 1970.
    ///
    /// The user is `sub`, the scopes those of `scope` (a text, or an array of texts) that are ours, the end is `exp`.
    ///
    /// # Errors
    ///
    /// See [`TokenError`].
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Identity, TokenError> {
        let payload = jws::verify(token, &self.keys)?;
        let Ok(Node::Object(members)) = Node::read(&payload, CLAIMS_VALUES_MAX) else { return Err(TokenError::Claims) };
        let claims = Claims(members);
        let leeway_s = self.rules.leeway_s;
        let ends_s = claims.time("exp", f64::floor)?.ok_or(TokenError::Missing { claim: "exp" })?;
        if now_s >= ends_s.saturating_add(leeway_s) {
            return Err(TokenError::Expired);
        }
        let begins_s = claims.time("nbf", f64::ceil)?;
        if begins_s.is_some_and(|begins_s| now_s.saturating_add(leeway_s) < begins_s) {
            return Err(TokenError::NotYet);
        }
        claims.time("iat", f64::floor)?;
        let issuer = claims.text("iss")?;
        if !self.rules.issuers.iter().any(|ours| ours == issuer) {
            return Err(TokenError::Issuer);
        }
        if !claims.texts("aud")?.iter().any(|audience| self.rules.audiences.iter().any(|ours| ours == audience)) {
            return Err(TokenError::Audience);
        }
        let user = claims.text("sub")?;
        check_id(user).map_err(|_| TokenError::Malformed { claim: "sub" })?;
        let scopes = match claims.get("scope") {
            None => Vec::new(),
            Some(_) => claims.texts("scope")?,
        };
        let scopes = scopes.iter().flat_map(|text| text.split(' ')).filter(|scope| !scope.is_empty());
        let scopes = Scopes::read_ours(scopes).map_err(|_| TokenError::Malformed { claim: "scope" })?;
        Ok(Identity { user: user.into(), scopes, limit: None, ends_s: Some(ends_s) })
    }
}

/// The claims, each once.
struct Claims<'a>(Vec<(Cow<'a, str>, Node<'a>)>);

impl Claims<'_> {
    fn get(&self, claim: &str) -> Option<&Node<'_>> {
        self.0.iter().find(|(name, _)| name == claim).map(|(_, value)| value)
    }

    fn text(&self, claim: &'static str) -> Result<&str, TokenError> {
        match self.get(claim) {
            None => Err(TokenError::Missing { claim }),
            Some(Node::Text(text)) => Ok(text),
            Some(_) => Err(TokenError::Malformed { claim }),
        }
    }

    /// A text, or an array of nothing but texts.
    fn texts(&self, claim: &'static str) -> Result<Vec<&str>, TokenError> {
        match self.get(claim) {
            None => Err(TokenError::Missing { claim }),
            Some(Node::Text(text)) => Ok(vec![text]),
            Some(Node::Array(items)) => items
                .iter()
                .map(|item| match item {
                    Node::Text(text) => Ok(&**text),
                    _ => Err(TokenError::Malformed { claim }),
                })
                .collect(),
            Some(_) => Err(TokenError::Malformed { claim }),
        }
    }

    /// A time in seconds since 1970 (RFC 7519, section 2, "NumericDate"), whose fraction is taken against the token.
    fn time(&self, claim: &'static str, round: fn(f64) -> f64) -> Result<Option<u64>, TokenError> {
        let seconds = match self.get(claim) {
            None => return Ok(None),
            Some(Node::Integer(seconds)) => u64::try_from(*seconds).ok(),
            // A conversion from f64 saturates, and infinity is no JSON.
            Some(Node::Number(seconds)) if *seconds >= 0.0 => Some(round(*seconds) as u64),
            Some(_) => None,
        };
        match seconds {
            Some(seconds @ 0..=SECONDS_MAX) => Ok(Some(seconds)),
            _ => Err(TokenError::Malformed { claim }),
        }
    }
}
