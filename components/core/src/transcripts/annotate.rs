//! The annotation of a text by its words: keywords with their risks, actions and the intent.
//!
//! The rules are those of slower-whisper's `KeywordSemanticAnnotator`, with its peculiarities: a keyword is matched as
//! a whole word in any case; the action is the whole text, under the first pattern that matches; a pattern must be
//! followed by white space and more text. The intended differences are:
//!
//! | text | slower-whisper | here | reason | test |
//! |---|---|---|---|---|
//! | "I feel ill today" | action (`i['’]?ll`) | none | `ill` without an apostrophe is a word of its own | `ill_and_well_are_not_promises`, `golden.rs` |
//! | "well done" | action (`we('?ll\| will)`) | none | `well` without an apostrophe is a word of its own | the same |
//! | "we’ll call" with a curly apostrophe | none | action | both apostrophes are equivalent, as they already were after `i` | the same |
//!
//! Two differences follow: a text in which only `ill` or `well` matched can have an action under a later pattern, and
//! the reported `pattern` is that of slower-whisper, which contains its optional apostrophe. slower-whisper's last four
//! patterns (such as `i will send`) can never be the first to match, so they are omitted.
//!
//! The intended differences of sessions are:
//!
//! | input | slower-whisper | here | reason | test |
//! |---|---|---|---|---|
//! | a segment that would exceed `segment_bytes_max` | grows without a bound | final, and a new one begins | everything is bounded | `segment_length_is_bounded` |
//! | times that are infinite or not a number | accepted | refused | JSON cannot represent them, and they have no order | `invalid_chunk_does_not_change_the_state` |
//! | a time up to a microsecond before the earliest allowed one | refused | accepted | recognizers compute times, and rounding must not lose speech | `rounding_error_is_not_out_of_order` |
//! | a chunk that starts before the segment in flight ends | refused | accepted with `overlap` | captions may overlap | `overlapping_chunks_are_accepted_in_order_of_start` |

use std::sync::Arc;

use super::{
    intent::{Intent, IntentRules},
    phrases::Phrases,
    words::{Lexicon, Words, strip},
};

/// A risk and its keywords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeywordGroup {
    /// The risk tag.
    pub risk: String,
    /// Words, or phrases of words with one space between them, in any case.
    pub keywords: Vec<String>,
}

/// Phrases that announce an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionRule {
    /// The reported pattern, which is that of slower-whisper.
    pub pattern: String,
    /// A space is one U+0020; an apostrophe is a straight or a curly one. White space and more text must follow.
    pub phrases: Vec<String>,
}

/// The rules of an annotator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotateConfig {
    /// Annotate keywords, risks and actions.
    pub keywords: bool,
    /// Annotate the intent.
    pub intent: bool,
    /// The keywords by risk, in the order in which matches are reported; at most [`KEYWORDS_MAX`] keywords in total.
    pub groups: Vec<KeywordGroup>,
    /// The actions, in the order of precedence; at most [`ACTIONS_MAX`].
    pub actions: Vec<ActionRule>,
}

/// Most keywords of an annotator.
pub const KEYWORDS_MAX: usize = 256;
/// Most actions of an annotator, and most phrases of an action.
pub const ACTIONS_MAX: usize = 32;

impl Default for AnnotateConfig {
    fn default() -> Self {
        let group = |risk: &str, keywords: &[&str]| KeywordGroup {
            risk: risk.to_owned(),
            keywords: keywords.iter().map(|&keyword| keyword.to_owned()).collect(),
        };
        let action = |pattern: &str, phrases: &[&str]| ActionRule {
            pattern: pattern.to_owned(),
            phrases: phrases.iter().map(|&phrase| phrase.to_owned()).collect(),
        };
        Self {
            keywords: true,
            intent: true,
            groups: vec![
                group("escalation", &["escalate", "escalation", "unacceptable", "supervisor", "manager", "complaint"]),
                group(
                    "churn_risk",
                    &[
                        "cancel",
                        "cancellation",
                        "terminate",
                        "termination",
                        "switch",
                        "switching",
                        "competitor",
                        "leaving",
                        "leave",
                        "churn",
                    ],
                ),
                group("pricing", &["price", "pricing", "cost", "budget", "expensive", "cheap"]),
            ],
            actions: vec![
                action("\\b(i['’]?ll|i will)\\s+", &["i'll", "i will"]),
                action("\\bwe('?ll| will)\\s+", &["we'll", "we will"]),
                action("\\blet me\\s+", &["let me"]),
                action("\\bwe should\\s+", &["we should"]),
                action("\\bi can\\s+", &["i can"]),
            ],
        }
    }
}

/// A keyword in a text, and its risk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeywordMatch {
    /// The risk tag.
    pub risk: Arc<str>,
    /// The keyword as configured.
    pub keyword: Arc<str>,
}

/// The annotation of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotation {
    /// The keywords, sorted and unique.
    pub keywords: Vec<Arc<str>>,
    /// The risk tags, sorted and unique.
    pub risk_tags: Vec<Arc<str>>,
    /// The matches, in the order of the configuration.
    pub matches: Vec<KeywordMatch>,
    /// The pattern by which the text, without white space at its ends, is an action.
    pub action: Option<Arc<str>>,
    /// The intent; `None` if it is not configured.
    pub intent: Option<Intent>,
}

