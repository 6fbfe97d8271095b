//! Tickets, for URLs where a browser cannot send a header (`EventSource`, `WebSocket`). A ticket is short-lived, for
//! one path, and valid once.
//!
//! A ticket is signed and self-contained, so any instance can verify it; only a store that all instances share knows
//! whether it was used. [`TicketKeys::verify`] therefore returns an [`UnclaimedTicket`], which becomes an identity only
//! by [`UnclaimedTicket::into_identity`]: with the result of the store's `claim`, and the label of the store's claims.
//! A ticket carries the label as of its issue, so it does not become valid again after the store has lost its claims.
//!
//! On the wire: `wt1.` + base64url(fields) + `.` + base64url(HMAC-SHA-256 of everything before). The fields are lines:
//! id, user, path, expiry, end of the identity, scopes, limit, label of the store's claims.

use std::fmt;

use hmac::Mac as _;
use thiserror::Error;
use weir_codec::channels::route::check_id;
use weir_core::text_file::without_bom;

use crate::{
    base64url,
    identity::Identity,
    key::{KeyError, SECRET_BYTES_MAX, SECRET_BYTES_MIN, mac},
    key_form::{ENCODINGS_MAX, key_form},
    scope::Scopes,
};

/// Most bytes in a ticket: it is part of a URL.
pub const TICKET_BYTES_MAX: usize = 2048;
/// Random bytes in the id of a ticket.
pub const ID_RANDOM_BYTES: usize = 16;
/// Default lifetime of a ticket, s.
pub const TTL_S_DEFAULT: u64 = 30;
/// Longest lifetime of a ticket, s.
pub const TTL_S_MAX: u64 = 300;
/// Most secrets that are valid at once.
pub const SECRETS_MAX: usize = 4;
/// Most bytes in a path.
pub const PATH_BYTES_MAX: usize = 512;

const VERSION: &str = "wt1.";
/// The prefix of every signed text, which separates tickets from other texts signed with the secret.
const DOMAIN: &[u8] = b"weir ticket\0";

/// Why a ticket is not issued or is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TicketError {
    /// It is too long, or would be.
    #[error("a ticket may have at most {TICKET_BYTES_MAX} bytes; ask for fewer scopes")]
    TooLong,
    /// The path is not valid in a ticket.
    #[error("a ticket is for one path without a query")]
    Path,
    /// The identity is already restricted, by a ticket.
    #[error("a ticket cannot be issued for a ticket")]
    Limited,
    /// It was not issued by this server, or was changed.
    #[error("the ticket is invalid")]
    Forged,
    /// The label of the store's claims does not fit into a ticket.
    #[error("the server cannot issue tickets: the label of the channel store has a line break")]
    Label,
    /// It has expired.
    #[error("the ticket has expired")]
    Expired,
    /// It is for another path.
    #[error("the ticket is for another path")]
    OtherPath,
    /// It has been used.
    #[error("the ticket has been used")]
    Used,
    /// The store has lost its claims since the ticket was issued, so it does not know whether the ticket was used.
    #[error("the ticket was issued before the channel store was restarted; request another")]
    Stale,
}

/// The secrets of tickets: the first signs, all verify.
#[derive(Clone)]
pub struct TicketKeys {
    secrets: Vec<Box<[u8]>>,
    ttl_s: u64,
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").field("secrets", &self.secrets.len()).field("ttl_s", &self.ttl_s).finish()
    }
}

/// An issued ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedTicket {
    /// The value of `ticket=`; it needs no escaping.
    pub ticket: String,
    /// When it expires, in seconds since 1970.
    pub expires_s: u64,
}

/// A verified ticket that may have been used before. [`Self::into_identity`] converts it to an identity.
#[must_use = "a ticket authorizes nothing until it is claimed"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnclaimedTicket {
    id: String,
    expires_s: u64,
    identity: Identity,
    claims_label: String,
}

