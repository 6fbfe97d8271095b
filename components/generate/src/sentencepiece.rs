//! The SentencePiece encoder for vocabularies with scores (Llama 2, Mistral): of all neighbouring pieces that together
//! are a token, those with the best score are joined first. Characters without a token are encoded as byte tokens.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::bindings::weir::stream::lm::Tokenizer as Vocabulary;
use crate::vocabulary::{TokenizerError, byte_token};

pub(crate) struct SentencePiece {
    tokens: HashMap<String, (u32, f32)>,
    bytes: HashMap<u8, u32>,
    unknown: Option<u32>,
}

/// A piece of the text, in a doubly linked list.
struct Piece {
    from: usize,
    to: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbouring pieces that together are a token.
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
                // Control tokens are not text; the tokenizer finds user-defined ones before it calls this.
                3..=5 => {}
                _ => drop(pieces.tokens.insert(name.clone(), (id, *score))),
            }
        }
        Ok(pieces)
    }

    pub(crate) fn encode(&self, text: &str, with_space: bool, tokens: &mut Vec<u32>) {
        let text = format!("{}{}", if with_space { "▁" } else { "" }, text.replace(' ', "▁"));
        let mut pieces: Vec<Piece> = Vec::new();
        for (from, char) in text.char_indices() {
            let at = pieces.len();
            let previous = at.checked_sub(1);
            if let Some(before) = previous.and_then(|at| pieces.get_mut(at)) {
                before.next = Some(at);
            }
            pieces.push(Piece { from, to: from + char.len_utf8(), previous, next: None });
        }
        let mut heap = BinaryHeap::new();
        for left in 0..pieces.len() {
            heap.extend(self.candidate(&text, &pieces, left));
        }
        while let Some(Candidate { left, right, bytes, .. }) = heap.pop() {
            // Either may have been joined with another piece since.
            let is_current = pieces[left].next == Some(right) && pieces[right].to - pieces[left].from == bytes;
            if !is_current || pieces[left].from == pieces[left].to {
                continue;
            }
            pieces[left].to = pieces[right].to;
            pieces[left].next = pieces[right].next;
            if let Some(next) = pieces[left].next {
                pieces[next].previous = Some(left);
            }
            // Empty: its text is part of the left piece.
            pieces[right].from = pieces[right].to;
            heap.extend(self.candidate(&text, &pieces, left));
            if let Some(previous) = pieces[left].previous {
                heap.extend(self.candidate(&text, &pieces, previous));
            }
        }
        let mut at = (!pieces.is_empty()).then_some(0);
        while let Some(part) = at.and_then(|at| pieces.get(at)) {
            let piece = &text[part.from..part.to];
            match self.tokens.get(piece) {
                Some((id, _)) => tokens.push(*id),
                None => tokens.extend(piece.bytes().filter_map(|byte| self.bytes.get(&byte).copied().or(self.unknown))),
            }
            at = part.next;
        }
    }

    fn candidate(&self, text: &str, pieces: &[Piece], left: usize) -> Option<Candidate> {
        let right = pieces[left].next?;
        let joined = &text[pieces[left].from..pieces[right].to];
        let (_, score) = self.tokens.get(joined)?;
        Some(Candidate { score: *score, left, right, bytes: joined.len() })
    }
}
