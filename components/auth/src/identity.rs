//! Who asks, and what that one may do.

use thiserror::Error;
use weir_codec::channels::route::{Channel, ChannelKind};

use crate::scope::{Action, Scopes};

/// Somebody who was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub(crate) user: Box<str>,
    pub(crate) scopes: Scopes,
    /// Of all that the user may do, this much.
    pub(crate) limit: Option<Scopes>,
    pub(crate) ends_s: Option<u64>,
}

/// There is nothing there, or nothing for this user: which of the two is not to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("there is nothing here for you")]
pub struct NotFound;

impl Identity {
    /// Whoever sits at this machine, where no authentication is asked for.
    pub(crate) fn local() -> Self {
        Self { user: "local".into(), scopes: Scopes::admin(), limit: None, ends_s: None }
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What was granted besides what is the user's own.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// When it ends, in seconds since 1970; connections made with it end then too. None for what does not end.
    pub fn ends_s(&self) -> Option<u64> {
        self.ends_s
    }

    /// Whether it has ended. To be asked on each delivery, or by a timer.
    pub fn has_ended(&self, now_s: u64) -> bool {
        self.ends_s.is_some_and(|ends_s| now_s >= ends_s)
    }

    /// Whether this user may do something with a channel. `owner` is the user to whom the channel belongs as the store knows
    /// it, none where there is no such channel or it belongs to nobody; a user's channel belongs to that user, whatever
    /// `owner` says. A channel that is missing is to be answered with the same [`NotFound`].
    ///
    /// # Errors
    ///
    /// Neither the owner nor granted.
    pub fn may(&self, action: Action, channel: &Channel, owner: Option<&str>) -> Result<(), NotFound> {
        let owner = match channel.kind() {
            ChannelKind::User => Some(channel.id()),
            _ => owner,
        };
        let owns = owner == Some(self.user());
        let within = self.limit.as_ref().is_none_or(|limit| limit.grant(action, channel));
        if within && (owns || self.scopes.grant(action, channel)) { Ok(()) } else { Err(NotFound) }
    }

    /// Whether this user may publish to a channel, and with it to the channel of the user whom the event names. It must not
    /// be enough to own a workflow to write into the channel of another.
    ///
    /// # Errors
    ///
    /// One of the two is not allowed.
    pub fn may_publish(
        &self,
        channel: &Channel,
        owner: Option<&str>,
        to_user: Option<&Channel>,
    ) -> Result<(), NotFound> {
        self.may(Action::Publish, channel, owner)?;
        to_user.map_or(Ok(()), |user| self.may(Action::Publish, user, None))
    }

    /// The same user with no more than the scopes named.
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
        Identity { user: "ann".into(), scopes, limit: None, ends_s: Some(100) }
    }

    fn channel(name: &str) -> Channel {
        Channel::from_name(name).unwrap()
    }

    #[test]
    fn owners_and_scopes() {
        let plain = identity(&[]);
        for action in Action::ALL {
            assert_eq!(plain.may(action, &channel("workflow:1"), Some("ann")), Ok(()));
            assert_eq!(plain.may(action, &channel("user:ann"), None), Ok(()));
            // Another's and a missing one cannot be told apart.
            assert_eq!(plain.may(action, &channel("workflow:1"), Some("bob")), Err(NotFound));
            assert_eq!(plain.may(action, &channel("workflow:1"), None), Err(NotFound));
            // A user's channel is that user's, whatever the store says.
            assert_eq!(plain.may(action, &channel("user:bob"), Some("ann")), Err(NotFound));
        }
        let granted = identity(&["read:workflow:*"]);
        assert_eq!(granted.may(Action::Read, &channel("workflow:1"), Some("bob")), Ok(()));
        assert_eq!(granted.may(Action::Publish, &channel("workflow:1"), Some("bob")), Err(NotFound));
        assert_eq!(granted.may(Action::Read, &channel("user:bob"), None), Err(NotFound));
    }

    #[test]
    fn publishing_to_somebody() {
        let bob = channel("user:bob");
        let owner = identity(&[]);
        let workflow = channel("workflow:1");
        assert_eq!(owner.may_publish(&workflow, Some("ann"), None), Ok(()));
        assert_eq!(owner.may_publish(&workflow, Some("ann"), Some(&channel("user:ann"))), Ok(()));
        assert_eq!(owner.may_publish(&workflow, Some("ann"), Some(&bob)), Err(NotFound));
        let worker = identity(&["publish:workflow:*", "publish:user:*"]);
        assert_eq!(worker.may_publish(&workflow, Some("bob"), Some(&bob)), Ok(()));
        assert_eq!(worker.may_publish(&workflow, None, Some(&bob)), Ok(()));
        assert_eq!(worker.may_publish(&channel("file:1"), Some("bob"), None), Err(NotFound));
    }

    #[test]
    fn a_limit_holds_for_owners_too() {
        let limited = identity(&["admin"]).limited(Scopes::read(["read:workflow:1"]).unwrap());
        assert_eq!(limited.may(Action::Read, &channel("workflow:1"), Some("bob")), Ok(()));
        assert_eq!(limited.may(Action::Read, &channel("workflow:2"), Some("ann")), Err(NotFound));
        assert_eq!(limited.may(Action::Publish, &channel("workflow:1"), Some("ann")), Err(NotFound));
        // And it grants nothing by itself.
        let limited = identity(&[]).limited(Scopes::admin());
        assert_eq!(limited.may(Action::Read, &channel("workflow:1"), Some("bob")), Err(NotFound));
    }

    #[test]
    fn it_ends() {
        let identity = identity(&[]);
        assert!(!identity.has_ended(99) && identity.has_ended(100) && identity.has_ended(101));
        assert!(!Identity::local().has_ended(u64::MAX));
    }

    proptest! {
        #[test]
        fn without_a_scope_only_what_is_ones_own(
            kind in prop::sample::select(ChannelKind::ALL.to_vec()),
            id in "[a-c]|ann",
            owner in prop::option::of("[a-c]|ann"),
            action in prop::sample::select(Action::ALL.to_vec()),
        ) {
            let channel = Channel::new(kind, &id).expect("fit");
            let owns = if kind == ChannelKind::User { id == "ann" } else { owner.as_deref() == Some("ann") };
            prop_assert_eq!(identity(&[]).may(action, &channel, owner.as_deref()).is_ok(), owns);
        }
    }
}