/// Why the rules of an annotator are invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotateError {
    /// A keyword or a phrase has no word, or a word that is too long.
    #[error("`{0}` must be made of words, each of at most {max} bytes", max = super::words::WORD_BYTES_MAX)]
    NotWords(String),
    /// There are too many rules of a kind.
    #[error("{what} are at most {max}, and not {count}")]
    TooMany {
        /// The kind of rule.
        what: &'static str,
        /// The number of rules.
        count: usize,
        /// The bound.
        max: usize,
    },
}

/// Annotates texts with keywords, actions and intents. Sessions can share an annotator.
#[derive(Clone)]
pub struct Annotator {
    keywords: bool,
    lexicon: Lexicon,
    intents: Option<IntentRules>,
    /// Indexes in `entries`.
    keyword_phrases: Phrases<u16>,
    action_phrases: Phrases<u16>,
    entries: Vec<KeywordMatch>,
    /// Indexes in `entries`, sorted by keyword.
    sorted: Vec<u16>,
    actions: Vec<Arc<str>>,
}

impl std::fmt::Debug for Annotator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Annotator")
            .field("entries", &self.entries)
            .field("actions", &self.actions)
            .finish_non_exhaustive()
    }
}

impl Annotator {
    /// An annotator for the rules of a configuration.
    ///
    /// # Errors
    ///
    /// See [`AnnotateError`].
    pub fn new(config: &AnnotateConfig) -> Result<Self, AnnotateError> {
        let mut lexicon = Lexicon::default();
        let mut entries: Vec<KeywordMatch> = Vec::new();
        at_most("keywords", config.groups.iter().map(|group| group.keywords.len()).sum(), KEYWORDS_MAX)?;
        for group in &config.groups {
            let risk: Arc<str> = group.risk.as_str().into();
            for keyword in &group.keywords {
                let entry = KeywordMatch { risk: risk.clone(), keyword: keyword.as_str().into() };
                if !entries.contains(&entry) {
                    entries.push(entry);
                }
            }
        }
        at_most("actions", config.actions.len(), ACTIONS_MAX)?;
        for action in &config.actions {
            at_most("phrases of an action", action.phrases.len(), ACTIONS_MAX)?;
        }
        let listed: Vec<(&str, u16)> = entries.iter().zip(0..).map(|(entry, at)| (&*entry.keyword, at)).collect();
        let keyword_phrases = phrases(&listed, &mut lexicon)?;
        let listed: Vec<(&str, u16)> = config
            .actions
            .iter()
            .zip(0..)
            .flat_map(|(action, at)| action.phrases.iter().map(move |phrase| (phrase.as_str(), at)))
            .collect();
        let action_phrases = phrases(&listed, &mut lexicon)?;
        let mut sorted: Vec<u16> = (0..entries.len() as u16).collect();
        sorted.sort_by(|a, b| entries[usize::from(*a)].keyword.cmp(&entries[usize::from(*b)].keyword));
        Ok(Self {
            keywords: config.keywords,
            intents: config.intent.then(|| IntentRules::new(&mut lexicon)),
            lexicon,
            keyword_phrases,
            action_phrases,
            entries,
            sorted,
            actions: config.actions.iter().map(|action| action.pattern.as_str().into()).collect(),
        })
    }

    /// Annotates a text. `buffer` is reused from one text to the next.
    pub fn annotate(&self, text: &str, buffer: &mut AnnotateBuffer) -> Annotation {
        let mut annotation = Annotation::default();
        if !self.keywords && self.intents.is_none() {
            return annotation;
        }
        self.lexicon.read(text, &mut buffer.words);
        if self.keywords {
            self.keywords(&buffer.words, &mut annotation);
        }
        annotation.intent = self.intents.as_ref().map(|rules| rules.classify(&buffer.words));
        annotation
    }

    fn keywords(&self, text: &Words, annotation: &mut Annotation) {
        let words = &text.words;
        let mut hits = [0u64; KEYWORDS_MAX / 64];
        let mut action = u16::MAX;
        for index in 0..words.len() {
            for (_, at) in self.keyword_phrases.at(words, index, false) {
                hits[usize::from(at) / 64] |= 1 << (at % 64);
            }
            for (length, at) in self.action_phrases.at(words, index, false) {
                if words[index + length - 1].spaced {
                    action = action.min(at);
                }
            }
        }
        annotation.action = self.actions.get(usize::from(action)).cloned();
        if hits == [0; KEYWORDS_MAX / 64] {
            return;
        }
        let is_hit = |at: u16| hits[usize::from(at) / 64] & (1 << (at % 64)) != 0;
        let indexes = 0..self.entries.len() as u16;
        annotation.matches = indexes.filter(|at| is_hit(*at)).map(|at| self.entries[usize::from(at)].clone()).collect();
        let sorted = self.sorted.iter().filter(|at| is_hit(**at));
        annotation.keywords = sorted.map(|at| self.entries[usize::from(*at)].keyword.clone()).collect();
        annotation.keywords.dedup();
        annotation.risk_tags = annotation.matches.iter().map(|entry| entry.risk.clone()).collect();
        annotation.risk_tags.sort_unstable();
        annotation.risk_tags.dedup();
    }

