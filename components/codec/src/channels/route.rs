//! The paths of channels, and the names of channels of Weir's own kinds.

use std::fmt;

use weir_core::channels::ChannelName;
pub use weir_core::channels::{ID_BYTES_MAX, IdError, Kind as ChannelKind, check_id};

use crate::{
    inference::query::decode_path,
    json::field::{FieldError, FieldReason, RequestError},
};

/// The name of the event field with the id of the channel.
pub(crate) const fn id_field(kind: ChannelKind) -> &'static str {
    match kind {
        ChannelKind::Workflow => "workflow_id",
        ChannelKind::File => "file_id",
        ChannelKind::User => "user_id",
        ChannelKind::Pipeline => "execution_id",
        ChannelKind::Session => "session_id",
        ChannelKind::Generation => "generation_id",
    }
}

/// A channel of one of Weir's own kinds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    kind: ChannelKind,
    name: ChannelName,
}

impl Channel {
    /// The channel of a kind and an id.
    ///
    /// # Errors
    ///
    /// The id is empty, too long, has a character that is not allowed, or begins with a dot.
    pub fn new(kind: ChannelKind, id: &str) -> Result<Self, IdError> {
        check_id(id)?;
        let name = ChannelName::of(kind, id).expect("the id was checked, and the kinds are within the grammar");
        Ok(Self { kind, name })
    }

    /// The channel with a name such as `workflow:42`. The id may contain colons.
    pub fn from_name(name: &str) -> Option<Self> {
        let name: ChannelName = name.parse().ok()?;
        Some(Self { kind: ChannelKind::from_name(name.kind())?, name })
    }

    /// Its kind.
    pub fn kind(&self) -> ChannelKind {
        self.kind
    }

    /// Its id within the kind.
    pub fn id(&self) -> &str {
        self.name.id()
    }

    /// Its name, `kind:id`.
    pub fn name(&self) -> &ChannelName {
        &self.name
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Converts the error of an id to a field error.
pub(crate) fn id_error(error: IdError, field: &str) -> FieldError {
    let length = |reason, bytes: usize| {
        let bounds = (1, ID_BYTES_MAX as i64);
        FieldError::bounded(field, reason, "have a length in bytes of", bounds, bytes as i64)
    };
    match error {
        IdError::Empty => length(FieldReason::TooShort, 0),
        IdError::TooLong { bytes } => length(FieldReason::TooLong, bytes),
        IdError::Character { .. } | IdError::Dots => {
            FieldError::new(field, FieldReason::NotAllowed, format!("`{field}`: {error}"))
        }
    }
}

/// A route of the channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelRoute {
    /// `GET /stream/{workflow|file|user|pipeline|session|generation}/{id}`: server-sent events, or NDJSON by `Accept`.
    Subscribe(Channel),
    /// `GET /ws/{kind}/{id}` with an upgrade: the same channel over a WebSocket, which may follow other channels too. The gateway
    /// receives a WebSocket as a `POST` of lines.
    Socket(Channel),
    /// `GET /ws` with an upgrade: a WebSocket whose messages name the channels to follow; also a `POST` of lines.
    Sockets,
    /// `POST /stream/publish/workflow/{id}`
    PublishWorkflow(Channel),
    /// `POST /stream/publish/analysis/{file_id}`
    PublishAnalysis(Channel),
    /// `POST /stream/publish/user/{id}`: a notification.
    PublishUser(Channel),
    /// `GET /stream/health`
    Health,
    /// `POST /tickets`
    Tickets,
}

/// The paths of WebSockets, for the index.
pub const SOCKET_ROUTES: [(&str, &str); 2] = [("GET", "/ws"), ("GET", "/ws/{kind}/{id}")];

/// Every other path of [`ChannelRoute::find`] with its method, for the index.
pub const CHANNEL_ROUTES: [(&str, &str); 11] = [
    ("GET", "/stream/workflow/{id}"),
    ("GET", "/stream/file/{id}"),
    ("GET", "/stream/user/{id}"),
    ("GET", "/stream/pipeline/{execution_id}"),
    ("GET", "/stream/session/{id}"),
    ("GET", "/stream/generation/{id}"),
    ("POST", "/stream/publish/workflow/{id}"),
    ("POST", "/stream/publish/analysis/{file_id}"),
    ("POST", "/stream/publish/user/{id}"),
    ("GET", "/stream/health"),
    ("POST", "/tickets"),
];

impl ChannelRoute {
    /// The route of a path without its query; `None` for a path that is not of channels.
    ///
    /// # Errors
    ///
    /// The path matches and its id is invalid; the error has the name of the path parameter.
    pub fn find(path: &str) -> Result<Option<Self>, RequestError> {
        match path {
            "/stream/health" => return Ok(Some(Self::Health)),
            "/tickets" => return Ok(Some(Self::Tickets)),
            "/ws" => return Ok(Some(Self::Sockets)),
            _ => {}
        }
        let publish = |rest: &str| match rest.split_once('/') {
            Some(("workflow", id)) => channel(ChannelKind::Workflow, id).map(|c| c.map(Self::PublishWorkflow)),
            Some(("analysis", id)) => channel(ChannelKind::File, id).map(|c| c.map(Self::PublishAnalysis)),
            Some(("user", id)) => channel(ChannelKind::User, id).map(|c| c.map(Self::PublishUser)),
            _ => Ok(None),
        };
        if let Some(rest) = path.strip_prefix("/stream/publish/") {
            return publish(rest);
        }
        if let Some(rest) = path.strip_prefix("/stream/") {
            return subscribed_channel(rest).map(|channel| channel.map(Self::Subscribe));
        }
        if let Some(rest) = path.strip_prefix("/ws/") {
            return subscribed_channel(rest).map(|channel| channel.map(Self::Socket));
        }
        Ok(None)
    }

