//! The built-in engine behind `wasi:nn`: encoders of the BERT family on the kernels of `weir-kernels`.
//!
//! It runs graphs that [`recognize`] knows node by node: several texts end to end, one result for each text or token. The graph gives
//! the weights and their meaning; nothing of it is interpreted when it runs. A text's result has the same bits whatever
//! stands beside it in a batch.

mod recognize;
mod weights;

use std::path::Path;
use std::sync::Arc;

use weir_kernels::{Encoder, Epilogue, Isa, Matrix, Precision, Rows, Scratch, Texts};

use crate::engine::{Backend, BackendContext, BackendGraph, GraphSource, TensorInfo};
use crate::error::{LoadError, NnError};
use crate::fit::{Wide as _, fitting};
use crate::onnx;
use crate::registry::RegistryConfig;
use crate::tensor::Tensor;

/// The engine.
pub(crate) struct Builtin;

impl Backend for Builtin {
    fn load(&self, source: GraphSource<'_>, config: &RegistryConfig) -> Result<Arc<dyn BackendGraph>, LoadError> {
        let origin = source.origin();
        let stored = onnx::read_stored(source, config)?;
        let unsupported = |reason: String| LoadError::Unsupported { origin: origin.clone(), reason };
        let graph = stored.model.graph.as_ref().ok_or_else(|| unsupported("has no graph".to_owned()))?;
        let shape = recognize::shape(graph).map_err(|reason| {
            unsupported(format!("is no encoder that the built-in engine knows ({reason}); use the engine tract"))
        })?;
        let isa = Isa::best();
        let loaded = weights::load(graph, &shape, isa, Precision::F32).map_err(unsupported)?;
        tracing::debug!(%origin, %isa, layers = shape.layers, hidden = shape.hidden, "encoder packed");
        Ok(Arc::new(BuiltinGraph(Arc::new(Inner {
            inputs: shape.inputs,
            outputs: vec![shape.output],
            parameter_bytes: stored.parameter_bytes,
            encoder: loaded.encoder,
            head: loaded.head,
            pooled: shape.pooled,
        }))))
    }
}

/// What the engine takes a graph for, from its structure alone.
///
/// # Errors
/// Why it does not take it.
pub(crate) fn recognize(file: &Path, config: &RegistryConfig) -> Result<String, String> {
    let model = onnx::read_structure(file, config).map_err(|error| error.to_string())?;
    let graph = model.graph.as_ref().ok_or("it has no graph")?;
    let recognize::Shape { layers, hidden, heads, .. } = recognize::shape(graph)?;
    Ok(format!("an encoder of {layers} layers, {hidden} wide, with {heads} heads"))
}

struct Inner {
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    parameter_bytes: u64,
    encoder: Encoder,
    /// The linear layer from a state to scores; none where the states are the result.
    head: Option<Matrix>,
    /// One result for each row of the input `pool`, or one for each token.
    pooled: bool,
}

struct BuiltinGraph(Arc<Inner>);

impl BackendGraph for BuiltinGraph {
    fn inputs(&self) -> &[TensorInfo] {
        &self.0.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.0.outputs
    }

    fn parameter_bytes(&self) -> u64 {
        self.0.parameter_bytes
    }

    fn context(&self) -> Result<Box<dyn BackendContext>, NnError> {
        Ok(Box::new(BuiltinContext { graph: self.0.clone(), scratch: Scratch::default(), rows: Rows::default() }))
    }
}

/// What one caller computes with: the memory of its largest batch.
struct BuiltinContext {
    graph: Arc<Inner>,
    scratch: Scratch,
    rows: Rows,
}

/// The segment of tokens that belong to no text.
const FILLER: i64 = -1;

/// The texts of a packed batch.
struct Batch {
    /// The ids of all texts, without fillers.
    ids: Vec<u32>,
    /// The tokens of each text.
    lengths: Vec<usize>,
    /// For each token of the line, its place among `ids`; none for a filler.
    places: Vec<Option<usize>>,
}

impl Batch {
    /// Reads the inputs `input_ids`, `position_ids` and `segment_ids`, all `[1, tokens]`.
    fn read(infos: &[TensorInfo], inputs: &[Tensor]) -> Result<Self, NnError> {
        let line: Vec<u32> = fitting::<u32, i64>(&infos[0], &inputs[0])?;
        let (positions, segments) = (i64::all(&inputs[1].data), i64::all(&inputs[2].data));
        let mut batch = Self { ids: Vec::with_capacity(line.len()), lengths: Vec::new(), places: Vec::new() };
        let mut before = FILLER;
        for ((id, position), segment) in line.iter().zip(positions).zip(segments) {
            if segment == FILLER {
                batch.places.push(None);
                before = FILLER;
                continue;
            }
            if segment != before {
                batch.lengths.push(0);
                before = segment;
            }
            let tokens = batch.lengths.last_mut().ok_or_else(|| NnError::runtime("a token without a text"))?;
            if position != *tokens as i64 {
                return Err(NnError::invalid(format!(
                    "position_ids must count the tokens of each segment from 0; segment {segment} has {position} where {tokens} is expected"
                )));
            }
            *tokens += 1;
            batch.places.push(Some(batch.ids.len()));
            batch.ids.push(*id);
        }
        Ok(batch)
    }
}

impl BackendContext for BuiltinContext {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        let Inner { inputs: infos, encoder, head, pooled, .. } = &*self.graph;
        let batch = Batch::read(infos, inputs)?;
        let texts = Texts { ids: &batch.ids, types: &[], lengths: &batch.lengths };
        let states = encoder.states(texts, &mut self.scratch).map_err(|error| NnError::invalid(error.to_string()))?;
        let hidden = encoder.config().hidden;
        let (results, mut dimensions) = if *pooled {
            let pool = inputs[3].to_f32().ok_or_else(|| NnError::runtime("the pool is not of f32"))?;
            (pooled_states(&pool, states, hidden, &batch), inputs[3].dimensions[..1].to_vec())
        } else {
            let mut results = vec![0.0; batch.places.len() * hidden];
            for (to, place) in results.chunks_exact_mut(hidden).zip(&batch.places) {
                if let Some(place) = place {
                    to.copy_from_slice(&states[place * hidden..][..hidden]);
                }
            }
            (results, inputs[0].dimensions.clone())
        };
        let Some(head) = head else {
            dimensions.push(hidden as u32);
            return Ok(vec![Tensor::from_f32(&dimensions, &results)]);
        };
        let mut scores = vec![0.0; results.len() / hidden * head.columns()];
        head.multiply(&results, Epilogue::Store, &mut scores, &mut self.rows);
        dimensions.push(head.columns() as u32);
        Ok(vec![Tensor::from_f32(&dimensions, &scores)])
    }
}

/// `pool · states`, `[texts, hidden]`: only tokens with a weight count, so that a row's sum depends on its own text alone.
fn pooled_states(pool: &[f32], states: &[f32], hidden: usize, batch: &Batch) -> Vec<f32> {
    let tokens = batch.places.len();
    let mut results = vec![0.0; pool.len() / tokens * hidden];
    for (result, weights) in results.chunks_exact_mut(hidden).zip(pool.chunks_exact(tokens)) {
        let weighted = weights.iter().zip(&batch.places).filter(|(weight, _)| **weight != 0.0);
        for (weight, place) in weighted.filter_map(|(weight, place)| Some((*weight, (*place)?))) {
            let state = &states[place * hidden..][..hidden];
            result.iter_mut().zip(state).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    results
}
