//! The weights of a recognized graph, packed.

use std::collections::HashMap;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, TensorProto};
use weir_kernels::{
    Activation, Embeddings, Encoder, EncoderConfig, EncoderWeights, Isa, LayerWeights, Linear, Matrix, Norm, Precision,
    Table, Values,
};

use super::network::{HeadActivation, Stage};
use super::recognize::Shape;

/// What computes a graph.
pub(super) struct Loaded {
    pub(super) encoder: Encoder,
    /// From a state to scores; empty where the states are the result.
    pub(super) head: Vec<Stage>,
}

/// Packs the weights.
///
/// # Errors
/// When one is missing, of another type, or not of the length that the shape gives it.
pub(super) fn load(graph: &GraphProto, shape: &Shape, isa: Isa, precision: Precision) -> Result<Loaded, String> {
    let stored = Stored::read(graph)?;
    let embeddings = Embeddings {
        words: Table::I8 { values: stored.i8("embeddings.words")?, scales: stored.f32("embeddings.scales")? },
        positions: stored.f32("embeddings.positions")?,
        types: &[],
        norm: stored.norm("embeddings.LayerNorm")?,
    };
    let layers = (0..shape.layers).map(|layer| {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let linear = |part: &str| stored.linear(&name(part));
        Ok(LayerWeights {
            query: linear("attention.self.query")?,
            key: linear("attention.self.key")?,
            value: linear("attention.self.value")?,
            attention_output: linear("attention.output.dense")?,
            attention_norm: stored.norm(&name("attention.output.LayerNorm"))?,
            intermediate: linear("intermediate.dense")?,
            output: linear("output.dense")?,
            output_norm: stored.norm(&name("output.LayerNorm"))?,
        })
    });
    let layers: Vec<LayerWeights<'_>> = layers.collect::<Result<_, String>>()?;
    let config = EncoderConfig {
        hidden: shape.hidden,
        heads: shape.heads,
        intermediate: layers.first().map_or(0, |layer| layer.intermediate.bias.len()),
        activation: Activation::Gelu,
        epsilon: shape.epsilon,
        first_position: 0,
        // The export folds 1 / sqrt(head size) into the query weights.
        score_factor: 1.0,
    };
    let weights = EncoderWeights { embeddings, layers };
    let encoder = Encoder::new(isa, precision, config, &weights).map_err(|error| error.to_string())?;
    let head = shape.has_head.then(|| {
        let (values, bias) = (stored.f32("head.weight")?, stored.f32("head.bias")?);
        if bias.is_empty() || values.len() != shape.hidden * bias.len() {
            return Err(format!("head.weight has {} elements for {} labels", values.len(), bias.len()));
        }
        let matrix = Matrix::pack(isa, Precision::F32, shape.hidden, &[(Values::F32(values), bias)]);
        Ok(Stage::Linear { matrix, activation: HeadActivation::None })
    });
    Ok(Loaded { encoder, head: head.transpose()?.into_iter().collect() })
}

/// The tensors of a graph by name.
struct Stored {
    floats: HashMap<String, Vec<f32>>,
    integers: HashMap<String, Vec<i8>>,
}

impl Stored {
    fn read(graph: &GraphProto) -> Result<Self, String> {
        let (mut floats, mut integers) = (HashMap::new(), HashMap::new());
        for TensorProto { name, data_type, raw_data, .. } in &graph.initializer {
            if *data_type == DataType::Float as i32 {
                let (words, rest) = raw_data.as_chunks();
                if !rest.is_empty() {
                    return Err(format!("{name} is cut short"));
                }
                floats.insert(name.clone(), words.iter().map(|word| f32::from_le_bytes(*word)).collect());
            } else if *data_type == DataType::Int8 as i32 {
                integers.insert(name.clone(), raw_data.iter().map(|byte| *byte as i8).collect());
            }
        }
        Ok(Self { floats, integers })
    }

    fn f32(&self, name: &str) -> Result<&[f32], String> {
        self.floats.get(name).map(Vec::as_slice).ok_or_else(|| format!("there is no f32 tensor {name}"))
    }

    fn i8(&self, name: &str) -> Result<&[i8], String> {
        self.integers.get(name).map(Vec::as_slice).ok_or_else(|| format!("there is no i8 tensor {name}"))
    }

    fn linear(&self, name: &str) -> Result<Linear<'_>, String> {
        let values =
            Values::I8 { values: self.i8(&format!("{name}.weight"))?, scales: self.f32(&format!("{name}.scale"))? };
        Ok(Linear { values, bias: self.f32(&format!("{name}.bias"))? })
    }

    fn norm(&self, name: &str) -> Result<Norm<'_>, String> {
        Ok(Norm { gain: self.f32(&format!("{name}.weight"))?, bias: self.f32(&format!("{name}.bias"))? })
    }
}
