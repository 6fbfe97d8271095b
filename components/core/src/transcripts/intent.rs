//! What a text is for, by rules over its words: no model, no state, the same answer every time.
//!
//! Cues are phrases (`intent/cues.rs` lists them all). Of the cues that begin at a word the longest counts and what it covers
//! is read no further, so that "I don't agree" is no agreement. A few cues count only where a sentence begins (words such as
//! "so" and "okay" before them aside): an imperative ("send the draft"), an inversion ("are we ready", which speech recognition
//! gives without its question mark). Then the first of these that fits decides:
//!
//! 1. *clarification*: a phrase that asks for one or announces one, question mark or not.
//! 2. *decision*: a phrase that reports one, unless the text asks.
//! 3. *action item*: a request in the form of a question ("can you send the draft?").
//! 4. *question*: a question mark, an inversion, or a phrase that asks.
//! 5. *agreement*: a phrase that agrees with nothing stronger than "we should" beside it.
//! 6. *commitment* or *action item*: whichever cue comes first.
//! 7. *agreement*: a sentence of at most three words that begins with "yes", "okay" and the like.
//! 8. *general*.
//!
//! Measured on `tests/data/intents.tsv`, which was written apart from the rules and is English; see that file's test for the
//! numbers, which README.md of the folder repeats.

mod cues;

use super::{
    phrases::Phrases,
    words::{Gap, Lexicon, UNKNOWN, Word, Words},
};
use crate::named::named;

named! {
    /// What a text is for.
    pub enum Intent {
        /// It asks.
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

/// What a phrase hints at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PhraseHint {
    Clarify,
    Decide,
    /// A request, when a verb of [`cues::VERBS`] follows.
    Request,
    Ask,
    /// Asks where a sentence begins, when one of [`cues::SUBJECTS`] follows.
    Invert,
    /// Asks where a sentence begins, when one of [`cues::AUXILIARIES`] follows within three words.
    Wh,
    Act,
    /// An action that is suggested.
    Suggest,
    /// An action, when a verb follows.
    ActVerb,
    /// An action where a sentence begins, unless an auxiliary follows.
    Imperative,
    Commit,
    /// A promise, when a verb follows.
    CommitVerb,
    Agree,
    /// Agrees, in a sentence of few words.
    Assent,
    /// Covers what would otherwise be a cue.
    Nothing,
}

/// Words of a kind, by id.
#[derive(Debug, Clone, Default)]
struct Kind {
    has: Vec<bool>,
}

impl Kind {
    fn new(words: &str, lexicon: &mut Lexicon) -> Self {
        let mut kind = Self::default();
        for id in words.split(' ').filter_map(|word| lexicon.add(word)) {
            let at = usize::from(id);
            if kind.has.len() <= at {
                kind.has.resize(at + 1, false);
            }
            kind.has[at] = true;
        }
        kind
    }

    fn has(&self, word: Option<&Word>) -> bool {
        word.is_some_and(|word| self.has.get(usize::from(word.id)).copied().unwrap_or(false))
    }
}

/// Words of an assent at most.
const ASSENT_WORDS_MAX: usize = 3;
/// Words from a "what" to its auxiliary at most.
const WH_WORDS_MAX: usize = 3;

/// The rules.
#[derive(Debug, Clone)]
pub(super) struct IntentRules {
    cues: Phrases<PhraseHint>,
    verbs: Kind,
    subjects: Kind,
    auxiliaries: Kind,
    fillers: Kind,
    /// May stand between a request and its verb.
    softeners: Kind,
    will: u16,
}

impl IntentRules {
    pub(super) fn new(lexicon: &mut Lexicon) -> Self {
        let mut listed: Vec<(&str, PhraseHint)> = Vec::new();
        for (cue, phrases) in cues::CUES {
            listed.extend(phrases.split("; ").map(|phrase| (phrase, *cue)));
        }
        // Recognizers leave out apostrophes; only where what remains is no other word.
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
            verbs: Kind::new(cues::VERBS, lexicon),
            subjects: Kind::new(cues::SUBJECTS, lexicon),
            auxiliaries: Kind::new(cues::AUXILIARIES, lexicon),
            fillers: Kind::new(cues::FILLERS, lexicon),
            softeners: Kind::new(cues::SOFTENERS, lexicon),
            will: lexicon.add("will").unwrap_or(UNKNOWN),
        }
    }

    /// What a text is for.
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
                .find(|(length, cue)| self.holds(*cue, lead, words, index, after(*length)));
            let filler = self.fillers.has(Some(word));
            if let Some((length, cue)) = cue {
                hints.note(cue, index);
                index += length;
                lead = lead && length == 1 && filler;
                continue;
            }
            // "Maria will send it": another person does.
            if word.id == self.will && index > 0 && !lead && self.verbs.has(words.get(index + 1)) {
                hints.note(PhraseHint::Act, index);
            }
            lead = lead && filler;
            index += 1;
        }
        hints
    }

    /// Whether a cue counts, by what stands around it.
    fn holds(&self, cue: PhraseHint, lead: bool, words: &[Word], from: usize, to: usize) -> bool {
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
                    .take_while(|word| !word.before.ends_sentence() && !self.pronouns(word))
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

    /// "what I", "where they": no question begins so.
    fn pronouns(&self, word: &Word) -> bool {
        self.subjects.has(Some(word)) && !self.auxiliaries.has(Some(word))
    }
}

/// Which cues a text has, and where the first is.
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
    fn note(&mut self, cue: PhraseHint, index: usize) {
        let first = |place: &mut Option<usize>| {
            place.get_or_insert(index);
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
