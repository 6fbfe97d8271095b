//! The generations of one model in one call: sequences on the host, scheduled by core.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Instant;

use weir_core::generation::FinishReason;
use weir_core::generation::admission::{self, Admission};
use weir_core::generation::prefix::{Insertion, OwnedTokens, PrefixCache};
use weir_core::generation::scheduler::{Request as ScheduledRequest, Row as PlannedRow, Scheduler, SchedulerConfig};

use super::models::OpenModel;
use crate::Failure;
use crate::bindings::weir::stream::lm::{Row, Sample, Sampled};
use crate::bindings::weir::stream::types::{TooLong, WhenFull};
use crate::choice::{Choice, End};
use crate::constraint::NextTokens;
use crate::prepare::{Prepared, prepare};
use crate::settings::Settings;
use crate::types::{Begun, Done, Event, EventKind, Reason, Request};

/// Maximum number of sequences that are cached for requests with the same beginning.
const CACHED_SEQUENCES_MAX: usize = 256;
/// The delay after which a caller that finds the queue full may retry, in milliseconds.
const RETRY_AFTER_MS: u32 = 1_000;

/// The generations of one model in one call.
pub(super) struct Lane {
    model: Rc<OpenModel>,
    settings: Settings,
    scheduler: Scheduler,
    cache: PrefixCache,
    generations: HashMap<u64, Generation>,
    began: Instant,
    random: RandomState,
    seeds: u64,
}

struct Generation {
    request: Request,
    prepared: Prepared,
    tenant: u32,
    cached_tokens: u32,
    /// The sequence of each choice, none for an ended one; only the first exists while the prompt is computed.
    sequences: Vec<Option<u32>>,
    choices: Vec<Choice>,
}

/// The end of a choice that was cancelled before its first token.
pub(super) fn cancelled(id: u64, index: u32) -> Event {
    Event {
        id,
        kind: EventKind::Done(Done { index, reason: Reason::Cancelled, stop: None, tokens: 0, prompt_tokens: None }),
    }
}

fn failed(id: u64, failure: Failure) -> Event {
    Event { id, kind: EventKind::Failed(failure) }
}

