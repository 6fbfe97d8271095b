//! Tasks on texts: requests, item by item, their outputs, the dialects of other servers, and the served models.
//!
//! - [`task`]: the tasks and their parameters.
//! - [`request`]: the JSON body and the lines of `/v1/classify`, `/v1/tokens` and `/v1/embed`; [`query`]: the parameters of a stream.
//! - [`output`]: the result of an item; [`item_stream`]: a stream of items, line by line.
//! - [`embeddings`], [`moderation`], [`rerank`]: the same tasks in the dialects of OpenAI's API and text-embeddings-inference.
//! - [`remote`]: a stream of items and the list of models, as a client of another server writes and reads them.
//! - [`hub`], [`tei`]: the dialects of the Hugging Face inference API and of text-embeddings-inference.
//! - [`models`], [`readiness`]: the list of models, and whether the models of the configured steps are served.

pub mod embeddings;
pub mod hub;
pub mod item_stream;
pub mod models;
pub mod moderation;
pub mod output;
pub mod query;
pub mod readiness;
pub mod remote;
pub mod request;
pub mod rerank;
pub mod task;
pub mod tei;
