//! Admission: a request is admitted when the free pages suffice for it and for all running requests. Cached prompts are
//! evicted to make room.

use super::prefix::{OwnedTokens, PrefixCache};
use super::scheduler::{Request, Scheduler};

/// The next action of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Run a request. Its sequence is a fork of the cached one, or a new one.
    Admit {
        /// The request.
        request: Request,
        /// The cached sequence that shares a prefix with the prompt, and the length of that prefix in tokens.
        cached: Option<(u32, u32)>,
    },
    /// Remove a cached sequence, and poll again.
    Evict {
        /// The sequence.
        sequence: u32,
    },
    /// Nothing: no request is queued, or the first one waits until another has ended.
    Wait,
}

/// Decides on the next admission, given the number of free pages. `prompt` returns the prompt of a request by its id.
pub fn poll<'a>(
    scheduler: &Scheduler,
    cache: &mut PrefixCache,
    prompt: impl FnOnce(u64) -> OwnedTokens<'a>,
    pages_free: u64,
) -> Admission {
    let Some(request) = scheduler.poll_admission() else { return Admission::Wait };
    let cached = cache.find(prompt(request.id)).map(|(sequence, tokens)| (sequence, tokens as u32));
    let needed = scheduler.pages_needed(&request, cached.map_or(0, |(_, tokens)| tokens));
    if needed + scheduler.pages_reserved() <= pages_free {
        return Admission::Admit { request, cached };
    }
    let prefix = cached.map(|(sequence, _)| sequence);
    // The prefix of this prompt is evicted last, since the request is about to use it.
    let evicted = cache.evict(prefix).or_else(|| (scheduler.texts_running() == 0).then(|| cache.evict(None)).flatten());
    evicted.map_or(Admission::Wait, |sequence| Admission::Evict { sequence })
}
