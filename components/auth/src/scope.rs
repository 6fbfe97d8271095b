//! Scopes: the grants of a token or an API key, as text.
//!
//! ```text
//! scope  = "admin" / action ":" kind ":" id
//! action = "read" / "publish" / "cancel" / "start" / "*"
//! kind   = "workflow" / "file" / "user" / "pipeline" / "session" / "*"
//! id     = an id / "*"                     ; the id may have colons
//! ```
//!
//! `read:workflow:42`, `publish:workflow:*`, `read:*:*`, `start:pipeline:summaries`. A star is a whole part, never
//! a pattern within an id. Owners need no scope for their own channels.

use std::fmt;

use thiserror::Error;
use weir_codec::channels::route::{Channel, ChannelKind, check_id};

/// Most scopes of one user; a token with more is refused.
pub const SCOPES_MAX: usize = 64;
/// Most bytes in the text of all scopes.
pub const SCOPES_BYTES_MAX: usize = 4096;

/// An action on a channel, or on its execution or session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Subscribe to a channel, replay its events, or read a state.
    Read,
    /// Append events.
    Publish,
    /// Stop an execution.
    Cancel,
    /// Start an execution of a pipeline; the id is the pipeline's name.
    Start,
}

impl Action {
    /// Every action, in order.
    pub const ALL: [Self; 4] = [Self::Read, Self::Publish, Self::Cancel, Self::Start];

    /// The name in a scope.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Publish => "publish",
            Self::Cancel => "cancel",
            Self::Start => "start",
        }
    }
}

/// One scope. A part that is `None` is a star.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Admin,
    /// An action on channels.
    Grant {
        /// The granted action.
        action: Option<Action>,
        /// The kind of channel.
        kind: Option<ChannelKind>,
        /// The id of the channel.
        id: Option<Box<str>>,
    },
}

/// Why texts are not scopes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScopeError {
    /// It does not match the grammar.
    #[error("`{0}` is not a scope: use `admin` or ACTION:KIND:ID, such as `read:workflow:*`")]
    Unknown(Box<str>),
    /// The scopes are too many or too long.
    #[error("there may be at most {SCOPES_MAX} scopes of {SCOPES_BYTES_MAX} bytes")]
    TooMany,
}

impl Scope {
    /// Parses one scope.
    pub fn read(text: &str) -> Option<Self> {
        if text == "admin" {
            return Some(Self::Admin);
        }
        let mut parts = text.splitn(3, ':');
        let (action, kind, id) = (parts.next()?, parts.next()?, parts.next()?);
        let action = match action {
            "*" => None,
            name => Some(Action::ALL.into_iter().find(|action| action.name() == name)?),
        };
        let kind = match kind {
            "*" => None,
            name => Some(ChannelKind::from_name(name)?),
        };
        let id = match id {
            "*" => None,
            id => Some(check_id(id).map(|()| id.into()).ok()?),
        };
        Some(Self::Grant { action, kind, id })
    }

    /// Whether it grants an action on a channel.
    pub fn grants(&self, wanted: Action, channel: &Channel) -> bool {
        match self {
            Self::Admin => true,
            Self::Grant { action, kind, id } => {
                action.is_none_or(|action| action == wanted)
                    && kind.is_none_or(|kind| kind == channel.kind())
                    && id.as_deref().is_none_or(|id| id == channel.id())
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Grant { action, kind, id } => {
                let action = action.map_or("*", Action::name);
                let kind = kind.map_or("*", ChannelKind::name);
                write!(f, "{action}:{kind}:{}", id.as_deref().unwrap_or("*"))
            }
        }
    }
}

/// The scopes of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// Parses scopes from Weir's configuration or a client.
    ///
    /// # Errors
    ///
    /// One is not a scope, or there are too many.
    pub fn read<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, ScopeError> {
        let mut scopes = Self::default();
        let mut bytes = 0;
        for text in texts {
            bytes += text.len();
            if scopes.0.len() == SCOPES_MAX || bytes > SCOPES_BYTES_MAX {
                return Err(ScopeError::TooMany);
            }
            const SHOWN_MAX: usize = 64;
            let scope = Scope::read(text);
            scopes.0.push(scope.ok_or_else(|| ScopeError::Unknown(text.chars().take(SHOWN_MAX).collect()))?);
        }
        Ok(scopes)
    }

