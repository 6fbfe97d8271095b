//! The built-in engine behind `wasi:nn`: encoders of the BERT family on the kernels of `weir-kernels`.
//!
//! It loads `model_packed.onnx` graphs that [`recognize`] knows node by node, and `model.safetensors` files whose `config.json`
//! names an architecture of [`hub`]. Both take several texts end to end. A text's result has the same bits whatever stands beside it in
//! a batch.

mod hub;
mod mapping;
mod network;
mod recognize;
pub(crate) mod safetensors;
mod weights;

use std::path::Path;
use std::sync::Arc;

use weir_kernels::{Isa, Precision, Rows, Scratch, Texts};

use crate::engine::{Backend, BackendContext, BackendGraph, GraphSource, TensorInfo};
use crate::error::{LoadError, NnError};
use crate::fit::{Wide as _, fitting};
use crate::onnx;
use crate::registry::RegistryConfig;
use crate::tensor::Tensor;
use network::{AnyEncoder, From, Readout};

/// The file of weights that the hub has.
pub(crate) const SAFETENSORS: &str = "model.safetensors";

/// The engine.
pub(crate) struct Builtin;

impl Backend for Builtin {
    fn load(&self, source: GraphSource<'_>, config: &RegistryConfig) -> Result<Arc<dyn BackendGraph>, LoadError> {
        let origin = source.origin();
        let isa = Isa::best();
        let unsupported = |reason: String| LoadError::Unsupported { origin: origin.clone(), reason };
        let inner = match source {
            GraphSource::File(file) if is_safetensors(file) => {
                hub::load(file, config, isa, Precision::F32).map_err(unsupported)?
            }
            _ => load_onnx(source, config, isa, Precision::F32)?,
        };
        tracing::debug!(%origin, %isa, hidden = inner.encoder.hidden(), "encoder packed");
        Ok(Arc::new(BuiltinGraph(Arc::new(inner))))
    }
}

fn is_safetensors(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "safetensors")
}

fn load_onnx(
    source: GraphSource<'_>,
    config: &RegistryConfig,
    isa: Isa,
    precision: Precision,
) -> Result<Inner, LoadError> {
    let origin = source.origin();
    let stored = onnx::read_stored(source, config)?;
    let unsupported = |reason: String| LoadError::Unsupported { origin: origin.clone(), reason };
    let graph = stored.model.graph.as_ref().ok_or_else(|| unsupported("has no graph".to_owned()))?;
    let shape = recognize::shape(graph).map_err(|reason| {
        unsupported(format!("is no encoder that the built-in engine knows ({reason}); use the engine tract"))
    })?;
    let loaded = weights::load(graph, &shape, isa, precision).map_err(unsupported)?;
    Ok(Inner {
        inputs: shape.inputs,
        outputs: vec![shape.output],
        parameter_bytes: stored.parameter_bytes,
        encoder: AnyEncoder::Bert(loaded.encoder),
        readout: Readout { from: if shape.pooled { From::PoolInput } else { From::Tokens }, stages: loaded.head },
        types_input: None,
    })
}

/// What the engine takes a model for, by its graph's file: from the structure alone.
///
/// # Errors
/// Why it does not take it.
pub(crate) fn recognize(file: &Path, config: &RegistryConfig) -> Result<String, String> {
    if is_safetensors(file) {
        return hub::recognize(file, config);
    }
    let model = onnx::read_structure(file, config).map_err(|error| error.to_string())?;
    let graph = model.graph.as_ref().ok_or("it has no graph")?;
    let recognize::Shape { layers, hidden, heads, .. } = recognize::shape(graph)?;
    Ok(format!("an encoder of {layers} layers, {hidden} wide, with {heads} heads"))
}

struct Inner {
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    parameter_bytes: u64,
    encoder: AnyEncoder,
    readout: Readout,
    /// Which input has the token types; without one all are 0.
    types_input: Option<usize>,
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
    /// The token types of all texts; empty where all are 0.
    types: Vec<u32>,
    /// The tokens of each text.
    lengths: Vec<usize>,
    /// For each token of the line, its place among `ids`; none for a filler.
    places: Vec<Option<usize>>,
}

impl Batch {
    /// Reads the inputs `input_ids`, `position_ids`, `segment_ids` and perhaps `token_type_ids`, all `[1, tokens]`.
    fn read(infos: &[TensorInfo], types_input: Option<usize>, inputs: &[Tensor]) -> Result<Self, NnError> {
        let line: Vec<u32> = fitting::<u32, i64>(&infos[0], &inputs[0])?;
        let types = types_input.map(|index| fitting::<u32, i64>(&infos[index], &inputs[index])).transpose()?;
        let (positions, segments) = (i64::all(&inputs[1].data), i64::all(&inputs[2].data));
        let mut batch = Self {
            ids: Vec::with_capacity(line.len()),
            types: Vec::new(),
            lengths: Vec::new(),
            places: Vec::with_capacity(line.len()),
        };
        let mut before = FILLER;
        for (index, ((id, position), segment)) in line.iter().zip(positions).zip(segments).enumerate() {
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
            batch.types.extend(types.as_ref().map(|types| types[index]));
        }
        Ok(batch)
    }
}

impl BackendContext for BuiltinContext {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        let Inner { inputs: infos, encoder, readout, types_input, .. } = &*self.graph;
        let batch = Batch::read(infos, *types_input, inputs)?;
        let texts = Texts { ids: &batch.ids, types: &batch.types, lengths: &batch.lengths };
        let states = encoder.states(texts, &mut self.scratch).map_err(|error| NnError::invalid(error.to_string()))?;
        let hidden = encoder.hidden();
        let (rows, mut dimensions) = match readout.from {
            From::PoolInput => {
                let pool = inputs[3].to_f32().ok_or_else(|| NnError::runtime("the pool is not of f32"))?;
                (pooled_states(&pool, states, hidden, &batch), inputs[3].dimensions[..1].to_vec())
            }
            From::Tokens => {
                let mut rows = vec![0.0; batch.places.len() * hidden];
                for (to, place) in rows.chunks_exact_mut(hidden).zip(&batch.places) {
                    if let Some(place) = place {
                        to.copy_from_slice(&states[place * hidden..][..hidden]);
                    }
                }
                (rows, inputs[0].dimensions.clone())
            }
            From::Texts(_) if batch.lengths.is_empty() => {
                return Err(NnError::invalid("there is no text in the batch"));
            }
            From::Texts(pooling) => {
                let mut rows = vec![0.0; batch.lengths.len() * hidden];
                let mut rest = states;
                for (to, tokens) in rows.chunks_exact_mut(hidden).zip(&batch.lengths) {
                    let (text, after) = rest.split_at(tokens * hidden);
                    pooling.pool(text, to);
                    rest = after;
                }
                (rows, vec![batch.lengths.len() as u32])
            }
        };
        let (results, width) = readout.apply(rows, hidden, &mut self.rows);
        dimensions.push(width as u32);
        Ok(vec![Tensor::from_f32(&dimensions, &results)])
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
