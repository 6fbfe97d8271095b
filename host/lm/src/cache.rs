//! Sequences and their pages of the cache: use counts and page tables. The content of the pages belongs to the forward pass.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_kernels::PAGE_TOKENS;

use crate::sampling::{Sampler, SamplerError};

/// Why a sequence cannot be created, forked, trimmed or read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SequenceError {
    /// No sequence has this number.
    #[error("there is no sequence {sequence}")]
    Unknown {
        /// As requested.
        sequence: u32,
    },
    /// The bound of sequences is reached.
    #[error("{sequences_max} sequences exist, and more are not allowed")]
    TooMany {
        /// The bound.
        sequences_max: usize,
    },
    /// A length past the end of the sequence.
    #[error("sequence {sequence} has {length} tokens, fewer than {tokens}")]
    TooShort {
        /// As requested.
        sequence: u32,
        /// Its length in tokens.
        length: u32,
        /// As requested.
        tokens: u32,
    },
    /// A sampler with an invalid value.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

/// All sequences of an engine.
#[derive(Debug)]
pub(crate) struct Sequences {
    sequences: BTreeMap<u32, Sequence>,
    sequences_max: usize,
    next: u32,
    /// The number of page tables that have each page.
    uses: Vec<u32>,
    /// Pages that no page table has.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Sequence {
    tokens: Vec<u32>,
    pages: Vec<u32>,
    /// Tokens before the first one that was sampled.
    prompt: Option<usize>,
    sampler: Arc<Sampler>,
    /// Incremented when the sequence is trimmed.
    version: u64,
}

/// A sequence with room for tokens that a step appends.
#[derive(Debug)]
pub(crate) struct Extension {
    pub(crate) sequence: u32,
    /// Tokens before the step.
    pub(crate) length: usize,
    /// All pages, those for the new tokens included.
    pub(crate) pages: Vec<u32>,
    /// All tokens, the new ones included.
    pub(crate) tokens: Vec<u32>,
    /// Tokens before the first one that was sampled.
    pub(crate) prompt: usize,
    pub(crate) sampler: Arc<Sampler>,
    /// A shared page, the page that replaces it, and the number of tokens to copy.
    pub(crate) copy: Option<(u32, u32, usize)>,
    version: u64,
}

impl Sequences {
    pub(crate) fn new(pages: u32, sequences_max: usize) -> Self {
        Self {
            sequences: BTreeMap::new(),
            sequences_max,
            next: 0,
            uses: vec![0; pages as usize],
            // The first pages are allocated first, so that memory is touched only when it is needed.
            free: (0..pages).rev().collect(),
        }
    }

    pub(crate) fn pages_free(&self) -> u32 {
        self.free.len() as u32
    }

    pub(crate) fn length(&self, sequence: u32) -> Result<u32, SequenceError> {
        Ok(self.find(sequence)?.tokens.len() as u32)
    }

    pub(crate) fn create(&mut self, sampler: Sampler) -> Result<u32, SequenceError> {
        let sampler = Arc::new(sampler);
        self.insert(Sequence { tokens: Vec::new(), pages: Vec::new(), prompt: None, sampler, version: 0 })
    }

    pub(crate) fn fork(&mut self, sequence: u32, tokens: u32, sampler: Sampler) -> Result<u32, SequenceError> {
        let source = self.find_with(sequence, tokens)?;
        let tokens = tokens as usize;
        let fork = Sequence {
            tokens: source.tokens[..tokens].to_vec(),
            pages: source.pages[..tokens.div_ceil(PAGE_TOKENS)].to_vec(),
            prompt: source.prompt.filter(|prompt| *prompt <= tokens),
            sampler: Arc::new(sampler),
            version: 0,
        };
        let pages = fork.pages.clone();
        let number = self.insert(fork)?;
        pages.iter().for_each(|page| self.uses[*page as usize] += 1);
        Ok(number)
    }

    pub(crate) fn trim(&mut self, sequence: u32, tokens: u32) -> Result<(), SequenceError> {
        self.find_with(sequence, tokens)?;
        let tokens = tokens as usize;
        let Some(entry) = self.sequences.get_mut(&sequence) else { return Ok(()) };
        entry.version += 1;
        entry.tokens.truncate(tokens);
        entry.prompt = entry.prompt.filter(|prompt| *prompt <= tokens);
        let pages = entry.pages.split_off(tokens.div_ceil(PAGE_TOKENS));
        self.release(&pages);
        Ok(())
    }

