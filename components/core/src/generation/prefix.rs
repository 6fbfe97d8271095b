//! The prefix cache: a radix tree over the pages of computed sequences.
//!
//! A cached sequence can be forked for a request whose tokens begin with the same pages. Only the tenant for which it
//! was computed can find it: response times show whether a prompt was cached, and must not reveal one tenant's prompts
//! to another. Configured prefixes are the exception; all tenants share them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// An index of cached sequences by their tokens. The driver owns the sequences themselves.
#[derive(Debug)]
pub struct PrefixCache {
    page_tokens: usize,
    sequences_max: usize,
    nodes: HashMap<NodeId, Node>,
    next_node: u64,
    entries: BTreeMap<u32, Entry>,
    /// The number of lookups and insertions, as a logical clock.
    clock: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NodeId(u64);

const ROOT: NodeId = NodeId(0);

/// A page below another: its tenant (`None` if all tenants share it), and its tokens.
type PageKey = (Option<u32>, Box<[u32]>);

#[derive(Debug, Default)]
struct Node {
    children: HashMap<PageKey, NodeId>,
    /// The cached sequences that contain this page.
    sequences: BTreeSet<u32>,
}

#[derive(Debug)]
struct Entry {
    path: Vec<PageKey>,
    /// The clock at the last use.
    last_use: u64,
}

/// The tokens of a sequence, and the tenant they belong to.
#[derive(Debug, Clone, Copy)]
pub struct OwnedTokens<'a> {
    /// The tenant for which the sequence is computed.
    pub tenant: u32,
    /// The tokens.
    pub tokens: &'a [u32],
    /// The number of leading tokens that belong to a configured prefix, which all tenants share.
    pub shared_tokens: usize,
}

/// The result of [`PrefixCache::insert`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Insertion {
    /// The sequence is in the cache. The caller trims it to `tokens` and removes the sequences in `removed`.
    Cached {
        /// The cached tokens: whole pages.
        tokens: usize,
        /// Sequences that are prefixes of the new one, or that were evicted.
        removed: Vec<u32>,
    },
    /// The sequence is not cached: it has no whole page, or all of its pages are cached already.
    Refused,
}

