//! Pipelines on the wire.
//!
//! - [`definition`]: the JSON of a pipeline, strict, with the path of every mistake.
//! - [`definition_file`]: the file of a pipeline, or its fault.
//! - [`text`]: any JSON, checked and put on one line.
//! - [`event`]: the nine events.
//! - [`checkpoint`]: an execution and its definition as bytes, and back.
//! - [`execution_id`]: ids that cannot be guessed.
//! - [`execution`]: what `POST /pipelines/{name}`, `GET /executions/{id}` and `GET /reliability` answer.
//! - [`list_query`]: the query of `GET /executions`.
//! - [`prefer`]: `Prefer: wait`, RFC 7240.
//! - [`upload`]: `POST /upload`, a file as the input of an execution.
//! - [`input`], [`output`]: inputs and outputs of the steps of texts.
//! - [`template`]: the prompt of a step that generates text.
//! - [`route`]: the paths of pipelines and executions.
//! - [`process_request`]: the body of `/process-stream` and `/process-batch`; [`process_stream`]: their pipeline;
//!   [`process_event`]: the events of the one, [`process_batch`]: the response of the other.

pub mod checkpoint;
pub mod definition;
pub mod definition_file;
pub mod event;
pub mod execution;
pub mod execution_id;
pub mod input;
pub mod list_query;
pub mod output;
pub mod prefer;
pub mod process_batch;
pub mod process_event;
pub mod process_request;
pub mod process_stream;
pub mod route;
pub mod template;
pub mod text;
pub mod upload;
mod writer;