    pub(crate) fn remove(&mut self, sequence: u32) {
        if let Some(removed) = self.sequences.remove(&sequence) {
            self.release(&removed.pages);
        }
    }

    /// Allocates pages for the tokens of all rows, in their order; `None`, without any change, if there are too few free pages.
    pub(crate) fn extend(&mut self, rows: &[(u32, &[u32])]) -> Result<Option<Vec<Extension>>, SequenceError> {
        let mut needed = 0;
        for (sequence, tokens) in rows {
            let entry = self.find(*sequence)?;
            let length = entry.tokens.len();
            needed += (length + tokens.len()).div_ceil(PAGE_TOKENS) - entry.pages.len();
            needed += usize::from(self.must_copy(entry));
        }
        if needed > self.free.len() {
            return Ok(None);
        }
        Ok(Some(rows.iter().filter_map(|(sequence, tokens)| self.extend_one(*sequence, tokens)).collect()))
    }

    /// Whether the last page is partial and shared.
    fn must_copy(&self, sequence: &Sequence) -> bool {
        let is_partial = !sequence.tokens.len().is_multiple_of(PAGE_TOKENS);
        is_partial && sequence.pages.last().is_some_and(|page| self.uses[*page as usize] > 1)
    }

    fn extend_one(&mut self, sequence: u32, tokens: &[u32]) -> Option<Extension> {
        let entry = self.sequences.get(&sequence)?;
        let must_copy = self.must_copy(entry);
        let length = entry.tokens.len();
        let mut extension = Extension {
            sequence,
            length,
            pages: entry.pages.clone(),
            tokens: [&entry.tokens, tokens].concat(),
            prompt: entry.prompt.unwrap_or(length + tokens.len()),
            sampler: Arc::clone(&entry.sampler),
            copy: None,
            version: entry.version,
        };
        // The page table of the step counts as a use, so that pages that are trimmed during the step are not allocated again.
        if must_copy && let Some(from) = extension.pages.pop() {
            let to = self.free.pop()?;
            self.uses[to as usize] = 0;
            extension.pages.push(to);
            extension.copy = Some((from, to, length % PAGE_TOKENS));
        }
        while extension.pages.len() < extension.tokens.len().div_ceil(PAGE_TOKENS) {
            extension.pages.push(self.free.pop()?);
        }
        extension.pages.iter().for_each(|page| self.uses[*page as usize] += 1);
        Some(extension)
    }

    /// Appends the new tokens to their sequences, unless these were trimmed or removed meanwhile. `sampled` is, for each extension,
    /// whether a token was sampled after it.
    pub(crate) fn commit(&mut self, extensions: Vec<Extension>, sampled: &[bool]) {
        for (extension, sampled) in extensions.into_iter().zip(sampled) {
            match self.sequences.get_mut(&extension.sequence) {
                Some(entry) if entry.version == extension.version => {
                    let before = std::mem::replace(&mut entry.pages, extension.pages);
                    entry.tokens = extension.tokens;
                    if *sampled {
                        entry.prompt = Some(extension.prompt);
                    }
                    self.release(&before);
                }
                _ => self.release(&extension.pages),
            }
        }
    }

    /// Releases the pages of extensions that are not committed.
    pub(crate) fn abandon(&mut self, extensions: &[Extension]) {
        extensions.iter().for_each(|extension| self.release(&extension.pages));
    }

    fn release(&mut self, pages: &[u32]) {
        for page in pages {
            let uses = &mut self.uses[*page as usize];
            *uses -= 1;
            if *uses == 0 {
                self.free.push(*page);
            }
        }
    }

    fn insert(&mut self, sequence: Sequence) -> Result<u32, SequenceError> {
        if self.sequences.len() >= self.sequences_max {
            return Err(SequenceError::TooMany { sequences_max: self.sequences_max });
        }
        while self.sequences.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.sequences.insert(number, sequence);
        Ok(number)
    }

