//! The network of a model: an encoder, and the readout of its states.

use weir_kernels::{
    Activation, Encoder, EncoderError, Epilogue, Isa, Matrix, ModernEncoder, Precision, Rows, Scratch, Texts, Values,
};

/// An encoder of either kind.
pub(super) enum AnyEncoder {
    Bert(Box<Encoder>),
    Modern(Box<ModernEncoder>),
}

impl AnyEncoder {
    pub(super) fn hidden(&self) -> usize {
        match self {
            Self::Bert(encoder) => encoder.config().hidden,
            Self::Modern(encoder) => encoder.config().hidden,
        }
    }

    pub(super) fn states<'a>(&self, texts: Texts<'_>, scratch: &'a mut Scratch) -> Result<&'a [f32], EncoderError> {
        match self {
            Self::Bert(encoder) => encoder.states(texts, scratch),
            Self::Modern(encoder) => encoder.states(texts, scratch),
        }
    }
}

/// How the states of a text are reduced to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    Mean,
    /// The state of the first token.
    First,
    /// The greatest of each element.
    Max,
}

impl Pooling {
    /// Pools the states `[tokens, to.len()]` of a text.
    pub(super) fn pool(self, states: &[f32], to: &mut [f32]) {
        let width = to.len();
        match self {
            Self::First => to.copy_from_slice(&states[..width]),
            Self::Mean => {
                to.fill(0.0);
                for state in states.chunks_exact(width) {
                    to.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
                }
                let tokens = (states.len() / width) as f32;
                to.iter_mut().for_each(|sum| *sum /= tokens);
            }
            Self::Max => {
                to.fill(f32::NEG_INFINITY);
                for state in states.chunks_exact(width) {
                    to.iter_mut().zip(state).for_each(|(greatest, value)| *greatest = greatest.max(*value));
                }
            }
        }
    }
}

/// A function after a linear layer of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum HeadActivation {
    None,
    Tanh,
    Kernel(Activation),
}

/// A step of a head: from rows to rows.
pub(super) enum Stage {
    Linear {
        matrix: Matrix,
        activation: HeadActivation,
    },
    Norm {
        gain: Vec<f32>,
        bias: Vec<f32>,
        epsilon: f32,
    },
    /// Each row to length 1.
    Unit,
}

impl Stage {
    /// A linear layer by the weight `[columns, inner]` and the bias `[columns]`.
    pub(super) fn linear(isa: Isa, inner: usize, weight: &[f32], bias: &[f32], activation: HeadActivation) -> Self {
        // In f32: heads are small, and their rounding error reaches every result.
        let matrix = Matrix::pack(isa, Precision::F32, inner, &[(Values::F32Transposed(weight), bias)]);
        Self::Linear { matrix, activation }
    }

    fn apply(&self, rows: Vec<f32>, width: &mut usize, memory: &mut Rows) -> Vec<f32> {
        match self {
            Self::Linear { matrix, activation } => {
                let mut results = vec![0.0; rows.len() / *width * matrix.columns()];
                let epilogue = match activation {
                    HeadActivation::Kernel(activation) => Epilogue::Activate(*activation),
                    HeadActivation::None | HeadActivation::Tanh => Epilogue::Store,
                };
                matrix.multiply(&rows, epilogue, &mut results, memory);
                if *activation == HeadActivation::Tanh {
                    results.iter_mut().for_each(|value| *value = value.tanh());
                }
                *width = matrix.columns();
                results
            }
            Self::Norm { gain, bias, epsilon } => {
                let mut rows = rows;
                rows.chunks_exact_mut(*width).for_each(|row| normalize(row, gain, bias, *epsilon));
                rows
            }
            Self::Unit => {
                let mut rows = rows;
                for row in rows.chunks_exact_mut(*width) {
                    let length = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
                    // Torch's `normalize` divides by at least this.
                    let length = length.max(1e-12);
                    row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
                }
                rows
            }
        }
    }
}

/// Layer normalization of one row, in f64: for the few rows of heads and tables.
pub(super) fn normalize(row: &mut [f32], gain: &[f32], bias: &[f32], epsilon: f32) {
    let count = row.len() as f64;
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
    let factor = 1.0 / (variance + f64::from(epsilon)).sqrt();
    for ((x, gain), bias) in row.iter_mut().zip(gain).zip(bias) {
        *x = ((f64::from(*x) - mean) * factor * f64::from(*gain) + f64::from(*bias)) as f32;
    }
}

/// How results are computed from the states.
pub(super) struct Readout {
    pub(super) from: RowSelection,
    pub(super) stages: Vec<Stage>,
}

/// The rows that the first stage takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowSelection {
    /// One for each row of the input `pool`.
    PoolInput,
    /// The state of each token.
    Tokens,
    /// One for each text.
    Texts(Pooling),
}

impl Readout {
    /// The results of rows `[count, width]`, and their width.
    pub(super) fn apply(&self, rows: Vec<f32>, width: usize, memory: &mut Rows) -> (Vec<f32>, usize) {
        let mut width = width;
        let results = self.stages.iter().fold(rows, |rows, stage| stage.apply(rows, &mut width, memory));
        (results, width)
    }

    /// The width of a result.
    pub(super) fn width(&self, hidden: usize) -> usize {
        let columns = |stage: &Stage| match stage {
            Stage::Linear { matrix, .. } => Some(matrix.columns()),
            Stage::Norm { .. } | Stage::Unit => None,
        };
        self.stages.iter().rev().find_map(columns).unwrap_or(hidden)
    }
}
