//! The intent of a text by rules over its words: without a model or state, and deterministic.
//!
//! Cues are phrases (listed in `intent/cues.rs`). Of the cues that begin at a word the longest counts, and the words
//! that it covers are skipped, so "I don't agree" is not an agreement. A few cues count only at the beginning of a
//! sentence, after optional words such as "so" and "okay": an imperative ("send the draft"), or an inversion ("are we
//! ready", often recognized without its question mark). The intent is the first of these that applies:
//!
//! 1. *clarification*: a phrase that requests or announces one, with or without a question mark.
//! 2. *decision*: a phrase that reports one, unless the text is a question.
//! 3. *action item*: a request in the form of a question ("can you send the draft?").
//! 4. *question*: a question mark, an inversion, or a phrase that asks.
//! 5. *agreement*: a phrase that agrees, without a cue for an action or a commitment other than "we should".
//! 6. *commitment* or *action item*: whichever cue comes first.
//! 7. *agreement*: a sentence of at most three words with "yes", "okay" or similar.
//! 8. *general*.
//!
//! The accuracy is measured on `tests/data/intents.tsv`, an English file that was written independently of the rules;
//! its test and the README.md of its folder state the numbers.

mod cues;

use self::cues::PhraseHint;
use super::{
    phrases::Phrases,
    words::{Gap, Lexicon, UNKNOWN, Word, Words},
};
use crate::named::named;

named! {
    /// The intent of a text.
    pub enum Intent {
        /// It asks a question.
        Question = "question",
        /// It asks for an explanation, or gives one.
        Clarification = "clarification",
        /// It assigns a task to a person.
        ActionItem = "action_item",
        /// The speaker promises to do something.
        Commitment = "commitment",
        /// It states a decision.
        Decision = "decision",
        /// It agrees.
        Agreement = "agreement",
        /// Anything else.
        General = "general",
    }
}

/// A set of words, by id.
#[derive(Debug, Clone, Default)]
struct WordSet {
    has: Vec<bool>,
}

impl WordSet {
    fn new(words: &str, lexicon: &mut Lexicon) -> Self {
        let mut set = Self::default();
        for id in words.split(' ').filter_map(|word| lexicon.add(word)) {
            let at = usize::from(id);
            if set.has.len() <= at {
                set.has.resize(at + 1, false);
            }
            set.has[at] = true;
        }
        set
    }

    fn has(&self, word: Option<&Word>) -> bool {
        word.is_some_and(|word| self.has.get(usize::from(word.id)).copied().unwrap_or(false))
    }
}

/// Most words in an assent.
const ASSENT_WORDS_MAX: usize = 3;
/// Most words from a "what" to its auxiliary.
const WH_WORDS_MAX: usize = 3;

/// The compiled rules.
#[derive(Debug, Clone)]
pub(super) struct IntentRules {
    cues: Phrases<PhraseHint>,
    verbs: WordSet,
    subjects: WordSet,
    auxiliaries: WordSet,
    fillers: WordSet,
    /// Words that can be between a request and its verb.
    softeners: WordSet,
    will: u16,
}

impl IntentRules {
    pub(super) fn new(lexicon: &mut Lexicon) -> Self {
        let mut listed: Vec<(&str, PhraseHint)> = Vec::new();
        for (cue, phrases) in cues::CUES {
            listed.extend(phrases.split("; ").map(|phrase| (phrase, *cue)));
        }
        // Recognizers omit apostrophes. The cue without them is added if it is not another word.
        let joined: Vec<(String, PhraseHint)> = listed
            .iter()
            .filter(|(phrase, _)| {
                ["n't", "let's", "what's", "that's", "i'm"].iter().any(|short| phrase.contains(short))
            })
            .map(|(phrase, cue)| (phrase.replace('\'', ""), *cue))
            .collect();
        listed.extend(joined.iter().map(|(phrase, cue)| (phrase.as_str(), *cue)));
        listed.extend(cues::VERBS.split(' ').map(|verb| (verb, PhraseHint::Imperative)));
        Self {
            cues: Phrases::new(listed, lexicon).expect("the phrases of cues.rs are short words"),
            verbs: WordSet::new(cues::VERBS, lexicon),
            subjects: WordSet::new(cues::SUBJECTS, lexicon),
            auxiliaries: WordSet::new(cues::AUXILIARIES, lexicon),
            fillers: WordSet::new(cues::FILLERS, lexicon),
            softeners: WordSet::new(cues::SOFTENERS, lexicon),
            will: lexicon.add("will").unwrap_or(UNKNOWN),
        }
    }

    /// The intent of a text.
    pub(super) fn classify(&self, text: &Words) -> Intent {
        let hints = self.hints(&text.words);
        let asks = hints.asks || text.asks_last || text.words.iter().any(|word| word.before == Gap::Question);
        let first = |a: Option<usize>, b: Option<usize>| match (a, b) {
            (Some(a), Some(b)) => a < b,
            (a, _) => a.is_some(),
        };
        match hints {
            Hints { clarify: true, .. } => Intent::Clarification,
            Hints { decide: true, .. } if !asks => Intent::Decision,
            Hints { request: true, .. } => Intent::ActionItem,
            _ if asks => Intent::Question,
            Hints { agree: true, act: None, commit: None, .. } => Intent::Agreement,
            Hints { act, suggest, commit, .. } if act.or(suggest).or(commit).is_some() => {
                let act = [act, suggest].into_iter().flatten().min();
                if first(commit, act) { Intent::Commitment } else { Intent::ActionItem }
            }
            Hints { assent: true, .. } => Intent::Agreement,
            _ => Intent::General,
        }
    }

