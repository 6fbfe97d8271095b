//! Inference: classification, entities and embeddings as JSON and NDJSON, the dialects of other servers, documents, and the batching engine
//! with its faults.

mod classify;
mod device;
mod dialects;
mod engine;
mod isa;
mod large_requests;
mod onnxruntime;
mod overload;
mod process;
mod safetensors;
mod scores;
mod vectors;
mod websocket;
