//! A generation from its first event to its last.
//!
//! | key | value |
//! |---|---|
//! | `generation:ID` in the state | present while the generation runs; its lease is held by the instance that runs it |
//! | `generation:ID` as a channel | its events |

use std::{cell::Cell, pin::pin};

use futures::future::{Either, join, select};
use weir_codec::{
    channels::route::{Channel, ChannelKind},
    generation::event::{Failed, GenerationEvent},
    http::problem::Problem,
};

use super::{
    batch::EventBatch,
    client::{self, Computation, Progress},
};
use crate::{
    channels::ownership,
    platform::{
        bindings::weir::stream::{
            events::{self, Event, Failure as StoreFailure},
            state,
        },
        clock::{self, Deadline},
        lease::{self, StoreLease},
        notify::TaskNotify,
        settings::Settings,
        store,
    },
};

/// How long a cancelled generation may take to end, in milliseconds.
const CANCEL_MS: u64 = 2000;
/// The first and the longest delay between attempts to append, in milliseconds. They end after [`lease::patience_ms`].
const RETRY_MS: (u64, u64) = (100, 2000);

/// A generation that runs in this instance.
pub(super) struct RunningGeneration {
    pub(super) id: String,
    /// The user who started it.
    pub(super) owner: String,
    pub(super) channel: Channel,
    lease: StoreLease,
    is_cancelled: Cell<bool>,
    cancel: TaskNotify,
    has_ended: Cell<bool>,
    end: TaskNotify,
}

impl RunningGeneration {
    pub(super) fn new(id: String, owner: String, channel: Channel, lease: StoreLease) -> Self {
        Self {
            id,
            owner,
            channel,
            lease,
            is_cancelled: Cell::new(false),
            cancel: TaskNotify::default(),
            has_ended: Cell::new(false),
            end: TaskNotify::default(),
        }
    }

    /// Cancels it, unless it has ended.
    pub(super) fn cancel(&self) {
        self.is_cancelled.set(true);
        self.cancel.notify();
    }

    /// Resolves when its last event is appended, or cannot be appended.
    pub(super) async fn ended(&self) {
        self.end.until(|| self.has_ended.get()).await;
    }

    /// The user whose share of the store it counts towards; none if users are not identified.
    pub(super) fn share(&self) -> Option<String> {
        let is_required = Settings::current().is_ok_and(|settings| settings.auth.required);
        is_required.then(|| self.owner.clone())
    }

    /// Stores the key of the generation and the owner of its channel, and appends its first event.
    pub(super) async fn open(&self, started: GenerationEvent) -> Result<(), Problem> {
        let key = self.channel.to_string();
        let value = b"{}".to_vec();
        let put = state::put(key, value, None, Some(self.lease.fence()), self.share());
        let own = async {
            if self.share().is_none() {
                return Ok(true);
            }
            let user = Channel::new(ChannelKind::User, &self.owner);
            let user = user.map_err(|error| Problem::internal(&error.to_string()))?;
            ownership::assign(&self.channel, &user, ownership::PastEvents::Owned).await
        };
        let (put, own) = join(put, own).await;
        put.map_err(store::problem)?;
        own?;
        self.append(&[started]).await.map(drop).map_err(store::problem)
    }

    async fn append(&self, batch: &[GenerationEvent]) -> Result<(), StoreFailure> {
        let event = |event: &GenerationEvent| Event {
            name: event.name().to_owned(),
            data: event.to_json(),
            coalesce: None,
            finishes: event.is_last(),
        };
        let wire = batch.iter().map(event).collect();
        events::append(self.channel.to_string(), wire, Some(self.lease.fence()), self.share()).await.map(drop)
    }

    /// Appends events, with retries for a bounded time; false if they cannot be appended.
    async fn store(&self, batch: &[GenerationEvent]) -> bool {
        let (mut delay_ms, delay_ms_max) = RETRY_MS;
        let until = Deadline::after(clock::now(), lease::patience_ms());
        loop {
            match self.append(batch).await {
                Ok(()) => return true,
                Err(StoreFailure::Unavailable(_) | StoreFailure::Full(_) | StoreFailure::ShareExceeded(_))
                    if !until.is_past(clock::now()) =>
                {
                    Deadline::after(clock::now(), delay_ms).passed().await;
                    delay_ms = (delay_ms * 2).min(delay_ms_max);
                }
                Err(failure) => {
                    eprintln!("warn: events of {} were not stored: {}", self.channel, store::reason(&failure));
                    return false;
                }
            }
        }
    }

