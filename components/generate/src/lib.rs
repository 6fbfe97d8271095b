//! The generate component: runs the language models of the host, token by token.
//!
//! Read in this order:
//! - [`tokenizer`]: texts into tokens and tokens into bytes, built from what the file of a model says.
//! - [`template`]: chats into text, by the template of the model, which is code of others: it has fuel and bounds.
//! - [`escape`]: text of users inside a prompt never becomes a control token.
//! - [`constraint`]: schemas, grammars and regular expressions as masks of allowed tokens.
//! - [`tools`]: tools in the prompt, and their calls in what is generated.
//! - [`model`]: all of it for one model; [`prepare`]: a request as the tokens and settings of a generation.
//! - [`choice`]: one text that is generated.
//! - `service`: the parts that touch the world: the streams, the host's models.
//!
//! All but the last line is pure and tested natively; the last exists for wasm32 only.

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
pub mod model;
pub mod prepare;
pub mod sentencepiece;
pub mod settings;
pub mod template;
pub mod tokenizer;
pub mod tools;

#[cfg(target_arch = "wasm32")]
mod service;
