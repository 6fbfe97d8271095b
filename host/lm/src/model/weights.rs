//! Reads the weights of a model tensor by tensor and packs them.

use weir_kernels::{Isa, QuantizedMatrix, WeightBlock};

use super::blocks;
use super::error::LoadError;
use super::file::{ModelFile, TensorBytes};
use super::parameters::{Architecture, Parameters};
use crate::gguf::TensorType;

/// All weights.
#[derive(Debug)]
pub(crate) struct Weights {
    /// A column for each token.
    pub(crate) embedding: QuantizedMatrix,
    /// The matrix of the logits; `None` where it is the embedding's.
    head: Option<QuantizedMatrix>,
    pub(crate) norm: Vec<f32>,
    pub(crate) layers: Vec<LayerWeights>,
    /// The divisors of the frequencies of rotary positions.
    pub(super) rotary_divisors: Option<Vec<f32>>,
}

/// The weights of a layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Vec<f32>,
    /// Queries, keys and values. The elements of queries and keys that are rotated together are half of the rotated elements apart.
    pub(crate) projections: [QuantizedMatrix; 3],
    /// Gains of queries and keys, each as long as a head.
    pub(crate) query_key_norms: Option<[Vec<f32>; 2]>,
    pub(crate) output: QuantizedMatrix,
    pub(crate) feed_forward_norm: Vec<f32>,
    pub(crate) gate: QuantizedMatrix,
    pub(crate) up: QuantizedMatrix,
    pub(crate) down: QuantizedMatrix,
}

impl Weights {
    pub(super) fn read(
        isa: Isa,
        parameters: &Parameters,
        tokens: usize,
        file: &mut ModelFile,
    ) -> Result<Self, LoadError> {
        let mut reader = Reader { isa, parameters, file };
        let (embedding, tokens) = (parameters.embedding, tokens as u64);
        let embedding_matrix = reader.matrix("token_embd", embedding, tokens as usize, &|column| column)?;
        let head = if reader.file.has("output.weight") {
            Some(reader.matrix("output", embedding, tokens as usize, &|column| column)?)
        } else {
            None
        };
        let norm = reader.vector("output_norm.weight", embedding)?;
        let pairs = parameters.rope_elements / 2;
        let rotary_divisors =
            if reader.file.has("rope_freqs.weight") { Some(reader.vector("rope_freqs.weight", pairs)?) } else { None };
        let mut layers = Vec::with_capacity(parameters.layers);
        for layer in 0..parameters.layers {
            layers.push(reader.layer(layer)?);
        }
        file.finish()?;
        Ok(Self { embedding: embedding_matrix, head, norm, layers, rotary_divisors })
    }

    pub(crate) fn head(&self) -> &QuantizedMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(crate) fn bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            let matrices = [&layer.output, &layer.gate, &layer.up, &layer.down];
            matrices.into_iter().chain(&layer.projections).map(QuantizedMatrix::bytes).sum::<usize>()
        });
        layers.sum::<usize>() + self.embedding.bytes() + self.head.as_ref().map_or(0, QuantizedMatrix::bytes)
    }
}

struct Reader<'a> {
    isa: Isa,
    parameters: &'a Parameters,
    file: &'a mut ModelFile,
}

impl Reader<'_> {
    fn layer(&mut self, layer: usize) -> Result<LayerWeights, LoadError> {
        let parameters = self.parameters;
        let (embedding, feed_forward) = (parameters.embedding, parameters.feed_forward);
        let (queries, keys) = (parameters.query_elements(), parameters.kv_elements());
        let name = |part: &str| format!("blk.{layer}.{part}");
        let same = |column: usize| column;
        let rotary = |column: usize| rotary_column(parameters, column);
        let projections = [
            self.matrix(&name("attn_q"), embedding, queries, &rotary)?,
            self.matrix(&name("attn_k"), embedding, keys, &rotary)?,
            self.matrix(&name("attn_v"), embedding, keys, &same)?,
        ];
        let query_key_norms = if parameters.architecture == Architecture::Qwen3 {
            let size = parameters.head_size;
            Some([self.vector(&name("attn_q_norm.weight"), size)?, self.vector(&name("attn_k_norm.weight"), size)?])
        } else {
            None
        };
        Ok(LayerWeights {
            attention_norm: self.vector(&name("attn_norm.weight"), embedding)?,
            projections,
            query_key_norms,
            output: self.matrix(&name("attn_output"), queries, embedding, &same)?,
            feed_forward_norm: self.vector(&name("ffn_norm.weight"), embedding)?,
            gate: self.matrix(&name("ffn_gate"), embedding, feed_forward, &same)?,
            up: self.matrix(&name("ffn_up"), embedding, feed_forward, &same)?,
            down: self.matrix(&name("ffn_down"), feed_forward, embedding, &same)?,
        })
    }

    /// Reads a matrix, and its bias if it has one. Column `c` is column `source(c)` of the file.
    fn matrix(
        &mut self,
        name: &str,
        inner: usize,
        columns: usize,
        source: &dyn Fn(usize) -> usize,
    ) -> Result<QuantizedMatrix, LoadError> {
        let weight = format!("{name}.weight");
        let tensor = self.file.read(&weight, &[inner as u64, columns as u64])?;
        let matrix = pack(self.isa, &weight, &tensor, inner, columns, source)?;
        let bias = format!("{name}.bias");
        if !self.file.has(&bias) {
            return Ok(matrix);
        }
        let values = self.vector(&bias, columns)?;
        let values: Vec<f32> = (0..columns).map(|column| values[source(column)]).collect();
        Ok(matrix.with_bias(&values))
    }

    fn vector(&mut self, name: &str, elements: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.file.read(name, &[elements as u64])?;
        let mut values = vec![0.0; elements];
        blocks::decode_row(tensor.ty, tensor.bytes, &mut values);
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err(LoadError::NotFinite { name: name.to_owned() })
    }
}

fn pack(
    isa: Isa,
    name: &str,
    tensor: &TensorBytes<'_>,
    inner: usize,
    columns: usize,
    source: &dyn Fn(usize) -> usize,
) -> Result<QuantizedMatrix, LoadError> {
    let TensorBytes { ty, bytes } = *tensor;
    let row_bytes = row_bytes(ty, inner);
    let factor = blocks::factor(ty, bytes);
    let mut is_finite = true;
    let matrix = QuantizedMatrix::pack(isa, (inner, columns), blocks::form(ty), factor, |column, index| {
        let row = &bytes[source(column) * row_bytes..][..row_bytes];
        let WeightBlock { scale, minimum, values } = blocks::block(ty, row, index);
        is_finite &= scale.is_finite() && minimum.is_finite();
        WeightBlock { scale: scale / factor, minimum: minimum / factor, values }
    });
    if is_finite { Ok(matrix) } else { Err(LoadError::NotFinite { name: name.to_owned() }) }
}

fn row_bytes(ty: TensorType, elements: usize) -> usize {
    elements / ty.block_elements as usize * ty.block_bytes as usize
}

/// The column in the file of a column of queries or keys. In files of `llama`, elements that are rotated together are adjacent; in those
/// of the other architectures they are half of the rotated elements apart, as in the computation.
fn rotary_column(parameters: &Parameters, column: usize) -> usize {
    let (head, element) = (column / parameters.head_size, column % parameters.head_size);
    let pairs = parameters.rope_elements / 2;
    if parameters.architecture != Architecture::Llama || element >= parameters.rope_elements {
        return column;
    }
    head * parameters.head_size + 2 * (element % pairs) + element / pairs
}
