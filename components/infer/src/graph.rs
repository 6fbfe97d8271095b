//! The graph of a model in `wasi:nn`: computes batches of sequences.
//!
//! `wasi:nn` does not list the inputs of a graph, so the usual combinations are tried when a graph is loaded, and the
//! first one that works is used.

use crate::bindings::wasi::nn::errors::{Error as NnError, ErrorCode};
use crate::bindings::wasi::nn::graph::load_by_name;
use crate::bindings::wasi::nn::inference::GraphExecutionContext;
use crate::bindings::wasi::nn::tensor::{Tensor, TensorType};
use crate::job::{ModelFiles, RowOutput};
use crate::tokenize::Sequence;
use crate::types::ModelKind;
use std::ops::Range;
use thiserror::Error;
use weir_core::inference::batch::{Form, Shapes};

/// Why a graph has no result.
#[derive(Debug, Error)]
pub(crate) enum GraphError {
    /// `wasi:nn` refused.
    #[error("{doing} failed ({code}): {text}")]
    Nn {
        /// The operation.
        doing: &'static str,
        /// The name of the error code.
        code: &'static str,
        /// The message of the engine.
        text: String,
    },
    /// The output has an unexpected shape or type.
    #[error("the graph gives {0}")]
    Shape(String),
    /// The graph is that of a classifier, and `config.json` names no classifier architecture.
    #[error(
        "the graph gives logits, as classifiers do, and architectures in config.json names no …ForSequenceClassification \
         or …ForTokenClassification"
    )]
    Classifier,
}

impl GraphError {
    /// Whether a smaller batch may succeed.
    pub(crate) fn is_too_large(&self) -> bool {
        matches!(self, Self::Nn { code, .. } if *code == code_name(ErrorCode::TooLarge))
    }

    fn nn(doing: &'static str, error: &NnError) -> Self {
        Self::Nn { doing, code: code_name(error.code()), text: error.data() }
    }
}

/// The name of a code in the WIT.
fn code_name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidArgument => "invalid-argument",
        ErrorCode::InvalidEncoding => "invalid-encoding",
        ErrorCode::Timeout => "timeout",
        ErrorCode::RuntimeError => "runtime-error",
        ErrorCode::UnsupportedOperation => "unsupported-operation",
        ErrorCode::TooLarge => "too-large",
        ErrorCode::NotFound => "not-found",
        ErrorCode::Security => "security",
        ErrorCode::Unknown => "unknown",
    }
}

/// The inputs of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inputs {
    /// Padded sequences, one per row: `input_ids [batch, sequence]` and optionally `attention_mask` and
    /// `token_type_ids` of that shape.
    Padded { mask: bool, types: bool },
    /// Concatenated sequences: `input_ids`, `position_ids` and `segment_ids`, all `[1, tokens]`, and optionally
    /// `token_type_ids` of that shape or `pool [texts, tokens]`.
    Packed { pool: bool, types: bool },
}

impl Inputs {
    const IDS: Self = Self::Padded { mask: false, types: false };
    const MASK: Self = Self::Padded { mask: true, types: false };
    const MASK_AND_TYPES: Self = Self::Padded { mask: true, types: true };

    /// The combinations to try, the most likely first. Graphs exported by transformers have the input `token_type_ids`
    /// if the model has token types.
    fn candidates(uses_types: bool) -> [Self; 6] {
        let packed = |pool, types| Self::Packed { pool, types };
        let [first, second] =
            if uses_types { [Self::MASK_AND_TYPES, Self::MASK] } else { [Self::MASK, Self::MASK_AND_TYPES] };
        [first, packed(true, false), packed(false, uses_types), packed(false, !uses_types), second, Self::IDS]
    }
}

/// A loaded graph with its one execution context.
pub(crate) struct Graph {
    context: GraphExecutionContext,
    inputs: Inputs,
    kind: ModelKind,
    pad_id: u32,
    pad_type_id: u32,
    shapes: Shapes,
}

/// With bounded shapes, a packed run has capacity for one text per this many tokens.
const TOKENS_PER_TEXT: usize = 4;
/// The largest capacity of a packed run with bounded shapes that has fewer texts.
const PACKED_TEXTS_MAX: usize = 32;

