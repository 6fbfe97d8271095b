//! The generate component: runs the language models of the host, token by token.
//!
//! Read in this order:
//! - [`tokenizer`]: from texts to tokens and from tokens to bytes, with the vocabulary in the file of a model;
//!   [`sentencepiece`]: the encoder for vocabularies with scores; [`vocabulary`]: which vocabularies are supported;
//!   `minimum`: the fewest tokens that a text can have.
//! - [`template`]: from chats to text, with the template of the model. Templates are untrusted code: they run with fuel
//!   and bounds.
//! - [`escape`]: users' text in a prompt never becomes a control token.
//! - [`constraint`]: schemas, grammars and regular expressions as masks of allowed tokens.
//! - [`tools`]: tools in the prompt, and tool calls in the generated text.
//! - [`model`]: all of these for one model; [`prepare`]: from a request to the tokens and settings of a generation.
//! - [`choice`]: one generated text.
//! - [`settings`]: the settings of the host.
//! - `service`: the interfaces to the host: the streams and the models.
//!
//! `service` exists for wasm32 only; all other modules are pure and tested natively.

/// The generated bindings of the world `generate-service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        world: "generate-service",
        path: "../../wit",
        additional_derives: [PartialEq, Clone],
        generate_all,
    });
}

/// The records of `weir:stream/generate-types`.
pub use bindings::weir::stream::generate_types as types;
pub use bindings::weir::stream::types::Failure;

pub mod choice;
pub mod constraint;
pub mod escape;
mod minimum;
pub mod model;
pub mod prepare;
pub mod sentencepiece;
pub mod settings;
pub mod template;
pub mod tokenizer;
pub mod tools;
pub mod vocabulary;

#[cfg(target_arch = "wasm32")]
mod service;
