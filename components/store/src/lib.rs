//! The channel store for hosts other than `weir`: core's log, subscribers, claims, values and leases behind `weir:stream/events` and
//! `weir:stream/state`, in the memory of the component.
//!
//! Its content is lost with its instance, and instances share nothing. A host that creates an instance for each request, or ends idle ones,
//! therefore loses channels, sessions and executions. `docs/guides/hosts.md` describes how each host is configured for one instance;
//! `GET /stream/health` names the store `memory`.
//!
//! A follower checks for new events every 20 ms, since one task of a component does not wake another.
//!
//! It also exports `weir:stream/steps`: such a host runs no components of its operator, so every step is unknown.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:store;
            world store {
                import wasi:clocks/monotonic-clock@0.3.0;
                import wasi:clocks/system-clock@0.3.0;
                export weir:%stream/events@0.1.0;
                export weir:%stream/state@0.1.0;
                export weir:%stream/steps@0.1.0;
            }
        ",
        path: "../../wit",
        world: "weir:store/store",
        generate_all,
        with: {
            "weir:stream/events@0.1.0/cursor": weir_core::channels::Cursor,
            "weir:stream/events@0.1.0/gap": weir_core::channels::Gap,
        },
    });
}

mod channels;

use std::{cell::RefCell, sync::Arc};

use bindings::{
    exports::weir::stream::{
        events::{Closed as WireClosed, Condition, Delivery, Entry, Event, Failure, Fence, Guest, Page},
        state, steps,
    },
    wasi::clocks::{monotonic_clock, system_clock},
    wit_stream,
};
use weir_core::channels::{
    self as core, AcquireError, ChannelName, Claims, Cursor, Draft, EventLimits, Leases, ShareExceeded, Subscriber,
    Values,
};
use wit_bindgen::rt::async_support::{StreamReader, spawn};

use crate::channels::{Channel, Channels};

/// The interval at which a follower checks for new events.
const FOLLOW_INTERVAL_NS: u64 = 20_000_000;
const CHANNELS_MAX: usize = 1000;
const CLAIMS_MAX: usize = 1000;
const LEASES_MAX: usize = 10_000;
const OUTBOX_BYTES_MAX: usize = 256 << 10;
const STATE_BYTES_MAX: usize = 64 << 20;
const VALUE_BYTES_MAX: usize = 1 << 20;
const PAGE_BYTES_MAX: usize = 1 << 20;
const PAGE_EVENTS_MAX: usize = 1000;

#[derive(Default)]
struct State {
    channels: Channels,
    claims: Option<Claims>,
    values: Option<Values<Vec<u8>>>,
    leases: Option<Leases>,
    followers: u64,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

struct Store;
bindings::export!(Store with_types_in bindings);

impl Guest for Store {
    async fn append(
        channel: String,
        events: Vec<Event>,
        fence: Option<Fence>,
        _user: Option<String>,
    ) -> Result<Vec<Cursor>, Failure> {
        let name = name(&channel)?;
        check(fence)?;
        let drafts: Vec<Draft> = events.into_iter().map(draft).collect();
        Draft::check_all(&drafts, &EventLimits::default()).map_err(|error| match error.too_large() {
            true => Failure::TooLarge(error.to_string()),
            false => Failure::Invalid(error.to_string()),
        })?;
        with(&name, |channel| {
            if channel.log.finished() {
                return Err(Failure::Finished);
            }
            let mut cursors = Vec::new();
            for draft in drafts {
                let entry = Arc::new(draft.at(channel.log.last().next(), now_ms()));
                cursors.push(entry.cursor);
                channel.log.push(entry.clone());
                for (_, subscriber) in &mut channel.subscribers {
                    subscriber.handle_appended(&entry);
                }
            }
            Ok(cursors)
        })?
    }

    async fn read(channel: String, after: Cursor, limit: u32) -> Result<Page, Failure> {
        let name = name(&channel)?;
        let limit = (limit as usize).clamp(1, PAGE_EVENTS_MAX);
        // A read creates no channel, so that reads of unknown names do not evict others.
        let page = STATE.with_borrow_mut(|state| match state.channels.get(&name) {
            Some(channel) => channel.log.read(after, limit, PAGE_BYTES_MAX),
            None => state.channels.empty_log(now_ms()).read(after, limit, PAGE_BYTES_MAX),
        });
        Ok(Page {
            gap: page.gap,
            entries: page.entries.iter().map(|stored| entry(stored, 0)).collect(),
            next: page.next,
            ended: page.ended,
        })
    }

