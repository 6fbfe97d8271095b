//! The messages of a client on a WebSocket that follows several channels: subscribe to a channel, from the event after a cursor, or
//! unsubscribe from it. The client receives the envelopes of [`crate::channels::event`].

use crate::{
    channels::{filter::EventFilter, route::Channel},
    json::{
        field::{FieldError, FieldReason, RequestError},
        members::{Errors, Members},
    },
};

/// Maximum number of bytes in a message of a client.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Maximum number of JSON values in a message.
const MESSAGE_VALUES_MAX: usize = 256;

/// A message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketMessage {
    /// `{"type":"subscribe","channel":"workflow:42","last_event_id":"…"}`, with `events`, `steps` and `throttle_ms` as a filter.
    Subscribe {
        /// The channel to follow.
        channel: Channel,
        /// The id of the last event that the client has; without it the client receives all retained events.
        last_event_id: Option<String>,
        /// The events that the client receives.
        filter: EventFilter,
    },
    /// `{"type":"unsubscribe","channel":"workflow:42"}`
    Unsubscribe {
        /// The channel to unsubscribe from.
        channel: Channel,
    },
}

impl SocketMessage {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// The input is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn from_json(message: &[u8]) -> Result<Self, RequestError> {
        if message.len() > MESSAGE_BYTES_MAX {
            let bounds = (0, MESSAGE_BYTES_MAX as i64);
            let what = "have a length in bytes of";
            let error = FieldError::bounded("message", FieldReason::TooLong, what, bounds, message.len() as i64);
            return Err(RequestError::Invalid(vec![error]));
        }
        let (mut members, mut errors) = (Members::of_whole_body(message, MESSAGE_VALUES_MAX)?, Errors::default());
        let mut text = |field: &'static str, required: bool| {
            if required {
                members.require(field, &mut errors);
            }
            members.text(field, &mut errors)
        };
        let (kind, name, cursor) = (text("type", true), text("channel", true), text("last_event_id", false));
        let is_subscribe = match kind.as_deref() {
            Some("subscribe") => true,
            Some("unsubscribe") | None => false,
            Some(_) => {
                let message = "`type` must be one of subscribe, unsubscribe".to_owned();
                errors.push(FieldError::new("type", FieldReason::NotAllowed, message));
                false
            }
        };
        let channel = name.as_deref().and_then(Channel::from_name);
        if name.is_some() && channel.is_none() {
            let message = "`channel` must be a kind and an id, such as `workflow:42`".to_owned();
            errors.push(FieldError::new("channel", FieldReason::NotAllowed, message));
        }
        if cursor.is_some() && !is_subscribe {
            let message = "`last_event_id` is for `subscribe` only".to_owned();
            errors.push(FieldError::new("last_event_id", FieldReason::NotAllowed, message));
        }
        let filter = filter(&mut members, &mut errors);
        if !filter.is_default() && !is_subscribe {
            let message = "`events`, `steps` and `throttle_ms` are for `subscribe` only".to_owned();
            errors.push(FieldError::new("events", FieldReason::NotAllowed, message));
        }
        members.finish(&mut errors);
        match channel {
            Some(channel) if errors.is_empty() => Ok(match is_subscribe {
                true => Self::Subscribe { channel, last_event_id: cursor, filter },
                false => Self::Unsubscribe { channel },
            }),
            _ => Err(RequestError::Invalid(errors.into_vec())),
        }
    }
}

/// The filter of a message; the default if its members are invalid, which is recorded in `errors`.
fn filter(members: &mut Members<'_>, errors: &mut Errors) -> EventFilter {
    let events = members.names_of("events", errors);
    let steps = members.names_of("steps", errors);
    let throttle_ms =
        members.integer("throttle_ms", errors).map(|period_ms| u64::try_from(period_ms).unwrap_or(u64::MAX));
    match EventFilter::new(events, steps, throttle_ms) {
        Ok(filter) => filter,
        Err(RequestError::Invalid(invalid)) => {
            invalid.into_iter().for_each(|error| errors.push(error));
            EventFilter::default()
        }
        Err(_) => EventFilter::default(),
    }
}

