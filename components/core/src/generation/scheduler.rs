//! The queued and running requests of a model, and the rows of each of its steps.
//!
//! A step has one row for each choice that is decoded, and as many prompt tokens as keep its expected time within a
//! bound, so a long prompt does not stall the others. The cost of a step is estimated from the steps before it.
//!
//! A request is admitted when the cache has room for its prompt and every token that it may generate, so a running
//! request is never preempted and recomputed. Tenants take turns by tokens, at admission and for prompts (start-time
//! fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996).
//!
//! The driver owns tokens and sequences. It admits requests ([`Scheduler::poll_admission`], [`Scheduler::admit`]),
//! computes the rows of [`Scheduler::plan`], and reports what was computed ([`Scheduler::handle_step`],
//! [`Scheduler::handle_prefill`], [`Scheduler::handle_token`]) and what has ended ([`Scheduler::end_choice`],
//! [`Scheduler::remove`]).

use std::collections::{BTreeMap, HashMap};

use crate::inference::cost::Cost;

/// Bounds of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// The upper bound of the expected time of a step, ns.
    pub step_ns: u64,
    /// Most choices that run at once.
    pub running_max: usize,
    /// Most queued requests.
    pub queue_max: usize,
    /// Tokens in a page of the cache.
    pub page_tokens: u32,
    /// Pages in the cache.
    pub pages_max: u32,
    /// Tokens in the longest sequence, prompt included.
    pub context_tokens_max: u32,
}

/// The properties of a request that scheduling depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Unique among the queued and running requests.
    pub id: u64,
    /// The tenant that sent it.
    pub tenant: u32,
    /// Tokens in the prompt; at least 1.
    pub prompt_tokens: u32,
    /// The number of texts to generate from the prompt; at least 1.
    pub choices: u32,
    /// Most tokens to generate for each choice; at least 1. See [`Scheduler::fit`].
    pub tokens_max: u32,
    /// The deadline, after which [`Scheduler::poll_expired`] returns the request.
    pub deadline_ns: Option<u64>,
}

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The last token of a choice; the next token is sampled after it.
    Decode {
        /// The request.
        id: u64,
        /// The index of the choice, from 0.
        choice: u32,
    },
    /// A range of the tokens of a prompt.
    Prefill {
        /// The request.
        id: u64,
        /// The index of the first token.
        from: u32,
        /// The index after the last token.
        to: u32,
    },
}

/// The prompt and its choices need more pages than the cache has, or more tokens than the context has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// The longest prompt that fits, in tokens.
    pub tokens_max: u32,
}

/// Most prompt tokens in a step. Cancellations and new requests are handled between steps, so a step stays short even
/// if the model is fast.
const PREFILL_TOKENS_MAX: u32 = 512;
/// Fewest prompt tokens in a step, even if it exceeds the time bound, so that every prompt makes progress.
const PREFILL_TOKENS_MIN: u32 = 16;
/// The initial cost estimate, which is that of a small model on one core. See [`Cost::with_guess`].
const INITIAL_COST_US: [f64; 3] = [2_000.0, 500.0, 80_000.0];

/// The queued and running requests of a model.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    queue: Vec<Queued>,
    running: BTreeMap<u64, Running>,
    tenants: HashMap<u32, Tenant>,
    /// The virtual time of the queue, in tokens: that of the tenant whose request was admitted last, never decreasing.
    virtual_tokens: u64,
    arrivals: u64,
    cost: Cost,
}

#[derive(Debug)]
struct Queued {
    request: Request,
    arrival: u64,
}

#[derive(Debug)]
struct Running {
    request: Request,
    arrival: u64,
    /// The computed tokens of the prompt.
    computed: u32,
    /// The tokens in the sequence of each choice, `None` once it has ended. Empty during prefill.
    choices: Vec<Option<u32>>,
}

#[derive(Debug, Default)]
struct Tenant {
    /// The virtual time at the tenant's arrival, plus the tokens computed for it since.
    virtual_tokens: u64,
    /// Its queued and running requests.
    open: u32,
}

impl Running {
    fn is_prefilling(&self) -> bool {
        self.choices.is_empty()
    }
}

