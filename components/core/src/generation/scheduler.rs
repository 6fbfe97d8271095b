//! Which requests run, and what each step of a model computes.
//!
//! A step has one row for every text that is generated, and as much of the prompts that begin as keeps its expected time within a bound:
//! a long prompt does not freeze the others. The cost of a step is learned.
//!
//! A request is admitted when the cache has room for its prompt and all that it may generate, so what runs always ends, and nothing is
//! computed twice. Tenants take turns by tokens (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996), at admission and for prompts.
//!
//! The driver owns tokens and sequences: it admits ([`Scheduler::poll_admission`], [`Scheduler::admit`]), computes [`Scheduler::plan`], and
//! reports what was computed ([`Scheduler::handle_step`], [`Scheduler::handle_prefill`], [`Scheduler::handle_token`]) and what has ended.

use std::collections::{BTreeMap, HashMap};

use crate::inference::cost::Cost;

/// Bounds of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Expected time of a step, ns.
    pub step_ns: u64,
    /// Texts at once.
    pub running_max: usize,
    /// Requests that wait.
    pub queue_max: usize,
    /// Tokens of a page of the cache.
    pub page_tokens: u32,
    /// Pages of the cache.
    pub pages_max: u32,
    /// Tokens of the longest sequence.
    pub context_tokens_max: u32,
}

/// A request, as the scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its id.
    pub id: u64,
    /// Whose it is.
    pub tenant: u32,
    /// Tokens of its prompt; at least 1.
    pub prompt_tokens: u32,
    /// Texts that are generated; at least 1.
    pub choices: u32,
    /// Tokens that each may have; at least 1. See [`Scheduler::fit`].
    pub tokens_max: u32,
    /// When it has to have ended.
    pub deadline_ns: Option<u64>,
}

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The last token of a choice, and a sample of the next.
    Decode {
        /// The request.
        id: u64,
        /// The choice.
        choice: u32,
    },
    /// Tokens of a prompt.
    Prefill {
        /// The request.
        id: u64,
        /// The first.
        from: u32,
        /// One after the last.
        to: u32,
    },
}

/// Prompts and what they may generate need more pages than there are, or more tokens than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// The longest prompt that fits, in tokens.
    pub tokens_max: u32,
}

/// Most tokens of prompts in a step: after it cancels and new requests are looked at, however fast the model is.
const PREFILL_TOKENS_MAX: u32 = 512;
/// Tokens of prompts in a step though it takes too long, so that prompts always end.
const PREFILL_TOKENS_MIN: u32 = 16;
/// The guess before a step was measured: a small model on one core.
const FIRST_US: [f64; 3] = [2_000.0, 500.0, 80_000.0];

/// The state of a model's requests.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    queue: Vec<Queued>,
    running: BTreeMap<u64, Running>,
    tenants: HashMap<u32, Tenant>,
    /// The virtual time of the tenant that was served last, in tokens.
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
    /// Tokens of the prompt that are computed.
    computed: u32,
    /// Tokens in the sequence of each choice; none where it has ended, and empty while the prompt is computed.
    choices: Vec<Option<u32>>,
}

#[derive(Debug, Default)]
struct Tenant {
    /// Tokens computed for it, plus those of the others when it came.
    virtual_tokens: u64,
    /// Requests that wait or run.
    open: u32,
}

impl Running {
    fn is_prefilling(&self) -> bool {
        self.choices.is_empty()
    }
}