    /// Appends the events of a computation until the last. No task awaits this.
    pub(super) async fn drive(&self, computation: Computation, progress: Progress) {
        let is_complete = {
            let run = pin!(self.events(computation, progress));
            // If the lease is lost, another instance has ended the generation.
            let lease = pin!(self.lease.renew_until_lost(|| {}));
            matches!(select(run, lease).await, Either::Left((true, _)))
        };
        self.has_ended.set(true);
        self.end.notify();
        if is_complete {
            self.close().await;
        } else {
            // The key remains, so that recovery appends a last event once the store accepts one.
            self.lease.release().await;
        }
    }

    /// Appends the events of a computation; true if the last one is appended.
    async fn events(&self, computation: Computation, mut progress: Progress) -> bool {
        let Computation { mut commands, mut events } = computation;
        let events_max = Settings::current().map_or(1000, |settings| settings.sessions.channel_events_max);
        let mut batch = EventBatch::new(events_max);
        let mut cancelled_at: Option<Deadline> = None;
        let mut cancel = pin!(self.cancel.until(|| self.is_cancelled.get()));
        loop {
            let kinds = {
                let mut next = pin!(events.next());
                let first = match cancelled_at {
                    None => match select(next.as_mut(), cancel.as_mut()).await {
                        Either::Left((kinds, _)) => Some(kinds),
                        Either::Right(((), _)) => {
                            cancelled_at = Some(Deadline::after(clock::now(), CANCEL_MS));
                            commands.cancel().await;
                            None
                        }
                    },
                    Some(_) => None,
                };
                match (first, cancelled_at) {
                    (Some(kinds), _) => kinds,
                    (None, Some(at)) => at.bound(next).await.flatten(),
                    (None, None) => None,
                }
            };
            let Some(kinds) = kinds else {
                // The events ended without a last one: the generation was cancelled, or it was lost.
                let last =
                    if cancelled_at.is_some() { client::cancelled() } else { failed(&Problem::item(&client::lost())) };
                batch.push(last);
                return match batch.take() {
                    Some(events) => self.store(&events).await,
                    None => false,
                };
            };
            for event in kinds.into_iter().filter_map(|kind| progress.event(kind)) {
                batch.push(event.unwrap_or_else(|failure| failed(&Problem::item(&failure))));
            }
            if let Some(events) = batch.take() {
                let is_last = events.last().is_some_and(GenerationEvent::is_last);
                if !self.store(&events).await {
                    return false;
                }
                if is_last {
                    return true;
                }
            }
        }
    }

    /// Deletes its key and releases its lease. Best effort: otherwise recovery finds that the channel has its last
    /// event.
    pub(super) async fn close(&self) {
        let _ = state::delete(self.channel.to_string(), Some(self.lease.fence())).await;
        self.lease.release().await;
    }
}

/// The last event of a generation that has failed.
pub(super) fn failed(problem: &Problem) -> GenerationEvent {
    GenerationEvent::Error(Failed {
        code: problem.code.to_owned(),
        message: problem.detail.clone(),
        status: problem.status,
        retryable: problem.retry_after_ms.is_some(),
    })
}

/// The failure of a generation that ended early, for a client that waits for all of it.
pub(super) fn problem(failed: &Failed) -> Problem {
    let code = match failed.code.as_str() {
        "cancelled" => "cancelled",
        "interrupted" => "interrupted",
        "request_timeout" | "deadline_exceeded" => "request_timeout",
        "overloaded" => "overloaded",
        "model_unavailable" => "model_unavailable",
        "engine_failed" => "engine_failed",
        "invalid_input" => "invalid_input",
        _ => "inference_failed",
    };
    let status = if code == "request_timeout" { 504 } else { failed.status };
    let retry_after_ms = failed.retryable.then_some(weir_core::failure::RETRY_AFTER_MS);
    Problem::refused(status, code, "The generation has failed", &failed.message, retry_after_ms)
}