    async fn follow(channel: String, after: Cursor, _user: Option<String>) -> Result<StreamReader<Delivery>, Failure> {
        let name = name(&channel)?;
        let id = STATE.with_borrow_mut(|state| {
            state.followers += 1;
            state.followers
        });
        with(&name, |channel| {
            let subscriber = Subscriber::new(after, OUTBOX_BYTES_MAX, &channel.log);
            channel.subscribers.push((id, subscriber));
        })?;
        let (mut writer, reader) = wit_stream::new::<Delivery>();
        spawn(async move {
            loop {
                let (deliveries, ended) = take(&name, id);
                let any = !deliveries.is_empty();
                if any && !writer.write_all(deliveries).await.is_empty() {
                    break;
                }
                if ended {
                    break;
                }
                if !any {
                    monotonic_clock::wait_for(FOLLOW_INTERVAL_NS).await;
                }
            }
            STATE.with_borrow_mut(|state| {
                if let Some(channel) = state.channels.get(&name) {
                    channel.subscribers.retain(|(other, _)| *other != id);
                }
            });
        });
        Ok(reader)
    }

    async fn claim(key: String, ttl_ms: u64) -> Result<bool, Failure> {
        STATE.with_borrow_mut(|state| {
            let claims = state.claims.get_or_insert_with(|| Claims::new(CLAIMS_MAX, 100));
            claims.claim(&key, now_ms(), ttl_ms).map_err(|_| Failure::Unavailable(1000))
        })
    }

    async fn health() -> Condition {
        let followers = STATE.with_borrow(|state| state.channels.subscribers()) as u32;
        let (store, exhausted) = ("memory".to_owned(), Vec::new());
        Condition { store, ok: true, fallback: false, detail: None, followers, exhausted, life: None }
    }
}

impl state::Guest for Store {
    async fn put(
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        fence: Option<Fence>,
        user: Option<String>,
    ) -> Result<(), Failure> {
        let key = name(&key)?;
        check(fence)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Failure::TooLarge(format!("a value has at most {VALUE_BYTES_MAX} bytes")));
        }
        if ttl_ms == Some(0) {
            return Err(Failure::Invalid("a value lives for at least 1 ms".to_owned()));
        }
        let (now_ms, bytes) = (now_ms(), value.len());
        let end_ms = ttl_ms.map_or(Values::<()>::NEVER_MS, |ttl_ms| now_ms.saturating_add(ttl_ms));
        values(|values| {
            values.expire(now_ms);
            let put = values.put(&key, value, bytes, end_ms, user.as_deref());
            put.map(drop).map_err(|exceeded| match exceeded {
                ShareExceeded::User { .. } => Failure::ShareExceeded(1000),
                ShareExceeded::Total { .. } => Failure::Full(1000),
            })
        })
    }

    async fn get(key: String) -> Result<Option<Vec<u8>>, Failure> {
        let key = name(&key)?;
        Ok(values(|values| values.value(&key, now_ms()).cloned()))
    }

    async fn delete(key: String, fence: Option<Fence>) -> Result<(), Failure> {
        let key = name(&key)?;
        check(fence)?;
        values(|values| values.delete(&key));
        Ok(())
    }

    async fn keys(kind: String, after: String, limit: u32) -> Result<Vec<String>, Failure> {
        name(&format!("{kind}:x"))?;
        let limit = (limit as usize).min(PAGE_EVENTS_MAX);
        Ok(values(|values| values.keys(&kind, &after, limit, now_ms()).iter().map(ToString::to_string).collect()))
    }

    async fn count(kind: String) -> Result<u64, Failure> {
        Ok(values(|values| values.count(&kind)) as u64)
    }

    async fn acquire(key: String, owner: String, ttl_ms: u64) -> Result<state::Acquisition, Failure> {
        let key = name(&key)?;
        match leases(|leases| leases.acquire(&key, &owner, clock_ms(), ttl_ms)) {
            Ok(token) => Ok(state::Acquisition::Acquired(token)),
            Err(AcquireError::Held { remaining_ms }) => Ok(state::Acquisition::Held(remaining_ms)),
            Err(AcquireError::Full { .. }) => Err(Failure::Unavailable(1000)),
        }
    }

    async fn renew(fence: Fence, ttl_ms: u64) -> Result<(), Failure> {
        let fence = self::fence(fence)?;
        leases(|leases| leases.renew(&fence, clock_ms(), ttl_ms)).map_err(|_| Failure::Fenced)
    }

    async fn release(fence: Fence) -> Result<(), Failure> {
        let fence = self::fence(fence)?;
        leases(|leases| leases.release(&fence, clock_ms())).map_err(|_| Failure::Fenced)
    }
}

