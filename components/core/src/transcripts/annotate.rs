//! What a text says by its words: keywords with their risks, and actions.
//!
//! The rules are those of slower-whisper's `KeywordSemanticAnnotator`, and so are its quirks: a keyword is matched as a whole word
//! in any case; an action is the whole text, once, under the first pattern that fits; a pattern must be
//! followed by white space and something more. Where the rules differ, they do so on purpose:
//!
//! | text | original | here | reason | test |
//! |---|---|---|---|---|
//! | "I feel ill today" | action (`i['’]?ll`) | none | `ill` without an apostrophe is a word of its own | `ill_and_well_are_no_promises`, `golden.rs` |
//! | "well done" | action (`we('?ll\| will)`) | none | `well` without an apostrophe is a word of its own | the same |
//! | "we’ll call" with a curly apostrophe | none | action | both apostrophes are one to a writer, as they already were after `i` | the same |
//!
//! Two differences follow: a text in which only `ill` or `well` matched may have its action under a later pattern, and the
//! reported `pattern` is the name that slower-whisper gives it, which still shows its optional apostrophe. slower-whisper's last four
//! patterns (`i will send` and the like) can never be the first to fit, so they are not here.
//!
//! Of sessions four more differences stand here, so that there is one table:
//!
//! | input | original | here | reason | test |
//! |---|---|---|---|---|
//! | a segment that would pass `segment_bytes_max` | grows without a bound | final, and a new one begins | everything is bounded | `segment_length_is_bounded` |
//! | times that are infinite or no number | taken | refused | JSON cannot say them, and no order holds among them | `invalid_chunk_does_not_change_the_state` |
//! | a time up to a microsecond before the one that it may not precede | refused | taken | recognizers compute times, and rounding loses speech | `noise_of_rounding_is_no_disorder` |
//! | a chunk that starts while the segment in flight lasts | refused | taken where `overlap` is set | captions may overlap | `overlapping_chunks_are_accepted_in_order_of_start` |

use std::sync::Arc;

use super::{
    intent::{Intent, IntentRules},
    phrases::Phrases,
    words::{Lexicon, Words, strip},
};

/// A risk and the words that speak of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeywordGroup {
    /// The tag.
    pub risk: String,
    /// Words, or words joined by one space each, in any case.
    pub keywords: Vec<String>,
}

/// Phrases that announce an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionRule {
    /// What is reported: slower-whisper's pattern.
    pub pattern: String,
    /// A space is one U+0020; an apostrophe is a straight or a curly one. White space and more text must follow.
    pub phrases: Vec<String>,
}

/// What an annotator looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotateConfig {
    /// Look for keywords, risks and actions.
    pub keywords: bool,
    /// Look for the intent.
    pub intent: bool,
    /// In the order in which matches are reported; at most [`KEYWORDS_MAX`] keywords in all.
    pub groups: Vec<KeywordGroup>,
    /// In the order in which they are tried; at most [`ACTIONS_MAX`].
    pub actions: Vec<ActionRule>,
}

/// Most keywords that an annotator may have.
pub const KEYWORDS_MAX: usize = 256;
/// Most patterns of actions that an annotator may have, and most phrases of each.
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

/// A keyword that was found, and the risk that it speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeywordMatch {
    /// The tag.
    pub risk: Arc<str>,
    /// As it is configured.
    pub keyword: Arc<str>,
}

/// What a text says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotation {
    /// Sorted, each once.
    pub keywords: Vec<Arc<str>>,
    /// Sorted, each once.
    pub risk_tags: Vec<Arc<str>>,
    /// In the order of the configuration.
    pub matches: Vec<KeywordMatch>,
    /// The pattern under which the whole text, stripped, is an action.
    pub action: Option<Arc<str>>,
    /// None unless it was looked for.
    pub intent: Option<Intent>,
}

/// Why a configuration makes no annotator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotateError {
    /// A keyword or a phrase is not made of words, or of words that are too long.
    #[error("`{0}` must be made of words, each of at most {max} bytes", max = super::words::WORD_BYTES_MAX)]
    NotWords(String),
    /// There are too many.
    #[error("{what} are at most {max}, and not {count}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// Finds keywords, actions and intents. One serves any number of sessions.