impl PrefixCache {
    /// An empty cache of at most `sequences_max` sequences, in pages of `page_tokens` tokens. A bound of 0 counts as 1.
    pub fn new(page_tokens: usize, sequences_max: usize) -> Self {
        Self {
            page_tokens: page_tokens.max(1),
            sequences_max: sequences_max.max(1),
            nodes: HashMap::from([(ROOT, Node::default())]),
            next_node: 1,
            entries: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The number of cached sequences.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no sequence is cached.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn keys<'a>(&'a self, owned: OwnedTokens<'a>, pages: usize) -> impl Iterator<Item = PageKey> + 'a {
        let size = self.page_tokens;
        owned.tokens.chunks_exact(size).take(pages).enumerate().map(move |(page, tokens)| {
            let is_shared = (page + 1) * size <= owned.shared_tokens;
            ((!is_shared).then_some(owned.tenant), tokens.into())
        })
    }

    /// The sequence with the longest common prefix of a prompt, and the length of that prefix in tokens: whole pages,
    /// and never the last token of the prompt, which has to be computed to sample the first new token.
    pub fn find(&mut self, prompt: OwnedTokens<'_>) -> Option<(u32, usize)> {
        let pages = prompt.tokens.len().saturating_sub(1) / self.page_tokens;
        let (mut node, mut depth) = (ROOT, 0);
        for key in self.keys(prompt, pages) {
            let Some(next) = self.nodes.get(&node).and_then(|node| node.children.get(&key)) else { break };
            (node, depth) = (*next, depth + 1);
        }
        if depth == 0 {
            return None;
        }
        let sequences = &self.nodes.get(&node)?.sequences;
        let newest = *sequences.iter().max_by_key(|sequence| self.entries.get(sequence).map(|entry| entry.last_use))?;
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&newest) {
            entry.last_use = self.clock;
        }
        Some((newest, depth * self.page_tokens))
    }

    /// Adds a computed sequence.
    pub fn insert(&mut self, sequence: u32, owned: OwnedTokens<'_>) -> Insertion {
        let pages = owned.tokens.len() / self.page_tokens;
        let path: Vec<PageKey> = self.keys(owned, pages).collect();
        if path.is_empty() || self.entries.contains_key(&sequence) {
            return Insertion::Refused;
        }
        let (mut node, mut on_path) = (ROOT, Vec::new());
        for key in &path {
            let Some(next) = self.nodes.get(&node).and_then(|node| node.children.get(key)) else { break };
            node = *next;
            on_path.push(node);
        }
        if on_path.len() == path.len() {
            // It was computed again, so the cached sequence is in use.
            let cached = self.nodes.get(&node).map(|node| &node.sequences).into_iter().flatten();
            let newest = cached.copied().max_by_key(|sequence| self.entries.get(sequence).map(|entry| entry.last_use));
            self.clock += 1;
            if let Some(entry) = newest.and_then(|newest| self.entries.get_mut(&newest)) {
                entry.last_use = self.clock;
            }
            return Insertion::Refused;
        }
        // Sequences that end on the path are prefixes of the new one.
        let mut removed = BTreeSet::new();
        for (depth, node) in on_path.iter().enumerate() {
            let sequences = self.nodes.get(node).map(|node| &node.sequences);
            let ends = |sequence: &&u32| self.entries.get(sequence).is_some_and(|entry| entry.path.len() == depth + 1);
            removed.extend(sequences.into_iter().flatten().filter(ends));
        }
        self.clock += 1;
        let mut node = ROOT;
        for key in &path {
            let next = match self.nodes.get(&node).and_then(|node| node.children.get(key)) {
                Some(next) => *next,
                None => {
                    let next = NodeId(self.next_node);
                    self.next_node += 1;
                    self.nodes.insert(next, Node::default());
                    if let Some(parent) = self.nodes.get_mut(&node) {
                        parent.children.insert(key.clone(), next);
                    }
                    next
                }
            };
            if let Some(node) = self.nodes.get_mut(&next) {
                node.sequences.insert(sequence);
            }
            node = next;
        }
        self.entries.insert(sequence, Entry { path, last_use: self.clock });
        let mut removed: Vec<u32> = removed.into_iter().collect();
        removed.iter().for_each(|sequence| self.remove(*sequence));
        while self.entries.len() > self.sequences_max {
            removed.extend(self.evict(Some(sequence)));
        }
        Insertion::Cached { tokens: pages * self.page_tokens, removed }
    }

    /// Removes the least recently used sequence other than `except` from the cache, and returns it.
    pub fn evict(&mut self, except: Option<u32>) -> Option<u32> {
        let others = self.entries.iter().filter(|(sequence, _)| Some(**sequence) != except);
        let oldest = *others.min_by_key(|(_, entry)| entry.last_use)?.0;
        self.remove(oldest);
        Some(oldest)
    }

    fn remove(&mut self, sequence: u32) {
        let Some(entry) = self.entries.remove(&sequence) else { return };
        let (mut node, mut path) = (ROOT, Vec::new());
        for key in entry.path {
            let Some(next) = self.nodes.get(&node).and_then(|node| node.children.get(&key)).copied() else { return };
            path.push((node, key, next));
            node = next;
        }
        for (parent, key, node) in path.into_iter().rev() {
            let Some(removed) = self.nodes.get_mut(&node) else { return };
            removed.sequences.remove(&sequence);
            if removed.sequences.is_empty() {
                self.nodes.remove(&node);
                if let Some(parent) = self.nodes.get_mut(&parent) {
                    parent.children.remove(&key);
                }
            }
        }
    }
}
