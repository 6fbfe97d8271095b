//! A model's graph behind `wasi:nn`: batches of sequences in, numbers out.
//!
//! `wasi:nn` cannot be asked which inputs a graph takes, so the usual combinations are tried when it is loaded and the
//! one that works is kept.

use crate::bindings::wasi::nn::errors::{Error as NnError, ErrorCode};
use crate::bindings::wasi::nn::graph::load_by_name;
use crate::bindings::wasi::nn::inference::GraphExecutionContext;
use crate::bindings::wasi::nn::tensor::{Tensor, TensorType};
use crate::job::{ModelFiles, RowOutput};
use crate::tokenize::Sequence;
use crate::types::ModelKind;
use thiserror::Error;

/// Why a graph gives no result.
#[derive(Debug, Error)]
pub(crate) enum GraphError {
    /// `wasi:nn` refused.
    #[error("{doing} failed ({code}): {text}")]
    Nn {
        /// What was tried.
        doing: &'static str,
        /// The name of the error code.
        code: &'static str,
        /// What the engine says.
        text: String,
    },
    /// The result is not of the shape that was asked for.
    #[error("the graph gives {0}")]
    Shape(String),
}

impl GraphError {
    fn nn(doing: &'static str, error: &NnError) -> Self {
        Self::Nn { doing, code: code_name(error.code()), text: error.data() }
    }
}

/// A code as the WIT spells it.
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

/// Which inputs a graph takes besides `input_ids`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inputs {
    mask: bool,
    types: bool,
}

impl Inputs {
    const IDS: Self = Self { mask: false, types: false };
    const MASK: Self = Self { mask: true, types: false };
    const MASK_AND_TYPES: Self = Self { mask: true, types: true };

    /// The combinations to try, the likeliest first. Graphs exported by transformers name the token types where the
    /// model has them; those without are tried after it, and at once where it has none.
    fn candidates(uses_types: bool) -> [Self; 3] {
        if uses_types {
            [Self::MASK_AND_TYPES, Self::MASK, Self::IDS]
        } else {
            [Self::MASK, Self::MASK_AND_TYPES, Self::IDS]
        }
    }
}

/// A loaded graph with its one execution context.
pub(crate) struct Graph {
    context: GraphExecutionContext,
    inputs: Inputs,
    kind: ModelKind,
    pad_id: u32,
    pad_type_id: u32,
}

impl Graph {
    /// Loads the graph `name` and runs it once on `sample`. Fails when no combination of inputs gives a result.
    pub(crate) fn load(name: &str, files: &ModelFiles, sample: &Sequence) -> Result<Self, GraphError> {
        let graph = load_by_name(name).map_err(|error| GraphError::nn("loading the graph", &error))?;
        let context =
            graph.init_execution_context().map_err(|error| GraphError::nn("making an execution context", &error))?;
        let mut loaded = Self {
            context,
            inputs: Inputs::MASK,
            kind: files.config.kind,
            pad_id: files.tokenizer.pad_id(),
            pad_type_id: files.tokenizer.pad_type_id(),
        };
        let mut first_error = None;
        for inputs in Inputs::candidates(files.config.uses_types) {
            loaded.inputs = inputs;
            match loaded.compute(&[sample]) {
                Ok(_) => return Ok(loaded),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| GraphError::Shape("nothing".to_owned())))
    }

    /// Runs one batch, padded to its longest sequence. `rows` is not empty.
    pub(crate) fn compute(&self, rows: &[&Sequence]) -> Result<BatchOutput, GraphError> {
        let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let matrix = |fill: u32, row_values: &dyn Fn(&Sequence) -> Vec<u32>| {
            let mut data = Vec::with_capacity(rows.len() * longest * size_of::<i64>());
            for row in rows {
                let mut values = row_values(row);
                values.resize(longest, fill);
                values.iter().for_each(|&value| data.extend_from_slice(&i64::from(value).to_le_bytes()));
            }
            Tensor::new(&[rows.len() as u32, longest as u32], TensorType::I64, &data)
        };
        let mut inputs = vec![("input_ids".to_owned(), matrix(self.pad_id, &|row| row.ids.clone()))];
        if self.inputs.mask {
            inputs.push(("attention_mask".to_owned(), matrix(0, &|row| vec![1; row.ids.len()])));
        }
        if self.inputs.types {
            inputs.push(("token_type_ids".to_owned(), matrix(self.pad_type_id, &|row| row.types.clone())));
        }
        let outputs = self.context.compute(inputs).map_err(|error| GraphError::nn("computing", &error))?;
        let (name, tensor) = self.choose(outputs).ok_or_else(|| GraphError::Shape("no output".to_owned()))?;
        read_output(&name, &tensor, rows.len(), longest)
    }

    /// The output that the task is read from: the one with the usual name, or else the first.
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

/// The results of one batch.
pub(crate) struct BatchOutput {
    /// `[batch, …row_shape]`, row by row.
    values: Vec<f32>,
    row_shape: Vec<usize>,
}

impl BatchOutput {
    /// The result of one sequence.
    pub(crate) fn row(&self, index: usize) -> RowOutput<'_> {
        let length: usize = self.row_shape.iter().product();
        RowOutput { values: &self.values[index * length..(index + 1) * length], shape: &self.row_shape }
    }
}

fn read_output(name: &str, tensor: &Tensor, rows: usize, longest: usize) -> Result<BatchOutput, GraphError> {
    let dimensions: Vec<usize> = tensor.dimensions().iter().map(|&size| size as usize).collect();
    let wrong = || GraphError::Shape(format!("{name} as {dimensions:?} for a batch of [{rows}, {longest}]"));
    let row_shape = match *dimensions {
        [batch, width] if batch == rows => vec![width],
        [batch, sequence, width] if batch == rows && sequence == longest => vec![sequence, width],
        _ => return Err(wrong()),
    };
    let data = tensor.data();
    let values: Vec<f32> = match tensor.ty() {
        TensorType::Fp32 => data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        TensorType::Fp64 => data.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
        TensorType::Bf16 => {
            let widen = |&bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
            data.as_chunks().0.iter().map(widen).collect()
        }
        TensorType::Fp16 | TensorType::U8 | TensorType::I32 | TensorType::I64 => {
            return Err(GraphError::Shape(format!("{name} as {:?}, which is not read here", tensor.ty())));
        }
    };
    if values.len() != dimensions.iter().product::<usize>() {
        return Err(wrong());
    }
    Ok(BatchOutput { values, row_shape })
}
