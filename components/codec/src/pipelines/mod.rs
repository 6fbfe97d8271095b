//! Pipelines on the wire.
//!
//! - [`definition`]: the JSON of a pipeline; strict, errors have paths.
//! - [`definition_file`]: the file of a pipeline, and the errors in it.
//! - [`text`]: any JSON value, checked and written on one line.
//! - [`event`]: the nine events of executions.
//! - [`checkpoint`]: encodes and decodes an execution with its definition.
//! - [`execution_id`]: ids that cannot be guessed.
//! - [`execution`]: the response bodies of `POST /pipelines/{name}`, `GET /executions/{id}` and `GET /reliability`.
//! - [`list_query`]: the query of `GET /executions`.
//! - [`upload`]: `POST /upload`, a file as the input of an execution.
//! - [`input`], [`output`]: inputs and outputs of the steps on texts.
//! - [`template`]: the prompt of a step that generates text.
//! - [`route`]: the paths of pipelines and executions.
//! - [`process_request`]: the body of `/process-stream` and `/process-batch`; [`process_stream`]: their pipeline;
//!   [`process_event`]: the events of `/process-stream`; [`process_batch`]: the response of `/process-batch`.

pub mod checkpoint;
pub mod definition;
pub mod definition_file;
pub mod event;
pub mod execution;
pub mod execution_id;
pub mod input;
pub mod list_query;
pub mod output;
pub mod process_batch;
pub mod process_event;
pub mod process_request;
pub mod process_stream;
pub mod route;
pub mod template;
pub mod text;
pub mod upload;
mod writer;
