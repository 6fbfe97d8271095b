//! The sweep task: warns and expires idle sessions, removes ended ones, and retries failed writes. One task runs in
//! this instance while there are sessions.

use std::rc::Rc;

use spin_sdk::wasip3::spawn;
use weir_codec::{
    http::{framing::Framing, problem::Problem},
    transcripts::{
        outbox::{Batch, EventOutbox},
        stored::Phase,
    },
};

use super::{
    convert,
    log::SessionLog,
    persistence,
    registry::{self, Entry, SessionRegistry},
    running::{self, RunningSession, control_input, now_ms},
};
use crate::platform::{
    bindings::weir::stream::session::InputBody,
    clock::{self, Deadline},
};

/// The interval of the sweep, in milliseconds.
const TICK_MS: u64 = 1000;
/// The delay before a failed sweep of a session is retried, in milliseconds.
const RETRY_MS: u64 = 10_000;

/// Starts the sweep task of this instance, unless it runs.
pub(crate) fn begin(registry: &'static SessionRegistry) {
    if !registry.swept.replace(true) {
        spawn(async move {
            while registry.len() > 0 {
                Deadline::after(clock::now(), TICK_MS).passed().await;
                sweep(registry).await;
            }
            registry.swept.set(false);
        });
    }
}

/// Loads all stored sessions into the registry for the sweep; repeatedly if instances share the store, because another
/// one may have died.
pub(crate) async fn restore(registry: &'static SessionRegistry) {
    loop {
        restore_once(registry).await;
        registry.restoration.finish();
        if !registry.settings.shared {
            return;
        }
        Deadline::after(clock::now(), registry.settings.lease_ms).passed().await;
    }
}

async fn restore_once(registry: &'static SessionRegistry) {
    let mut last = None;
    loop {
        let channels = match persistence::after(last.as_ref()).await {
            Ok(channels) => channels,
            Err(problem) => {
                eprintln!("warn: stored sessions cannot be listed: {}", problem.detail);
                Deadline::after(clock::now(), TICK_MS).passed().await;
                continue;
            }
        };
        for channel in &channels {
            if let Err(problem) = registry.find(channel.id()).await {
                eprintln!("warn: session {}: {}", channel.id(), problem.detail);
            }
        }
        begin(registry);
        match channels.into_iter().next_back() {
            Some(channel) => last = Some(channel),
            None => return,
        }
    }
}

async fn sweep(registry: &'static SessionRegistry) {
    let now_ms = now_ms();
    let needs_work = |entry: &Entry| {
        let is_at_rest = !entry.is_held() && !entry.is_deleted();
        is_at_rest
            && match entry.phase() {
                Phase::Open => entry.is_due(now_ms) || entry.is_dirty(),
                Phase::Expired | Phase::Ended => is_over(registry, entry, now_ms) || entry.is_dirty(),
            }
    };
    for entry in registry.select(needs_work) {
        // A request may have taken it since.
        if entry.is_held() || entry.is_deleted() {
            continue;
        }
        let result = match entry.phase() {
            Phase::Open if entry.is_due(now_ms) => advance_clock(registry, &entry).await,
            Phase::Expired | Phase::Ended if is_over(registry, &entry, now_ms) => delete(registry, &entry).await,
            _ if entry.is_dirty() => put(registry, &entry).await,
            _ => Ok(()),
        };
        if let Err(problem) = result {
            // Another instance may own the session, which is not an error.
            if problem.status != 409 {
                eprintln!("warn: session {}: {}", entry.channel.id(), problem.detail);
            }
            if entry.phase() == Phase::Open {
                entry.set_due(now_ms.saturating_add(RETRY_MS));
            }
        }
    }
    registry.evict();
}

/// Removes a session that ended `ended_ttl_ms` ago.
async fn delete(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    let lease = entry.lease().await;
    let Some(store_lease) = registry.acquire(entry, 0).await? else { return Ok(()) };
    let result = match is_over(registry, entry, now_ms()) {
        true => registry.delete(entry).await,
        false => Ok(()),
    };
    store_lease.release().await;
    drop(lease);
    result
}

/// Stores a session whose last write failed.
async fn put(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    match registry.put(entry).await {
        Err(problem) if registry::is_no_room(&problem) && !entry.is_held() => registry.revert(entry).await?,
        put => put?,
    }
    if !entry.is_held() {
        entry.release_store_lease().await;
    }
    Ok(())
}

fn is_over(registry: &SessionRegistry, entry: &Entry, now_ms: u64) -> bool {
    now_ms >= entry.kept_ms().saturating_add(registry.settings.sessions.ended_ttl_ms)
}

/// Advances the clock of an idle session, which may warn or expire it.
async fn advance_clock(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    let lease = entry.lease().await;
    let Some(_store_lease) = registry.acquire(entry, 0).await? else { return Ok(()) };
    let result = advance_clock_under_lease(registry, entry).await;
    entry.release_store_lease().await;
    drop(lease);
    result
}

async fn advance_clock_under_lease(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    // Another instance may have fed it meanwhile.
    if entry.phase() != Phase::Open || !entry.is_due(now_ms()) {
        return registry.put(entry).await;
    }
    let RunningSession { mut inputs, mut outputs, after, finished } = running::open(registry, entry).await?;
    if finished.is_some() {
        return registry.put(entry).await;
    }
    let log = SessionLog::new(registry, entry, after);
    let mut outbox = EventOutbox::stored(entry.head().annotate, Framing::Ndjson);
    let kept_ms = entry.head().kept_ms;
    if !inputs.write_all(vec![control_input(InputBody::Time), control_input(InputBody::Checkpoint)]).await.is_empty() {
        return Err(Problem::internal("the session ended without an output"));
    }
    drop(inputs);
    let mut has_output = false;
    while let Some(output) = outputs.next().await {
        convert::hand_over(&mut outbox, output);
        while let Some(mut batch) = outbox.poll_batch() {
            if is_silent(&batch) {
                continue;
            }
            has_output = true;
            log.store(&outbox, &mut batch).await?;
        }
    }
    if !has_output {
        // It was not idle for as long as assumed; its checkpoint is unchanged.
        debug_assert_eq!(entry.head().kept_ms, kept_ms);
        entry.set_due(now_ms().saturating_add(TICK_MS));
        return Ok(());
    }
    log.put().await
}

/// Whether a batch has no records.
fn is_silent(batch: &Batch) -> bool {
    batch.is_empty()
}