    /// Parses the scopes of a token. Texts that are not scopes of this server are ignored.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub fn parse_known<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, ScopeError> {
        let mut scopes = Self::default();
        let (mut bytes, mut count) = (0, 0);
        for text in texts {
            (bytes, count) = (bytes + text.len(), count + 1);
            if count > SCOPES_MAX || bytes > SCOPES_BYTES_MAX {
                return Err(ScopeError::TooMany);
            }
            scopes.0.extend(Scope::read(text));
        }
        Ok(scopes)
    }

    /// The scope that grants everything.
    pub fn admin() -> Self {
        Self(vec![Scope::Admin])
    }

    /// Whether one of them grants an action on a channel.
    pub fn grant(&self, action: Action, channel: &Channel) -> bool {
        self.0.iter().any(|scope| scope.grants(action, channel))
    }

    /// The scopes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    /// True when there is no scope.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.0.iter().enumerate() {
            write!(f, "{}{scope}", if at > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grants(scope: &str, action: Action, channel: &str) -> bool {
        Scope::read(scope).unwrap().grants(action, &Channel::from_name(channel).unwrap())
    }

    #[test]
    fn scope_grants_its_action_kind_and_id() {
        for (scope, channel) in [
            ("read:workflow:42", "workflow:42"),
            ("read:workflow:*", "workflow:42"),
            ("read:*:42", "file:42"),
            ("read:*:*", "user:ann"),
            ("*:*:*", "user:ann"),
            ("read:session:a:b", "session:a:b"),
            ("admin", "user:ann"),
        ] {
            assert!(grants(scope, Action::Read, channel), "{scope} {channel}");
        }
        for (scope, channel) in [
            ("read:workflow:42", "workflow:4"),
            ("read:workflow:42", "workflow:421"),
            ("read:workflow:42", "file:42"),
            ("publish:workflow:*", "workflow:42"),
            ("read:session:a", "session:a:b"),
        ] {
            assert!(!grants(scope, Action::Read, channel), "{scope} {channel}");
        }
        for action in Action::ALL {
            assert!(grants(&format!("{}:pipeline:p", action.name()), action, "pipeline:p"));
            assert!(grants("admin", action, "pipeline:p"));
        }
    }

    #[test]
    fn malformed_scopes_are_refused() {
        for text in [
            "",
            "Admin",
            "admin:",
            "*",
            "*:*",
            "read",
            "read:workflow",
            "read:workflow:",
            "read:workflow:4*",
            "read:workflow:**",
            "write:workflow:4",
            "read:Workflow:4",
            "read::4",
            ":workflow:4",
            "read:workflow:..",
            "read:workflow:a b",
            "openid",
            "read:workflow:é",
        ] {
            assert_eq!(Scope::read(text), None, "{text}");
        }
    }

    #[test]
    fn scope_lists_are_bounded_and_ignore_unknown_texts_in_tokens() {
        let scopes = Scopes::read(["read:*:*", "admin"]).unwrap();
        assert_eq!(scopes.to_string(), "read:*:* admin");
        assert_eq!(Scopes::read(["openid"]), Err(ScopeError::Unknown("openid".into())));
        assert_eq!(Scopes::parse_known(["openid", "admin"]), Ok(Scopes::admin()));
        assert_eq!(Scopes::read(["admin"; 65]), Err(ScopeError::TooMany));
        assert_eq!(Scopes::parse_known(["openid"; 65]), Err(ScopeError::TooMany));
        assert_eq!(Scopes::parse_known([&*"x".repeat(4097)]), Err(ScopeError::TooMany));
    }

    proptest! {
        #[test]
        fn parsed_scope_is_written_unchanged(text in "(read|publish|admin|\\*)?(:(workflow|user|\\*)?)?(:[a-z:*]{0,3})?") {
            if let Some(scope) = Scope::read(&text) {
                prop_assert_eq!(scope.to_string(), text);
            }
        }
    }
}