    fn hints(&self, words: &[Word]) -> Hints {
        let mut hints = Hints::default();
        let mut lead = true;
        let mut index = 0;
        while index < words.len() {
            let word = &words[index];
            lead |= word.before.ends_sentence();
            if word.id == UNKNOWN {
                lead = false;
                index += 1;
                continue;
            }
            let after = |length: usize| index + length;
            let cue = self
                .cues
                .at(words, index, true)
                .find(|(length, cue)| self.applies(*cue, lead, words, index, after(*length)));
            let filler = self.fillers.has(Some(word));
            if let Some((length, cue)) = cue {
                hints.record(cue, index);
                index += length;
                lead = lead && length == 1 && filler;
                continue;
            }
            // "Maria will send it" is an action of another person.
            if word.id == self.will && index > 0 && !lead && self.verbs.has(words.get(index + 1)) {
                hints.record(PhraseHint::Act, index);
            }
            lead = lead && filler;
            index += 1;
        }
        hints
    }

    /// Whether a cue counts, by the words around it.
    fn applies(&self, cue: PhraseHint, lead: bool, words: &[Word], from: usize, to: usize) -> bool {
        let next = words.get(to).filter(|word| !word.before.ends_sentence());
        match cue {
            PhraseHint::Request | PhraseHint::ActVerb | PhraseHint::CommitVerb => {
                let softened = to + usize::from(self.softeners.has(next));
                self.verbs.has(words.get(softened).filter(|word| !word.before.ends_sentence()))
            }
            PhraseHint::Invert => lead && self.subjects.has(next),
            PhraseHint::Wh => {
                lead && words[to..]
                    .iter()
                    .take(WH_WORDS_MAX)
                    .take_while(|word| !word.before.ends_sentence() && !self.is_subject_only(word))
                    .any(|word| self.auxiliaries.has(Some(word)))
            }
            PhraseHint::Imperative => lead && next.is_some_and(|word| !self.auxiliaries.has(Some(word))),
            PhraseHint::Assent => {
                lead && {
                    let sentence = words[from + 1..].iter().take_while(|word| !word.before.ends_sentence());
                    let before = words[..from].iter().rev().take_while(|word| !word.before.ends_sentence()).count();
                    sentence.count() + before < ASSENT_WORDS_MAX
                }
            }
            _ => true,
        }
    }

    /// True for a subject after "what" or "where" that shows that no question begins, such as in "what I".
    fn is_subject_only(&self, word: &Word) -> bool {
        self.subjects.has(Some(word)) && !self.auxiliaries.has(Some(word))
    }
}

/// The hints of a text, and the index of the first word of some.
#[derive(Debug, Default)]
struct Hints {
    clarify: bool,
    decide: bool,
    request: bool,
    asks: bool,
    agree: bool,
    assent: bool,
    act: Option<usize>,
    suggest: Option<usize>,
    commit: Option<usize>,
}

impl Hints {
    fn record(&mut self, cue: PhraseHint, index: usize) {
        let first = |hint: &mut Option<usize>| {
            hint.get_or_insert(index);
        };
        match cue {
            PhraseHint::Clarify => self.clarify = true,
            PhraseHint::Decide => self.decide = true,
            PhraseHint::Request => self.request = true,
            PhraseHint::Ask | PhraseHint::Invert | PhraseHint::Wh => self.asks = true,
            PhraseHint::Act | PhraseHint::ActVerb | PhraseHint::Imperative => first(&mut self.act),
            PhraseHint::Suggest => first(&mut self.suggest),
            PhraseHint::Commit | PhraseHint::CommitVerb => first(&mut self.commit),
            PhraseHint::Agree => self.agree = true,
            PhraseHint::Assent => self.assent = true,
            PhraseHint::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(text: &str) -> Intent {
        let mut lexicon = Lexicon::default();
        let rules = IntentRules::new(&mut lexicon);
        let mut words = Words::default();
        lexicon.read(text, &mut words);
        rules.classify(&words)
    }

    fn check(intent: Intent, texts: &[&str]) {
        for text in texts {
            assert_eq!(classify(text), intent, "{text}");
        }
    }

    #[test]
    fn examples_of_each_rule() {
        check(
            Intent::Question,
            &[
                "What time is the call?",
                "are we still on for three",
                "So, how many seats do they need",
                "I sent it. Did it arrive?",
                "have we decided on a vendor?",
                "can you hear me?",
                "don’t you think it is late",
            ],
        );
        check(
            Intent::Clarification,
            &[
                "What do you mean by stale?",
                "could you explain that",
                "just to clarify, it is the second one",
                "sorry, I didn't catch that",
            ],
        );
        check(
            Intent::ActionItem,
            &[
                "Can you send the draft?",
                "please update the ticket",
                "Send it to Ann",
                "Maria will send the notes",
                "someone needs to call them",
                "we should test it",
            ],
        );
        check(
            Intent::Commitment,
            &["I'll do it", "we will call back", "let me check", "I can send the file", "yes, I’ll look"],
        );
        check(
            Intent::Decision,
            &["we've decided to wait", "okay, let's go with the second", "the budget was approved"],
        );
        check(Intent::Agreement, &["I agree", "sounds good", "Yes.", "okay", "Exactly, we should wait"]);
        check(
            Intent::General,
            &[
                "",
                "the weather was fine",
                "I don't agree",
                "I won't do it",
                "when I got there it was closed",
                "what they sold was old",
                "we'll see",
                "okay so the second point is the roadmap",
                "Call is over",
                "!",
            ],
        );
    }

    #[test]
    fn names_are_those_of_the_contract() {
        let names: Vec<&str> = Intent::ALL.iter().map(|intent| intent.name()).collect();
        let want = ["question", "clarification", "action_item", "commitment", "decision", "agreement", "general"];
        assert_eq!(names, want);
    }
}
