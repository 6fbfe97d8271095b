//! Packs the weights of a recognized graph. External data is mapped and read in place.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use weir_kernels::{
    Activation, Embeddings, Encoder, EncoderConfig, Isa, LayerWeights, Linear, Matrix, Norm, Precision, Table,
    TableRows, Values, Variant,
};

use super::mapping::{MappedIntegers, Mapping, TensorBytes};
use super::network::{HeadActivation, Stage};
use super::recognize::Shape;
use super::safetensors::Dtype;
use crate::structure::External;
use crate::structure::proto::tensor_proto::DataType;
use crate::structure::proto::{GraphProto, TensorProto};
use crate::wording::quoted;

/// The packed weights of a graph.
pub(super) struct PackedModel {
    pub(super) encoder: Encoder,
    /// From a state to scores; empty where the states are the result.
    pub(super) head: Vec<Stage>,
    pub(super) parameter_bytes: u64,
}

/// Packs the weights.
///
/// # Errors
/// When one is missing, of another type, or not of the length that the shape gives it.
pub(super) fn load(
    stored: &GraphTensors<'_>,
    shape: &Shape,
    isa: Isa,
    precision: Precision,
) -> Result<PackedModel, String> {
    let hidden = shape.hidden;
    let scales = stored.f32("embeddings.scales")?;
    let shared = stored.table("embeddings.words", &scales, hidden)?;
    let words = match &shared {
        Some(table) => Table::Shared(table),
        None => Table::I8 { values: stored.i8("embeddings.words")?, scales: &scales },
    };
    let (positions, norm) = (stored.f32("embeddings.positions")?, stored.norm("embeddings.LayerNorm")?);
    let embeddings = Embeddings { words, positions: &positions, types: &[], norm: norm.view() };
    let intermediate = stored.f32("encoder.layer.0.intermediate.dense.bias")?.len();
    let config = EncoderConfig {
        hidden,
        heads: shape.heads,
        intermediate,
        activation: Activation::Gelu,
        epsilon: shape.epsilon,
        first_position: 0,
        // The export folds 1 / sqrt(head size) into the query weights.
        score_factor: 1.0,
    };
    let failed = |error: weir_kernels::EncoderError| error.to_string();
    let mut encoder = Encoder::without_layers(isa, config, &embeddings, Variant::default()).map_err(failed)?;
    for layer in 0..shape.layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let linear = |part: &str| stored.linear(&name(part));
        let (query, key) = (linear("attention.self.query")?, linear("attention.self.key")?);
        let (value, attention_output) = (linear("attention.self.value")?, linear("attention.output.dense")?);
        let (wide, output) = (linear("intermediate.dense")?, linear("output.dense")?);
        let attention_norm = stored.norm(&name("attention.output.LayerNorm"))?;
        let output_norm = stored.norm(&name("output.LayerNorm"))?;
        let weights = LayerWeights {
            query: query.view(),
            key: key.view(),
            value: value.view(),
            attention_output: attention_output.view(),
            attention_norm: attention_norm.view(),
            intermediate: wide.view(),
            output: output.view(),
            output_norm: output_norm.view(),
        };
        encoder.push_layer(precision, &weights, None).map_err(failed)?;
    }
    let head = shape.has_head.then(|| {
        let (values, bias) = (stored.f32("head.weight")?, stored.f32("head.bias")?);
        if bias.is_empty() || values.len() != hidden * bias.len() {
            return Err(format!("head.weight has {} elements for {} labels", values.len(), bias.len()));
        }
        let matrix = Matrix::pack(isa, Precision::F32, hidden, &[(Values::F32(&values), &bias)]);
        Ok(Stage::Linear { matrix, activation: HeadActivation::None })
    });
    let head = head.transpose()?.into_iter().collect();
    Ok(PackedModel { encoder, head, parameter_bytes: stored.parameter_bytes })
}

/// The tensors of a graph by name.
pub(super) struct GraphTensors<'a> {
    tensors: HashMap<&'a str, Data<'a>>,
    parameter_bytes: u64,
}

/// A tensor's bytes.
struct Data<'a> {
    data_type: i32,
    bytes: Bytes<'a>,
}

enum Bytes<'a> {
    Inline(&'a [u8]),
    Mapped(Arc<Mapping>, Range<usize>),
}

impl Data<'_> {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Inline(bytes) => bytes,
            Bytes::Mapped(mapping, range) => &mapping[range.clone()],
        }
    }
}

/// A linear layer with weights in i8.
struct IntegerLinear<'a> {
    values: &'a [i8],
    scales: Cow<'a, [f32]>,
    bias: Cow<'a, [f32]>,
}

impl IntegerLinear<'_> {
    fn view(&self) -> Linear<'_> {
        Linear { values: Values::I8 { values: self.values, scales: &self.scales }, bias: &self.bias }
    }
}

