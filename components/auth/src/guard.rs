//! The guard at the door: from what a request shows to who asks.

use thiserror::Error;

use crate::{
    api_key::{self, ApiKeys, UnknownKey},
    credential::Credentials,
    identity::Identity,
    jwt::{TokenError, Verifier},
    scope::Scopes,
    ticket::{ID_RANDOM_BYTES, Issued, TicketError, TicketKeys, Unclaimed},
};

/// Who is let in.
#[derive(Debug, Clone)]
pub struct Guard {
    mode: Mode,
    tickets: Option<TicketKeys>,
}

#[derive(Debug, Clone)]
enum Mode {
    /// Whoever sits at this machine.
    Open,
    /// Who has a token, an API key, or either.
    Closed { tokens: Option<Verifier>, api_keys: Option<ApiKeys> },
}

/// A guard that would let the wrong ones in, or nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GuardError {
    /// No authentication on an address that others can reach.
    #[error("without authentication the server listens on loopback only")]
    NotLoopback,
    /// Neither tokens nor API keys.
    #[error("authentication needs keys for tokens, API keys, or both")]
    NoKeys,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Somebody who is known.
    Known(Identity),
    /// Somebody with a ticket, whom the store has yet to let in: see [`Unclaimed`].
    Ticket(Unclaimed),
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryError {
    /// The request shows nothing.
    #[error("this needs a token: in `Authorization: Bearer`, in the cookie, or as a ticket")]
    Missing,
    /// A token that is not good.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// An API key that is not known.
    #[error(transparent)]
    ApiKey(#[from] UnknownKey),
    /// A ticket that is not good.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// A token where only API keys are taken, the other way round, or a ticket where there are none.
    #[error("this server does not take {0}")]
    NotTaken(&'static str),
    /// Two users in one request.
    #[error("the request shows two users")]
    TwoUsers,
    /// A name that is not this machine's own, on a server that is for this machine only: a page of another site whose name
    /// was made to lead here.
    #[error("without authentication this server answers to a loopback name only, such as `localhost`")]
    HostNotLoopback,
}

impl Guard {
    /// No authentication: everybody is the user `local` and may do everything.
    ///
    /// # Errors
    ///
    /// The listener can be reached from elsewhere.
    pub fn open(listener_is_loopback: bool) -> Result<Self, GuardError> {
        if listener_is_loopback { Ok(Self { mode: Mode::Open, tickets: None }) } else { Err(GuardError::NotLoopback) }
    }

    /// Authentication by tokens, by API keys, or by either; tickets for browsers where there is a secret for them.
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

    /// Who asks with these credentials for a path (without its query), at a time in seconds since 1970. `host` is `Host` or
    /// `:authority`.
    ///
    /// All that the request shows must be good, and of one user: something forged beside something good is refused. A ticket
    /// that was shown is used up, whatever else was shown.
    ///
    /// # Errors
    ///
    /// See [`EntryError`].
    pub fn enter(&self, shown: &Credentials, path: &str, host: Option<&str>, now_s: u64) -> Result<Entry, EntryError> {
        if matches!(self.mode, Mode::Open) {
            return match host.is_none_or(is_loopback) {
                true => Ok(Entry::Known(Identity::local())),
                false => Err(EntryError::HostNotLoopback),
            };
        }
        let bearer = shown.bearer.as_deref().map(|token| self.known(token, now_s)).transpose()?;
        let cookie = shown.cookie.as_deref().map(|token| self.known(token, now_s)).transpose()?;
        let ticket = match (&shown.ticket, &self.tickets) {
            (None, _) => None,
            (Some(_), None) => return Err(EntryError::NotTaken("tickets")),
            (Some(ticket), Some(keys)) => Some(keys.verify(ticket, path, now_s)?),
        };
        let users = [
            bearer.as_ref().map(Identity::user),
            cookie.as_ref().map(Identity::user),
            ticket.as_ref().map(Unclaimed::user),
        ];
        let first = users.iter().flatten().next().ok_or(EntryError::Missing)?;
        if users.iter().flatten().any(|user| user != first) {
            return Err(EntryError::TwoUsers);
        }
        // The one that was meant most: a ticket is for this very path, a header is set by hand, a cookie comes by itself.
        match (ticket, bearer.or(cookie)) {
            (Some(ticket), _) => Ok(Entry::Ticket(ticket)),
            (None, Some(identity)) => Ok(Entry::Known(identity)),
            (None, None) => Err(EntryError::Missing),
        }
    }

    /// A ticket for somebody: see [`TicketKeys::issue`].
    ///
    /// # Errors
    ///
    /// There are no tickets here, or [`TicketKeys::issue`] refuses.
    pub fn issue_ticket(
        &self,
        identity: &Identity,
        path: &str,
        limit: Option<Scopes>,
        random: &[u8; ID_RANDOM_BYTES],
        claims_label: &str,
        now_s: u64,
    ) -> Result<Issued, EntryError> {
        let keys = self.tickets.as_ref().ok_or(EntryError::NotTaken("tickets"))?;
        Ok(keys.issue(identity, path, limit, random, claims_label, now_s)?)
    }

    fn known(&self, token: &str, now_s: u64) -> Result<Identity, EntryError> {
        let Mode::Closed { tokens, api_keys } = &self.mode else { return Ok(Identity::local()) };
        if api_key::is_key(token) {
            let keys = api_keys.as_ref().ok_or(EntryError::NotTaken("API keys"))?;
            return Ok(keys.find(token)?.0);
        }
        let verifier = tokens.as_ref().ok_or(EntryError::NotTaken("tokens"))?;
        Ok(verifier.verify(token, now_s)?)
    }
}

/// Whether a `Host` is one of this machine's own names, with or without a port.
fn is_loopback(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix("[::1]") {
        return rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
    }
    let name = match host.split_once(':') {
        None => host,
        Some((name, port)) if is_port(port) => name,
        Some(_) => return false,
    };
    let name = name.to_ascii_lowercase();
    let address = name.parse::<std::net::Ipv4Addr>();
    name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn is_port(port: &str) -> bool {
    port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for host in ["localhost", "LOCALHOST:8080", "a.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "0.0.0.0",
            "10.0.0.1:80",
            "[::]",
            "[::1]x",
            "localhost:x",
            "localhost:80:80",
            "127.0.0.1@example.org",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
