//! Authentication: from the credentials of a request to an identity.

use thiserror::Error;
use weir_codec::http::host::is_loopback;

use crate::{
    api_key::{self, ApiKeys, UnknownKey},
    credential::Credentials,
    identity::Identity,
    jwt::{TokenError, Verifier},
    scope::Scopes,
    ticket::{ID_RANDOM_BYTES, IssuedTicket, TicketError, TicketKeys, UnclaimedTicket},
};

/// Authenticates requests.
#[derive(Debug, Clone)]
pub struct Guard {
    mode: Mode,
    tickets: Option<TicketKeys>,
}

#[derive(Debug, Clone)]
enum Mode {
    /// No authentication: every client of this machine.
    Open,
    /// By a token, an API key, or either.
    Closed { tokens: Option<Verifier>, api_keys: Option<ApiKeys> },
}

/// Why a configuration is refused: it would authenticate every client, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GuardError {
    /// No authentication on an address that others can reach.
    #[error("without authentication the server listens on loopback only")]
    NotLoopback,
    /// Neither tokens nor API keys.
    #[error("authentication needs keys for tokens, API keys, or both")]
    NoKeys,
}

/// The result of an authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authenticated {
    /// An identity.
    Identity(Identity),
    /// A valid ticket, which the store has yet to claim: see [`UnclaimedTicket`].
    Ticket(UnclaimedTicket),
}

/// Why a request is not authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthError {
    /// The request has no credential.
    #[error("this needs a token: in `Authorization: Bearer`, in the cookie, or as a ticket")]
    Missing,
    /// The token is invalid.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The API key is unknown.
    #[error(transparent)]
    ApiKey(#[from] UnknownKey),
    /// The ticket is invalid.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// A kind of credential that this server is not configured for.
    #[error("this server does not accept {0}")]
    NotAccepted(&'static str),
    /// Credentials of two users.
    #[error("the request has credentials of two users")]
    TwoUsers,
    /// A host name other than a loopback one, on a server without authentication: the request may come from a page of
    /// another site by DNS rebinding.
    #[error("without authentication this server answers to a loopback name only, such as `localhost`")]
    HostNotLoopback,
}

impl Guard {
    /// No authentication: every client is the user `local` with all scopes.
    ///
    /// # Errors
    ///
    /// Other machines can reach the listener.
    pub fn open(listener_is_loopback: bool) -> Result<Self, GuardError> {
        if listener_is_loopback { Ok(Self { mode: Mode::Open, tickets: None }) } else { Err(GuardError::NotLoopback) }
    }

    /// Authentication by tokens, by API keys, or by either; and by tickets, if there is a secret for them.
    ///
    /// # Errors
    ///
    /// There is neither a verifier nor an API key.
    pub fn closed(
        tokens: Option<Verifier>,
        api_keys: Option<ApiKeys>,
        tickets: Option<TicketKeys>,
    ) -> Result<Self, GuardError> {
        let api_keys = api_keys.filter(|keys| !keys.is_empty());
        if tokens.is_none() && api_keys.is_none() {
            return Err(GuardError::NoKeys);
        }
        Ok(Self { mode: Mode::Closed { tokens, api_keys }, tickets })
    }

    /// Authenticates a request for a path (without its query), at a time in seconds since 1970. `host` is `Host` or
    /// `:authority`.
    ///
    /// All credentials must be valid and of one user: a forged one beside a valid one is refused. A ticket is used up
    /// even if the request has other credentials.
    ///
    /// # Errors
    ///
    /// See [`AuthError`].
    pub fn authenticate(
        &self,
        credentials: &Credentials,
        path: &str,
        host: Option<&str>,
        now_s: u64,
    ) -> Result<Authenticated, AuthError> {
        if matches!(self.mode, Mode::Open) {
            return match host.is_none_or(is_loopback) {
                true => Ok(Authenticated::Identity(Identity::local())),
                false => Err(AuthError::HostNotLoopback),
            };
        }
        let bearer = credentials.bearer.as_deref().map(|token| self.verify_token(token, now_s)).transpose()?;
        let key = credentials.api_key.as_deref().map(|token| self.verify_token(token, now_s)).transpose()?;
        let cookie = credentials.cookie.as_deref().map(|token| self.verify_token(token, now_s)).transpose()?;
        let ticket = match (&credentials.ticket, &self.tickets) {
            (None, _) => None,
            (Some(_), None) => return Err(AuthError::NotAccepted("tickets")),
            (Some(ticket), Some(keys)) => Some(keys.verify(ticket, path, now_s)?),
        };
        let users = [
            bearer.as_ref().map(Identity::user),
            key.as_ref().map(Identity::user),
            cookie.as_ref().map(Identity::user),
            ticket.as_ref().map(UnclaimedTicket::user),
        ];
        let first = users.iter().flatten().next().ok_or(AuthError::Missing)?;
        if users.iter().flatten().any(|user| user != first) {
            return Err(AuthError::TwoUsers);
        }
        // The most specific credential applies: a ticket is for this path, a program sets a header, and a browser sends
        // the cookie.
        match (ticket, bearer.or(cookie)) {
            (Some(ticket), _) => Ok(Authenticated::Ticket(ticket)),
            (None, Some(identity)) => Ok(Authenticated::Identity(identity)),
            (None, None) => Err(AuthError::Missing),
        }
    }

    /// Issues a ticket: see [`TicketKeys::issue`].
    ///
    /// # Errors
    ///
    /// There is no secret for tickets, or [`TicketKeys::issue`] refuses.
    pub fn issue_ticket(
        &self,
        identity: &Identity,
        path: &str,
        limit: Option<Scopes>,
        random: &[u8; ID_RANDOM_BYTES],
        claims_label: &str,
        now_s: u64,
    ) -> Result<IssuedTicket, AuthError> {
        let keys = self.tickets.as_ref().ok_or(AuthError::NotAccepted("tickets"))?;
        Ok(keys.issue(identity, path, limit, random, claims_label, now_s)?)
    }

    fn verify_token(&self, token: &str, now_s: u64) -> Result<Identity, AuthError> {
        let Mode::Closed { tokens, api_keys } = &self.mode else { return Ok(Identity::local()) };
        if api_key::is_key(token) {
            let keys = api_keys.as_ref().ok_or(AuthError::NotAccepted("API keys"))?;
            return Ok(keys.find(token)?.0);
        }
        let verifier = tokens.as_ref().ok_or(AuthError::NotAccepted("tokens"))?;
        Ok(verifier.verify(token, now_s)?)
    }
}
