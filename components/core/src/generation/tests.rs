//! Properties of the scheduler and the prefix cache together, on virtual time, with sequences whose pages are counted.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::admission::{self, Admission};
use super::prefix::{Insertion, OwnedTokens, PrefixCache};
use super::scheduler::{Request, Row, Scheduler, SchedulerConfig};

const PAGE: usize = 4;
const PAGES_MAX: usize = 40;
const CONTEXT: u32 = 120;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        step_ns: 30_000_000,
        running_max: 6,
        queue_max: 50,
        page_tokens: PAGE as u32,
        pages_max: PAGES_MAX as u32,
        context_tokens_max: CONTEXT,
    }
}

/// The pages of sequences. Forks share pages and copy them on write, as in the engine.
#[derive(Default)]
struct Pages {
    sequences: HashMap<u32, (usize, Vec<usize>)>,
    holders: HashMap<usize, usize>,
    next: usize,
}

impl Pages {
    fn free(&self) -> usize {
        PAGES_MAX - self.holders.len()
    }

    fn add(&mut self, length: usize, pages: Vec<usize>) -> u32 {
        pages.iter().for_each(|page| *self.holders.entry(*page).or_default() += 1);
        self.next += 1;
        self.sequences.insert(self.next as u32, (length, pages));
        self.next as u32
    }

    fn fork(&mut self, from: u32, length: usize) -> u32 {
        let pages = self.sequences[&from].1[..length.div_ceil(PAGE)].to_vec();
        self.add(length, pages)
    }

    fn release(&mut self, page: usize) {
        let holders = self.holders.get_mut(&page).unwrap();
        *holders -= 1;
        if *holders == 0 {
            self.holders.remove(&page);
        }
    }

    fn trim(&mut self, sequence: u32, length: usize) {
        let (old, pages) = self.sequences.get_mut(&sequence).unwrap();
        *old = length;
        let removed = pages.split_off(length.div_ceil(PAGE));
        removed.into_iter().for_each(|page| self.release(page));
    }

    fn remove(&mut self, sequence: u32) {
        let (_, pages) = self.sequences.remove(&sequence).unwrap();
        pages.into_iter().for_each(|page| self.release(page));
    }

    fn append(&mut self, sequence: u32, tokens: usize) {
        let (length, mut pages) = self.sequences.remove(&sequence).unwrap();
        let last = pages.last().copied();
        if let Some(last) = last.filter(|page| !length.is_multiple_of(PAGE) && self.holders[page] > 1) {
            self.release(last);
            self.next += 1;
            self.holders.insert(self.next, 1);
            *pages.last_mut().unwrap() = self.next;
        }
        while pages.len() < (length + tokens).div_ceil(PAGE) {
            self.next += 1;
            self.holders.insert(self.next, 1);
            pages.push(self.next);
        }
        assert!(self.holders.len() <= PAGES_MAX, "the cache is full despite the reservations");
        self.sequences.insert(sequence, (length + tokens, pages));
    }
}

/// A model of the driver in the generate component.
struct Driver {
    scheduler: Scheduler,
    cache: PrefixCache,
    pages: Pages,
    prompts: BTreeMap<u64, (Request, Vec<u32>)>,
    sequences: BTreeMap<u64, Vec<Option<u32>>>,
    now_ns: u64,
    /// The tokens computed for each tenant.
    served: HashMap<u32, u64>,
    ended: Vec<u64>,
    cached_tokens: u64,
    /// The duration of a step: fixed, for each row, for each token.
    cost_ns: [u64; 3],
    step_ns_longest: u64,
}

impl Driver {
    fn new() -> Self {
        Self {
            scheduler: Scheduler::new(config()),
            cache: PrefixCache::new(PAGE, 8),
            pages: Pages::default(),
            prompts: BTreeMap::new(),
            sequences: BTreeMap::new(),
            now_ns: 0,
            served: HashMap::new(),
            ended: Vec::new(),
            cached_tokens: 0,
            cost_ns: [1_000_000, 200_000, 500_000],
            step_ns_longest: 0,
        }
    }

    fn push(&mut self, id: u64, tenant: u32, prompt: Vec<u32>, choices: u32, tokens_max: u32) -> bool {
        let prompt_tokens = prompt.len() as u32;
        let Ok(tokens_max) = self.scheduler.fit(prompt_tokens, choices, tokens_max) else { return false };
        let request = Request { id, tenant, prompt_tokens, choices, tokens_max, deadline_ns: None };
        let is_queued = self.scheduler.push(request).is_ok();
        if is_queued {
            self.prompts.insert(id, (request, prompt));
        }
        is_queued
    }

