//! The exports of a store component.

use weir_core::channels::{Cursor, Draft, EventLimits};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult, spawn};

use crate::{
    Instance, PAGE_EVENTS_MAX, Store,
    bindings::{
        exports::weir::stream::{
            events::{self, Condition, Delivery, Event, Failure, Fence, Page},
            state, steps,
        },
        wit_stream,
    },
    convert, wait_ms,
};

/// The interval at which a follower checks for new events, in milliseconds: a task of a component does not wake another.
const FOLLOW_INTERVAL_MS: u64 = 20;
const VALUE_BYTES_MAX: usize = 1 << 20;
const CLAIM_BYTES_MAX: usize = 256;

impl<I: Instance> events::Guest for I {
    async fn append(
        channel: String,
        events: Vec<Event>,
        fence: Option<Fence>,
        _user: Option<String>,
    ) -> Result<Vec<Cursor>, Failure> {
        let (channel, fence) = (convert::name(&channel)?, fence.map(convert::fence).transpose()?);
        let drafts: Vec<Draft> = events.into_iter().map(convert::draft).collect();
        Draft::check_all(&drafts, &EventLimits::default()).map_err(|error| match error.too_large() {
            true => Failure::TooLarge(error.to_string()),
            false => Failure::Invalid(error.to_string()),
        })?;
        I::store().append(&channel, drafts, fence).await
    }

    async fn read(channel: String, after: Cursor, limit: u32) -> Result<Page, Failure> {
        let limit = (limit as usize).clamp(1, PAGE_EVENTS_MAX);
        let page = I::store().read(&convert::name(&channel)?, after, limit)?;
        Ok(Page {
            gap: page.gap,
            entries: page.entries.iter().map(|entry| convert::entry(entry, 0)).collect(),
            next: page.next,
            ended: page.ended,
        })
    }

    async fn follow(channel: String, after: Cursor, _user: Option<String>) -> Result<StreamReader<Delivery>, Failure> {
        let channel = convert::name(&channel)?;
        let store = I::store();
        let follower = store.follow(&channel, after)?;
        let (mut writer, reader) = wit_stream::new::<Delivery>();
        spawn(async move {
            loop {
                let (deliveries, ended) = store.poll(&channel, follower);
                let any = !deliveries.is_empty();
                let deliveries = deliveries.into_iter().map(convert::delivery).collect();
                if any && !writer.write_all(deliveries).await.is_empty() {
                    break;
                }
                if ended {
                    break;
                }
                if !any {
                    wait_ms(FOLLOW_INTERVAL_MS).await;
                    // A write of nothing delivers nothing, and tells whether the reader is still there.
                    if writer.write(Vec::new()).await.0 == StreamResult::Dropped {
                        break;
                    }
                }
            }
            store.unfollow(&channel, follower);
        });
        Ok(reader)
    }

    async fn claim(key: String, ttl_ms: u64) -> Result<bool, Failure> {
        if key.is_empty() || key.len() > CLAIM_BYTES_MAX {
            let bytes = key.len();
            return Err(Failure::Invalid(format!(
                "a claim has 1 to {CLAIM_BYTES_MAX} bytes, and this one has {bytes}"
            )));
        }
        I::store().claim(&key, ttl_ms).await
    }

    async fn health() -> Condition {
        I::store().health()
    }
}

impl<I: Instance> state::Guest for I {
    async fn put(
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        fence: Option<Fence>,
        user: Option<String>,
    ) -> Result<(), Failure> {
        let (key, fence) = (convert::name(&key)?, fence.map(convert::fence).transpose()?);
        if value.len() > VALUE_BYTES_MAX {
            return Err(Failure::TooLarge(format!("a value has at most {VALUE_BYTES_MAX} bytes")));
        }
        if ttl_ms == Some(0) {
            return Err(Failure::Invalid("a value lives for at least 1 ms".to_owned()));
        }
        I::store().put(&key, value, ttl_ms, fence, user.as_deref()).await
    }

    async fn get(key: String) -> Result<Option<Vec<u8>>, Failure> {
        I::store().value(&convert::name(&key)?)
    }

    async fn delete(key: String, fence: Option<Fence>) -> Result<(), Failure> {
        let (key, fence) = (convert::name(&key)?, fence.map(convert::fence).transpose()?);
        I::store().delete(&key, fence).await
    }

    async fn keys(kind: String, after: String, limit: u32) -> Result<Vec<String>, Failure> {
        convert::name(&format!("{kind}:x"))?;
        I::store().keys(&kind, &after, (limit as usize).min(PAGE_EVENTS_MAX))
    }

    async fn count(kind: String) -> Result<u64, Failure> {
        I::store().count(&kind)
    }

    async fn acquire(key: String, owner: String, ttl_ms: u64) -> Result<state::Acquisition, Failure> {
        I::store().acquire(&convert::name(&key)?, &owner, ttl_ms).await
    }

    async fn renew(fence: Fence, ttl_ms: u64) -> Result<(), Failure> {
        let fence = convert::fence(fence)?;
        I::store().renew(&fence, ttl_ms).await
    }

    async fn release(fence: Fence) -> Result<(), Failure> {
        let fence = convert::fence(fence)?;
        I::store().release(&fence).await
    }
}

impl<I: Instance> steps::Guest for I {
    async fn run(name: String, _: String, _: String, _: steps::Limits) -> Result<String, steps::Failure> {
        let message = format!("this server has no component `{name}`");
        Err(steps::Failure { code: "unknown_step".to_owned(), message, retryable: false })
    }
}