impl Scheduler {
    /// Without requests.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            queue: Vec::new(),
            running: BTreeMap::new(),
            tenants: HashMap::new(),
            virtual_tokens: 0,
            arrivals: 0,
            cost: Cost::with_guess(FIRST_US),
        }
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether a request fits into the queue.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.config.queue_max
    }

    /// Whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    /// Texts that are generated at the moment, prompts that are computed included.
    pub fn texts_running(&self) -> usize {
        self.running.values().map(|running| running.texts()).sum()
    }

    /// How many tokens each of `choices` texts may have after a prompt, at most `tokens_max`.
    ///
    /// # Errors
    ///
    /// The prompt leaves no room for a token, of the context or of the cache.
    pub fn fit(&self, prompt_tokens: u32, choices: u32, tokens_max: u32) -> Result<u32, TooLong> {
        let config = &self.config;
        let fits = |prompt: u32, tokens: u32| {
            let sequence = prompt.saturating_add(tokens);
            sequence <= config.context_tokens_max
                && self.pages_for(prompt, prompt.saturating_add(tokens), choices) <= u64::from(config.pages_max)
        };
        // What fits is monotone in both.
        let most = |fits: &dyn Fn(u32) -> bool, mut high: u32| {
            let mut low = 0;
            while low < high {
                let middle = low + (high - low).div_ceil(2);
                if fits(middle) { low = middle } else { high = middle - 1 }
            }
            low
        };
        match most(&|tokens| fits(prompt_tokens, tokens), tokens_max.min(config.context_tokens_max)) {
            0 => Err(TooLong { tokens_max: most(&|prompt| fits(prompt, 1), config.context_tokens_max) }),
            tokens => Ok(tokens),
        }
    }

    fn pages(&self, tokens: u32) -> u64 {
        u64::from(tokens.div_ceil(self.config.page_tokens))
    }

    /// Pages of `choices` sequences of `tokens` that share all whole pages of a prompt but the one with its last token.
    fn pages_for(&self, prompt: u32, tokens: u32, choices: u32) -> u64 {
        let shared = u64::from(prompt.saturating_sub(1) / self.config.page_tokens);
        self.pages(tokens)
            + u64::from(choices.saturating_sub(1)) * (self.pages(tokens) - shared.min(self.pages(tokens)))
    }

    /// Adds a request to the queue.
    ///
    /// # Errors
    ///
    /// The queue is full; gives the request back.
    pub fn push(&mut self, request: Request) -> Result<(), Request> {
        if !self.has_room() {
            return Err(request);
        }
        let floor = self.virtual_tokens;
        // A tenant that has had no more than the others needs no memory.
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

    /// The next request to be admitted, if one more may run: of the tenant that has had least, the one that came first.
    pub fn poll_admission(&self) -> Option<Request> {
        let order = |queued: &&Queued| (self.virtual_tokens_of(queued.request.tenant), queued.arrival);
        let next = self.queue.iter().min_by_key(order)?.request;
        let texts = self.texts_running();
        // One request with more choices than may run is served alone.
        let has_room = texts == 0 || texts + next.choices as usize <= self.config.running_max;
        has_room.then_some(next)
    }

    /// Pages that a queued request needs beyond those of `cached_tokens`, which it shares.
    pub fn pages_needed(&self, request: &Request, cached_tokens: u32) -> u64 {
        let all = self.pages_for(
            request.prompt_tokens,
            request.prompt_tokens.saturating_add(request.tokens_max),
            request.choices,
        );
        all.saturating_sub(u64::from(cached_tokens / self.config.page_tokens))
    }

    /// Pages that what runs may still take.
    pub fn pages_promised(&self) -> u64 {
        let ahead = |running: &Running| {
            let request = &running.request;
            let tokens = request.prompt_tokens.saturating_add(request.tokens_max);
            if running.is_prefilling() {
                let all = self.pages_for(request.prompt_tokens, tokens, request.choices);
                return all - self.pages(running.computed).min(all);
            }
            let shared = u64::from(request.prompt_tokens.saturating_sub(1) / self.config.page_tokens);
            let begun = |length: &u32| {
                // A page that forks share is copied when it is written to.
                let is_fresh = request.choices > 1 && *length < request.prompt_tokens;
                self.pages(tokens) - if is_fresh { shared } else { self.pages(*length) }
            };
            running.choices.iter().flatten().map(begun).sum()
        };
        self.running.values().map(ahead).sum()
    }

    /// Runs a queued request, whose first `cached_tokens` are computed. Returns true when only its last token is left, as
    /// [`Scheduler::handle_prefill`] does.
    pub fn admit(&mut self, id: u64, cached_tokens: u32) -> bool {
        let Some(at) = self.queue.iter().position(|queued| queued.request.id == id) else { return false };
        let Queued { request, arrival } = self.queue.remove(at);
        let computed = cached_tokens.min(request.prompt_tokens.saturating_sub(1));
        self.virtual_tokens = self.virtual_tokens.max(self.virtual_tokens_of(request.tenant));
        self.running.insert(id, Running { request, arrival, computed, choices: Vec::new() });
        self.handle_prefill(id, 0)
    }

    /// The rows of the next step; empty when nothing runs. A choice that is decoded for the first time has the last token of the prompt.
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
            let left = running.request.prompt_tokens - 1 - running.computed;
            let tokens = left.min(budget);
            budget -= tokens;
            let from = running.computed;
            rows.push(Row::Prefill { id: running.request.id, from, to: from + tokens });
        }
        rows
    }

    /// Tokens of prompts that fit into a step beside texts that are decoded.
    fn prefill_budget(&self, decoding: usize) -> u32 {
        let takes = |tokens: u32| self.cost.predict_ns(decoding + 1, decoding + tokens as usize);
        let (mut low, mut high) = (PREFILL_TOKENS_MIN, PREFILL_TOKENS_MAX);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if takes(middle) <= self.config.step_ns { low = middle } else { high = middle - 1 }
        }
        low
    }

    /// Updates the estimated cost with a step: its rows and its tokens.
    pub fn handle_step(&mut self, rows: usize, tokens: usize, took_ns: u64) {
        self.cost.record(rows, tokens, took_ns);
    }

    /// Tokens of a prompt were computed. Returns true when only its last token is left: the choices then begin with it, each with a
    /// sequence of its own.
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

    /// The last token of a choice was computed and the next one sampled. Returns true when the choice has as many as it may have.
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

    /// A choice has ended. Returns true when it was the last of its request, which is then gone.
    pub fn end_choice(&mut self, id: u64, choice: u32) -> bool {
        let Some(running) = self.running.get_mut(&id) else { return false };
        if let Some(choice) = running.choices.get_mut(choice as usize) {
            *choice = None;
        }
        let has_ended = !running.is_prefilling() && running.choices.iter().all(Option::is_none);
        has_ended && self.remove(id)
    }

    /// Removes a request, wherever it is; returns whether there was one.
    pub fn remove(&mut self, id: u64) -> bool {
        let queued =
            self.queue.iter().position(|queued| queued.request.id == id).map(|at| self.queue.remove(at).request);
        let removed = queued.or_else(|| self.running.remove(&id).map(|running| running.request));
        if let Some(tenant) = removed.and_then(|request| self.tenants.get_mut(&request.tenant)) {
            tenant.open -= 1;
        }
        removed.is_some()
    }

    /// The requests whose deadline has passed; they have to be removed.
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

    /// The request that was admitted last: where the cache is full against all promises, it gives way.
    pub fn youngest(&self) -> Option<u64> {
        self.running.values().max_by_key(|running| running.arrival).map(|running| running.request.id)
    }
}

impl Running {
    fn texts(&self) -> usize {
        if self.is_prefilling() { self.request.choices as usize } else { self.choices.iter().flatten().count() }
    }
}