impl Graph {
    /// Loads the graph `name` and runs it once on `sample`.
    ///
    /// # Errors
    ///
    /// That of the first combination of inputs, if none gives a result.
    pub(crate) fn load(name: &str, files: &ModelFiles, sample: &Sequence, shapes: Shapes) -> Result<Self, GraphError> {
        let graph = load_by_name(name).map_err(|error| GraphError::nn("loading the graph", &error))?;
        let context =
            graph.init_execution_context().map_err(|error| GraphError::nn("making an execution context", &error))?;
        let mut loaded = Self {
            context,
            inputs: Inputs::MASK,
            kind: files.config.kind,
            pad_id: files.tokenizer.pad_id(),
            pad_type_id: files.tokenizer.pad_type_id(),
            shapes,
        };
        let mut first_error = None;
        for inputs in Inputs::candidates(files.config.uses_types) {
            loaded.inputs = inputs;
            match loaded.compute(&[sample], sample.ids.len()) {
                Ok(output) => {
                    loaded.check_width(&output, files.config.labels.len())?;
                    return Ok(loaded);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| GraphError::Shape("nothing".to_owned())))
    }

    /// Checks that a classifier gives one logit per label. Done on loading, so that a model that fails the check is
    /// never ready.
    fn check_width(&self, output: &BatchOutput, labels: usize) -> Result<(), GraphError> {
        let width = output.row(0).shape.last().copied().unwrap_or_default();
        if self.kind == ModelKind::FeatureExtraction || width == labels {
            return Ok(());
        }
        Err(GraphError::Shape(format!("{width} logits for each text or token, and config.json names {labels} labels")))
    }

    /// How the graph takes several sequences.
    pub(crate) fn form(&self) -> Form {
        match self.inputs {
            Inputs::Padded { .. } => Form::Padded,
            Inputs::Packed { .. } => Form::Packed,
        }
    }

    /// Computes one batch: padded to `length`, or packed and filled up to `length` tokens. `rows` is not empty and fits
    /// into `length`.
    pub(crate) fn compute(&self, rows: &[&Sequence], length: usize) -> Result<BatchOutput, GraphError> {
        let inputs = match self.inputs {
            Inputs::Padded { mask, types } => self.padded(rows, length, mask, types),
            Inputs::Packed { pool, types } => self.packed(rows, length, pool, types),
        };
        let outputs = self.context.compute(inputs).map_err(|error| GraphError::nn("computing", &error))?;
        let (name, tensor) = self.choose(outputs).ok_or_else(|| GraphError::Shape("no output".to_owned()))?;
        if self.kind == ModelKind::FeatureExtraction && name == "logits" {
            return Err(GraphError::Classifier);
        }
        let read = OutputReader { name: &name, tensor: &tensor, rows, length };
        match self.inputs {
            Inputs::Padded { .. } => read.padded(),
            Inputs::Packed { .. } => read.packed(),
        }
    }

    fn padded(&self, rows: &[&Sequence], length: usize, mask: bool, types: bool) -> Vec<(String, Tensor)> {
        let dimensions = [rows.len() as u32, length as u32];
        let matrix = |fill: u32, row_values: &dyn Fn(&Sequence) -> &[u32]| {
            let mut data = Vec::with_capacity(rows.len() * length * size_of::<i64>());
            for row in rows {
                let values = row_values(row);
                extend(&mut data, values.iter().map(|&value| i64::from(value)));
                extend(&mut data, std::iter::repeat_n(i64::from(fill), length - values.len()));
            }
            Tensor::new(&dimensions, TensorType::I64, &data)
        };
        let mut inputs = vec![("input_ids".to_owned(), matrix(self.pad_id, &|row| &row.ids))];
        if mask {
            let mut data = Vec::with_capacity(rows.len() * length * size_of::<i64>());
            for row in rows {
                extend(&mut data, (0..length).map(|index| i64::from(index < row.ids.len())));
            }
            inputs.push(("attention_mask".to_owned(), Tensor::new(&dimensions, TensorType::I64, &data)));
        }
        if types {
            inputs.push(("token_type_ids".to_owned(), matrix(self.pad_type_id, &|row| &row.types)));
        }
        inputs
    }

    fn packed(&self, rows: &[&Sequence], length: usize, pool: bool, types: bool) -> Vec<(String, Tensor)> {
        let real: usize = rows.iter().map(|row| row.ids.len()).sum();
        let filled = length - real;
        let line = |values: &mut dyn Iterator<Item = i64>, fill: i64| {
            let mut data = Vec::with_capacity(length * size_of::<i64>());
            extend(&mut data, values.chain(std::iter::repeat_n(fill, filled)));
            Tensor::new(&[1, length as u32], TensorType::I64, &data)
        };
        let ids = line(&mut rows.iter().flat_map(|row| &row.ids).map(|&id| i64::from(id)), i64::from(self.pad_id));
        let positions = line(&mut rows.iter().flat_map(|row| 0..row.ids.len() as i64), 0);
        let segments = (0i64..).zip(rows).flat_map(|(segment, row)| std::iter::repeat_n(segment, row.ids.len()));
        let segments = line(&mut segments.into_iter(), -1);
        let mut inputs = vec![
            ("input_ids".to_owned(), ids),
            ("position_ids".to_owned(), positions),
            ("segment_ids".to_owned(), segments),
        ];
        if types {
            let types = &mut rows.iter().flat_map(|row| &row.types).map(|&kind| i64::from(kind));
            inputs.push(("token_type_ids".to_owned(), line(types, i64::from(self.pad_type_id))));
        }
        if pool {
            // With bounded shapes, the number of texts depends on the length alone, so that the engine plans fewer
            // shapes.
            let least = match self.shapes {
                Shapes::Any => 1,
                Shapes::Bounded => (length / TOKENS_PER_TEXT).clamp(1, PACKED_TEXTS_MAX),
            };
            let texts = rows.len().max(least);
            let mut weights = vec![0u8; texts * length * size_of::<f32>()];
            let mut start = 0;
            for (text, row) in rows.iter().enumerate() {
                let weight = (1.0 / row.ids.len() as f32).to_le_bytes();
                let cells = weights.as_chunks_mut::<4>().0;
                cells[text * length + start..][..row.ids.len()].fill(weight);
                start += row.ids.len();
            }
            let dimensions = [texts as u32, length as u32];
            inputs.push(("pool".to_owned(), Tensor::new(&dimensions, TensorType::Fp32, &weights)));
        }
        inputs
    }

    /// The output with the usual name for the kind of model, or else the first.
    fn choose(&self, mut outputs: Vec<(String, Tensor)>) -> Option<(String, Tensor)> {
        let usual: &[&str] = match self.kind {
            ModelKind::TextClassification | ModelKind::TokenClassification => &["logits"],
            ModelKind::FeatureExtraction => &["sentence_embedding", "last_hidden_state"],
        };
        let position =
            usual.iter().find_map(|&name| outputs.iter().position(|(output, _)| output == name)).unwrap_or(0);
        (position < outputs.len()).then(|| outputs.swap_remove(position))
    }
}

fn extend(data: &mut Vec<u8>, values: impl Iterator<Item = i64>) {
    values.for_each(|value| data.extend_from_slice(&value.to_le_bytes()));
}

/// The results of one batch.
pub(crate) struct BatchOutput {
    values: Vec<f32>,
    /// For each sequence the range of its values, and their shape, of which the last `rank` dimensions are used.
    rows: Vec<(Range<usize>, [usize; 2])>,
    rank: usize,
}

impl BatchOutput {
    /// The result of one sequence.
    pub(crate) fn row(&self, index: usize) -> RowOutput<'_> {
        let (range, shape) = &self.rows[index];
        RowOutput { values: &self.values[range.clone()], shape: &shape[2 - self.rank..] }
    }
}

