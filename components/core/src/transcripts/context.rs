//! The context for a language model: a rolling window of final segments, and prompts as data.

use std::{collections::VecDeque, fmt::Write as _, sync::Arc};

use super::{Final, config::ContextConfig};
use crate::named::named;

named! {
    /// The kind of a summary.
    pub enum SummaryKind {
        /// The configured number of segments have become final since the last summary.
        Incremental = "incremental",
        /// The stream has ended.
        Final = "final",
    }
}

/// A summary that is due, with the inputs for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryDue {
    /// The kind of the summary.
    pub kind: SummaryKind,
    /// The number of final segments so far.
    pub finals: u64,
    /// The result of [`ContextWindow::render_for_llm`].
    pub context: String,
    /// The texts of the window, one per line: the input of an extractive model.
    pub transcript: String,
    /// The keywords of the window.
    pub keywords: Vec<Arc<str>>,
    /// The context and the instruction.
    pub prompt: String,
}

/// A rolling window of final segments.
#[derive(Debug, Clone, Default)]
pub struct ContextWindow {
    pub(super) segments: VecDeque<Arc<Final>>,
}

impl ContextWindow {
    /// Adds a segment, and removes the oldest ones while there are too many or they are too old.
    pub fn add(&mut self, config: &ContextConfig, segment: Arc<Final>) {
        while self.segments.len() >= config.max_segments.max(1) {
            self.segments.pop_front();
        }
        let latest_end = segment.segment.end;
        self.segments.push_back(segment);
        while let Some(first) = self.segments.front()
            && latest_end - first.segment.end > config.max_time_sec
        {
            self.segments.pop_front();
        }
    }

    /// The segments, the oldest first.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &Final> {
        self.segments.iter().map(|segment| &**segment)
    }

    /// The window as text for a language model; empty without segments.
    pub fn render_for_llm(&self) -> String {
        if self.segments.is_empty() {
            return String::new();
        }
        let mut text = "Recent conversation context:".to_owned();
        for Final { segment, .. } in self.segments() {
            let speaker = segment.speaker_id.as_deref().filter(|name| !name.is_empty()).unwrap_or("Unknown");
            write!(text, "\n[{:.1}s] {speaker}: {}", segment.start, segment.text).expect("a string takes every write");
        }
        text
    }

    /// The texts of all segments, one per line.
    pub fn transcript(&self) -> String {
        let texts: Vec<&str> = self.segments().map(|segment| segment.segment.text.trim()).collect();
        texts.join("\n")
    }

    /// The keywords of all segments, sorted and unique.
    pub fn keywords(&self) -> Vec<Arc<str>> {
        let mut keywords: Vec<_> =
            self.segments().flat_map(|segment| segment.annotation.keywords.iter().cloned()).collect();
        keywords.sort_unstable();
        keywords.dedup();
        keywords
    }

    pub(super) fn summary(&self, kind: SummaryKind, finals: u64) -> SummaryDue {
        let (context, keywords) = (self.render_for_llm(), self.keywords());
        let prompt = match kind {
            SummaryKind::Incremental => incremental_prompt(&context),
            SummaryKind::Final => final_prompt(&context, &keywords),
        };
        SummaryDue { kind, finals, context, transcript: self.transcript(), keywords, prompt }
    }
}

/// The prompt for the key points of a context.
pub fn incremental_prompt(context: &str) -> String {
    format!("{context}\n\nSummarize the key points discussed:")
}

/// The prompt for a final summary.
pub fn final_prompt(context: &str, keywords: &[Arc<str>]) -> String {
    let keywords = keywords.join(", ");
    format!(
        "{context}\n\nConversation keywords: {keywords}\n\nGenerate a final summary covering:\n\
         1. Main topics discussed\n2. Key decisions made\n3. Action items identified\n"
    )
}
