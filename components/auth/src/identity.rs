//! An authenticated user, and the authorization of its actions.

use thiserror::Error;
use weir_codec::channels::route::{Channel, ChannelKind};

use crate::scope::{Action, Scopes};

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub(crate) user: Box<str>,
    pub(crate) scopes: Scopes,
    /// Restricts what the user may do, if set.
    pub(crate) limit: Option<Scopes>,
    pub(crate) expires_at_s: Option<u64>,
}

/// The channel does not exist, or this user has no access. Clients cannot distinguish the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the channel does not exist, or this user has no access to it")]
pub struct NotFound;

impl Identity {
    /// The user of a server without authentication.
    pub(crate) fn local() -> Self {
        Self { user: "local".into(), scopes: Scopes::admin(), limit: None, expires_at_s: None }
    }

    /// The name of the user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The scopes, which grant access beyond the user's own channels.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// When the identity and its connections expire, in seconds since 1970. `None` if it does not expire.
    pub fn expires_at_s(&self) -> Option<u64> {
        self.expires_at_s
    }

    /// Whether the identity has expired. Connections check this on each delivery, or by a timer.
    pub fn has_expired(&self, now_s: u64) -> bool {
        self.expires_at_s.is_some_and(|expires_at_s| now_s >= expires_at_s)
    }

    /// Authorizes an action on a channel. `owner` is the channel's owner in the store, `None` if the channel does not
    /// exist or has no owner; a user's channel always belongs to that user, and `owner` is ignored. The response for a
    /// missing channel must be the same [`NotFound`].
    ///
    /// # Errors
    ///
    /// The user is not the owner, and no scope grants the action.
    pub fn authorize(&self, action: Action, channel: &Channel, owner: Option<&str>) -> Result<(), NotFound> {
        let owner = match channel.kind() {
            ChannelKind::User => Some(channel.id()),
            _ => owner,
        };
        let owns = owner == Some(self.user());
        let within = self.limit.as_ref().is_none_or(|limit| limit.grant(action, channel));
        if within && (owns || self.scopes.grant(action, channel)) { Ok(()) } else { Err(NotFound) }
    }

    /// Authorizes publishing to a channel, and also to the channel of the user that the event names: owning a workflow
    /// must not be enough to write to the channel of another user.
    ///
    /// # Errors
    ///
    /// One of the two is not authorized.
    pub fn authorize_publish(
        &self,
        channel: &Channel,
        owner: Option<&str>,
        to_user: Option<&Channel>,
    ) -> Result<(), NotFound> {
        self.authorize(Action::Publish, channel, owner)?;
        to_user.map_or(Ok(()), |user| self.authorize(Action::Publish, user, None))
    }

    /// The same user, restricted to the given scopes.
    #[must_use]
    pub fn limited(self, limit: Scopes) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(scopes: &[&str]) -> Identity {
        let scopes = Scopes::read(scopes.iter().copied()).unwrap();
        Identity { user: "ann".into(), scopes, limit: None, expires_at_s: Some(100) }
    }

    fn channel(name: &str) -> Channel {
        Channel::from_name(name).unwrap()
    }

    #[test]
    fn owner_or_scope_authorizes_an_action() {
        let plain = identity(&[]);
        for action in Action::ALL {
            assert_eq!(plain.authorize(action, &channel("workflow:1"), Some("ann")), Ok(()));
            assert_eq!(plain.authorize(action, &channel("user:ann"), None), Ok(()));
            // A channel of another user and a missing one have the same error.
            assert_eq!(plain.authorize(action, &channel("workflow:1"), Some("bob")), Err(NotFound));
            assert_eq!(plain.authorize(action, &channel("workflow:1"), None), Err(NotFound));
            // A user's channel belongs to that user, even if the store names another owner.
            assert_eq!(plain.authorize(action, &channel("user:bob"), Some("ann")), Err(NotFound));
        }
        let granted = identity(&["read:workflow:*"]);
        assert_eq!(granted.authorize(Action::Read, &channel("workflow:1"), Some("bob")), Ok(()));
        assert_eq!(granted.authorize(Action::Publish, &channel("workflow:1"), Some("bob")), Err(NotFound));
        assert_eq!(granted.authorize(Action::Read, &channel("user:bob"), None), Err(NotFound));
    }

    #[test]
    fn publishing_to_a_user_needs_both_channels() {
        let bob = channel("user:bob");
        let owner = identity(&[]);
        let workflow = channel("workflow:1");
        assert_eq!(owner.authorize_publish(&workflow, Some("ann"), None), Ok(()));
        assert_eq!(owner.authorize_publish(&workflow, Some("ann"), Some(&channel("user:ann"))), Ok(()));
        assert_eq!(owner.authorize_publish(&workflow, Some("ann"), Some(&bob)), Err(NotFound));
        let worker = identity(&["publish:workflow:*", "publish:user:*"]);
        assert_eq!(worker.authorize_publish(&workflow, Some("bob"), Some(&bob)), Ok(()));
        assert_eq!(worker.authorize_publish(&workflow, None, Some(&bob)), Ok(()));
        assert_eq!(worker.authorize_publish(&channel("file:1"), Some("bob"), None), Err(NotFound));
    }

    #[test]
    fn limit_applies_to_owners_too() {
        let limited = identity(&["admin"]).limited(Scopes::read(["read:workflow:1"]).unwrap());
        assert_eq!(limited.authorize(Action::Read, &channel("workflow:1"), Some("bob")), Ok(()));
        assert_eq!(limited.authorize(Action::Read, &channel("workflow:2"), Some("ann")), Err(NotFound));
        assert_eq!(limited.authorize(Action::Publish, &channel("workflow:1"), Some("ann")), Err(NotFound));
        // A limit grants no access.
        let limited = identity(&[]).limited(Scopes::admin());
        assert_eq!(limited.authorize(Action::Read, &channel("workflow:1"), Some("bob")), Err(NotFound));
    }

    #[test]
    fn identity_expires_at_its_time() {
        let identity = identity(&[]);
        assert!(!identity.has_expired(99) && identity.has_expired(100) && identity.has_expired(101));
        assert!(!Identity::local().has_expired(u64::MAX));
    }

    proptest! {
        #[test]
        fn user_without_a_scope_has_access_to_its_own_channels_only(
            kind in prop::sample::select(ChannelKind::ALL.to_vec()),
            id in "[a-c]|ann",
            owner in prop::option::of("[a-c]|ann"),
            action in prop::sample::select(Action::ALL.to_vec()),
        ) {
            let channel = Channel::new(kind, &id).expect("fit");
            let owns = if kind == ChannelKind::User { id == "ann" } else { owner.as_deref() == Some("ann") };
            prop_assert_eq!(identity(&[]).authorize(action, &channel, owner.as_deref()).is_ok(), owns);
        }
    }
}
