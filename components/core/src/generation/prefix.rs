//! The prefix cache: a radix tree over the pages of computed sequences.
//!
//! A sequence that is kept can be forked for a request whose tokens begin with the same pages. It is found only by the tenant for which it
//! was computed: the time of an answer tells whether a prompt was known, and must not tell one tenant of another's prompts. Tokens of
//! configured prefixes are the exception, and are shared by all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Which computed sequences are kept, by their tokens. The driver owns the sequences themselves.
#[derive(Debug)]
pub struct PrefixCache {
    page_tokens: usize,
    sequences_max: usize,
    nodes: HashMap<NodeId, Node>,
    next_node: u64,
    kept: BTreeMap<u32, Kept>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NodeId(u64);

const ROOT: NodeId = NodeId(0);

/// A page below another: whose it is (`None`: everybody's), and its tokens.
type Key = (Option<u32>, Box<[u32]>);

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Key, NodeId>,
    /// The kept sequences that have this page.
    sequences: BTreeSet<u32>,
}

#[derive(Debug)]
struct Kept {
    path: Vec<Key>,
    used: u64,
}

/// The tokens of a sequence, and whose they are.
#[derive(Debug, Clone, Copy)]
pub struct OwnedTokens<'a> {
    /// The tenant for which they were computed.
    pub tenant: u32,
    /// The tokens.
    pub tokens: &'a [u32],
    /// The number of leading tokens that are a configured prefix, which all tenants share.
    pub shared_tokens: usize,
}

/// The answer to [`PrefixCache::insert`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Insertion {
    /// The cache retains the sequence. The caller shortens it to this number of tokens (whole pages) and removes the listed sequences.
    Kept {
        /// The tokens that are kept.
        tokens: usize,
        /// Sequences that the new one contains, or that had to give way.
        removed: Vec<u32>,
    },
    /// It is not kept: it has no whole page, or all of it is kept already.
    Refused,
}

impl PrefixCache {
    /// A cache of at most `sequences_max` sequences in pages of `page_tokens`; at least 1 each is assumed.
    pub fn new(page_tokens: usize, sequences_max: usize) -> Self {
        Self {
            page_tokens: page_tokens.max(1),
            sequences_max: sequences_max.max(1),
            nodes: HashMap::from([(ROOT, Node::default())]),
            next_node: 1,
            kept: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Kept sequences.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn keys<'a>(&'a self, owned: OwnedTokens<'a>, pages: usize) -> impl Iterator<Item = Key> + 'a {
        let size = self.page_tokens;
        owned.tokens.chunks_exact(size).take(pages).enumerate().map(move |(page, tokens)| {
            let is_shared = (page + 1) * size <= owned.shared_tokens;
            ((!is_shared).then_some(owned.tenant), tokens.into())
        })
    }

    /// The sequence that has most of the beginning of a prompt, and how many of its tokens: whole pages, and never the last token, which
    /// has to be computed for the first new one.
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
        let newest = *sequences.iter().max_by_key(|sequence| self.kept.get(sequence).map(|kept| kept.used))?;
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&newest) {
            kept.used = self.clock;
        }
        Some((newest, depth * self.page_tokens))
    }

    /// Keeps a computed sequence.
    pub fn insert(&mut self, sequence: u32, owned: OwnedTokens<'_>) -> Insertion {
        let pages = owned.tokens.len() / self.page_tokens;
        let path: Vec<Key> = self.keys(owned, pages).collect();
        if path.is_empty() || self.kept.contains_key(&sequence) {
            return Insertion::Refused;
        }
        let (mut node, mut on_path) = (ROOT, Vec::new());
        for key in &path {
            let Some(next) = self.nodes.get(&node).and_then(|node| node.children.get(key)) else { break };
            node = *next;
            on_path.push(node);
        }
        if on_path.len() == path.len() {
            return Insertion::Refused;
        }
        // Sequences that end on the path are its beginnings.
        let mut removed = BTreeSet::new();
        for (depth, node) in on_path.iter().enumerate() {
            let sequences = self.nodes.get(node).map(|node| &node.sequences);
            let ends = |sequence: &&u32| self.kept.get(sequence).is_some_and(|kept| kept.path.len() == depth + 1);
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
        self.kept.insert(sequence, Kept { path, used: self.clock });
        let mut removed: Vec<u32> = removed.into_iter().collect();
        removed.iter().for_each(|sequence| self.remove(*sequence));
        while self.kept.len() > self.sequences_max {
            removed.extend(self.evict(Some(sequence)));
        }
        Insertion::Kept { tokens: pages * self.page_tokens, removed }
    }

    /// Stops keeping the least recently used sequence, `except` one; returns it.
    pub fn evict(&mut self, except: Option<u32>) -> Option<u32> {
        let others = self.kept.iter().filter(|(sequence, _)| Some(**sequence) != except);
        let oldest = *others.min_by_key(|(_, kept)| kept.used)?.0;
        self.remove(oldest);
        Some(oldest)
    }

    fn remove(&mut self, sequence: u32) {
        let Some(kept) = self.kept.remove(&sequence) else { return };
        let (mut node, mut path) = (ROOT, Vec::new());
        for key in kept.path {
            let Some(next) = self.nodes.get(&node).and_then(|node| node.children.get(&key)).copied() else { return };
            path.push((node, key, next));
            node = next;
        }
        for (parent, key, node) in path.into_iter().rev() {
            let Some(found) = self.nodes.get_mut(&node) else { return };
            found.sequences.remove(&sequence);
            if found.sequences.is_empty() {
                self.nodes.remove(&node);
                if let Some(parent) = self.nodes.get_mut(&parent) {
                    parent.children.remove(&key);
                }
            }
        }
    }
}