impl Lane {
    pub(super) fn new(model: Rc<OpenModel>, settings: &Settings) -> Self {
        let info = &model.language.info;
        let config = SchedulerConfig {
            step_ns: u64::from(settings.step_ms) * 1_000_000,
            running_max: settings.running_max as usize,
            queue_max: settings.queue_requests_max as usize + settings.running_max as usize,
            page_tokens: info.page_tokens.max(1),
            pages_max: info.pages_max,
            context_tokens_max: info.context_tokens_max,
        };
        Self {
            scheduler: Scheduler::new(config),
            cache: PrefixCache::new(config.page_tokens as usize, CACHED_SEQUENCES_MAX),
            settings: settings.clone(),
            generations: HashMap::new(),
            began: Instant::now(),
            random: RandomState::new(),
            seeds: 0,
            model,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.model.language.info.name
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.generations.contains_key(&id)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.generations.is_empty()
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Queues a request; returns it if it has to wait for capacity in the queue.
    pub(super) fn start(&mut self, request: Request) -> Result<Option<Request>, Failure> {
        if !self.scheduler.has_room() {
            return match request.when_full {
                WhenFull::Wait => Ok(Some(request)),
                WhenFull::Fail => Err(Failure::Overloaded(RETRY_AFTER_MS)),
            };
        }
        self.seeds += 1;
        // 53 bits, so that a seed is exact as a JSON number.
        let random_seed = || self.random.hash_one(self.seeds) >> 11;
        let prepared = prepare(&request, &self.model.language, &self.settings, random_seed)?;
        let prompt_tokens = u32::try_from(prepared.tokens.len()).unwrap_or(u32::MAX);
        let wanted = request.tokens_max.unwrap_or(self.settings.tokens_max);
        let tokens_max = self
            .scheduler
            .fit(prompt_tokens, request.choices, wanted)
            .map_err(|too_long| Failure::TooLong(TooLong { tokens: prompt_tokens, tokens_max: too_long.tokens_max }))?;
        let tenant = (request.id >> 32) as u32;
        let deadline_ns = request.deadline_ms.map(|ms| self.now_ns() + u64::from(ms) * 1_000_000);
        let (id, choices) = (request.id, request.choices);
        let scheduled = ScheduledRequest { id, tenant, prompt_tokens, choices, tokens_max, deadline_ns };
        if self.scheduler.push(scheduled).is_err() {
            return Err(Failure::Overloaded(RETRY_AFTER_MS));
        }
        let generation =
            Generation { request, prepared, tenant, cached_tokens: 0, sequences: Vec::new(), choices: Vec::new() };
        self.generations.insert(id, generation);
        Ok(None)
    }

    /// Cancels a generation. Its sequences are removed at once.
    pub(super) fn cancel(&mut self, id: u64, events: &mut Vec<Event>) {
        let Some(mut generation) = self.remove(id) else { return };
        if generation.choices.is_empty() {
            events.extend((0..generation.request.choices).map(|index| cancelled(id, index)));
            return;
        }
        for (choice, sequence) in generation.choices.iter_mut().zip(&generation.sequences) {
            if sequence.is_some() {
                let mut kinds = Vec::new();
                choice.finish(End::of(FinishReason::Cancelled), &mut kinds);
                events.extend(kinds.into_iter().map(|kind| Event { id, kind }));
            }
        }
    }

    /// Removes a generation and its sequences.
    fn remove(&mut self, id: u64) -> Option<Generation> {
        self.scheduler.remove(id);
        let generation = self.generations.remove(&id)?;
        generation.sequences.iter().flatten().for_each(|sequence| self.model.host.remove(*sequence));
        Some(generation)
    }

    fn fail(&mut self, id: u64, failure: Failure, events: &mut Vec<Event>) {
        if self.remove(id).is_some() {
            events.push(failed(id, failure));
        }
    }

    /// Computes a step, if there is something to compute.
    pub(super) async fn step(&mut self, events: &mut Vec<Event>) {
        if self.is_idle() {
            return;
        }
        for id in self.scheduler.poll_expired(self.now_ns()) {
            self.fail(id, Failure::DeadlineExceeded, events);
        }
        self.admit(events);
        let planned = self.scheduler.plan();
        let (planned, rows) = self.rows(planned, events);
        if rows.is_empty() {
            return;
        }
        let tokens = rows.iter().map(|row| row.tokens.len()).sum();
        let count = rows.len();
        let began = Instant::now();
        match self.model.host.step(rows).await {
            Ok(sampled) => {
                let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.scheduler.handle_step(count, tokens, took);
                self.handle_step(planned, sampled, events);
            }
            Err(Failure::Overloaded(retry_after_ms)) => match self.cache.evict(None) {
                Some(sequence) => self.model.host.remove(sequence),
                // The host has fewer pages than the scheduler expects, and nothing is cached: the youngest request
                // fails.
                None => {
                    if let Some(id) = self.scheduler.youngest() {
                        self.fail(id, Failure::Overloaded(retry_after_ms), events);
                    }
                }
            },
            Err(failure) => {
                for row in planned {
                    let (PlannedRow::Decode { id, .. } | PlannedRow::Prefill { id, .. }) = row;
                    self.fail(id, failure.clone(), events);
                }
            }
        }
    }

    fn admit(&mut self, events: &mut Vec<Event>) {
        loop {
            let generations = &self.generations;
            let prompt = |id: u64| match generations.get(&id) {
                Some(one) => OwnedTokens {
                    tenant: one.tenant,
                    tokens: &one.prepared.tokens,
                    shared_tokens: one.prepared.shared_tokens,
                },
                None => OwnedTokens { tenant: 0, tokens: &[], shared_tokens: 0 },
            };
            let pages_free = u64::from(self.model.host.pages_free());
            match admission::poll(&self.scheduler, &mut self.cache, prompt, pages_free) {
                Admission::Evict { sequence } => self.model.host.remove(sequence),
                Admission::Admit { request, cached } => self.begin(request.id, cached, events),
                Admission::Wait => {
                    // Nothing runs and nothing is cached, so all pages should be free: the request can never be
                    // admitted.
                    let stuck = self.scheduler.poll_admission().filter(|_| self.scheduler.texts_running() == 0);
                    let Some(request) = stuck else { return };
                    self.fail(request.id, Failure::Overloaded(RETRY_AFTER_MS), events);
                }
            }
        }
    }

    /// Creates the first sequence of an admitted request, from a cached one if there is one.
    fn begin(&mut self, id: u64, cached: Option<(u32, u32)>, events: &mut Vec<Event>) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let sampler = generation.prepared.sampler.clone();
        let sequence = match cached {
            Some((from, tokens)) => self.model.host.fork(from, tokens, &sampler),
            None => self.model.host.create(&sampler),
        };
        let cached_tokens = cached.map_or(0, |(_, tokens)| tokens);
        match sequence {
            Ok(sequence) => {
                generation.sequences = vec![Some(sequence)];
                generation.cached_tokens = cached_tokens;
            }
            Err(failure) => return self.fail(id, failure, events),
        }
        if self.scheduler.admit(id, cached_tokens) {
            self.begin_choices(id, events);
        }
    }

    /// Called when the prompt is computed except for its last token: caches it for other requests, and forks it for
    /// each choice.
    fn begin_choices(&mut self, id: u64, events: &mut Vec<Event>) {
        if let Err(failure) = self.try_begin_choices(id, events) {
            self.fail(id, failure, events);
        }
    }

    fn try_begin_choices(&mut self, id: u64, events: &mut Vec<Event>) -> Result<(), Failure> {
        let Some(generation) = self.generations.get_mut(&id) else { return Ok(()) };
        let Some(first) = generation.sequences.first().copied().flatten() else { return Ok(()) };
        let host = &self.model.host;
        let prompt = &generation.prepared.tokens;
        let sampler = &generation.prepared.sampler;
        let computed = prompt.len() - 1;
        let page = self.model.language.info.page_tokens.max(1) as usize;
        let page_aligned = computed / page * page;
        if page_aligned > generation.cached_tokens as usize {
            let prefix = host.fork(first, page_aligned as u32, sampler)?;
            let shared_tokens = generation.prepared.shared_tokens;
            let owned = OwnedTokens { tenant: generation.tenant, tokens: &prompt[..page_aligned], shared_tokens };
            match self.cache.insert(prefix, owned) {
                Insertion::Cached { removed, .. } => removed.into_iter().for_each(|sequence| host.remove(sequence)),
                Insertion::Refused => host.remove(prefix),
            }
        }
        for _ in 1..generation.request.choices {
            let fork = host.fork(first, computed as u32, sampler)?;
            generation.sequences.push(Some(fork));
        }
        let request = &generation.request;
        let logprobs = request.logprobs.is_some();
        let seed = sampler.seed;
        generation.choices = (0..request.choices)
            .map(|index| {
                let tools = generation.prepared.tools.map(|format| (format, format!("call_{id:016x}{index:x}")));
                let constraint = generation.prepared.constraint.as_ref().map(|constraint| constraint.fork());
                Choice::new(index, &request.stop, tools, constraint, logprobs)
            })
            .collect();
        let prompt_tokens = prompt.len() as u32;
        let begun = Begun { prompt_tokens, cached_tokens: generation.cached_tokens, seed };
        events.push(Event { id, kind: EventKind::Begun(begun) });
        Ok(())
    }

    /// The rows of a step for the host. Choices whose constraint is complete end instead.
    fn rows(&mut self, planned: Vec<PlannedRow>, events: &mut Vec<Event>) -> (Vec<PlannedRow>, Vec<Row>) {
        let (mut computed, mut rows) = (Vec::with_capacity(planned.len()), Vec::with_capacity(planned.len()));
        for row in planned {
            let (PlannedRow::Decode { id, .. } | PlannedRow::Prefill { id, .. }) = row;
            match self.row(row) {
                Ok(Some(host)) => {
                    computed.push(row);
                    rows.push(host);
                }
                Ok(None) => {
                    if let PlannedRow::Decode { choice, .. } = row {
                        self.end_choice(id, choice, End::of(FinishReason::Stop), events);
                    }
                }
                Err(failure) => self.fail(id, failure, events),
            }
        }
        // A request that failed for one choice may have rows for others, which are dropped.
        let exists = |row: &PlannedRow| {
            let (PlannedRow::Decode { id, .. } | PlannedRow::Prefill { id, .. }) = row;
            self.generations.contains_key(id)
        };
        let rows = computed.iter().zip(rows).filter(|(row, _)| exists(row)).map(|(_, row)| row).collect();
        computed.retain(exists);
        (computed, rows)
    }

    fn row(&mut self, row: PlannedRow) -> Result<Option<Row>, Failure> {
        let (PlannedRow::Decode { id, .. } | PlannedRow::Prefill { id, .. }) = row;
        let Some(generation) = self.generations.get_mut(&id) else { return Ok(None) };
        let prompt = &generation.prepared.tokens;
        match row {
            PlannedRow::Prefill { from, to, .. } => {
                let Some(sequence) = generation.sequences.first().copied().flatten() else { return Ok(None) };
                Ok(Some(Row { sequence, tokens: prompt[from as usize..to as usize].to_vec(), sample: None }))
            }
            PlannedRow::Decode { choice: index, .. } => {
                let sequence = generation.sequences.get(index as usize).copied().flatten();
                let (Some(sequence), Some(choice)) = (sequence, generation.choices.get_mut(index as usize)) else {
                    return Ok(None);
                };
                let allowed = match choice.allowed() {
                    Ok(None) => None,
                    Ok(Some(NextTokens::Allowed(mask))) => Some(mask),
                    Ok(Some(NextTokens::End)) => return Ok(None),
                    Err(reason) => {
                        return Err(Failure::InvalidInput(format!("the format cannot be enforced: {reason}")));
                    }
                };
                let last = choice.tokens.last().or(prompt.last()).copied();
                let sample = Some(Sample { index, allowed, top: generation.request.logprobs.unwrap_or(0) });
                Ok(Some(Row { sequence, tokens: last.into_iter().collect(), sample }))
            }
        }
    }

    /// Handles the results of a step. `sampled` is in the order of the rows with a sample.
    fn handle_step(&mut self, planned: Vec<PlannedRow>, sampled: Vec<Sampled>, events: &mut Vec<Event>) {
        let mut sampled = sampled.into_iter();
        for row in planned {
            match row {
                PlannedRow::Prefill { id, from, to } => {
                    if self.scheduler.handle_prefill(id, to - from) {
                        self.begin_choices(id, events);
                    }
                }
                PlannedRow::Decode { id, choice } => {
                    let Some(sampled) = sampled.next() else {
                        self.fail(id, Failure::Engine("the engine sampled too few tokens".into()), events);
                        continue;
                    };
                    self.handle_token(id, choice, &sampled, events);
                }
            }
        }
    }

    fn handle_token(&mut self, id: u64, index: u32, sampled: &Sampled, events: &mut Vec<Event>) {
        let is_full = self.scheduler.handle_token(id, index);
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let Some(choice) = generation.choices.get_mut(index as usize) else { return };
        let mut kinds = Vec::new();
        let pushed = choice.push(sampled, &self.model.language, &mut kinds);
        events.extend(kinds.into_iter().map(|kind| Event { id, kind }));
        match pushed {
            Ok(Some(end)) => self.end_choice(id, index, end, events),
            Ok(None) if is_full => self.end_choice(id, index, End::of(FinishReason::Length), events),
            Ok(None) => {}
            Err(reason) => self.fail(
                id,
                Failure::Engine(format!("the engine sampled a token that is not allowed: {reason}")),
                events,
            ),
        }
    }

    /// Ends a choice. Its sequence is cached for requests that continue its text.
    fn end_choice(&mut self, id: u64, index: u32, end: End, events: &mut Vec<Event>) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let mut kinds = Vec::new();
        let mut tokens = generation.prepared.tokens.clone();
        if let Some(choice) = generation.choices.get_mut(index as usize) {
            choice.finish(end, &mut kinds);
            // The last token was sampled but not computed.
            tokens.extend(choice.tokens.iter().take(choice.tokens.len().saturating_sub(1)));
        }
        events.extend(kinds.into_iter().map(|kind| Event { id, kind }));
        let sequence = generation.sequences.get_mut(index as usize).and_then(Option::take);
        let owned = OwnedTokens {
            tenant: generation.tenant,
            tokens: &tokens,
            shared_tokens: generation.prepared.shared_tokens,
        };
        if let Some(sequence) = sequence {
            let host = &self.model.host;
            match self.cache.insert(sequence, owned) {
                Insertion::Cached { tokens, removed } => {
                    // An error means that the host no longer has the sequence, which frees its pages as well.
                    let _ = host.trim(sequence, tokens as u32);
                    removed.into_iter().for_each(|sequence| host.remove(sequence));
                }
                Insertion::Refused => host.remove(sequence),
            }
        }
        if self.scheduler.end_choice(id, index) {
            self.generations.remove(&id);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let host = &self.model.host;
        self.generations.values().flat_map(|one| one.sequences.iter().flatten()).for_each(|one| host.remove(*one));
        while let Some(sequence) = self.cache.evict(None) {
            host.remove(sequence);
        }
    }
}
