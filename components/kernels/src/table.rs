//! Tables of embeddings by token id.

use std::fmt;
use std::sync::Arc;

/// A table that is stored elsewhere, in a mapped file for example, and is read a row at a time.
pub trait TableRows: fmt::Debug + Send + Sync {
    /// Its rows.
    fn rows(&self) -> usize;

    /// The elements of a row.
    fn width(&self) -> usize;

    /// Reads a row into `to`, which has [`width`](Self::width) elements. `row` is below [`rows`](Self::rows).
    fn read(&self, row: usize, to: &mut [f32]);
}

/// A table of embeddings `[rows, width]` as a file stores it.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// The rows.
    F32(&'a [f32]),
    /// The rows in integers, and the factor `[rows]` of each.
    I8 {
        /// The integers.
        values: &'a [i8],
        /// The factors.
        scales: &'a [f32],
    },
    /// A table that is not copied.
    Shared(&'a Arc<dyn TableRows>),
}

/// A table that an encoder reads.
#[derive(Debug)]
pub(crate) enum Words {
    F32(Vec<f32>),
    I8 { values: Vec<i8>, scales: Vec<f32> },
    Shared(Arc<dyn TableRows>),
}

impl Words {
    /// Copies or shares a table with `width` elements a row. The error is the actual and the expected number of elements.
    pub(crate) fn new(table: Table<'_>, width: usize) -> Result<Self, (usize, usize)> {
        let check = |len: usize, expected: usize| if len == expected { Ok(()) } else { Err((len, expected)) };
        match table {
            Table::F32(values) => {
                check(values.len(), values.len() / width * width)?;
                Ok(Self::F32(values.to_vec()))
            }
            Table::I8 { values, scales } => {
                check(values.len(), scales.len() * width)?;
                Ok(Self::I8 { values: values.to_vec(), scales: scales.to_vec() })
            }
            Table::Shared(table) => {
                check(table.rows() * table.width(), table.rows() * width)?;
                Ok(Self::Shared(table.clone()))
            }
        }
    }

    pub(crate) fn rows(&self, width: usize) -> usize {
        match self {
            Self::F32(values) => values.len() / width,
            Self::I8 { scales, .. } => scales.len(),
            Self::Shared(table) => table.rows(),
        }
    }

    /// Reads a row into `to`, which has the length of a row.
    pub(crate) fn read(&self, row: usize, to: &mut [f32]) {
        let width = to.len();
        match self {
            Self::F32(values) => to.copy_from_slice(&values[row * width..][..width]),
            Self::I8 { values, scales } => {
                let values = &values[row * width..][..width];
                to.iter_mut().zip(values).for_each(|(to, value)| *to = f32::from(*value) * scales[row]);
            }
            Self::Shared(table) => table.read(row, to),
        }
    }

    /// Bytes in memory; 0 for a shared table.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => 4 * values.len(),
            Self::I8 { values, scales } => values.len() + 4 * scales.len(),
            Self::Shared(_) => 0,
        }
    }
}