    fn find(&self, sequence: u32) -> Result<&Sequence, SequenceError> {
        self.sequences.get(&sequence).ok_or(SequenceError::Unknown { sequence })
    }

    fn find_with(&self, sequence: u32, tokens: u32) -> Result<&Sequence, SequenceError> {
        let entry = self.find(sequence)?;
        let length = entry.tokens.len() as u32;
        if tokens > length {
            return Err(SequenceError::TooShort { sequence, length, tokens });
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences() -> Sequences {
        Sequences::new(8, 4)
    }

    fn append(sequences: &mut Sequences, sequence: u32, count: usize) -> Option<(u32, u32, usize)> {
        let tokens = vec![7; count];
        let extensions = sequences.extend(&[(sequence, &tokens)]).unwrap().unwrap();
        let copy = extensions[0].copy;
        sequences.commit(extensions, &[false]);
        copy
    }

    #[test]
    fn pages_of_a_sequence_are_free_after_it_is_removed() {
        let mut sequences = sequences();
        let sequence = sequences.create(Sampler::default()).unwrap();
        append(&mut sequences, sequence, 33);
        assert_eq!((sequences.pages_free(), sequences.length(sequence)), (5, Ok(33)));
        sequences.trim(sequence, 16).unwrap();
        assert_eq!(sequences.pages_free(), 7);
        sequences.remove(sequence);
        assert_eq!(sequences.pages_free(), 8);
        assert_eq!(sequences.length(sequence), Err(SequenceError::Unknown { sequence }));
    }

    #[test]
    fn fork_shares_pages_and_copies_a_partial_page_when_either_appends() {
        let mut sequences = sequences();
        let first = sequences.create(Sampler::default()).unwrap();
        append(&mut sequences, first, 20);
        let second = sequences.fork(first, 20, Sampler::default()).unwrap();
        assert_eq!(sequences.pages_free(), 6);
        assert_eq!(append(&mut sequences, second, 1), Some((1, 2, 4)));
        assert_eq!(sequences.pages_free(), 5);
        // The page of the first sequence is not shared any more.
        assert_eq!(append(&mut sequences, first, 1), None);
        sequences.remove(first);
        assert_eq!(sequences.pages_free(), 6);
        sequences.remove(second);
        assert_eq!(sequences.pages_free(), 8);
    }

    #[test]
    fn extension_beyond_the_free_pages_changes_nothing() {
        let mut sequences = sequences();
        let (first, second) =
            (sequences.create(Sampler::default()).unwrap(), sequences.create(Sampler::default()).unwrap());
        append(&mut sequences, first, 100);
        assert!(sequences.extend(&[(first, &[7; 12]), (second, &[7; 17])]).unwrap().is_none());
        assert_eq!((sequences.pages_free(), sequences.length(first), sequences.length(second)), (1, Ok(100), Ok(0)));
    }

    #[test]
    fn sequence_that_changes_during_a_step_does_not_get_its_tokens() {
        let mut sequences = sequences();
        let (first, second) =
            (sequences.create(Sampler::default()).unwrap(), sequences.create(Sampler::default()).unwrap());
        append(&mut sequences, first, 16);
        let extensions = sequences.extend(&[(first, &[7; 16]), (second, &[7; 16])]).unwrap().unwrap();
        sequences.trim(first, 0).unwrap();
        sequences.remove(second);
        // The step still uses the page that was trimmed.
        assert_eq!(sequences.pages_free(), 5);
        sequences.commit(extensions, &[true, true]);
        assert_eq!((sequences.pages_free(), sequences.length(first)), (8, Ok(0)));
    }

    #[test]
    fn sequences_past_the_bound_and_lengths_past_the_end_are_refused() {
        let mut sequences = sequences();
        let first = sequences.create(Sampler::default()).unwrap();
        let too_short = Err(SequenceError::TooShort { sequence: first, length: 0, tokens: 1 });
        assert_eq!(sequences.fork(first, 1, Sampler::default()), too_short);
        for _ in 0..3 {
            sequences.fork(first, 0, Sampler::default()).unwrap();
        }
        assert_eq!(sequences.create(Sampler::default()), Err(SequenceError::TooMany { sequences_max: 4 }));
    }
}