#[derive(Clone)]
pub struct Annotator {
    keywords: bool,
    lexicon: Lexicon,
    intents: Option<IntentRules>,
    /// Places in `found`.
    keyword_phrases: Phrases<u16>,
    action_phrases: Phrases<u16>,
    found: Vec<KeywordMatch>,
    /// Places in `found`, by keyword.
    sorted: Vec<u16>,
    actions: Vec<Arc<str>>,
}

impl std::fmt::Debug for Annotator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Annotator").field("found", &self.found).field("actions", &self.actions).finish_non_exhaustive()
    }
}

impl Annotator {
    /// An annotator for the rules of a configuration.
    ///
    /// # Errors
    ///
    /// [`AnnotateError`]
    pub fn new(config: &AnnotateConfig) -> Result<Self, AnnotateError> {
        let mut lexicon = Lexicon::default();
        let mut found: Vec<KeywordMatch> = Vec::new();
        at_most("keywords", config.groups.iter().map(|group| group.keywords.len()).sum(), KEYWORDS_MAX)?;
        for group in &config.groups {
            let risk: Arc<str> = group.risk.as_str().into();
            for keyword in &group.keywords {
                let listed = KeywordMatch { risk: risk.clone(), keyword: keyword.as_str().into() };
                if !found.contains(&listed) {
                    found.push(listed);
                }
            }
        }
        at_most("actions", config.actions.len(), ACTIONS_MAX)?;
        for action in &config.actions {
            at_most("phrases of an action", action.phrases.len(), ACTIONS_MAX)?;
        }
        let listed: Vec<(&str, u16)> = found.iter().zip(0..).map(|(found, at)| (&*found.keyword, at)).collect();
        let keyword_phrases = phrases(&listed, &mut lexicon)?;
        let listed: Vec<(&str, u16)> = config
            .actions
            .iter()
            .zip(0..)
            .flat_map(|(action, at)| action.phrases.iter().map(move |phrase| (phrase.as_str(), at)))
            .collect();
        let action_phrases = phrases(&listed, &mut lexicon)?;
        let mut sorted: Vec<u16> = (0..found.len() as u16).collect();
        sorted.sort_by(|a, b| found[usize::from(*a)].keyword.cmp(&found[usize::from(*b)].keyword));
        Ok(Self {
            keywords: config.keywords,
            intents: config.intent.then(|| IntentRules::new(&mut lexicon)),
            lexicon,
            keyword_phrases,
            action_phrases,
            found,
            sorted,
            actions: config.actions.iter().map(|action| action.pattern.as_str().into()).collect(),
        })
    }

    /// Annotates a text. `room` keeps its memory from one text to the next.
    pub fn annotate(&self, text: &str, room: &mut AnnotateBuffer) -> Annotation {
        let mut annotation = Annotation::default();
        if !self.keywords && self.intents.is_none() {
            return annotation;
        }
        self.lexicon.read(text, &mut room.words);
        if self.keywords {
            self.keywords(&room.words, &mut annotation);
        }
        annotation.intent = self.intents.as_ref().map(|rules| rules.classify(&room.words));
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
        let places = 0..self.found.len() as u16;
        annotation.matches = places.filter(|at| is_hit(*at)).map(|at| self.found[usize::from(at)].clone()).collect();
        let sorted = self.sorted.iter().filter(|at| is_hit(**at));
        annotation.keywords = sorted.map(|at| self.found[usize::from(*at)].keyword.clone()).collect();
        annotation.keywords.dedup();
        annotation.risk_tags = annotation.matches.iter().map(|found| found.risk.clone()).collect();
        annotation.risk_tags.sort_unstable();
        annotation.risk_tags.dedup();
    }

    /// The shared name of a keyword that was stored as text.
    pub(super) fn shared(&self, name: &str) -> Arc<str> {
        let known = self.found.iter().flat_map(|found| [&found.keyword, &found.risk]).chain(&self.actions);
        known.into_iter().find(|known| &***known == name).cloned().unwrap_or_else(|| name.into())
    }
}

/// The text of an action: the whole text without white space at its ends.
pub fn action_text(text: &str) -> &str {
    strip(text)
}

/// Memory that annotating needs.
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
        let matches: Vec<&str> = annotation.matches.iter().map(|found| &*found.keyword).collect();
        assert_eq!(matches, ["manager", "switching", "leave", "price"]);
        assert_eq!(
            annotate("a_price_b prices costly"),
            Annotation { intent: Some(Intent::General), ..Annotation::default() }
        );
    }

    #[test]
    fn ill_and_well_are_no_promises() {
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
            // A pattern must be followed by white space, and that by something.
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
