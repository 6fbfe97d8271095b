//! Admission: a request runs when the pages of the cache suffice for all that runs. Kept prompts give way to requests.

use super::prefix::{OwnedTokens, PrefixCache};
use super::scheduler::{Request, Scheduler};

/// What a driver has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Run a request; its sequence is a fork of the kept one, or a new one.
    Admit {
        /// The request.
        request: Request,
        /// The kept sequence that has the beginning of its prompt, and how many tokens of it.
        cached: Option<(u32, u32)>,
    },
    /// Remove a kept sequence, and ask again.
    Evict {
        /// The sequence.
        sequence: u32,
    },
    /// Nothing: no request waits, or it waits until another has ended.
    Wait,
}

/// Decides which requests are admitted, given the number of free pages. `prompt` returns the tokens of a request.
pub fn poll<'a>(
    scheduler: &Scheduler,
    cache: &mut PrefixCache,
    prompt: impl FnOnce(u64) -> OwnedTokens<'a>,
    pages_free: u64,
) -> Admission {
    let Some(request) = scheduler.poll_admission() else { return Admission::Wait };
    let cached = cache.find(prompt(request.id)).map(|(sequence, tokens)| (sequence, tokens as u32));
    let needed = scheduler.pages_needed(&request, cached.map_or(0, |(_, tokens)| tokens));
    if needed + scheduler.pages_promised() <= pages_free {
        return Admission::Admit { request, cached };
    }
    let kept = cached.map(|(sequence, _)| sequence);
    // The prompt's own beginning goes last: what it saves is needed now.
    let evicted = cache.evict(kept).or_else(|| (scheduler.texts_running() == 0).then(|| cache.evict(None)).flatten());
    evicted.map_or(Admission::Wait, |sequence| Admission::Evict { sequence })
}