    /// The shared text of a keyword, a risk or an action that was stored as text.
    pub(super) fn shared(&self, name: &str) -> Arc<str> {
        let known = self.entries.iter().flat_map(|entry| [&entry.keyword, &entry.risk]).chain(&self.actions);
        known.into_iter().find(|known| &***known == name).cloned().unwrap_or_else(|| name.into())
    }
}

/// The text of an action: the whole text without white space at its ends.
pub fn action_text(text: &str) -> &str {
    strip(text)
}

/// Reusable memory of [`Annotator::annotate`].
#[derive(Debug, Default)]
pub struct AnnotateBuffer {
    words: Words,
}

fn phrases(listed: &[(&str, u16)], lexicon: &mut Lexicon) -> Result<Phrases<u16>, AnnotateError> {
    Phrases::new(listed.iter().copied(), lexicon).map_err(|at| AnnotateError::NotWords(listed[at].0.to_owned()))
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), AnnotateError> {
    if count > max {
        return Err(AnnotateError::TooMany { what, count, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotate(text: &str) -> Annotation {
        Annotator::new(&AnnotateConfig::default()).unwrap().annotate(text, &mut AnnotateBuffer::default())
    }

    fn names(list: &[Arc<str>]) -> Vec<&str> {
        list.iter().map(|name| &**name).collect()
    }

    #[test]
    fn keywords_and_risks_are_sorted_and_matches_in_the_order_of_the_rules() {
        let annotation = annotate("PRICE, the manager's price; switching to leave?");
        assert_eq!(names(&annotation.keywords), ["leave", "manager", "price", "switching"]);
        assert_eq!(names(&annotation.risk_tags), ["churn_risk", "escalation", "pricing"]);
        let matches: Vec<&str> = annotation.matches.iter().map(|entry| &*entry.keyword).collect();
        assert_eq!(matches, ["manager", "switching", "leave", "price"]);
        assert_eq!(
            annotate("a_price_b prices costly"),
            Annotation { intent: Some(Intent::General), ..Annotation::default() }
        );
    }

    #[test]
    fn ill_and_well_are_not_promises() {
        for (text, pattern) in [
            ("I feel ill today", None),
            ("well done", None),
            ("ill call and well see", None),
            ("I'll call", Some("\\b(i['’]?ll|i will)\\s+")),
            ("I’ll call", Some("\\b(i['’]?ll|i will)\\s+")),
            ("so I WILL call", Some("\\b(i['’]?ll|i will)\\s+")),
            ("we’ll call", Some("\\bwe('?ll| will)\\s+")),
            ("we'll call, and I'll wait", Some("\\b(i['’]?ll|i will)\\s+")),
            ("well, we should wait", Some("\\bwe should\\s+")),
            ("let me see", Some("\\blet me\\s+")),
            ("i can do it", Some("\\bi can\\s+")),
            // A pattern must be followed by white space, and more text after it.
            ("I'll ", None),
            ("yes I will.", None),
            ("I  will go", None),
            ("I'll - go", Some("\\b(i['’]?ll|i will)\\s+")),
            ("I'll, go", None),
            ("hi'll go", None),
        ] {
            assert_eq!(annotate(text).action.as_deref(), pattern, "{text}");
        }
    }

    #[test]
    fn configured_rules_replace_the_defaults() {
        let config = AnnotateConfig {
            groups: vec![KeywordGroup {
                risk: "outage".to_owned(),
                keywords: vec!["Is Down".to_owned(), "naïve".to_owned()],
            }],
            actions: vec![ActionRule { pattern: "todo".to_owned(), phrases: vec!["to do".to_owned()] }],
            ..AnnotateConfig::default()
        };
        let annotation =
            Annotator::new(&config).unwrap().annotate("it IS down, NAÏVE to do it", &mut AnnotateBuffer::default());
        assert_eq!(names(&annotation.keywords), ["Is Down", "naïve"]);
        assert_eq!(annotation.action.as_deref(), Some("todo"));
        let wrong = |keyword: &str| {
            let groups = vec![KeywordGroup { risk: "x".to_owned(), keywords: vec![keyword.to_owned()] }];
            Annotator::new(&AnnotateConfig { groups, ..AnnotateConfig::default() }).unwrap_err().to_string()
        };
        assert_eq!(wrong("?!"), "`?!` must be made of words, each of at most 48 bytes");
        assert!(wrong(&"x".repeat(49)).contains("at most 48"));
        let groups = vec![KeywordGroup { risk: "x".to_owned(), keywords: vec!["a".to_owned(); 257] }];
        let error = Annotator::new(&AnnotateConfig { groups, ..AnnotateConfig::default() }).unwrap_err();
        assert_eq!(error.to_string(), "keywords are at most 256, and not 257");
    }
}