    /// True for a `POST` route, false for a `GET` route.
    pub fn posts(&self) -> bool {
        match self {
            Self::PublishWorkflow(_) | Self::PublishAnalysis(_) | Self::PublishUser(_) | Self::Tickets => true,
            Self::Socket(_) | Self::Sockets => true,
            Self::Subscribe(_) | Self::Health => false,
        }
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> &'static str {
        if self.posts() { "POST, OPTIONS" } else { "GET, HEAD, OPTIONS" }
    }

    /// The channel in the path.
    pub fn channel(&self) -> Option<&Channel> {
        match self {
            Self::Subscribe(channel) | Self::Socket(channel) => Some(channel),
            Self::PublishWorkflow(channel) | Self::PublishAnalysis(channel) | Self::PublishUser(channel) => {
                Some(channel)
            }
            Self::Sockets | Self::Health | Self::Tickets => None,
        }
    }
}

/// The channel of `kind/id`.
fn subscribed_channel(rest: &str) -> Result<Option<Channel>, RequestError> {
    let Some((kind, id)) = rest.split_once('/') else { return Ok(None) };
    match ChannelKind::from_name(kind) {
        Some(kind) => channel(kind, id),
        None => Ok(None),
    }
}

/// The channel with the id in the rest of a path; `None` when the rest has another slash.
fn channel(kind: ChannelKind, id: &str) -> Result<Option<Channel>, RequestError> {
    if id.contains('/') {
        return Ok(None);
    }
    // An invalid escape is kept, and `%` is not allowed in an id: no path can be read in two ways.
    match Channel::new(kind, &decode_path(id)) {
        Ok(channel) => Ok(Some(channel)),
        Err(error) => Err(RequestError::Invalid(vec![id_error(error, id_field(kind))])),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(paths: &[&str], want: Expect) {
        let mut lines = String::new();
        for path in paths {
            let result = match ChannelRoute::find(path) {
                Ok(None) => "none".to_owned(),
                Ok(Some(route)) => {
                    let name = format!("{route:?}");
                    let name = name.split('(').next().unwrap_or_default();
                    match route.channel() {
                        Some(channel) => format!("{name} {channel} ({})", route.allow()),
                        None => format!("{name} ({})", route.allow()),
                    }
                }
                Err(error) => format!("error: {error}"),
            };
            lines += &format!("{path} => {result}\n");
        }
        want.assert_eq(&lines);
    }

    #[test]
    fn path_of_a_channel_is_matched() {
        check(
            &[
                "/stream/workflow/42",
                "/stream/file/a%2Db.txt",
                "/stream/user/ann@example.org",
                "/stream/pipeline/0b1c",
                "/stream/session/s:1",
                "/ws/pipeline/0b1c",
                "/ws",
                "/stream/publish/workflow/42",
                "/stream/publish/analysis/f",
                "/stream/publish/user/ann",
                "/stream/health",
                "/tickets",
            ],
            expect![[r#"
                /stream/workflow/42 => Subscribe workflow:42 (GET, HEAD, OPTIONS)
                /stream/file/a%2Db.txt => Subscribe file:a-b.txt (GET, HEAD, OPTIONS)
                /stream/user/ann@example.org => Subscribe user:ann@example.org (GET, HEAD, OPTIONS)
                /stream/pipeline/0b1c => Subscribe pipeline:0b1c (GET, HEAD, OPTIONS)
                /stream/session/s:1 => Subscribe session:s:1 (GET, HEAD, OPTIONS)
                /ws/pipeline/0b1c => Socket pipeline:0b1c (POST, OPTIONS)
                /ws => Sockets (POST, OPTIONS)
                /stream/publish/workflow/42 => PublishWorkflow workflow:42 (POST, OPTIONS)
                /stream/publish/analysis/f => PublishAnalysis file:f (POST, OPTIONS)
                /stream/publish/user/ann => PublishUser user:ann (POST, OPTIONS)
                /stream/health => Health (GET, HEAD, OPTIONS)
                /tickets => Tickets (POST, OPTIONS)
            "#]],
        );
    }

    #[test]
    fn other_path_is_not_matched() {
        check(
            &[
                "",
                "/stream",
                "/stream/",
                "/stream/workflow",
                "/stream/workflow/a/b",
                "/Stream/workflow/a",
                "/stream/none/a",
                "/stream/publish/file/a",
                "/stream/publish/workflow",
                "/ws/",
                "/tickets/",
            ],
            expect![[r#"
                 => none
                /stream => none
                /stream/ => none
                /stream/workflow => none
                /stream/workflow/a/b => none
                /Stream/workflow/a => none
                /stream/none/a => none
                /stream/publish/file/a => none
                /stream/publish/workflow => none
                /ws/ => none
                /tickets/ => none
            "#]],
        );
    }

    #[test]
    fn path_with_an_invalid_id_is_refused() {
        check(
            &[
                "/stream/workflow/",
                "/stream/workflow/..",
                "/stream/workflow/%2e",
                "/stream/workflow/a%2Fb",
                "/stream/workflow/a%0d%0ab",
                "/stream/workflow/a%00",
                "/stream/file/*",
                "/stream/user/a;b",
                "/stream/user/%zz",
                "/stream/user/é",
                "/stream/publish/analysis/a b",
            ],
            expect![[r#"
                /stream/workflow/ => error: `workflow_id` must have a length in bytes of 1 to 128, and is 0
                /stream/workflow/.. => error: `workflow_id`: an id must not begin with a dot
                /stream/workflow/%2e => error: `workflow_id`: an id must not begin with a dot
                /stream/workflow/a%2Fb => error: `workflow_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 1 is none of them
                /stream/workflow/a%0d%0ab => error: `workflow_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 1 is none of them
                /stream/workflow/a%00 => error: `workflow_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 1 is none of them
                /stream/file/* => error: `file_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 0 is none of them
                /stream/user/a;b => error: `user_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 1 is none of them
                /stream/user/%zz => error: `user_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 0 is none of them
                /stream/user/é => error: `user_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 0 is none of them
                /stream/publish/analysis/a b => error: `file_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 1 is none of them
            "#]],
        );
        let long = format!("/ws/pipeline/{}", "x".repeat(129));
        let error = ChannelRoute::find(&long).unwrap_err().to_string();
        assert_eq!(error, "`execution_id` must have a length in bytes of 1 to 128, and is 129");
    }

    proptest! {
        #[test]
        fn arbitrary_path_does_not_panic_and_gives_valid_ids(path in "/(stream|ws)/(publish/)?[a-z]{0,9}/\\PC{0,20}") {
            if let Ok(Some(route)) = ChannelRoute::find(&path)
                && let Some(channel) = route.channel()
            {
                prop_assert!(check_id(channel.id()).is_ok());
                prop_assert_eq!(Channel::from_name(&channel.to_string()), Some(channel.clone()));
            }
        }

        #[test]
        fn parsed_name_is_written_unchanged(name in "(workflow|file|user|x)?:?[a-z:*.; ]{0,8}") {
            if let Some(channel) = Channel::from_name(&name) {
                prop_assert_eq!(channel.to_string(), name);
            }
        }
    }
}