    fn admit(&mut self) {
        loop {
            let prompts = &self.prompts;
            let prompt = |id| {
                let (request, tokens) = &prompts[&id];
                OwnedTokens { tenant: request.tenant, tokens, shared_tokens: 0 }
            };
            match admission::poll(&self.scheduler, &mut self.cache, prompt, self.pages.free() as u64) {
                Admission::Wait => return,
                Admission::Evict { sequence } => self.pages.remove(sequence),
                Admission::Admit { request, cached } => {
                    let sequence = match cached {
                        Some((from, tokens)) => self.pages.fork(from, tokens as usize),
                        None => self.pages.add(0, Vec::new()),
                    };
                    let tokens = cached.map_or(0, |(_, tokens)| tokens);
                    self.cached_tokens += u64::from(tokens);
                    self.sequences.insert(request.id, vec![Some(sequence)]);
                    if self.scheduler.admit(request.id, tokens) {
                        self.fork_choices(request.id);
                    }
                }
            }
        }
    }

    /// Forks the sequence of a request for its choices, once all prompt tokens but the last are computed.
    fn fork_choices(&mut self, id: u64) {
        let (request, _) = &self.prompts[&id];
        let first = self.sequences[&id][0].unwrap();
        let length = request.prompt_tokens as usize - 1;
        let forks: Vec<Option<u32>> = (1..request.choices).map(|_| Some(self.pages.fork(first, length))).collect();
        self.sequences.get_mut(&id).unwrap().extend(forks);
    }

    fn step(&mut self) -> bool {
        self.admit();
        let rows = self.scheduler.plan();
        if rows.is_empty() {
            return false;
        }
        let tokens = |row: &Row| match row {
            Row::Decode { .. } => 1,
            Row::Prefill { from, to, .. } => u64::from(to - from),
        };
        let total: u64 = rows.iter().map(tokens).sum();
        let duration_ns = self.cost_ns[0] + self.cost_ns[1] * rows.len() as u64 + self.cost_ns[2] * total;
        self.step_ns_longest = self.step_ns_longest.max(duration_ns);
        self.now_ns += duration_ns;
        self.scheduler.handle_step(rows.len(), total as usize, duration_ns);
        for row in rows {
            let (Row::Decode { id, .. } | Row::Prefill { id, .. }) = row;
            *self.served.entry(self.prompts[&id].0.tenant).or_default() += tokens(&row);
            match row {
                Row::Prefill { from, to, .. } => {
                    self.pages.append(self.sequences[&id][0].unwrap(), (to - from) as usize);
                    if self.scheduler.handle_prefill(id, to - from) {
                        self.fork_choices(id);
                    }
                }
                Row::Decode { choice, .. } => {
                    let sequence = self.sequences[&id][choice as usize].unwrap();
                    self.pages.append(sequence, 1);
                    if self.scheduler.handle_token(id, choice) {
                        self.end_choice(id, choice);
                    }
                }
            }
        }
        true
    }

    fn end_choice(&mut self, id: u64, choice: u32) {
        let sequence = self.sequences.get_mut(&id).unwrap()[choice as usize].take().unwrap();
        let (request, prompt) = self.prompts[&id].clone();
        let length = self.pages.sequences[&sequence].0;
        let tokens: Vec<u32> = prompt.into_iter().chain((0..).map(|n| 1000 + n)).take(length).collect();
        let owned = OwnedTokens { tenant: request.tenant, tokens: &tokens, shared_tokens: 0 };
        match self.cache.insert(sequence, owned) {
            Insertion::Cached { tokens, removed } => {
                self.pages.trim(sequence, tokens);
                removed.into_iter().for_each(|sequence| self.pages.remove(sequence));
            }
            Insertion::Refused => self.pages.remove(sequence),
        }
        if self.scheduler.end_choice(id, choice) {
            self.remove_sequences(id);
        }
    }

    fn cancel(&mut self, id: u64) {
        if self.scheduler.remove(id) {
            self.remove_sequences(id);
        }
    }

    fn remove_sequences(&mut self, id: u64) {
        let sequences = self.sequences.remove(&id).unwrap_or_default();
        sequences.into_iter().flatten().for_each(|sequence| self.pages.remove(sequence));
        self.prompts.remove(&id);
        self.ended.push(id);
    }
}

/// An input of the driver.
#[derive(Debug, Clone)]
enum Action {
    Start { tenant: u32, prefix: u32, prompt: usize, choices: u32, tokens_max: u32 },
    Cancel { nth: usize },
    Step,
}