/// The reply to a message that failed: `{"type":"error","error":{"code","message","retryable"}}`, with `channel` if the message named
/// one.
pub fn error_json(code: &str, message: &str, channel: Option<&Channel>, retryable: bool) -> Vec<u8> {
    let mut reply = serde_json::json!({
        "type": "error", "error": { "code": code, "message": message, "retryable": retryable },
    });
    if let Some(channel) = channel {
        reply["channel"] = channel.to_string().into();
    }
    reply.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(message: &str, want: Expect) {
        want.assert_eq(&match SocketMessage::from_json(message.as_bytes()) {
            Ok(message) => format!("{message:?}"),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn subscribe_and_unsubscribe_are_read() {
        check(
            r#"{"type":"subscribe","channel":"workflow:42","last_event_id":"e-7"}"#,
            expect![[
                r#"Subscribe { channel: Channel { kind: Workflow, name: ChannelName { text: "workflow:42" } }, last_event_id: Some("e-7"), filter: EventFilter { events: [], steps: [], throttle_ms: 0 } }"#
            ]],
        );
        check(
            r#"{"type":"unsubscribe","channel":"user:ann"}"#,
            expect![[r#"Unsubscribe { channel: Channel { kind: User, name: ChannelName { text: "user:ann" } } }"#]],
        );
    }

    #[test]
    fn filter_is_for_subscribe_only() {
        check(
            r#"{"type":"subscribe","channel":"pipeline:e","events":["step_complete"],"steps":["a b"],"throttle_ms":100}"#,
            expect![[
                r#"Subscribe { channel: Channel { kind: Pipeline, name: ChannelName { text: "pipeline:e" } }, last_event_id: None, filter: EventFilter { events: ["step_complete"], steps: ["a b"], throttle_ms: 100 } }"#
            ]],
        );
        check(
            r#"{"type":"subscribe","channel":"pipeline:e","events":[],"throttle_ms":-1}"#,
            expect!["`throttle_ms` must be 0 to 60000"],
        );
        check(
            r#"{"type":"unsubscribe","channel":"pipeline:e","steps":["a"]}"#,
            expect!["`events`, `steps` and `throttle_ms` are for `subscribe` only"],
        );
    }

    #[test]
    fn error_reply_has_the_channel_if_there_is_one() {
        let channel = Channel::from_name("workflow:42");
        let reply = |channel| String::from_utf8(error_json("not_found", "no \"such\"", channel, false)).expect("UTF-8");
        expect![[r#"{"channel":"workflow:42","error":{"code":"not_found","message":"no \"such\"","retryable":false},"type":"error"}"#]]
            .assert_eq(&reply(channel.as_ref()));
        expect![[r#"{"error":{"code":"not_found","message":"no \"such\"","retryable":false},"type":"error"}"#]]
            .assert_eq(&reply(None));
    }

    #[test]
    fn all_field_errors_are_listed() {
        check("{}", expect!["`type` is required; `channel` is required"]);
        check(
            r#"{"type":"follow","channel":"workflow","last_event_id":"a\r\n","x":1}"#,
            expect![
                "`type` must be one of subscribe, unsubscribe; `channel` must be a kind and an id, such as `workflow:42`; `last_event_id` is for `subscribe` only; `x` is not known here; there are type, channel, last_event_id, events, steps, throttle_ms"
            ],
        );
        check(
            r#"{"type":1,"channel":null}"#,
            expect!["`type` must be a string, and is an integer; `channel` must be a string, and is null"],
        );
        check(&" ".repeat(20_000), expect!["`message` must have a length in bytes of 0 to 16384, and is 20000"]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(message in "\\PC{0,60}") {
            let _ = SocketMessage::from_json(message.as_bytes());
        }
    }
}