impl TicketKeys {
    /// Keys from secrets of at least [`SECRET_BYTES_MIN`] bytes, the newest first. The lifetime of tickets is clamped
    /// to 1 to [`TTL_S_MAX`] seconds.
    ///
    /// # Errors
    ///
    /// There is no secret, there are too many, or one is too short, too long, or a public key.
    pub fn new(secrets: &[&[u8]], ttl_s: u64) -> Result<Self, KeyError> {
        match secrets.len() {
            0 => return Err(KeyError::None),
            1..=SECRETS_MAX => {}
            _ => return Err(KeyError::TooMany),
        }
        if let Some(form) = secrets.iter().find_map(|secret| key_form(secret, ENCODINGS_MAX)) {
            return Err(KeyError::SecretIsKey { form });
        }
        let fits = |secret: &&[u8]| (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len());
        if let Some(secret) = secrets.iter().find(|secret| !fits(secret)) {
            return Err(KeyError::SecretLength { bytes: secret.len() });
        }
        let secrets = secrets.iter().map(|secret| Box::from(*secret)).collect();
        Ok(Self { secrets, ttl_s: ttl_s.clamp(1, TTL_S_MAX) })
    }

    /// Reads the file `ticket_secrets`: a secret on each line, trimmed. See [`Self::new`].
    ///
    /// # Errors
    ///
    /// See [`Self::new`].
    pub fn from_file(contents: &[u8], ttl_s: u64) -> Result<Self, KeyError> {
        let lines = without_bom(contents).split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let secrets: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
        Self::new(&secrets, ttl_s)
    }

    /// Issues a ticket for an identity and a path, valid from `now_s`, in seconds since 1970. `limit` restricts it to
    /// scopes. The random bytes must come from the system's generator. `claims_label` is the label of the store's
    /// claims.
    ///
    /// Neither the ticket nor its identity is valid for longer than the given identity.
    ///
    /// # Errors
    ///
    /// The path is invalid, the identity is already restricted, or the scopes are too many for a URL.
    pub fn issue(
        &self,
        identity: &Identity,
        path: &str,
        limit: Option<Scopes>,
        random: &[u8; ID_RANDOM_BYTES],
        claims_label: &str,
        now_s: u64,
    ) -> Result<IssuedTicket, TicketError> {
        let fit = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
        if claims_label.contains('\n') {
            return Err(TicketError::Label);
        }
        if path.len() > PATH_BYTES_MAX || !path.starts_with('/') || !path.bytes().all(fit) {
            return Err(TicketError::Path);
        }
        let expires_s = now_s.saturating_add(self.ttl_s).min(identity.expires_at_s.unwrap_or(u64::MAX));
        let expires_at_s = identity.expires_at_s.map_or_else(String::new, |expires_at_s| expires_at_s.to_string());
        // A ticket is not issued for a ticket: a chain of tickets would outlive the first credential.
        if identity.limit.is_some() {
            return Err(TicketError::Limited);
        }
        let limit = limit.map_or_else(String::new, |limit| format!("={limit}"));
        let (id, user, scopes) = (base64url::encode(random), &identity.user, &identity.scopes);
        let fields = format!("{id}\n{user}\n{path}\n{expires_s}\n{expires_at_s}\n{scopes}\n{limit}\n{claims_label}");
        let signed = format!("{VERSION}{}", base64url::encode(fields.as_bytes()));
        let secret = self.secrets.first().expect("`new` refuses an empty list");
        let signature = mac(secret, &[DOMAIN, signed.as_bytes()]).finalize().into_bytes();
        let ticket = format!("{signed}.{}", base64url::encode(&signature));
        match ticket.len() {
            0..=TICKET_BYTES_MAX => Ok(IssuedTicket { ticket, expires_s }),
            _ => Err(TicketError::TooLong),
        }
    }

    /// Verifies the ticket of a request for a path, at a time in seconds since 1970. No field is read before the
    /// signature is verified.
    ///
    /// # Errors
    ///
    /// It was forged, has expired, or is for another path.
    pub fn verify(&self, ticket: &str, path: &str, now_s: u64) -> Result<UnclaimedTicket, TicketError> {
        if ticket.len() > TICKET_BYTES_MAX {
            return Err(TicketError::TooLong);
        }
        let (signed, signature) = ticket.rsplit_once('.').ok_or(TicketError::Forged)?;
        let fields = signed.strip_prefix(VERSION).ok_or(TicketError::Forged)?;
        let signature = base64url::decode(signature).ok_or(TicketError::Forged)?;
        let is_signed = |secret: &[u8]| mac(secret, &[DOMAIN, signed.as_bytes()]).verify_slice(&signature).is_ok();
        if !self.secrets.iter().any(|secret| is_signed(secret)) {
            return Err(TicketError::Forged);
        }
        let fields = base64url::decode(fields).and_then(|fields| String::from_utf8(fields).ok());
        let (unclaimed, for_path) = fields.as_deref().and_then(parse_fields).ok_or(TicketError::Forged)?;
        if now_s >= unclaimed.expires_s {
            return Err(TicketError::Expired);
        }
        if for_path != path {
            return Err(TicketError::OtherPath);
        }
        Ok(unclaimed)
    }
}

