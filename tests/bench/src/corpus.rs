//! The texts of the load: real sentences, joined and cut to given numbers of tokens, deterministic for a seed.
//!
//! BERT's tokenizer splits at white space first, so a text has the tokens of its words plus `[CLS]` and `[SEP]`:
//! exact lengths follow from the counts of single words, which the tokenizer gives once. `prepare.py verify` checks the result.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rng::Rng;

/// Texts of one corpus.
pub(crate) const TEXTS: usize = 4096;
/// Longest text, tokens: every server truncates there.
pub(crate) const TOKENS_MAX: u32 = 128;
/// `[CLS]` and `[SEP]`.
const SPECIAL_TOKENS: u32 = 2;
/// Sentences read from the data, at most.
const SENTENCES_MAX: usize = 20_000;

/// The distribution of text lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mix {
    /// 8 to 16 tokens, uniform.
    Short,
    /// Log-normal, median 24 tokens, cut off at 4 and 128.
    Mixed,
    /// 96 to 128 tokens, uniform.
    Long,
}

impl Mix {
    pub(crate) const ALL: [Self; 3] = [Self::Short, Self::Mixed, Self::Long];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Mixed => "mixed",
            Self::Long => "long",
        }
    }

    fn tokens(self, rng: &mut Rng) -> u32 {
        match self {
            Self::Short => 8 + rng.below(9) as u32,
            Self::Mixed => ((24_f64.ln() + 0.8 * rng.normal()).exp().round() as u32).clamp(4, TOKENS_MAX),
            Self::Long => 96 + rng.below(33) as u32,
        }
    }
}

/// One text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Text {
    pub(crate) text: String,
    /// Tokens, special tokens included.
    pub(crate) tokens: u32,
}

/// The texts of a mix; `counts` has the tokens of every word of the sentences.
pub(crate) fn make(mix: Mix, sentences: &[String], counts: &HashMap<String, u32>, seed: u64) -> Result<Vec<Text>> {
    let usable = |word: &&str| counts.get(*word).is_some_and(|tokens| *tokens > 0);
    ensure!(
        sentences.iter().any(|sentence| sentence.split_whitespace().any(|word| counts.get(word) == Some(&1))),
        "the data has no word of one token"
    );
    let mut rng = Rng::new(seed ^ (mix as u64 + 1) << 32);
    let mut texts = Vec::with_capacity(TEXTS);
    while texts.len() < TEXTS {
        let length = mix.tokens(&mut rng);
        let (mut text, mut tokens) = (String::new(), SPECIAL_TOKENS);
        // Sentence after sentence; a word that does not fit is omitted.
        while tokens < length {
            let sentence = &sentences[rng.below(sentences.len())];
            for word in sentence.split_whitespace().filter(usable) {
                let more = counts[word];
                if tokens + more <= length {
                    tokens += more;
                    if !text.is_empty() {
                        text.push(' ');
                    }
                    text.push_str(word);
                }
            }
        }
        texts.push(Text { text, tokens });
    }
    Ok(texts)
}

/// Sentences of a file: `text` (or `tokens`) of JSON lines, or plain text cut after `.`, `!` and `?`.
pub(crate) fn sentences(path: &Path) -> Result<Vec<String>> {
    let content = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        let ends = |c: char| matches!(c, '.' | '!' | '?');
        return Ok(content.split_inclusive(ends).map(|part| part.trim().to_owned()).filter(|s| s.len() > 3).collect());
    }
    let mut sentences = Vec::new();
    for line in content.lines().filter(|line| !line.trim().is_empty()) {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("{}: not JSON: {line}", path.display()))?;
        let tokens = || {
            let words: Vec<&str> = value["tokens"].as_array()?.iter().filter_map(Value::as_str).collect();
            Some(words.join(" "))
        };
        sentences.extend(value["text"].as_str().map(str::to_owned).or_else(tokens).filter(|text| !text.is_empty()));
    }
    Ok(sentences)
}

/// All sentences of `data` (a folder of JSON lines) or, without it, of the bundled texts; from sorted files, sampled evenly.
pub(crate) fn gather(data: Option<&Path>, root: &Path) -> Result<Vec<String>> {
    let folder = data.map_or_else(|| root.join("demo"), Path::to_path_buf);
    let extension = if data.is_some() { "jsonl" } else { "txt" };
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|other| other == extension));
    files.sort();
    let mut all = Vec::new();
    for file in &files {
        all.extend(sentences(file)?);
    }
    ensure!(!all.is_empty(), "{} has no .{extension} files with sentences", folder.display());
    let step = all.len().div_ceil(SENTENCES_MAX);
    Ok(all.into_iter().step_by(step).collect())
}

/// Writes one JSON object a line.
pub(crate) fn write(path: &Path, texts: &[Text]) -> Result<()> {
    let mut content = String::new();
    for text in texts {
        writeln!(content, "{}", serde_json::to_string(text)?)?;
    }
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn read(path: &Path) -> Result<Vec<Text>> {
    let content = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let texts: Vec<Text> = content
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| path.display().to_string())?;
    ensure!(!texts.is_empty(), "{} is empty", path.display());
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_corpus() -> (Vec<String>, HashMap<String, u32>) {
        let sentences =
            vec!["The tea was cold .".to_owned(), "Nobody said sorry in Göteborg , unbelievably !".to_owned()];
        let words = sentences.iter().flat_map(|sentence| sentence.split_whitespace());
        let counts = words.map(|word| (word.to_owned(), 1 + word.len() as u32 / 6)).collect();
        (sentences, counts)
    }

    #[test]
    fn lengths_are_exact_and_inside_the_mix() {
        let (sentences, counts) = sample_corpus();
        for (mix, from, to) in [(Mix::Short, 8, 16), (Mix::Mixed, 4, 128), (Mix::Long, 96, 128)] {
            let texts = make(mix, &sentences, &counts, 5).unwrap();
            assert_eq!(texts.len(), TEXTS);
            for text in &texts {
                let counted: u32 = text.text.split_whitespace().map(|word| counts[word]).sum();
                assert_eq!(counted + SPECIAL_TOKENS, text.tokens);
                assert!((from..=to).contains(&text.tokens), "{mix:?}: {}", text.tokens);
            }
        }
    }

    #[test]
    fn mixed_corpus_is_log_normal() {
        let (sentences, counts) = sample_corpus();
        let mut tokens: Vec<u32> =
            make(Mix::Mixed, &sentences, &counts, 5).unwrap().iter().map(|text| text.tokens).collect();
        tokens.sort_unstable();
        let quantile = |share: f64| f64::from(tokens[(TEXTS as f64 * share) as usize]);
        assert!((quantile(0.5) - 24.0).abs() <= 1.5, "{}", quantile(0.5));
        // One deviation either side.
        assert!((quantile(0.841) / quantile(0.5) - 0.8_f64.exp()).abs() < 0.25, "{}", quantile(0.841));
    }

    #[test]
    fn seed_determines_the_corpus() {
        let (sentences, counts) = sample_corpus();
        let make = |seed| make(Mix::Short, &sentences, &counts, seed).unwrap();
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        assert!(super::make(Mix::Short, &["Göteborg".to_owned()], &counts, 1).is_err(), "no length could be filled");
    }

    #[test]
    fn shipped_texts_suffice() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        assert!(gather(None, root).unwrap().len() > 20);
    }
}