/// Reads an output tensor.
struct OutputReader<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    rows: &'a [&'a Sequence],
    length: usize,
}

impl OutputReader<'_> {
    /// `[batch, width]` or `[batch, length, width]`.
    fn padded(&self) -> Result<BatchOutput, GraphError> {
        let (rows, length) = (self.rows.len(), self.length);
        let dimensions = self.dimensions();
        let (rank, shape) = match *dimensions {
            [batch, width] if batch == rows => (1, [1, width]),
            [batch, sequence, width] if batch == rows && sequence == length => (2, [length, width]),
            _ => return Err(self.wrong(&dimensions)),
        };
        let stride = shape[0] * shape[1];
        let rows = (0..rows).map(|row| (row * stride..(row + 1) * stride, shape)).collect();
        Ok(BatchOutput { values: self.values(&dimensions)?, rows, rank })
    }

    /// `[texts, width]` or `[1, length, width]`.
    fn packed(&self) -> Result<BatchOutput, GraphError> {
        let dimensions = self.dimensions();
        match *dimensions {
            [texts, width] if texts >= self.rows.len() => {
                let rows = (0..self.rows.len()).map(|row| (row * width..(row + 1) * width, [1, width])).collect();
                Ok(BatchOutput { values: self.values(&dimensions)?, rows, rank: 1 })
            }
            [1, tokens, width] if tokens == self.length => {
                let mut start = 0;
                let rows = self.rows.iter().map(|row| {
                    let begin = start;
                    start += row.ids.len();
                    (begin * width..start * width, [row.ids.len(), width])
                });
                Ok(BatchOutput { rows: rows.collect(), values: self.values(&dimensions)?, rank: 2 })
            }
            _ => Err(self.wrong(&dimensions)),
        }
    }

    fn dimensions(&self) -> Vec<usize> {
        self.tensor.dimensions().iter().map(|&size| size as usize).collect()
    }

    fn wrong(&self, dimensions: &[usize]) -> GraphError {
        let (name, rows, length) = (self.name, self.rows.len(), self.length);
        let dimensions = dimensions.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        GraphError::Shape(format!("{name} as [{dimensions}] for {rows} sequences in {length} tokens"))
    }

    fn values(&self, dimensions: &[usize]) -> Result<Vec<f32>, GraphError> {
        let data = self.tensor.data();
        let values: Vec<f32> = match self.tensor.ty() {
            TensorType::Fp32 => data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            TensorType::Fp64 => data.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
            TensorType::Bf16 => {
                let widen = |&bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
                data.as_chunks().0.iter().map(widen).collect()
            }
            TensorType::Fp16 => {
                data.as_chunks().0.iter().map(|&bytes| half_to_f32(u16::from_le_bytes(bytes))).collect()
            }
            TensorType::U8 | TensorType::I32 | TensorType::I64 => {
                return Err(GraphError::Shape(format!("{} as integers, which are not read here", self.name)));
            }
        };
        if values.len() != dimensions.iter().product::<usize>() {
            return Err(self.wrong(dimensions));
        }
        Ok(values)
    }
}

/// IEEE 754 binary16 to binary32.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * fraction * (-24f32).exp2(),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * (exponent as f32 - 15.0).exp2(),
    }
}
