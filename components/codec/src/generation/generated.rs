//! The state of a generation, collected from its events.

use super::event::{Done, Failed, Finish, GenerationEvent, Started, TokenLogprob, Usage};

/// A generation as of the last event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generated {
    /// Its first event.
    pub started: Option<Started>,
    /// Its choices in the order of their indexes.
    pub choices: Vec<Choice>,
    /// Its token counts, once it has ended.
    pub usage: Option<Usage>,
    /// Its failure, if it failed.
    pub error: Option<Failed>,
}

/// A choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Its tokens, if log probabilities were requested.
    pub tokens: Vec<TokenLogprob>,
    /// Its tool calls.
    pub calls: Vec<GeneratedCall>,
    /// Its last event.
    pub done: Option<Done>,
}

/// A tool call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GeneratedCall {
    /// Its id.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// The arguments: JSON text.
    pub arguments: String,
}

/// Bound on the index of a choice or a call, above that of any request; events beyond it are dropped.
const INDEX_MAX: usize = 1024;

impl Generated {
    /// Records the next event.
    pub fn push(&mut self, event: &GenerationEvent) {
        match event {
            GenerationEvent::Started(started) => {
                self.choices.resize_with((started.choices as usize).min(INDEX_MAX), Choice::default);
                self.started = Some(started.clone());
            }
            GenerationEvent::Token(token) => {
                let Some(choice) = slot(&mut self.choices, token.index) else { return };
                choice.text.push_str(&token.text);
                choice.tokens.extend(token.tokens.iter().cloned());
            }
            GenerationEvent::ToolCall(delta) => {
                let Some(choice) = slot(&mut self.choices, delta.index) else { return };
                let Some(call) = slot(&mut choice.calls, delta.call) else { return };
                call.id.push_str(delta.id.as_deref().unwrap_or_default());
                call.name.push_str(delta.name.as_deref().unwrap_or_default());
                call.arguments.push_str(&delta.arguments);
            }
            GenerationEvent::Done(done) => {
                self.usage = done.usage.or(self.usage);
                if let Some(choice) = slot(&mut self.choices, done.index) {
                    choice.done = Some(done.clone());
                }
            }
            GenerationEvent::Error(failed) => self.error = Some(failed.clone()),
        }
    }

    /// True after the last event.
    pub fn has_ended(&self) -> bool {
        self.usage.is_some() || self.error.is_some()
    }

    /// The id of the generation.
    pub(crate) fn id(&self) -> &str {
        self.started.as_ref().map_or("", |started| &started.generation_id)
    }

    /// The model.
    pub(crate) fn model(&self) -> &str {
        self.started.as_ref().map_or("", |started| &started.model)
    }

    /// When the generation began, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.started.as_ref().map_or(0, |started| started.created)
    }

    /// Its token counts, as far as they are known.
    pub(crate) fn usage(&self) -> Usage {
        self.usage.unwrap_or_else(|| match &self.started {
            Some(started) => Usage {
                prompt_tokens: started.prompt_tokens,
                cached_tokens: started.cached_tokens,
                completion_tokens: 0,
            },
            None => Usage::default(),
        })
    }
}

impl Choice {
    /// Why it ended, if it has.
    pub(crate) fn finish(&self) -> Option<Finish> {
        self.done.as_ref().map(|done| done.finish_reason)
    }
}

fn slot<T: Default>(all: &mut Vec<T>, index: u32) -> Option<&mut T> {
    let index = index as usize;
    if index >= INDEX_MAX {
        return None;
    }
    if all.len() <= index {
        all.resize_with(index + 1, T::default);
    }
    all.get_mut(index)
}