/// Fails if the lease of a write is lost.
fn check(fence: Option<Fence>) -> Result<(), Failure> {
    let Some(fence) = fence.map(self::fence).transpose()? else { return Ok(()) };
    leases(|leases| leases.check(&fence)).map_err(|_| Failure::Fenced)
}

fn fence(fence: Fence) -> Result<core::Fence, Failure> {
    Ok(core::Fence { key: name(&fence.key)?, token: fence.token })
}

fn leases<T>(act: impl FnOnce(&mut Leases) -> T) -> T {
    STATE.with_borrow_mut(|state| act(state.leases.get_or_insert_with(|| Leases::new(LEASES_MAX, 0))))
}

fn clock_ms() -> u64 {
    monotonic_clock::now() / 1_000_000
}

fn values<T>(act: impl FnOnce(&mut Values<Vec<u8>>) -> T) -> T {
    STATE.with_borrow_mut(|state| act(state.values.get_or_insert_with(|| Values::new(STATE_BYTES_MAX, 100))))
}

/// The deliveries for a subscriber, and whether its channel has ended for it.
fn take(name: &ChannelName, id: u64) -> (Vec<Delivery>, bool) {
    STATE.with_borrow_mut(|state| {
        let Some(Channel { log, subscribers, .. }) = state.channels.get(name) else { return (Vec::new(), true) };
        let Some((_, subscriber)) = subscribers.iter_mut().find(|(other, _)| *other == id) else {
            return (Vec::new(), true);
        };
        let mut deliveries = Vec::new();
        while let Some(delivery) = subscriber.poll(log) {
            deliveries.push(wire(delivery));
        }
        (deliveries, subscriber.ended())
    })
}

/// Calls a function with a channel, which is created if it does not exist.
fn with<T>(name: &ChannelName, act: impl FnOnce(&mut Channel) -> T) -> Result<T, Failure> {
    STATE.with_borrow_mut(|state| {
        let channel = state.channels.open(name, now_ms(), CHANNELS_MAX).ok_or(Failure::Unavailable(1000))?;
        Ok(act(channel))
    })
}

fn name(text: &str) -> Result<ChannelName, Failure> {
    text.parse().map_err(|error: core::NameError| Failure::Invalid(error.to_string()))
}

fn now_ms() -> u64 {
    let now = system_clock::now();
    u64::try_from(now.seconds).unwrap_or(0) * 1000 + u64::from(now.nanoseconds) / 1_000_000
}

fn draft(event: Event) -> Draft {
    Draft {
        name: event.name.into(),
        data: event.data.into(),
        coalesce: event.coalesce.map(Into::into),
        finishes: event.finishes,
    }
}

fn entry(entry: &core::Entry, coalesced: u32) -> Entry {
    Entry {
        at: entry.cursor,
        time_ms: entry.time_ms,
        event: Event {
            name: entry.name.to_string(),
            data: entry.data.to_string(),
            coalesce: entry.coalesce.as_ref().map(ToString::to_string),
            finishes: entry.finishes,
        },
        coalesced,
    }
}

fn wire(delivery: core::Delivery) -> Delivery {
    match delivery {
        core::Delivery::Event { entry: event, coalesced } => Delivery::Entry(entry(&event, coalesced)),
        core::Delivery::Gap(missing) => Delivery::Gap(missing),
        core::Delivery::Closed(core::CloseReason::Slow) => Delivery::Closed(WireClosed::Slow),
        core::Delivery::Closed(core::CloseReason::Lost) => Delivery::Closed(WireClosed::Lost),
    }
}

/// Every step is unknown: such a host runs no components of its operator.
impl steps::Guest for Store {
    async fn run(name: String, _: String, _: String, _: steps::Limits) -> Result<String, steps::Failure> {
        let message = format!("this server has no component `{name}`");
        Err(steps::Failure { code: "unknown_step".to_owned(), message, retryable: false })
    }
}