impl Scheduler {
    /// A scheduler without requests.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            queue: Vec::new(),
            running: BTreeMap::new(),
            tenants: HashMap::new(),
            virtual_tokens: 0,
            arrivals: 0,
            cost: Cost::with_guess(INITIAL_COST_US),
        }
    }

    /// The number of queued requests.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether the queue has room for another request.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.config.queue_max
    }

    /// Whether no request is queued or running.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    /// The number of running choices. A request in prefill counts with all of its choices.
    pub fn texts_running(&self) -> usize {
        self.running.values().map(|running| running.texts()).sum()
    }

    /// The most tokens that each of `choices` texts can have after a prompt of `prompt_tokens`, at most `tokens_max`.
    ///
    /// # Errors
    ///
    /// The prompt leaves no room for a token in the context or in the cache.
    pub fn fit(&self, prompt_tokens: u32, choices: u32, tokens_max: u32) -> Result<u32, TooLong> {
        let config = &self.config;
        let fits = |prompt: u32, tokens: u32| {
            let sequence = prompt.saturating_add(tokens);
            sequence <= config.context_tokens_max
                && self.pages_for(prompt, prompt.saturating_add(tokens), choices) <= u64::from(config.pages_max)
        };
        // `fits` is monotone in both arguments, so the bounds are found by bisection.
        let largest = |fits: &dyn Fn(u32) -> bool, mut high: u32| {
            let mut low = 0;
            while low < high {
                let middle = low + (high - low).div_ceil(2);
                if fits(middle) { low = middle } else { high = middle - 1 }
            }
            low
        };
        match largest(&|tokens| fits(prompt_tokens, tokens), tokens_max.min(config.context_tokens_max)) {
            0 => Err(TooLong { tokens_max: largest(&|prompt| fits(prompt, 1), config.context_tokens_max) }),
            tokens => Ok(tokens),
        }
    }

    fn pages(&self, tokens: u32) -> u64 {
        u64::from(tokens.div_ceil(self.config.page_tokens))
    }

    /// Pages of `choices` sequences of `tokens` tokens that share the whole pages of the prompt, except for a page that
    /// contains its last token.
    fn pages_for(&self, prompt: u32, tokens: u32, choices: u32) -> u64 {
        let shared = u64::from(prompt.saturating_sub(1) / self.config.page_tokens);
        self.pages(tokens)
            + u64::from(choices.saturating_sub(1)) * (self.pages(tokens) - shared.min(self.pages(tokens)))
    }

    /// Adds a request to the queue.
    ///
    /// # Errors
    ///
    /// The queue is full; the error is the request.
    pub fn push(&mut self, request: Request) -> Result<(), Request> {
        if !self.has_room() {
            return Err(request);
        }
        let floor = self.virtual_tokens;
        // A tenant without requests that is not ahead of the virtual time has no state worth keeping.
        self.tenants.retain(|_, tenant| tenant.open > 0 || tenant.virtual_tokens > floor);
        let tenant = self.tenants.entry(request.tenant).or_default();
        if tenant.open == 0 {
            tenant.virtual_tokens = tenant.virtual_tokens.max(floor);
        }
        tenant.open += 1;
        self.arrivals += 1;
        self.queue.push(Queued { request, arrival: self.arrivals });
        Ok(())
    }

    fn virtual_tokens_of(&self, tenant: u32) -> u64 {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.virtual_tokens)
    }

    /// The next request to be admitted, if it may run now: the oldest request of the tenant with the least virtual
    /// time.
    pub fn poll_admission(&self) -> Option<Request> {
        let order = |queued: &&Queued| (self.virtual_tokens_of(queued.request.tenant), queued.arrival);
        let next = self.queue.iter().min_by_key(order)?.request;
        let texts = self.texts_running();
        // A request with more choices than `running_max` runs alone.
        let has_room = texts == 0 || texts + next.choices as usize <= self.config.running_max;
        has_room.then_some(next)
    }

    /// The pages that a queued request needs beyond the pages of `cached_tokens`, which it shares with a cached
    /// sequence.
    pub fn pages_needed(&self, request: &Request, cached_tokens: u32) -> u64 {
        let all = self.pages_for(
            request.prompt_tokens,
            request.prompt_tokens.saturating_add(request.tokens_max),
            request.choices,
        );
        all.saturating_sub(u64::from(cached_tokens / self.config.page_tokens))
    }

    /// The pages that the running requests may still allocate.
    pub fn pages_reserved(&self) -> u64 {
        let remaining = |running: &Running| {
            let request = &running.request;
            let tokens = request.prompt_tokens.saturating_add(request.tokens_max);
            if running.is_prefilling() {
                let all = self.pages_for(request.prompt_tokens, tokens, request.choices);
                return all - self.pages(running.computed).min(all);
            }
            let shared = u64::from(request.prompt_tokens.saturating_sub(1) / self.config.page_tokens);
            let remaining_of_choice = |length: &u32| {
                // Forks share the last page of the prompt; the first write copies it.
                let is_fresh = request.choices > 1 && *length < request.prompt_tokens;
                self.pages(tokens) - if is_fresh { shared } else { self.pages(*length) }
            };
            running.choices.iter().flatten().map(remaining_of_choice).sum()
        };
        self.running.values().map(remaining).sum()
    }

    /// Moves a queued request to the running ones; its first `cached_tokens` tokens are computed already. Returns true
    /// if prefill is complete, as [`Scheduler::handle_prefill`] does.
    pub fn admit(&mut self, id: u64, cached_tokens: u32) -> bool {
        let Some(at) = self.queue.iter().position(|queued| queued.request.id == id) else { return false };
        let Queued { request, arrival } = self.queue.remove(at);
        let computed = cached_tokens.min(request.prompt_tokens.saturating_sub(1));
        self.virtual_tokens = self.virtual_tokens.max(self.virtual_tokens_of(request.tenant));
        self.running.insert(id, Running { request, arrival, computed, choices: Vec::new() });
        self.handle_prefill(id, 0)
    }

    /// The rows of the next step; empty when no request runs. The first decode row of a choice is the last prompt
    /// token.
    pub fn plan(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (id, running) in &self.running {
            let choices = running.choices.iter().enumerate().filter(|(_, choice)| choice.is_some());
            rows.extend(choices.map(|(choice, _)| Row::Decode { id: *id, choice: choice as u32 }));
        }
        let mut prefilling: Vec<&Running> = self.running.values().filter(|running| running.is_prefilling()).collect();
        prefilling.sort_by_key(|running| (self.virtual_tokens_of(running.request.tenant), running.arrival));
        let mut budget = if prefilling.is_empty() { 0 } else { self.prefill_budget(rows.len()) };
        for running in prefilling {
            if budget == 0 {
                break;
            }
            let remaining = running.request.prompt_tokens - 1 - running.computed;
            let tokens = remaining.min(budget);
            budget -= tokens;
            let from = running.computed;
            rows.push(Row::Prefill { id: running.request.id, from, to: from + tokens });
        }
        rows
    }

    /// The most prompt tokens that keep a step with `decoding` decode rows within its time bound.
    fn prefill_budget(&self, decoding: usize) -> u32 {
        let predicted_ns = |tokens: u32| self.cost.predict_ns(decoding + 1, decoding + tokens as usize);
        let (mut low, mut high) = (PREFILL_TOKENS_MIN, PREFILL_TOKENS_MAX);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if predicted_ns(middle) <= self.config.step_ns { low = middle } else { high = middle - 1 }
        }
        low
    }

    /// Updates the cost estimate with the rows, tokens and duration of a step.
    pub fn handle_step(&mut self, rows: usize, tokens: usize, duration_ns: u64) {
        self.cost.record(rows, tokens, duration_ns);
    }

    /// Records that `tokens` tokens of a prompt were computed. Returns true if only its last token remains: each choice
    /// then decodes that token first, in a sequence of its own.
    pub fn handle_prefill(&mut self, id: u64, tokens: u32) -> bool {
        let Some(running) = self.running.get_mut(&id) else { return false };
        running.computed += tokens;
        let tenant = running.request.tenant;
        let before_last = running.request.prompt_tokens - 1;
        let is_complete = running.computed >= before_last;
        if is_complete {
            running.choices = vec![Some(before_last); running.request.choices as usize];
        }
        self.charge(tenant, u64::from(tokens));
        is_complete
    }

    /// Records that the last token of a choice was computed and the next one sampled. Returns true if the choice has
    /// reached its token limit.
    pub fn handle_token(&mut self, id: u64, choice: u32) -> bool {
        let Some(running) = self.running.get_mut(&id) else { return false };
        let Some(Some(length)) = running.choices.get_mut(choice as usize) else { return false };
        *length += 1;
        // The sampled token is not in the sequence yet.
        let is_full = *length + 1 - running.request.prompt_tokens >= running.request.tokens_max;
        let tenant = running.request.tenant;
        self.charge(tenant, 1);
        is_full
    }

    fn charge(&mut self, tenant: u32, tokens: u64) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.virtual_tokens += tokens;
        }
    }

    /// Ends a choice. Returns true if it was the last one of its request, which is then removed.
    pub fn end_choice(&mut self, id: u64, choice: u32) -> bool {
        let Some(running) = self.running.get_mut(&id) else { return false };
        if let Some(choice) = running.choices.get_mut(choice as usize) {
            *choice = None;
        }
        let has_ended = !running.is_prefilling() && running.choices.iter().all(Option::is_none);
        has_ended && self.remove(id)
    }

    /// Removes a queued or running request; returns whether it existed.
    pub fn remove(&mut self, id: u64) -> bool {
        let queued =
            self.queue.iter().position(|queued| queued.request.id == id).map(|at| self.queue.remove(at).request);
        let removed = queued.or_else(|| self.running.remove(&id).map(|running| running.request));
        if let Some(tenant) = removed.and_then(|request| self.tenants.get_mut(&request.tenant)) {
            tenant.open -= 1;
        }
        removed.is_some()
    }

    /// The requests whose deadline has passed. The caller must [remove](Self::remove) them.
    pub fn poll_expired(&self, now_ns: u64) -> Vec<u64> {
        let requests = self.queue.iter().map(|queued| &queued.request);
        let requests = requests.chain(self.running.values().map(|running| &running.request));
        requests
            .filter(|request| request.deadline_ns.is_some_and(|at| at <= now_ns))
            .map(|request| request.id)
            .collect()
    }

    /// The earliest deadline.
    pub fn poll_timeout(&self) -> Option<u64> {
        let queued = self.queue.iter().filter_map(|queued| queued.request.deadline_ns);
        queued.chain(self.running.values().filter_map(|running| running.request.deadline_ns)).min()
    }

    /// The running request that arrived last. The driver ends it if the cache is full despite the reservations.
    pub fn youngest(&self) -> Option<u64> {
        self.running.values().max_by_key(|running| running.arrival).map(|running| running.request.id)
    }
}

impl Running {
    fn texts(&self) -> usize {
        if self.is_prefilling() { self.request.choices as usize } else { self.choices.iter().flatten().count() }
    }
}
