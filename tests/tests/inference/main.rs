//! Inference: classification, entities and embeddings as JSON and as lines, the dialects of other servers, documents, the batching engine and its faults.

mod classify;
mod dialects;
mod engine;
mod isa;
mod onnxruntime;
mod overload;
mod process;
mod safetensors;
mod scores;
mod vectors;
