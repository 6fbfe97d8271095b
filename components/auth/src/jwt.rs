//! JSON Web Tokens (RFC 7519) as bearer tokens: their signature, issuer, audience, times and scopes.

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
/// Longest leeway, s.
pub const LEEWAY_S_MAX: u64 = 300;
/// The default leeway, s.
pub const LEEWAY_S_DEFAULT: u64 = 30;

/// The required claims of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// The accepted issuers; `iss` must equal one of them.
    pub issuers: Vec<String>,
    /// The accepted audiences; `aud` must be or contain one of them.
    pub audiences: Vec<String>,
    /// Tolerated difference between the clocks of the issuer and this server, s; at most [`LEEWAY_S_MAX`].
    pub leeway_s: u64,
}

/// Why rules are refused: they would accept tokens of every issuer or for every audience, or expired ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RulesError {
    /// No issuer, or an empty one.
    #[error("tokens need a named issuer")]
    Issuers,
    /// No audience, or an empty one.
    #[error("tokens need a named audience")]
    Audiences,
    /// The leeway is too long.
    #[error("the leeway may be at most {LEEWAY_S_MAX} s")]
    Leeway,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Its signature or its form is invalid.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// The claims are not a JSON object, or one is repeated.
    #[error("the token's claims cannot be read")]
    Claims,
    /// A claim is missing.
    #[error("the token has no `{claim}`")]
    Missing {
        /// The claim.
        claim: &'static str,
    },
    /// A claim has the wrong type or an invalid value.
    #[error("the token's `{claim}` is invalid")]
    Malformed {
        /// The claim.
        claim: &'static str,
    },
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet")]
    NotYet,
    /// Its issuer is not an accepted one.
    #[error("the token is of another issuer")]
    Issuer,
    /// Its audience is not an accepted one.
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
    /// Creates a verifier.
    ///
    /// # Errors
    ///
    /// The rules name no issuer or no audience, or too long a leeway.
    pub fn new(keys: KeySet, rules: TokenRules) -> Result<Self, RulesError> {
        let are_named = |names: &[String]| !names.is_empty() && names.iter().all(|name| !name.is_empty());
        if !are_named(&rules.issuers) {
            return Err(RulesError::Issuers);
        }
        if !are_named(&rules.audiences) {
            return Err(RulesError::Audiences);
        }
        if rules.leeway_s > LEEWAY_S_MAX {
            return Err(RulesError::Leeway);
        }
        Ok(Self { keys, rules })
    }

    /// Replaces the keys.
    pub fn set_keys(&mut self, keys: KeySet) {
        self.keys = keys;
    }

    /// Verifies a token; returns its identity. `now_s` is the time in seconds since 1970.
    ///
    /// The user is `sub`, the scopes are those of `scope` (a text, or an array of texts) with this server's grammar,
    /// and it expires at `exp`.
    ///
    /// # Errors
    ///
    /// See [`TokenError`].
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Identity, TokenError> {
        let payload = jws::verify(token, &self.keys)?;
        let Ok(Node::Object(members)) = Node::read(&payload, CLAIMS_VALUES_MAX) else { return Err(TokenError::Claims) };
        let claims = Claims(members);
        let leeway_s = self.rules.leeway_s;
        let expires_at_s = claims.time("exp", f64::floor)?.ok_or(TokenError::Missing { claim: "exp" })?;
        if now_s >= expires_at_s.saturating_add(leeway_s) {
            return Err(TokenError::Expired);
        }
        let not_before_s = claims.time("nbf", f64::ceil)?;
        if not_before_s.is_some_and(|not_before_s| now_s.saturating_add(leeway_s) < not_before_s) {
            return Err(TokenError::NotYet);
        }
        claims.time("iat", f64::floor)?;
        let issuer = claims.text("iss")?;
        if !self.rules.issuers.iter().any(|accepted| accepted == issuer) {
            return Err(TokenError::Issuer);
        }
        if !claims.texts("aud")?.iter().any(|audience| self.rules.audiences.iter().any(|accepted| accepted == audience))
        {
            return Err(TokenError::Audience);
        }
        let user = claims.text("sub")?;
        check_id(user).map_err(|_| TokenError::Malformed { claim: "sub" })?;
        let scopes = match claims.get("scope") {
            None => Vec::new(),
            Some(_) => claims.texts("scope")?,
        };
        let scopes = scopes.iter().flat_map(|text| text.split(' ')).filter(|scope| !scope.is_empty());
        let scopes = Scopes::parse_known(scopes).map_err(|_| TokenError::Malformed { claim: "scope" })?;
        Ok(Identity { user: user.into(), scopes, limit: None, expires_at_s: Some(expires_at_s) })
    }
}

/// The claims; none is repeated.
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

    /// A text, or an array of texts.
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

    /// A time in seconds since 1970 (RFC 7519, section 2, "NumericDate"); `round` must round a fraction so that the
    /// token is valid for a shorter time.
    fn time(&self, claim: &'static str, round: fn(f64) -> f64) -> Result<Option<u64>, TokenError> {
        let seconds = match self.get(claim) {
            None => return Ok(None),
            Some(Node::Integer(seconds)) => u64::try_from(*seconds).ok(),
            // The conversion from f64 saturates, and JSON has no infinity.
            Some(Node::Number(seconds)) if *seconds >= 0.0 => Some(round(*seconds) as u64),
            Some(_) => None,
        };
        match seconds {
            Some(seconds @ 0..=SECONDS_MAX) => Ok(Some(seconds)),
            _ => Err(TokenError::Malformed { claim }),
        }
    }
}
