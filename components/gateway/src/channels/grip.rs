//! A subscription that an intermediary holds: the response is complete at once and instructs the intermediary (GRIP).
//!
//! Weir's own host has the channel store: the response names the cursor and the terms. A proxy such as Pushpin receives only published
//! events: the response has the retained events, and the proxy holds the connection for later ones.

use std::time::Duration;

use weir_codec::{
    channels::{
        filter::EventFilter,
        grip::{Hold, HoldChannel, HoldMode, KEEP_ALIVE_S_MAX, KeepAlive},
        hold::{self, HEARTBEAT_MS_MAX, Terms},
        route::Channel,
        subscription::{EventRenderer, SubscriptionEnd},
    },
    http::{framing::Framing, problem::Problem},
};
use weir_core::channels::Cursor;

use super::subscribe::{push_entry, push_gap, unix_ms};
use crate::{
    http::response::BufferedResponse,
    platform::{
        bindings::weir::stream::events,
        settings::{Grip, Settings},
        store,
    },
};

/// Events in one page of the store.
const PAGE_EVENTS: u32 = 1000;
/// The most bytes of retained events in one response: the client reconnects for the rest.
const REPLAY_BYTES_MAX: usize = 1 << 20;

/// The response to a subscriber whose connection an intermediary holds.
pub(crate) async fn hold_response(
    channel: Channel,
    after: Cursor,
    framing: Framing,
    settings: &Settings,
    expires_at_s: Option<u64>,
    user: Option<String>,
    filter: EventFilter,
) -> Result<BufferedResponse, Problem> {
    if settings.grip == Grip::Proxy && !filter.is_default() {
        // A proxy sends every published event to every subscriber.
        return Err(Problem::not_implemented("the proxy that holds connections cannot filter events"));
    }
    let renderer = EventRenderer::new(channel.clone(), framing);
    let mut body = Vec::new();
    renderer.push_begin(&mut body, settings.retry_ms, unix_ms());
    let keep_alive = KeepAlive {
        data: renderer.heartbeat().to_vec(),
        timeout: Duration::from_secs(settings.heartbeat_ms.div_ceil(1000).min(KEEP_ALIVE_S_MAX)),
    };
    let waits = settings.grip == Grip::Host || replay(&channel, after, &renderer, &mut body).await?;
    let mut reply = BufferedResponse::ok(framing.content_type(), body);
    if !waits {
        return Ok(reply);
    }
    let hold = Hold {
        mode: HoldMode::Stream,
        // Later events follow from the terms, or from what is published: a proxy accepts a previous id only with a link.
        channels: vec![HoldChannel { name: channel.to_string(), prev_id: None }],
        keep_alive: Some(keep_alive),
        link: None,
        status: None,
    };
    for (name, value) in hold.to_headers().map_err(|error| Problem::internal(&error.to_string()))? {
        reply = reply.with(name, value);
    }
    if settings.grip == Grip::Host {
        let heartbeat_ms = settings.heartbeat_ms.clamp(1, HEARTBEAT_MS_MAX);
        let terms = Terms { after, framing, heartbeat_ms, expires_at_s, user, filter };
        reply = reply.with(hold::HEADER, terms.to_header());
    }
    Ok(reply)
}

/// Renders the retained events of a channel after a cursor. Returns true when more events may follow: false when the channel is finished,
/// or when the client has to reconnect for the rest.
async fn replay(
    channel: &Channel,
    mut after: Cursor,
    renderer: &EventRenderer,
    body: &mut Vec<u8>,
) -> Result<bool, Problem> {
    loop {
        let page = events::read(channel.to_string(), after, PAGE_EVENTS).await.map_err(store::problem)?;
        if let Some(gap) = &page.gap {
            push_gap(renderer, body, gap);
        }
        page.entries.iter().for_each(|entry| push_entry(renderer, body, entry));
        if page.ended {
            renderer.push_end(body, SubscriptionEnd::Finished, unix_ms());
            return Ok(false);
        }
        if page.entries.is_empty() && page.gap.is_none() {
            return Ok(true);
        }
        if body.len() >= REPLAY_BYTES_MAX {
            return Ok(false);
        }
        after = page.next;
    }
}
