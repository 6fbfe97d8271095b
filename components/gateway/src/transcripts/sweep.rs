//! The sweep task: warns and expires idle sessions, removes those that have ended, and retries failed writes. One task of this instance,
//! while there are sessions.

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
    running::{self, RunningSession, asked, now_ms},
};
use crate::platform::{
    bindings::weir::stream::session::InputBody,
    clock::{self, Deadline},
};

/// How often all are looked at.
const TICK_MS: u64 = 1000;
/// How long after one could not be looked at it is tried again.
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

/// Adopts all stored sessions for the sweep; repeatedly where instances share the store, because another instance may have died.
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
        let found = match persistence::after(last.as_ref()).await {
            Ok(found) => found,
            Err(problem) => {
                eprintln!("warn: stored sessions cannot be listed: {}", problem.detail);
                Deadline::after(clock::now(), TICK_MS).passed().await;
                continue;
            }
        };
        for channel in &found {
            if let Err(problem) = registry.find(channel.id()).await {
                eprintln!("warn: session {}: {}", channel.id(), problem.detail);
            }
        }
        begin(registry);
        match found.into_iter().next_back() {
            Some(channel) => last = Some(channel),
            None => return,
        }
    }
}

async fn sweep(registry: &'static SessionRegistry) {
    let now_ms = now_ms();
    let rests = |entry: &Rc<Entry>| !entry.is_held() && !entry.is_deleted();
    for entry in registry.all().into_iter().filter(rests) {
        let result = match entry.phase() {
            Phase::Open if entry.is_due(now_ms) => look(registry, &entry).await,
            Phase::Expired | Phase::Ended if is_over(registry, &entry, now_ms) => forget(registry, &entry).await,
            _ if entry.is_dirty() => put(registry, &entry).await,
            _ => Ok(()),
        };
        if let Err(problem) = result {
            // Another instance may be at it, which is no fault.
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

/// Forgets a session that has ended.
async fn forget(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    let lease = entry.lease().await;
    let Some(owned) = registry.own(entry, 0).await? else { return Ok(()) };
    let forgotten = match is_over(registry, entry, now_ms()) {
        true => registry.forget(entry).await,
        false => Ok(()),
    };
    owned.release().await;
    drop(lease);
    forgotten
}

/// Stores a session whose last write failed.
async fn put(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    match registry.put(entry).await {
        Err(problem) if registry::is_no_room(&problem) && !entry.is_held() => registry.revert(entry).await?,
        put => put?,
    }
    if !entry.is_held() {
        entry.release_owned().await;
    }
    Ok(())
}

fn is_over(registry: &SessionRegistry, entry: &Entry, now_ms: u64) -> bool {
    now_ms >= entry.head().kept_ms.saturating_add(registry.settings.sessions.ended_ttl_ms)
}

/// Advances the clock of a session.
async fn look(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    let lease = entry.lease().await;
    let Some(_owned) = registry.own(entry, 0).await? else { return Ok(()) };
    let looked = look_owned(registry, entry).await;
    entry.release_owned().await;
    drop(lease);
    looked
}

async fn look_owned(registry: &'static SessionRegistry, entry: &Rc<Entry>) -> Result<(), Problem> {
    // Another instance may have fed it since.
    if entry.phase() != Phase::Open || !entry.is_due(now_ms()) {
        return registry.put(entry).await;
    }
    let RunningSession { mut inputs, mut outputs, after, finished } = running::open(registry, entry).await?;
    if finished.is_some() {
        return registry.put(entry).await;
    }
    let storing = SessionLog::new(registry, entry, after);
    let mut outbox = EventOutbox::stored(entry.head().annotate, Framing::Ndjson);
    let kept_ms = entry.head().kept_ms;
    if !inputs.write_all(vec![asked(InputBody::Time), asked(InputBody::Checkpoint)]).await.is_empty() {
        return Err(Problem::internal("the session ended without an answer"));
    }
    drop(inputs);
    let mut said = false;
    while let Some(output) = outputs.next().await {
        convert::hand_over(&mut outbox, output);
        while let Some(mut batch) = outbox.poll_batch() {
            if is_silent(&batch) {
                continue;
            }
            said = true;
            storing.tell(&outbox, &mut batch).await?;
        }
    }
    if !said {
        // It was not idle for as long as it seemed; its checkpoint is as good as before.
        debug_assert_eq!(entry.head().kept_ms, kept_ms);
        entry.set_due(now_ms().saturating_add(TICK_MS));
        return Ok(());
    }
    storing.put().await
}

/// Nothing was said but a checkpoint.
fn is_silent(batch: &Batch) -> bool {
    batch.is_empty()
}