impl UnclaimedTicket {
    /// The id of the ticket.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key that the store must claim. It counts towards the share of the ticket's user.
    pub fn claim_key(&self) -> String {
        format!("ticket:{}:{}", self.user(), self.id)
    }

    /// How long the store must keep the claim, s: longer than the ticket is valid.
    pub fn claim_ttl_s(&self, now_s: u64) -> u64 {
        self.expires_s.saturating_sub(now_s) + 1
    }

    /// The user of the ticket, before it is claimed, for comparison with the other credentials of the request.
    pub(crate) fn user(&self) -> &str {
        &self.identity.user
    }

    /// The identity of the ticket. `is_first` must be true only if the store has confirmed that this is the first claim
    /// of the ticket. `claims_label` is the label of the store's claims, read after the claim.
    ///
    /// # Errors
    ///
    /// The ticket was claimed before, or may have been: the store has lost its claims since the issue.
    pub fn into_identity(self, is_first: bool, claims_label: &str) -> Result<Identity, TicketError> {
        match is_first {
            false => Err(TicketError::Used),
            true if self.claims_label != claims_label => Err(TicketError::Stale),
            true => Ok(self.identity),
        }
    }
}

/// Parses the fields of a verified ticket.
fn parse_fields(fields: &str) -> Option<(UnclaimedTicket, &str)> {
    let lines: Vec<&str> = fields.split('\n').collect();
    let [id, user, path, expires_s, expires_at_s, scopes, limit, claims_label] = lines[..] else { return None };
    check_id(user).ok()?;
    let parse_scopes = |text: &str| Scopes::read(text.split(' ').filter(|scope| !scope.is_empty())).ok();
    let expires_at_s = match expires_at_s {
        "" => None,
        seconds => Some(seconds.parse().ok()?),
    };
    let limit = match limit.strip_prefix('=') {
        Some(limit) => Some(parse_scopes(limit)?),
        None => None,
    };
    let identity = Identity { user: user.into(), scopes: parse_scopes(scopes)?, limit, expires_at_s };
    let (id, claims_label) = (id.to_owned(), claims_label.to_owned());
    Some((UnclaimedTicket { id, expires_s: expires_s.parse().ok()?, identity, claims_label }, path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATH: &str = "/stream/workflow/42";
    const LABEL: &str = "1f-2";
    const NOW_S: u64 = 1_800_000_000;

    fn keys() -> TicketKeys {
        TicketKeys::new(&[&[7; 32]], TTL_S_DEFAULT).unwrap()
    }

    fn ann(expires_at_s: Option<u64>) -> Identity {
        let scopes = Scopes::read(["read:workflow:*", "publish:file:a:b"]).unwrap();
        Identity { user: "ann".into(), scopes, limit: None, expires_at_s }
    }

    fn issue(identity: &Identity) -> String {
        keys().issue(identity, PATH, None, &[9; 16], LABEL, NOW_S).unwrap().ticket
    }

    #[test]
    fn ticket_is_valid_for_its_path_once() {
        let issued = keys().issue(&ann(None), PATH, None, &[9; 16], LABEL, NOW_S).unwrap();
        assert_eq!(issued.expires_s, NOW_S + 30);
        assert!(issued.ticket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
        let unclaimed = keys().verify(&issued.ticket, PATH, NOW_S + 29).unwrap();
        assert_eq!(unclaimed.id(), "CQkJCQkJCQkJCQkJCQkJCQ");
        assert_eq!(unclaimed.claim_ttl_s(NOW_S + 29), 2);
        assert_eq!(unclaimed.clone().into_identity(true, LABEL), Ok(ann(None)));
        assert_eq!(unclaimed.into_identity(false, LABEL), Err(TicketError::Used));
    }

    #[test]
    fn forged_expired_or_misdirected_ticket_is_refused() {
        let ticket = issue(&ann(None));
        let verify = |ticket: &str, path: &str, now_s| keys().verify(ticket, path, now_s).map(|_| ());
        assert_eq!(verify(&ticket, PATH, NOW_S + 30), Err(TicketError::Expired));
        for path in ["/stream/workflow/43", "/stream/workflow/", "", "/stream/workflow/42/"] {
            assert_eq!(verify(&ticket, path, NOW_S), Err(TicketError::OtherPath));
        }
        for forged in [
            "",
            ".",
            "wt1.",
            "wt1..",
            "wt2.AAAA.AAAA",
            &ticket[1..],
            &ticket[..ticket.len() - 1],
            &format!("{ticket}A"),
        ] {
            assert_eq!(verify(forged, PATH, NOW_S), Err(TicketError::Forged), "{forged}");
        }
        assert_eq!(verify(&"x".repeat(2049), PATH, NOW_S), Err(TicketError::TooLong));
        let others = TicketKeys::new(&[&[8; 32]], 30).unwrap();
        assert_eq!(others.verify(&ticket, PATH, NOW_S).map(|_| ()), Err(TicketError::Forged));
    }

    #[test]
    fn ticket_with_a_changed_character_is_refused() {
        let ticket = issue(&ann(None));
        for at in 0..ticket.len() {
            let mut bytes = ticket.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(keys().verify(&changed, PATH, NOW_S).map(|_| ()), Err(TicketError::Forged), "{at}");
        }
    }

    #[test]
    fn identity_of_a_ticket_expires_with_the_one_that_requested_it() {
        let issued = keys().issue(&ann(Some(NOW_S + 10)), PATH, None, &[9; 16], LABEL, NOW_S).unwrap();
        assert_eq!(issued.expires_s, NOW_S + 10);
        let identity = keys().verify(&issued.ticket, PATH, NOW_S).unwrap().into_identity(true, LABEL).unwrap();
        assert_eq!(identity.expires_at_s(), Some(NOW_S + 10));
        assert!(keys().verify(&issued.ticket, PATH, NOW_S + 10).is_err());
    }

    #[test]
    fn scopes_restrict_the_identity_of_a_ticket() {
        let limit = Some(Scopes::read(["read:workflow:42"]).unwrap());
        let issued = keys().issue(&ann(None), PATH, limit.clone(), &[9; 16], LABEL, NOW_S).unwrap();
        let identity = keys().verify(&issued.ticket, PATH, NOW_S).unwrap().into_identity(true, LABEL).unwrap();
        assert_eq!(identity.limit, limit);
        let second = keys().issue(&identity, PATH, None, &[9; 16], LABEL, NOW_S);
        assert_eq!(second, Err(TicketError::Limited));
        // With an empty limit it authorizes nothing.
        let issued = keys().issue(&ann(None), PATH, Some(Scopes::default()), &[9; 16], LABEL, NOW_S).unwrap();
        let identity = keys().verify(&issued.ticket, PATH, NOW_S).unwrap().into_identity(true, LABEL).unwrap();
        assert_eq!(identity.limit, Some(Scopes::default()));
    }

    #[test]
    fn file_of_secrets_is_read_with_a_byte_order_mark_and_windows_line_ends() {
        let (first, second) = ("the first secret of two, of 32 bytes", "the second secret of two, of 32 bytes");
        let unix = TicketKeys::from_file(format!("{first}\n{second}\n").as_bytes(), 30).unwrap();
        let windows = TicketKeys::from_file(format!("\u{feff}{first}\r\n\r\n{second}\r\n").as_bytes(), 30).unwrap();
        assert_eq!(unix.secrets, windows.secrets);
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        assert_eq!(TicketKeys::from_file(jwk.as_bytes(), 30).unwrap_err(), KeyError::SecretIsKey { form: "JWK" });
    }

    #[test]
    fn ticket_issued_before_the_store_lost_its_claims_is_refused() {
        let unclaimed = keys().verify(&issue(&ann(None)), PATH, NOW_S).unwrap();
        assert_eq!(unclaimed.clone().into_identity(true, "1f-3"), Err(TicketError::Stale));
        assert_eq!(unclaimed.clone().into_identity(false, "1f-3"), Err(TicketError::Used));
        assert_eq!(unclaimed.into_identity(true, LABEL), Ok(ann(None)));
    }

    #[test]
    fn ticket_is_not_issued_with_a_label_that_would_make_it_look_forged() {
        let issue = |label: &str| keys().issue(&ann(None), PATH, None, &[9; 16], label, NOW_S);
        assert_eq!(issue("1f-2\nx"), Err(TicketError::Label));
        assert_eq!(issue("\n"), Err(TicketError::Label));
        let unclaimed = keys().verify(&issue("any other\ttext").unwrap().ticket, PATH, NOW_S).unwrap();
        assert_eq!(unclaimed.into_identity(true, "any other\ttext"), Ok(ann(None)));
    }

    #[test]
    fn rotated_secrets_verify_old_and_new_tickets() {
        let (old, new): (&[u8], &[u8]) = (&[7; 32], &[8; 32]);
        let both = TicketKeys::new(&[new, old], 30).unwrap();
        assert!(both.verify(&issue(&ann(None)), PATH, NOW_S).is_ok());
        let fresh = both.issue(&ann(None), PATH, None, &[9; 16], LABEL, NOW_S).unwrap().ticket;
        assert!(keys().verify(&fresh, PATH, NOW_S).is_err());
        assert_eq!(TicketKeys::new(&[], 30).unwrap_err(), KeyError::None);
        assert_eq!(TicketKeys::new(&[new; 5], 30).unwrap_err(), KeyError::TooMany);
        assert_eq!(TicketKeys::new(&[new, b"short"], 30).unwrap_err(), KeyError::SecretLength { bytes: 5 });
        assert!(!format!("{both:?}").contains("8, 8"));
        // A lifetime out of range is clamped.
        for (ttl_s, want) in [(0, 1), (u64::MAX, TTL_S_MAX)] {
            let keys = TicketKeys::new(&[new], ttl_s).unwrap();
            assert_eq!(keys.issue(&ann(None), PATH, None, &[9; 16], LABEL, NOW_S).unwrap().expires_s, NOW_S + want);
        }
    }

    #[test]
    fn ticket_with_an_invalid_path_or_too_many_scopes_is_not_issued() {
        for path in ["", "stream", "/a?b", "/a\nb", "/a b", "/é", &format!("/{}", "x".repeat(512))] {
            assert_eq!(keys().issue(&ann(None), path, None, &[9; 16], LABEL, NOW_S), Err(TicketError::Path), "{path}");
        }
        let many: Vec<String> = (0..60).map(|at| format!("read:workflow:{at:040}")).collect();
        let scopes = Scopes::read(many.iter().map(String::as_str)).unwrap();
        let identity = Identity { scopes, ..ann(None) };
        assert_eq!(keys().issue(&identity, PATH, None, &[9; 16], LABEL, NOW_S), Err(TicketError::TooLong));
    }

    proptest! {
        #[test]
        fn text_that_was_not_issued_is_refused(ticket in "(wt1\\.)?[A-Za-z0-9_-]{0,60}(\\.[A-Za-z0-9_-]{43})?|\\PC{0,40}") {
            prop_assert!(keys().verify(&ticket, PATH, NOW_S).is_err());
        }

        #[test]
        fn issued_ticket_reads_back(
            user in "[a-z:@.|+-]{1,12}",
            path in "/[!-\"$->@-~]{0,20}",
            expires_at_s in prop::option::of(NOW_S + 1..NOW_S + 1000),
            limit in prop::option::of(prop::collection::vec("read:workflow:[a-z:]{1,5}|admin", 0..3)),
        ) {
            prop_assume!(check_id(&user).is_ok());
            let identity = Identity { user: user.into(), ..ann(expires_at_s) };
            let limit = limit.map(|limit| Scopes::read(limit.iter().map(String::as_str)).expect("scopes"));
            let issued = keys().issue(&identity, &path, limit.clone(), &[9; 16], LABEL, NOW_S).expect("it is short");
            let claimed = keys().verify(&issued.ticket, &path, NOW_S).expect("right").into_identity(true, LABEL).expect("first");
            prop_assert_eq!(claimed, Identity { limit, ..identity });
        }
    }
}
