//! Sampling a token from logits.
//!
//! The order: biases, repetition penalty, presence and frequency penalties, allowed tokens, temperature, `top_k`, `top_p` of the
//! remaining tokens, `min_p`. Log probabilities are computed from the logits before any of these.

mod draw;
mod random;
mod select;

pub(crate) use draw::{Context, Outcome, Scratch, sample};

/// How tokens of a sequence are sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    /// 0 selects the most likely token.
    pub temperature: f32,
    /// The number of most likely tokens that are considered; 0 for all.
    pub top_k: u32,
    /// Considers only the most likely tokens whose probabilities add up to this; 1 for all.
    pub top_p: f32,
    /// Considers only tokens with at least this share of the probability of the most likely one; 0 for all.
    pub min_p: f32,
    /// Divides positive logits and multiplies negative ones of tokens that occurred among the last `penalty_tokens`; 1 for no penalty.
    pub repeat_penalty: f32,
    /// Subtracted once from the logit of a token that was generated.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time that it was generated.
    pub frequency_penalty: f32,
    /// The number of last tokens that `repeat_penalty` applies to, the prompt included.
    pub penalty_tokens: u32,
    /// Added to the logits of tokens.
    pub biases: Vec<(u32, f32)>,
    /// The seed.
    pub seed: u64,
}

impl Default for Sampler {
    /// The most likely token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_tokens: 0,
            biases: Vec::new(),
            seed: 0,
        }
    }
}

/// An invalid value of a sampler.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// A number out of its range.
    #[error("{name} is {value}; {least} to {greatest} are allowed")]
    OutOfRange {
        /// Its name.
        name: &'static str,
        /// As given.
        value: f32,
        /// The lower bound.
        least: f32,
        /// The upper bound.
        greatest: f32,
    },
    /// More biases than the bound.
    #[error("{count} biases are given; at most {count_max} are allowed")]
    TooManyBiases {
        /// As given.
        count: usize,
        /// The bound.
        count_max: usize,
    },
    /// A bias of a token that does not exist.
    #[error("a bias is given for the token {token}; there are {tokens} tokens")]
    UnknownToken {
        /// As given.
        token: u32,
        /// The tokens of the vocabulary.
        tokens: u32,
    },
}

/// The most biases of a sampler.
const BIASES_MAX: usize = 4096;

impl Sampler {
    /// Checks every value, for a vocabulary of `tokens`.
    ///
    /// # Errors
    /// The first value that is out of its range.
    pub fn check(&self, tokens: u32) -> Result<(), SamplerError> {
        let in_range = |name, value: f32, least: f32, greatest: f32| {
            if (least..=greatest).contains(&value) {
                Ok(())
            } else {
                Err(SamplerError::OutOfRange { name, value, least, greatest })
            }
        };
        in_range("temperature", self.temperature, 0.0, 100.0)?;
        in_range("top_p", self.top_p, 0.0, 1.0)?;
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("repeat_penalty", self.repeat_penalty, 0.01, 100.0)?;
        in_range("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        if self.biases.len() > BIASES_MAX {
            return Err(SamplerError::TooManyBiases { count: self.biases.len(), count_max: BIASES_MAX });
        }
        for (token, bias) in &self.biases {
            if *token >= tokens {
                return Err(SamplerError::UnknownToken { token: *token, tokens });
            }
            in_range("a bias", *bias, -1e6, 1e6)?;
        }
        Ok(())
    }
}
