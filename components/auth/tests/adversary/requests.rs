//! Requests: kinds of credentials, tickets, and ids of other users.

use super::*;

fn user(entry: Authenticated) -> String {
    match entry {
        Authenticated::Identity(identity) => identity.user().to_owned(),
        Authenticated::Ticket(unclaimed) => unclaimed.into_identity(true, LABEL).unwrap().user().to_owned(),
    }
}

#[test]
fn each_credential_kind_authenticates() {
    let Fixture { guard, ann, bob } = fixture();
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
    let Fixture { guard, ann, bob } = fixture();
    let (bearer, cookie) = (format!("Bearer {ann}"), format!("__Host-weir={bob}"));
    let both = [("authorization", bearer.as_str()), ("cookie", cookie.as_str())];
    assert_eq!(enter(&guard, &both, ""), Err(AuthError::TwoUsers));
    let Ok(Authenticated::Identity(identity)) = enter(&guard, &both[1..], "") else { panic!("bob is known") };
    let ticket = guard.issue_ticket(&identity, PATH, None, &[6; 16], LABEL, NOW_S).unwrap().ticket;
    let query = format!("ticket={ticket}");
    assert_eq!(enter(&guard, &both[..1], &query), Err(AuthError::TwoUsers));
    assert_eq!(user(enter(&guard, &both[1..], &query).unwrap()), "bob");
    let keys = [("authorization", bearer.as_str()), ("x-api-key", bob.as_str())];
    assert_eq!(enter(&guard, &keys, ""), Err(AuthError::TwoUsers));
    assert_eq!(user(enter(&guard, &[keys[0], ("x-api-key", ann.as_str())], "").unwrap()), "ann");
    let forged = [keys[0], ("x-api-key", "weir_AAAA")];
    assert!(matches!(enter(&guard, &forged, ""), Err(AuthError::ApiKey(_))));
    // A forged credential beside a valid one.
    let forged = [("authorization", bearer.as_str()), ("cookie", "__Host-weir=eyJhbGciOiJub25lIn0.e30.x")];
    assert!(matches!(enter(&guard, &forged, ""), Err(AuthError::Token(_))));
    assert!(matches!(enter(&guard, &both[..1], "ticket=wt1.AAAA.AAAA"), Err(AuthError::Ticket(TicketError::Forged))));
}

#[test]
fn ticket_is_accepted_for_one_path_once() {
    let Fixture { guard, bob, .. } = fixture();
    let bearer = format!("Bearer {bob}");
    let Ok(Authenticated::Identity(identity)) = enter(&guard, &[("authorization", &bearer)], "") else {
        panic!("bob is known")
    };
    let ticket = guard.issue_ticket(&identity, PATH, None, &[6; 16], LABEL, NOW_S).unwrap().ticket;
    let query = format!("ticket={ticket}");
    // A store of claimed ids.
    let mut claims = std::collections::BTreeSet::new();
    let mut claim = |query: &str| match enter(&guard, &[], query)? {
        Authenticated::Identity(identity) => Ok(identity),
        Authenticated::Ticket(unclaimed) => {
            let first = claims.insert(unclaimed.id().to_owned());
            Ok::<_, AuthError>(unclaimed.into_identity(first, LABEL)?)
        }
    };
    assert_eq!(claim(&query).unwrap(), identity);
    assert_eq!(claim(&query), Err(AuthError::Ticket(TicketError::Used)));
    let other_path = guard.issue_ticket(&identity, "/stream/workflow/43", None, &[7; 16], LABEL, NOW_S).unwrap().ticket;
    assert_eq!(claim(&format!("ticket={other_path}")), Err(AuthError::Ticket(TicketError::OtherPath)));
    let late = guard.authenticate(&Credentials::find([], &query).unwrap(), PATH, None, NOW_S + 30);
    assert_eq!(late, Err(AuthError::Ticket(TicketError::Expired)));
    // A ticket is not accepted as a bearer token, or by a guard without tickets.
    let as_bearer = format!("Bearer {ticket}");
    assert!(matches!(enter(&guard, &[("authorization", &as_bearer)], ""), Err(AuthError::Token(_))));
    let none = Guard::closed(Some(verifier()), None, None).unwrap();
    assert_eq!(enter(&none, &[], &query), Err(AuthError::NotAccepted("tickets")));
}

#[test]
fn kind_of_credential_that_is_not_configured_is_refused() {
    let Fixture { ann, .. } = fixture();
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
    // A page whose host name resolves to this server.
    assert_eq!(enter(Some("evil.example:8080")), Err(AuthError::HostNotLoopback));
}

#[test]
fn forbidden_and_unknown_ids_have_the_same_error() {
    let Fixture { guard, bob, .. } = fixture();
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

#[test]
fn limited_ticket_authorizes_only_its_scopes() {
    let Fixture { guard, ann, .. } = fixture();
    let bearer = format!("Bearer {ann}");
    let Ok(Authenticated::Identity(ann)) = enter(&guard, &[("authorization", &bearer)], "") else {
        panic!("ann is known")
    };
    let limit = Some(Scopes::read(["read:workflow:42"]).unwrap());
    let ticket = guard.issue_ticket(&ann, PATH, limit, &[6; 16], LABEL, NOW_S).unwrap().ticket;
    let Ok(Authenticated::Ticket(unclaimed)) = enter(&guard, &[], &format!("ticket={ticket}")) else {
        panic!("a ticket")
    };
    let limited = unclaimed.into_identity(true, LABEL).unwrap();
    let channel = |name: &str| Channel::from_name(name).unwrap();
    assert_eq!(limited.authorize(Action::Read, &channel("workflow:42"), Some("ann")), Ok(()));
    assert_eq!(limited.authorize(Action::Publish, &channel("workflow:42"), Some("ann")), Err(NotFound));
    assert_eq!(limited.authorize(Action::Read, &channel("user:ann"), None), Err(NotFound));
    assert_eq!(limited.authorize(Action::Read, &channel("workflow:43"), Some("ann")), Err(NotFound));
}
