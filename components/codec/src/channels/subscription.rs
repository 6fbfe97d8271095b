//! The bytes that a subscriber receives. The gateway writes them when it follows a channel itself, the host when it holds the
//! connection.

use crate::{
    channels::{
        event::{StreamEvent, envelope},
        route::Channel,
    },
    http::{
        framing::Framing,
        sse::{self, SseEvent},
    },
};

/// Why the server ends a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriptionEnd {
    /// The last event of the channel was sent.
    Finished,
    /// The client did not read fast enough.
    Slow,
    /// The server shuts down, or its store lost the channel.
    Lost,
    /// The authorization of the client has expired.
    Expired,
}

impl SubscriptionEnd {
    /// The event that is sent to the client.
    pub fn event(self) -> StreamEvent<'static> {
        let (reason, message, resumable) = match self {
            Self::Finished => ("finished", "the channel has had its last event", false),
            Self::Slow => ("slow", "the events came faster than they were read", true),
            Self::Lost => ("closing", "the server ends the connection", true),
            Self::Expired => ("expired", "the token of this connection has expired", true),
        };
        StreamEvent::Disconnected { reason, message, resumable }
    }
}

/// Renders the events of a channel for one subscriber. Ids are as on the wire; times are in milliseconds since 1970.
#[derive(Debug, Clone)]
pub struct EventRenderer {
    channel: Channel,
    framing: Framing,
}

impl EventRenderer {
    /// A renderer for a channel, in a framing.
    pub fn new(channel: Channel, framing: Framing) -> Self {
        Self { channel, framing }
    }

    /// The framing of the events.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Appends the beginning of a connection: the reconnection time, and the event `connected`.
    pub fn push_begin(&self, out: &mut Vec<u8>, retry_ms: u32, unix_ms: u64) {
        if self.framing == Framing::Sse {
            sse::push_retry(out, retry_ms);
        }
        self.push_own(out, None, &StreamEvent::Connected, unix_ms);
    }

    /// Appends the event `disconnected` with the reason.
    pub fn push_end(&self, out: &mut Vec<u8>, end: SubscriptionEnd, unix_ms: u64) {
        self.push_own(out, None, &end.event(), unix_ms);
    }

    /// Appends the event `gap`. Its id is `missing_to`, so that a client that resumes after it does not receive the gap again.
    pub fn push_gap(&self, out: &mut Vec<u8>, missing_from: &str, missing_to: &str, unix_ms: u64) {
        let event = StreamEvent::Gap { missing_from, missing_to };
        self.push_own(out, Some(missing_to), &event, unix_ms);
    }

    /// Appends a comment with the number of events that were replaced by later ones; NDJSON has no comments.
    pub fn push_coalesced(&self, out: &mut Vec<u8>, coalesced: u32) {
        if self.framing == Framing::Sse && coalesced > 0 {
            sse::push_comment(out, &format!("{coalesced} replaced by later ones"));
        }
    }

    /// Appends an event of the channel. As server-sent events it is [`render_event`], the same for every subscriber.
    pub fn push_event(&self, out: &mut Vec<u8>, id: &str, name: &str, data: &[u8]) {
        self.push_frame(out, Some(id), name, data);
    }

    /// The heartbeat of an idle connection.
    pub fn heartbeat(&self) -> &'static [u8] {
        match self.framing {
            Framing::Sse => sse::HEARTBEAT,
            Framing::Ndjson => b"{\"type\":\"heartbeat\"}\n",
        }
    }

    fn push_own(&self, out: &mut Vec<u8>, id: Option<&str>, event: &StreamEvent<'_>, unix_ms: u64) {
        self.push_frame(out, id, event.name(), &event.data(&self.channel, unix_ms));
    }

    fn push_frame(&self, out: &mut Vec<u8>, id: Option<&str>, name: &str, data: &[u8]) {
        match self.framing {
            Framing::Sse => push_sse(out, id, name, data),
            Framing::Ndjson => {
                // In JSON, line ends occur only as white space between tokens.
                let flat: Vec<u8> =
                    data.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect();
                out.extend(envelope(&self.channel, id, name, &flat));
                out.push(b'\n');
            }
        }
    }
}

/// An event of a channel as a server-sent event; the bytes are the same for every subscriber.
pub fn render_event(id: &str, name: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(id.len() + name.len() + data.len() + 32);
    push_sse(&mut out, Some(id), name, data);
    out
}

fn push_sse(out: &mut Vec<u8>, id: Option<&str>, name: &str, data: &[u8]) {
    // The store accepts only names without line ends. If an id or a name is invalid anyway, it is left out and the event is kept.
    let event = SseEvent::new(data);
    let event = id.and_then(|id| event.with_id(id).ok()).unwrap_or(event);
    event.with_name(name).unwrap_or(event).push(out);
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(framing: Framing, want: Expect) {
        let renderer = EventRenderer::new(Channel::from_name("workflow:42").expect("a name"), framing);
        let mut out = Vec::new();
        renderer.push_begin(&mut out, 3000, 0);
        renderer.push_coalesced(&mut out, 0);
        renderer.push_coalesced(&mut out, 2);
        renderer.push_event(&mut out, "1-7", "workflow_progress", b"{\"a\":\n1}");
        renderer.push_gap(&mut out, "1-8", "2-0", 1);
        out.extend_from_slice(renderer.heartbeat());
        renderer.push_end(&mut out, SubscriptionEnd::Slow, 2);
        want.assert_eq(&String::from_utf8(out).expect("UTF-8"));
    }

    #[test]
    fn subscription_in_each_framing() {
        check(
            Framing::Sse,
            expect![[r#"
            retry: 3000

            event: connected
            data: {"workflow_id":"42","channel":"workflow:42","timestamp":"1970-01-01T00:00:00.000Z"}

            : 2 replaced by later ones

            id: 1-7
            event: workflow_progress
            data: {"a":
            data: 1}

            id: 2-0
            event: gap
            data: {"workflow_id":"42","missing_from":"1-8","missing_to":"2-0","timestamp":"1970-01-01T00:00:00.001Z"}

            :

            event: disconnected
            data: {"workflow_id":"42","reason":"slow","message":"the events came faster than they were read","resumable":true,"timestamp":"1970-01-01T00:00:00.002Z"}

        "#]],
        );
        check(
            Framing::Ndjson,
            expect![[r#"
            {"type":"connected","channel":"workflow:42","data":{"workflow_id":"42","channel":"workflow:42","timestamp":"1970-01-01T00:00:00.000Z"}}
            {"type":"workflow_progress","id":"1-7","channel":"workflow:42","data":{"a": 1}}
            {"type":"gap","id":"2-0","channel":"workflow:42","data":{"workflow_id":"42","missing_from":"1-8","missing_to":"2-0","timestamp":"1970-01-01T00:00:00.001Z"}}
            {"type":"heartbeat"}
            {"type":"disconnected","channel":"workflow:42","data":{"workflow_id":"42","reason":"slow","message":"the events came faster than they were read","resumable":true,"timestamp":"1970-01-01T00:00:00.002Z"}}
        "#]],
        );
    }

    #[test]
    fn event_is_rendered_alike_on_each_path() {
        let renderer = EventRenderer::new(Channel::from_name("user:ann").expect("a name"), Framing::Sse);
        for data in ["{}", "{\"a\":1}\r\n", "\n"] {
            let mut out = Vec::new();
            renderer.push_event(&mut out, "1-7", "n", data.as_bytes());
            assert_eq!(out, render_event("1-7", "n", data.as_bytes()));
        }
    }
}
