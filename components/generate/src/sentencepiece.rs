//! SentencePiece with scores, as the files of Llama 2 and Mistral have it: of all neighbours that are a token together, those with the
//! best score are joined first. Characters without a token are written as bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::bindings::weir::stream::lm::Tokenizer as Vocabulary;
use crate::tokenizer::{TokenizerError, byte_token};

pub(crate) struct SentencePiece {
    tokens: HashMap<String, (u32, f32)>,
    bytes: HashMap<u8, u32>,
    unknown: Option<u32>,
}

/// A part of the text, in a list of neighbours.
struct Part {
    from: usize,
    to: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that are a token together.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

impl SentencePiece {
    pub(crate) fn new(vocabulary: &Vocabulary, kinds: &[u8]) -> Result<Self, TokenizerError> {
        let (tokens, others) = (vocabulary.tokens.len(), vocabulary.scores.len());
        if tokens != others {
            return Err(TokenizerError::Lengths { tokens, others, what: "scores" });
        }
        let mut pieces = Self { tokens: HashMap::new(), bytes: HashMap::new(), unknown: None };
        for (id, ((name, score), kind)) in (0..).zip(vocabulary.tokens.iter().zip(&vocabulary.scores).zip(kinds)) {
            match kind {
                2 => pieces.unknown = Some(id),
                6 => drop(byte_token(name).map(|byte| pieces.bytes.insert(byte, id))),
                // Control tokens are no text; user-defined ones were found before.
                3..=5 => {}
                _ => drop(pieces.tokens.insert(name.clone(), (id, *score))),
            }
        }
        Ok(pieces)
    }

    pub(crate) fn encode(&self, text: &str, with_space: bool, tokens: &mut Vec<u32>) {
        let text = format!("{}{}", if with_space { "▁" } else { "" }, text.replace(' ', "▁"));
        let mut parts: Vec<Part> = Vec::new();
        for (from, char) in text.char_indices() {
            let at = parts.len();
            let previous = at.checked_sub(1);
            if let Some(before) = previous.and_then(|at| parts.get_mut(at)) {
                before.next = Some(at);
            }
            parts.push(Part { from, to: from + char.len_utf8(), previous, next: None });
        }
        let mut heap = BinaryHeap::new();
        for left in 0..parts.len() {
            heap.extend(self.candidate(&text, &parts, left));
        }
        while let Some(Candidate { left, right, bytes, .. }) = heap.pop() {
            // One of them may have been joined with another meanwhile.
            let is_current = parts[left].next == Some(right) && parts[right].to - parts[left].from == bytes;
            if !is_current || parts[left].from == parts[left].to {
                continue;
            }
            parts[left].to = parts[right].to;
            parts[left].next = parts[right].next;
            if let Some(next) = parts[left].next {
                parts[next].previous = Some(left);
            }
            // Joined: it has no text of its own any more.
            parts[right].from = parts[right].to;
            heap.extend(self.candidate(&text, &parts, left));
            if let Some(previous) = parts[left].previous {
                heap.extend(self.candidate(&text, &parts, previous));
            }
        }
        let mut at = (!parts.is_empty()).then_some(0);
        while let Some(part) = at.and_then(|at| parts.get(at)) {
            let piece = &text[part.from..part.to];
            match self.tokens.get(piece) {
                Some((id, _)) => tokens.push(*id),
                None => tokens.extend(piece.bytes().filter_map(|byte| self.bytes.get(&byte).copied().or(self.unknown))),
            }
            at = part.next;
        }
    }

    fn candidate(&self, text: &str, parts: &[Part], left: usize) -> Option<Candidate> {
        let right = parts[left].next?;
        let joined = &text[parts[left].from..parts[right].to];
        let (_, score) = self.tokens.get(joined)?;
        Some(Candidate { score: *score, left, right, bytes: joined.len() })
    }
}
