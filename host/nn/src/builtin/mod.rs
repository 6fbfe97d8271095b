//! The built-in engine behind `wasi:nn`: encoders of the BERT family on the kernels of `weir-kernels`.
//!
//! It loads `model_packed.onnx` graphs that [`recognize`] knows node by node, and `model.safetensors` files whose `config.json`
//! names an architecture of [`hub`], or several such files with an index. Both take several texts end to end. A text's result has the same bits in every batch.

#[cfg(target_arch = "wasm32")]
mod file_in_memory;
mod hub;
#[cfg(not(target_arch = "wasm32"))]
mod mapped_file;
mod mapping;
mod model;
mod network;
mod recognize;
pub(crate) mod safetensors;
pub(crate) mod shards;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_kernels::{Isa, Rows, Scratch, Texts};

use crate::config::RegistryConfig;
use crate::engine::{
    Backend, BackendContext, BackendGraph, GraphInfo, GraphOptions, GraphSource, Precision, TensorInfo,
};
use crate::error::{LoadError, NnError};
use crate::fit::{TensorInteger as _, fitting};
use crate::structure;
use crate::tensor::Tensor;
use model::EncoderModel;
use network::{AnyEncoder, Readout, RowSelection};
use weights::GraphTensors;

/// The file of weights in the layout of the Hugging Face hub.
pub(crate) const SAFETENSORS: &str = "model.safetensors";
/// The index of weights that are in several files.
pub(crate) const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";

/// What to do with a graph that this engine does not know.
const OTHER_ENGINE: &str = if cfg!(target_arch = "wasm32") { "" } else { "; use the engine tract" };

/// The engine `builtin`.
pub(crate) struct Builtin;

impl Backend for Builtin {
    fn load(
        &self,
        source: GraphSource<'_>,
        options: GraphOptions,
        config: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError> {
        let origin = source.origin();
        let precision = options.precision.unwrap_or_default();
        let isa = config.isa;
        let unsupported = |reason: String| LoadError::Unsupported { origin: origin.clone(), reason };
        let inner = match source {
            GraphSource::File(file) if is_safetensors(file) => {
                hub::load(file, config, isa, kernel_precision(precision)).map_err(unsupported)?
            }
            _ => load_onnx(source, config, isa, kernel_precision(precision))?,
        };
        tracing::debug!(%origin, %isa, %precision, hidden = inner.encoder.hidden(), "encoder packed");
        Ok(Arc::new(BuiltinGraph(Arc::new(inner))))
    }
}

fn is_safetensors(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "safetensors") || shards::is_index(file)
}

/// The weights in the layout of the hub in a model's directory: one file, or the index of several.
pub(crate) fn safetensors_file(dir: &Path) -> Option<PathBuf> {
    [SAFETENSORS, SAFETENSORS_INDEX].into_iter().map(|name| dir.join(name)).find(|file| file.is_file())
}

fn load_onnx(
    source: GraphSource<'_>,
    config: &RegistryConfig,
    isa: Isa,
    precision: weir_kernels::Precision,
) -> Result<EncoderModel, LoadError> {
    let origin = source.origin();
    let unsupported = |reason: String| LoadError::Unsupported { origin: origin.clone(), reason };
    let (model, directory) = match source {
        GraphSource::File(file) => (structure::read(file, config)?, file.parent()),
        GraphSource::Bytes(content) => (structure::parse(content, &origin)?, None),
    };
    let graph = model.graph.as_ref().ok_or_else(|| unsupported("has no graph".to_owned()))?;
    let shape = recognize::shape(graph).map_err(|reason| {
        unsupported(format!("is no encoder that the built-in engine knows ({reason}){OTHER_ENGINE}"))
    })?;
    let stored = GraphTensors::read(graph, directory, config.graph_bytes_max).map_err(unsupported)?;
    let loaded = weights::load(&stored, &shape, isa, precision).map_err(unsupported)?;
    stored.release();
    Ok(EncoderModel {
        info: GraphInfo { inputs: shape.inputs, outputs: vec![shape.output], parameter_bytes: loaded.parameter_bytes },
        encoder: AnyEncoder::Bert(Box::new(loaded.encoder)),
        readout: Readout {
            from: if shape.pooled { RowSelection::PoolInput } else { RowSelection::Tokens },
            stages: loaded.head,
        },
        types_input: None,
    })
}

fn kernel_precision(precision: Precision) -> weir_kernels::Precision {
    match precision {
        Precision::F32 => weir_kernels::Precision::F32,
        Precision::Bf16 => weir_kernels::Precision::Bf16,
        Precision::Int8 => weir_kernels::Precision::Int8,
    }
}

/// A model that the engine can load.
pub(crate) struct RecognizedModel {
    /// The encoder, in one clause.
    pub(crate) description: String,
    /// A classifier whose weights are stored in int8: int8 products then lose only the rounding of activations.
    is_int8_classifier: bool,
}

impl RecognizedModel {
    /// The default precision, and why.
    pub(crate) fn precision(&self, isa: Isa) -> (Precision, String) {
        match (self.is_int8_classifier, isa.has_bf16_products()) {
            (true, _) => (Precision::Int8, "a classifier with int8 weights".to_owned()),
            (false, true) => (Precision::Bf16, format!("{isa} multiplies bf16")),
            (false, false) => (Precision::F32, format!("{isa} does not multiply bf16")),
        }
    }
}

