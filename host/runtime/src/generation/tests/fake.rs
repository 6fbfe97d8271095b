//! A deterministic fake engine. Its vocabulary consists of the 256 bytes and three control tokens.
//!
//! A prompt that contains `<<TEXT>>` is continued with TEXT, one token per byte, and then ends. Any other is continued
//! with letters that depend on the seed, the choice and the position at a temperature above 0, and only on the position
//! at 0.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weir_lm::Cancel;

use crate::bindings::lm::weir::stream::lm::{ModelInfo, Row, Sample, Sampled, Sampler, Tokenizer};
use crate::generation::engine::{Engine, Sequences};
use crate::types::Failure;

pub(super) const PAGE: usize = 16;
const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const END: u32 = 2;
const BYTES: u32 = 3;
const VOCABULARY: u32 = BYTES + 256;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('tool messages are not known') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}";

/// The engine and its cache, which all instances share.
#[derive(Clone)]
pub(super) struct FakeEngine {
    pages_max: usize,
    context_tokens: u32,
    /// The duration of a step, and the additional duration of each of its tokens.
    step: Duration,
    token: Duration,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    sequences: HashMap<u32, Sequence>,
    /// The number of sequences that use each page.
    pages: BTreeMap<u64, usize>,
    next: u32,
    next_page: u64,
    steps: u64,
    longest_step_tokens: usize,
}

#[derive(Clone)]
struct Sequence {
    tokens: Vec<u32>,
    pages: Vec<u64>,
    sampler: Sampler,
    /// The length of the sequence when it was first sampled.
    prompt: Option<usize>,
}

impl FakeEngine {
    pub(super) fn new(pages_max: usize, step: Duration) -> Self {
        Self { pages_max, context_tokens: 2048, step, token: Duration::ZERO, cache: Arc::default() }
    }

    pub(super) fn with_token_time(self, token: Duration) -> Self {
        Self { token, ..self }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pages_used(&self) -> usize {
        self.cache().pages.len()
    }

    pub(super) fn steps(&self) -> u64 {
        self.cache().steps
    }

    pub(super) fn longest_step_tokens(&self) -> usize {
        self.cache().longest_step_tokens
    }
}

impl Cache {
    fn add(&mut self, sequence: Sequence) -> u32 {
        sequence.pages.iter().for_each(|page| *self.pages.entry(*page).or_default() += 1);
        self.next += 1;
        self.sequences.insert(self.next, sequence);
        self.next
    }

    fn release(&mut self, pages: Vec<u64>) {
        for page in pages {
            let holders = self.pages.get_mut(&page).expect("a page that is held");
            *holders -= 1;
            if *holders == 0 {
                self.pages.remove(&page);
            }
        }
    }

    fn page(&mut self) -> u64 {
        self.next_page += 1;
        self.pages.insert(self.next_page, 1);
        self.next_page
    }

    fn append(&mut self, id: u32, tokens: &[u32]) {
        let mut sequence = self.sequences.remove(&id).expect("a sequence that exists");
        if !sequence.tokens.len().is_multiple_of(PAGE)
            && let Some(last) = sequence.pages.last().copied().filter(|page| self.pages[page] > 1)
        {
            self.release(vec![last]);
            sequence.pages.pop();
            sequence.pages.push(self.page());
        }
        sequence.tokens.extend_from_slice(tokens);
        while sequence.pages.len() < sequence.tokens.len().div_ceil(PAGE) {
            sequence.pages.push(self.page());
        }
        self.sequences.insert(id, sequence);
    }
}

impl Engine for FakeEngine {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: String::new(),
            architecture: "fake".into(),
            vocabulary_tokens: VOCABULARY,
            context_tokens_max: self.context_tokens,
            page_tokens: PAGE as u32,
            pages_max: self.pages_max as u32,
            begin_token: None,
            end_tokens: vec![0, END],
            ready: true,
        }
    }

    fn tokenizer(&self) -> Tokenizer {
        let is_printed = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut others = 255u32;
        let bytes = (0..=255u8).map(|byte| {
            let char = if is_printed(byte) {
                char::from(byte)
            } else {
                others += 1;
                char::from_u32(others).expect("a character")
            };
            char.to_string()
        });
        let tokens: Vec<String> = CONTROL.iter().map(|name| (*name).to_owned()).chain(bytes).collect();
        let kinds = (0..VOCABULARY).map(|token| if token < BYTES { 3 } else { 1 }).collect();
        Tokenizer {
            kind: "gpt2".into(),
            pre: "gpt-2".into(),
            tokens,
            scores: Vec::new(),
            kinds,
            space_prefix: false,
            merges: Vec::new(),
        }
    }

    fn chat_template(&self) -> Option<String> {
        Some(TEMPLATE.into())
    }

    fn sequences(&self) -> Arc<dyn Sequences> {
        Arc::new(FakeSequences(self.clone()))
    }
}

