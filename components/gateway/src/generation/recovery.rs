//! Appends a last event to every generation that a crash has interrupted.

use weir_codec::generation::event::{Failed, GenerationEvent};

use super::registry::Registry;
use crate::platform::{
    bindings::weir::stream::{
        events::{self, Event, Failure},
        state,
    },
    clock::{self, Deadline},
    lease,
    settings::Settings,
    store,
};
use spin_sdk::wasip3::spawn;

/// Keys in one page.
const KEYS_MAX: u32 = 500;
/// The kind of the keys of running generations.
const KIND: &str = "generation";

/// Called with the first request of the stateful instance.
pub(crate) fn wake() {
    let is_stateful = Settings::current().is_ok_and(|settings| settings.keeper);
    if is_stateful && !Registry::current().is_recovering.replace(true) {
        spawn(recover());
    }
}

/// Scans periodically for generations whose instance has died.
async fn recover() {
    loop {
        if let Err(failure) = interrupt_unowned().await {
            eprintln!("warn: the interrupted generations cannot be ended yet: {}", store::reason(&failure));
        }
        Deadline::after(clock::now(), lease::scan_ms()).passed().await;
    }
}

/// Interrupts every generation without an owner. A generation that fails does not prevent the later ones; the first
/// such failure is returned.
async fn interrupt_unowned() -> Result<(), Failure> {
    let (mut after, mut failed) = (String::new(), None);
    loop {
        let keys = state::keys(KIND.to_owned(), after, KEYS_MAX).await?;
        for key in &keys {
            let id = key.split_once(':').map_or("", |(_, id)| id);
            if !Registry::current().has(id) {
                match interrupt(key).await {
                    Ok(()) => {}
                    // The store answers no request.
                    Err(failure @ Failure::Unavailable(_)) => return Err(failure),
                    Err(failure) => {
                        failed.get_or_insert(failure);
                    }
                }
            }
        }
        if keys.len() < KEYS_MAX as usize {
            return failed.map_or(Ok(()), Err);
        }
        after = keys.last().cloned().unwrap_or_default();
    }
}

/// Appends the last event of a generation, unless another instance runs it.
async fn interrupt(key: &str) -> Result<(), Failure> {
    let Ok(lease) = lease::acquire(key.to_owned()).await? else { return Ok(()) };
    // It may have ended, and been removed, since the keys were read.
    if state::get(key.to_owned()).await?.is_some() {
        let message = "the server was interrupted while it generated this text";
        let last = GenerationEvent::Error(Failed {
            code: "interrupted".to_owned(),
            message: message.to_owned(),
            status: 503,
            retryable: true,
        });
        let event =
            Event { name: last.name().to_owned(), data: last.to_json(), coalesce: None, finishes: last.is_last() };
        match events::append(key.to_owned(), vec![event], Some(lease.fence()), None).await {
            Ok(_) | Err(Failure::Finished) => {}
            Err(failure) => {
                lease.release().await;
                return Err(failure);
            }
        }
        state::delete(key.to_owned(), Some(lease.fence())).await?;
    }
    lease.release().await;
    Ok(())
}
