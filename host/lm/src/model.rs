//! A model: the parameters and the tokenizer of its file, and its weights, packed for an instruction set.

mod blocks;
mod error;
mod file;
mod parameters;
mod rotary;
mod tokenizer;
mod weights;

use std::path::Path;

use weir_kernels::Isa;

pub use blocks::{decode_row, supported_types};
pub use error::LoadError;
pub use parameters::{Architecture, Parameters};
pub(crate) use rotary::Rotary;
pub use tokenizer::{Tokenizer, TokenizerKind};
pub(crate) use weights::{LayerWeights, Weights};

use file::ModelFile;

/// A loaded model: immutable, shared by all engines and threads.
#[derive(Debug)]
pub struct Model {
    pub(crate) isa: Isa,
    pub(crate) parameters: Parameters,
    pub(crate) weights: Weights,
    pub(crate) rotary: Rotary,
    tokenizer: Tokenizer,
    chat_template: Option<String>,
}

impl Model {
    /// Loads a GGUF file, for the best instruction set of this processor.
    ///
    /// # Errors
    /// If the file cannot be read, breaks the format or a bound, or has an unsupported model.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::load_for(Isa::best(), path)
    }

    /// Loads a GGUF file for an instruction set.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_for(isa: Isa, path: &Path) -> Result<Self, LoadError> {
        let mut file = ModelFile::open(path)?;
        let metadata = &file.header().metadata;
        let parameters = Parameters::read(metadata)?;
        let tokenizer = Tokenizer::read(metadata)?;
        let chat_template = metadata.get("tokenizer.chat_template").and_then(|value| value.as_text());
        let chat_template = chat_template.map(str::to_owned);
        let weights = Weights::read(isa, &parameters, tokenizer.tokens.len(), &mut file)?;
        let rotary = Rotary::new(&parameters, weights.rotary_divisors.as_deref());
        Ok(Self { isa, parameters, weights, rotary, tokenizer, chat_template })
    }

    /// The hyperparameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The tokenizer of the file.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template of its file, in Jinja.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The number of tokens of the vocabulary, which is also the number of logits.
    pub fn vocabulary_tokens(&self) -> u32 {
        self.tokenizer.tokens.len() as u32
    }

    /// The longest sequence, in tokens.
    pub fn context_tokens_max(&self) -> u32 {
        self.parameters.context_tokens
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }
}