struct FakeSequences(FakeEngine);

impl Sequences for FakeSequences {
    fn pages_free(&self) -> u32 {
        (self.0.pages_max - self.0.pages_used()) as u32
    }

    fn create(&self, sampler: Sampler) -> Result<u32, Failure> {
        Ok(self.0.cache().add(Sequence { tokens: Vec::new(), pages: Vec::new(), sampler, prompt: None }))
    }

    fn fork(&self, sequence: u32, tokens: u32, sampler: Sampler) -> Result<u32, Failure> {
        let mut cache = self.0.cache();
        let from = cache.sequences.get(&sequence).cloned();
        let from = from.ok_or_else(|| Failure::InvalidInput(format!("there is no sequence {sequence}")))?;
        let length = tokens as usize;
        assert!(length <= from.tokens.len(), "a fork longer than its origin");
        let pages = from.pages[..length.div_ceil(PAGE)].to_vec();
        Ok(cache.add(Sequence { tokens: from.tokens[..length].to_vec(), pages, sampler, prompt: None }))
    }

    fn trim(&self, sequence: u32, tokens: u32) -> Result<(), Failure> {
        let mut cache = self.0.cache();
        let target = cache.sequences.get_mut(&sequence);
        let target = target.ok_or_else(|| Failure::InvalidInput(format!("there is no sequence {sequence}")))?;
        target.tokens.truncate(tokens as usize);
        let removed = target.pages.split_off((tokens as usize).div_ceil(PAGE));
        cache.release(removed);
        Ok(())
    }

    fn remove(&self, sequence: u32) {
        let mut cache = self.0.cache();
        if let Some(sequence) = cache.sequences.remove(&sequence) {
            cache.release(sequence.pages);
        }
    }

    fn step(&self, rows: Vec<Row>, cancel: &Cancel) -> Result<Vec<Sampled>, Failure> {
        let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
        std::thread::sleep(self.0.step + self.0.token * tokens as u32);
        if cancel.is_cancelled() {
            return Err(Failure::Unavailable("the step was cancelled".into()));
        }
        let mut cache = self.0.cache();
        cache.steps += 1;
        cache.longest_step_tokens = cache.longest_step_tokens.max(tokens);
        let mut sampled = Vec::new();
        for row in rows {
            cache.append(row.sequence, &row.tokens);
            assert!(cache.pages.len() <= self.0.pages_max, "the cache is full");
            if let Some(sample) = row.sample {
                let sequence = cache.sequences.get_mut(&row.sequence).expect("a sequence that exists");
                let length = sequence.tokens.len();
                sequence.prompt.get_or_insert(length);
                let token = next(sequence, &sample);
                let top = (0..sample.top).map(|rank| ((token + rank) % VOCABULARY, -0.25 - rank as f32)).collect();
                sampled.push(Sampled { sequence: row.sequence, token, logprob: -0.25, top });
            }
        }
        Ok(sampled)
    }
}

impl Drop for FakeSequences {
    fn drop(&mut self) {
        // There is one instance at a time, so all sequences belong to it.
        let ids: Vec<u32> = self.0.cache().sequences.keys().copied().collect();
        ids.into_iter().for_each(|id| self.remove(id));
    }
}

fn next(sequence: &Sequence, sample: &Sample) -> u32 {
    let prompt = sequence.prompt.unwrap_or(0);
    let generated = sequence.tokens.len() - prompt;
    let bytes: Vec<u8> = sequence.tokens[..prompt]
        .iter()
        .map(|token| token.checked_sub(BYTES).map_or(b'|', |byte| byte as u8))
        .collect();
    let find = |delimiter: &[u8]| bytes.windows(2).position(|window| window == delimiter);
    if let (Some(from), Some(to)) = (find(b"<<"), find(b">>")) {
        let script = &bytes[from + 2..to];
        return script.get(generated).map_or(END, |byte| BYTES + u32::from(*byte));
    }
    let mut hasher = DefaultHasher::new();
    (sequence.tokens.len(), sequence.tokens.last()).hash(&mut hasher);
    if sequence.sampler.temperature > 0.0 {
        (sequence.sampler.seed, sample.index).hash(&mut hasher);
    }
    let is_allowed = |token: &u32| {
        let bit = |mask: &Vec<u8>| mask[*token as usize / 8] >> (token % 8) & 1 == 1;
        sample.allowed.as_ref().is_none_or(bit)
    };
    let letters = (b'a'..=b'z').chain([b' ', b'"', b'}', b'1']).map(|byte| BYTES + u32::from(byte));
    let mut candidates: Vec<u32> = letters.filter(is_allowed).collect();
    if sample.allowed.is_none() {
        candidates.truncate(27);
    }
    if candidates.is_empty() {
        candidates = (0..VOCABULARY).filter(is_allowed).collect();
    }
    candidates[(hasher.finish() % candidates.len() as u64) as usize]
}