struct StoredNorm<'a> {
    gain: Cow<'a, [f32]>,
    bias: Cow<'a, [f32]>,
}

impl StoredNorm<'_> {
    fn view(&self) -> Norm<'_> {
        Norm { gain: &self.gain, bias: &self.bias }
    }
}

impl<'a> GraphTensors<'a> {
    /// Locates the data of all tensors and maps external data, which is in `directory`.
    pub(super) fn read(graph: &'a GraphProto, directory: Option<&Path>, bytes_max: u64) -> Result<Self, String> {
        let mut stored = Self { tensors: HashMap::new(), parameter_bytes: 0 };
        for tensor in &graph.initializer {
            let TensorProto { name, data_type, raw_data, .. } = tensor;
            let bytes = match External::of(tensor)? {
                None => Bytes::Inline(raw_data),
                Some(external) => {
                    let directory = directory.ok_or("a graph passed as bytes cannot have external data")?;
                    let mapping = Mapping::open(&directory.join(&external.location), bytes_max);
                    let mapping = mapping.map_err(|error| error.to_string())?;
                    let range = external_range(&external, &mapping).ok_or_else(|| {
                        let (location, bytes) = (&external.location, mapping.len());
                        format!(
                            "external data {location} has {bytes} bytes but tensor {name} takes more",
                            location = quoted(&location),
                            name = quoted(&name)
                        )
                    })?;
                    Bytes::Mapped(mapping, range)
                }
            };
            let data = Data { data_type: *data_type, bytes };
            stored.parameter_bytes = stored.parameter_bytes.saturating_add(data.bytes().len() as u64);
            if stored.parameter_bytes > bytes_max {
                return Err(format!("its weights have more than {bytes_max} bytes"));
            }
            stored.tensors.insert(name, data);
        }
        Ok(stored)
    }

    fn bytes(&self, name: &str, data_type: DataType, kind: &str) -> Result<&[u8], String> {
        let data = self.tensors.get(name).filter(|data| data.data_type == data_type as i32);
        data.map(Data::bytes).ok_or_else(|| format!("there is no {kind} tensor {name}"))
    }

    fn f32(&self, name: &str) -> Result<Cow<'_, [f32]>, String> {
        let bytes = self.bytes(name, DataType::Float, "f32")?;
        if !bytes.len().is_multiple_of(size_of::<f32>()) {
            return Err(format!("{name} is cut short"));
        }
        TensorBytes { dtype: Dtype::F32, bytes }.f32()
    }

    fn i8(&self, name: &str) -> Result<&[i8], String> {
        let bytes = self.bytes(name, DataType::Int8, "i8")?;
        // SAFETY: u8 and i8 have the same size and alignment, and every bit pattern is valid.
        let (_, integers, _) = unsafe { bytes.align_to::<i8>() };
        Ok(integers)
    }

    /// A table of i8 in mapped external data; `None` when it is stored in the graph.
    fn table(&self, name: &str, scales: &[f32], width: usize) -> Result<Option<Arc<dyn TableRows>>, String> {
        self.i8(name)?;
        match self.tensors.get(name).map(|data| &data.bytes) {
            Some(Bytes::Mapped(mapping, range)) => {
                let table = MappedIntegers::new(mapping.clone(), range.clone(), scales.to_vec(), width);
                Ok(Some(Arc::new(table.map_err(|reason| format!("{name}: {reason}"))?)))
            }
            _ => Ok(None),
        }
    }

    fn linear(&self, name: &str) -> Result<IntegerLinear<'_>, String> {
        Ok(IntegerLinear {
            values: self.i8(&format!("{name}.weight"))?,
            scales: self.f32(&format!("{name}.scale"))?,
            bias: self.f32(&format!("{name}.bias"))?,
        })
    }

    fn norm(&self, name: &str) -> Result<StoredNorm<'_>, String> {
        Ok(StoredNorm { gain: self.f32(&format!("{name}.weight"))?, bias: self.f32(&format!("{name}.bias"))? })
    }

    /// Releases the pages that were read: the packed weights replace them.
    pub(super) fn release(&self) {
        for data in self.tensors.values() {
            if let Bytes::Mapped(mapping, _) = &data.bytes {
                mapping.release();
            }
        }
    }
}

/// The byte range of a tensor; `None` when it is outside of the file.
fn external_range(external: &External, mapping: &Mapping) -> Option<Range<usize>> {
    let begin = usize::try_from(external.offset).ok().filter(|begin| *begin <= mapping.len())?;
    let length = match external.length {
        Some(length) => usize::try_from(length).ok()?,
        None => mapping.len() - begin,
    };
    begin.checked_add(length).filter(|end| *end <= mapping.len()).map(|end| begin..end)
}