/// The folders of a model's modules beside its weights, for a model in a supported configuration.
///
/// # Errors
/// Why the engine does not take the model.
pub(crate) fn module_paths(dir: &Path) -> Result<Vec<String>, String> {
    hub::module_paths(dir)
}

/// Recognizes a model by its graph's file, from the structure alone.
///
/// # Errors
/// Why the engine does not take it.
pub(crate) fn recognize(file: &Path, config: &RegistryConfig) -> Result<RecognizedModel, String> {
    if is_safetensors(file) {
        return Ok(RecognizedModel { description: hub::recognize(file, config)?, is_int8_classifier: false });
    }
    let model = structure::read(file, config).map_err(|error| error.to_string())?;
    let graph = model.graph.as_ref().ok_or("it has no graph")?;
    let recognize::Shape { layers, hidden, heads, has_head, .. } = recognize::shape(graph)?;
    Ok(RecognizedModel {
        description: format!("an encoder of {layers} layers, {hidden} wide, {heads} heads"),
        is_int8_classifier: has_head,
    })
}

struct BuiltinGraph(Arc<EncoderModel>);

impl BackendGraph for BuiltinGraph {
    fn info(&self) -> &GraphInfo {
        &self.0.info
    }

    fn context(&self) -> Result<Box<dyn BackendContext>, NnError> {
        Ok(Box::new(BuiltinContext { graph: self.0.clone(), scratch: Scratch::default(), rows: Rows::default() }))
    }
}

/// The execution context of one caller, with scratch memory for its largest batch.
struct BuiltinContext {
    graph: Arc<EncoderModel>,
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
    /// For each token of the line, its index in `ids`; `None` for a filler.
    indices: Vec<Option<usize>>,
}

impl Batch {
    /// Reads the inputs `input_ids`, `position_ids`, `segment_ids` and, where the model has it, `token_type_ids`, all `[1, tokens]`.
    fn read(infos: &[TensorInfo], types_input: Option<usize>, inputs: &[Tensor]) -> Result<Self, NnError> {
        let line: Vec<u32> = fitting::<u32, i64>(&infos[0], &inputs[0])?;
        let types = types_input.map(|index| fitting::<u32, i64>(&infos[index], &inputs[index])).transpose()?;
        let (positions, segments) = (i64::all(&inputs[1].data), i64::all(&inputs[2].data));
        let mut batch = Self {
            ids: Vec::with_capacity(line.len()),
            types: Vec::new(),
            lengths: Vec::new(),
            indices: Vec::with_capacity(line.len()),
        };
        let mut before = FILLER;
        for (index, ((id, position), segment)) in line.iter().zip(positions).zip(segments).enumerate() {
            if segment == FILLER {
                batch.indices.push(None);
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
            batch.indices.push(Some(batch.ids.len()));
            batch.ids.push(*id);
            batch.types.extend(types.as_ref().map(|types| types[index]));
        }
        Ok(batch)
    }
}

impl BackendContext for BuiltinContext {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        let EncoderModel { info, encoder, readout, types_input } = &*self.graph;
        let batch = Batch::read(&info.inputs, *types_input, inputs)?;
        let texts = Texts { ids: &batch.ids, types: &batch.types, lengths: &batch.lengths };
        let states = encoder.states(texts, &mut self.scratch).map_err(|error| NnError::invalid(error.to_string()))?;
        let hidden = encoder.hidden();
        let (rows, mut dimensions) = match readout.from {
            RowSelection::PoolInput => {
                let pool = inputs[3].to_f32().ok_or_else(|| NnError::runtime("the pool is not of f32"))?;
                (pooled_states(&pool, states, hidden, &batch), inputs[3].dimensions[..1].to_vec())
            }
            RowSelection::Tokens => {
                let mut rows = vec![0.0; batch.indices.len() * hidden];
                for (to, index) in rows.chunks_exact_mut(hidden).zip(&batch.indices) {
                    if let Some(index) = index {
                        to.copy_from_slice(&states[index * hidden..][..hidden]);
                    }
                }
                (rows, inputs[0].dimensions.clone())
            }
            RowSelection::Texts(_) if batch.lengths.is_empty() => {
                return Err(NnError::invalid("there is no text in the batch"));
            }
            RowSelection::Texts(pooling) => {
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

/// `pool · states`, `[texts, hidden]`: tokens of weight 0 are skipped, so that a row's sum depends only on its own text.
fn pooled_states(pool: &[f32], states: &[f32], hidden: usize, batch: &Batch) -> Vec<f32> {
    let tokens = batch.indices.len();
    let mut results = vec![0.0; pool.len() / tokens * hidden];
    for (result, weights) in results.chunks_exact_mut(hidden).zip(pool.chunks_exact(tokens)) {
        let weighted = weights.iter().zip(&batch.indices).filter(|(weight, _)| **weight != 0.0);
        for (weight, index) in weighted.filter_map(|(weight, index)| Some((*weight, (*index)?))) {
            let state = &states[index * hidden..][..hidden];
            result.iter_mut().zip(state).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    results
}