fn action() -> impl Strategy<Value = Action> {
    let start = (0u32..4, 0u32..3, 1usize..130, 1u32..4, 1u32..40);
    prop_oneof![
        start.prop_map(|(tenant, prefix, prompt, choices, tokens_max)| Action::Start {
            tenant,
            prefix,
            prompt,
            choices,
            tokens_max
        }),
        (0usize..20).prop_map(|nth| Action::Cancel { nth }),
        Just(Action::Step),
        Just(Action::Step),
        Just(Action::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// For any inputs the pages suffice, every request ends, and only cached sequences remain.
    #[test]
    fn every_request_ends_and_no_page_leaks(actions in prop::collection::vec(action(), 1..120)) {
        let mut driver = Driver::new();
        let mut accepted = Vec::new();
        for (id, action) in (1u64..).zip(actions) {
            match action {
                Action::Start { tenant, prefix, prompt, choices, tokens_max } => {
                    let tokens = (0..prompt as u32).map(|at| if at < 30 { prefix } else { id as u32 * 1000 + at }).collect();
                    if driver.push(id, tenant, tokens, choices, tokens_max) {
                        accepted.push(id);
                    }
                }
                Action::Cancel { nth } => {
                    if let Some(id) = driver.prompts.keys().nth(nth).copied() {
                        driver.cancel(id);
                        prop_assert!(!driver.sequences.contains_key(&id));
                    }
                }
                Action::Step => drop(driver.step()),
            }
        }
        let mut steps = 0;
        while driver.step() {
            steps += 1;
            prop_assert!(steps < 20_000, "the driver does not become idle");
        }
        prop_assert!(driver.scheduler.is_idle(), "{} requests are queued", driver.scheduler.queued());
        driver.ended.sort_unstable();
        prop_assert_eq!(&driver.ended, &accepted);
        prop_assert_eq!(driver.pages.sequences.len(), driver.cache.len());
        while let Some(sequence) = driver.cache.evict(None) {
            driver.pages.remove(sequence);
        }
        prop_assert_eq!(driver.pages.free(), PAGES_MAX);
    }

    /// A backlog of one tenant does not delay another: both get the same number of tokens while both have requests.
    #[test]
    fn tenants_with_requests_get_equal_shares(
        greedy in prop::collection::vec((1usize..60, 1u32..30), 20..30),
        modest in prop::collection::vec((1usize..60, 1u32..30), 6..10),
    ) {
        let mut driver = Driver::new();
        for (id, (prompt, tokens_max)) in (1u64..).zip(greedy) {
            prop_assert!(driver.push(id, 1, vec![id as u32; prompt], 1, tokens_max));
        }
        for (id, (prompt, tokens_max)) in (101u64..).zip(modest) {
            prop_assert!(driver.push(id, 2, vec![id as u32; prompt], 1, tokens_max));
        }
        let mut worst = 0i64;
        while driver.prompts.keys().any(|id| *id > 100) && driver.prompts.keys().any(|id| *id < 100) {
            prop_assert!(driver.step());
            let served = |tenant: u32| driver.served.get(&tenant).copied().unwrap_or(0) as i64;
            worst = worst.max(served(1) - served(2));
        }
        // Admitted requests run to their end, so a tenant can be ahead by the tokens of the requests that run at once.
        prop_assert!(worst <= 6 * 90, "{worst} tokens ahead");
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// With a long prompt beside decoding texts, steps stay within their time bound once their cost is estimated.
    #[test]
    fn long_prompts_keep_steps_short(per_token_us in 200u64..1500, decoding in 1usize..4) {
        let mut driver = Driver::new();
        driver.cost_ns = [1_000_000, 300_000, per_token_us * 1000];
        let ids = 1..=decoding as u64;
        for id in ids.clone() {
            prop_assert!(driver.push(id, id as u32, vec![id as u32; 3], 1, 16));
        }
        // The cost is estimated from prompts of other lengths.
        for round in 0..10 {
            for id in 50..70u64 {
                driver.push(round * 100 + id, 9, vec![id as u32; 3 + (id + round) as usize], 1, 1 + round as u32);
            }
            while driver.step() {}
        }
        driver.step_ns_longest = 0;
        for id in ids {
            prop_assert!(driver.push(id, id as u32, vec![id as u32; 3], 1, 16));
        }
        prop_assert!(driver.push(99, 9, (0..100).collect(), 1, 1));
        while driver.step() {}
        let least = driver.cost_ns[0] + driver.cost_ns[1] * (1 + decoding as u64) + driver.cost_ns[2] * (16 + decoding as u64);
        let bound = (config().step_ns * 12 / 10).max(least);
        prop_assert!(driver.step_ns_longest <= bound, "{} ns, at most {bound}", driver.step_ns_longest);
    }

}

proptest! {
    /// The cache finds the same prefix as a linear search over all cached sequences.
    #[test]
    fn longest_cached_prefix_is_found(
        sequences in prop::collection::vec((0u32..3, prop::collection::vec(0u32..2, 0..14)), 1..30),
        prompt in (0u32..3, prop::collection::vec(0u32..2, 1..16)),
        shared_tokens in 0usize..10,
    ) {
        let mut cache = PrefixCache::new(2, 5);
        let mut cached: BTreeMap<u32, (u32, Vec<u32>)> = BTreeMap::new();
        for (sequence, (tenant, tokens)) in (1u32..).zip(sequences) {
            let owned = OwnedTokens { tenant, tokens: &tokens, shared_tokens };
            if let Insertion::Cached { tokens: length, removed } = cache.insert(sequence, owned) {
                prop_assert_eq!(length, tokens.len() / 2 * 2);
                cached.insert(sequence, (tenant, tokens[..length].to_vec()));
                for sequence in removed {
                    prop_assert!(cached.remove(&sequence).is_some());
                }
            }
            prop_assert!(cache.len() <= 5);
            prop_assert_eq!(cache.len(), cached.len());
        }
        let (tenant, tokens) = &prompt;
        let longest = cached.values().map(|(owner, other)| {
            let pages_max = (tokens.len() - 1) / 2;
            let pages = (0..pages_max).take_while(|page| {
                let range = page * 2..page * 2 + 2;
                let is_same = other.get(range.clone()) == tokens.get(range.clone());
                is_same && (owner == tenant || range.end <= shared_tokens)
            });
            pages.count() * 2
        });
        let longest = longest.max().unwrap_or(0);
        let prefix = cache.find(OwnedTokens { tenant: *tenant, tokens, shared_tokens });
        prop_assert_eq!(prefix.map_or(0, |(_, tokens)| tokens), longest);
        if let Some((sequence, tokens)) = prefix {
            prop_assert!(cached[&sequence].1.len() >= tokens);
        }
    }
}

#[test]
fn shared_prefix_is_computed_once_per_tenant() {
    let mut driver = Driver::new();
    let system: Vec<u32> = (0..40).collect();
    let prompt = |user: u32| system.iter().copied().chain([500 + user]).collect::<Vec<u32>>();
    assert!(driver.push(1, 7, prompt(1), 1, 4));
    while driver.step() {}
    assert!(driver.push(2, 7, prompt(2), 1, 4));
    while driver.step() {}
    assert_eq!(driver.cached_tokens, 40);
    // Another tenant does not share it.
    assert!(driver.push(3, 8, prompt(2), 1, 4));
    while driver.step() {}
    assert_eq!(driver.cached_tokens, 40);
}

#[test]
fn prompt_is_computed_once_for_all_choices() {
    let mut driver = Driver::new();
    assert!(driver.push(1, 7, vec![3; 30], 4, 5));
    while driver.step() {}
    assert_eq!(driver.served[&7], 29 + 4 * 5);
    assert_eq!(driver.ended, [1]);
}

#[test]
fn tokens_max_is_bounded_by_context_and_cache() {
    let scheduler = Scheduler::new(config());
    assert_eq!(scheduler.fit(100, 1, 512), Ok(20));
    assert_eq!(scheduler.fit(119, 1, 512), Ok(1));
    assert_eq!(scheduler.fit(120, 1, 512).unwrap_err().tokens_max, 119);
    // Four texts of 10 pages each at most.
    assert_eq!(scheduler.fit(1, 4, 512), Ok(39));
}

#[test]
fn deadlines_of_queued_and_running_requests_expire() {
    let mut scheduler = Scheduler::new(config());
    let request = |id, deadline_ns| Request { id, tenant: 1, prompt_tokens: 5, choices: 1, tokens_max: 5, deadline_ns };
    for request in [request(1, Some(50)), request(2, Some(20)), request(3, None)] {
        scheduler.push(request).unwrap();
    }
    scheduler.admit(2, 0);
    assert_eq!(scheduler.poll_timeout(), Some(20));
    assert_eq!(scheduler.poll_expired(20), [2]);
    assert_eq!(scheduler.poll_expired(60), [1, 2]);
}

#[test]
fn sequence_that_is_cached_already_is_used_by_a_duplicate() {
    let mut cache = PrefixCache::new(2, 2);
    let owned = |tokens: &'static [u32]| OwnedTokens { tenant: 1, tokens, shared_tokens: 0 };
    for (sequence, tokens) in [(1, &[1, 1][..]), (2, &[2, 2])] {
        assert!(matches!(cache.insert(sequence, owned(tokens)), Insertion::Cached { .. }));
    }
    assert_eq!(cache.insert(3, owned(&[1, 1])), Insertion::Refused);
    assert_eq!(cache.evict(None), Some(2), "the first sequence was used later");
}
