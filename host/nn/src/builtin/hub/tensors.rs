//! The tensors of a `model.safetensors`, or of several files with an index, by name and with the shape that a model must have.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use weir_kernels::{Linear, Norm, TableRows, Values};

use crate::builtin::mapping::{MappedTable, Mapping, TensorBytes};
use crate::builtin::safetensors::{Entry, Header};
use crate::builtin::shards::{self, ShardIndex};
use crate::wording::{listed, quoted};

/// The weights of a model, in one file or several.
pub(super) struct Tensors {
    files: Vec<Arc<Mapping>>,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor, and the number of its file.
struct Tensor {
    file: usize,
    entry: Entry,
}

/// A linear layer.
pub(super) struct OwnedLinear<'a> {
    /// `[columns, inner]`
    pub(super) weight: Cow<'a, [f32]>,
    /// `[columns]`
    pub(super) bias: Cow<'a, [f32]>,
}

impl OwnedLinear<'_> {
    pub(super) fn view(&self) -> Linear<'_> {
        Linear { values: Values::F32Transposed(&self.weight), bias: &self.bias }
    }
}

/// A layer normalization.
pub(super) struct OwnedNorm<'a> {
    pub(super) gain: Cow<'a, [f32]>,
    pub(super) bias: Cow<'a, [f32]>,
}

impl OwnedNorm<'_> {
    pub(super) fn view(&self) -> Norm<'_> {
        Norm { gain: &self.gain, bias: &self.bias }
    }
}

impl Tensors {
    /// Maps a file of weights, or the files of an index, which have at most `bytes_max` bytes together.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Self, String> {
        if shards::is_index(path) {
            return Self::open_shards(path, bytes_max);
        }
        let mapping = Mapping::open(path, bytes_max).map_err(|error| error.to_string())?;
        let Header { tensors } = Header::parse(&mapping)?;
        let tensors = tensors.into_iter().map(|(name, entry)| (name, Tensor { file: 0, entry })).collect();
        Ok(Self { files: vec![mapping], tensors })
    }

    fn open_shards(path: &Path, bytes_max: u64) -> Result<Self, String> {
        let index = ShardIndex::read(path)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::<String, Tensor>::new());
        let mut bytes_left = bytes_max;
        for (file, name) in index.files().iter().enumerate() {
            let mapping = Mapping::open(&dir.join(name), bytes_left).map_err(|error| error.to_string())?;
            bytes_left = bytes_left.saturating_sub(mapping.len() as u64);
            let header = Header::parse(&mapping).map_err(|reason| format!("{name}: {reason}"))?;
            for (tensor, entry) in header.tensors {
                if let Some(Tensor { file: other, .. }) = tensors.get(&tensor) {
                    let other = &index.files()[*other];
                    return Err(format!("tensor {} is in {other} and in {name}", quoted(&tensor)));
                }
                tensors.insert(tensor, Tensor { file, entry });
            }
            files.push(mapping);
        }
        index.check(|tensor| tensors.get(tensor).map(|tensor| tensor.file))?;
        Ok(Self { files, tensors })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.entry.range.len() as u64).sum()
    }

    /// Releases the pages that were read: the packed weights replace them.
    pub(super) fn release(&self) {
        self.files.iter().for_each(|mapping| mapping.release());
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.tensors.get(name).ok_or_else(|| format!("there is no tensor {name}"))
    }

    fn entry(&self, name: &str) -> Result<&Entry, String> {
        self.tensor(name).map(|tensor| &tensor.entry)
    }

    /// The values of a tensor of this shape.
    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>, String> {
        let Tensor { file, entry } = self.tensor(name)?;
        if entry.shape != shape {
            return Err(format!("{name} has shape {}, not {shape}", listed(&entry.shape), shape = listed(shape)));
        }
        let numbers = TensorBytes { dtype: entry.dtype, bytes: &self.files[*file][entry.range.clone()] };
        numbers.f32().map_err(|reason| format!("{name}: {reason}"))
    }

    /// The rows and the width of a matrix.
    pub(super) fn matrix_shape(&self, name: &str) -> Result<(usize, usize), String> {
        match self.entry(name)?.shape[..] {
            [rows, width] if rows > 0 && width > 0 => Ok((rows, width)),
            _ => Err(format!("{name} has shape {}, which is no matrix", listed(&self.entry(name)?.shape))),
        }
    }

    /// A table of embeddings, read in place.
    pub(super) fn table(&self, name: &str, width: usize) -> Result<Arc<dyn TableRows>, String> {
        let (_, columns) = self.matrix_shape(name)?;
        if columns != width {
            return Err(format!("{name} has rows of {columns}, not {width}"));
        }
        let Tensor { file, entry: Entry { dtype, range, .. } } = self.tensor(name)?;
        let table = MappedTable::new(self.files[*file].clone(), range.clone(), *dtype, width);
        table.map(|table| -> Arc<dyn TableRows> { Arc::new(table) }).map_err(|reason| format!("{name}: {reason}"))
    }

    /// A linear layer; its bias is zero where the model has none.
    pub(super) fn linear(&self, name: &str, inner: usize, columns: usize) -> Result<OwnedLinear<'_>, String> {
        let weight = self.values(&format!("{name}.weight"), &[columns, inner])?;
        Ok(OwnedLinear { weight, bias: self.bias(&format!("{name}.bias"), columns)? })
    }

    fn bias(&self, name: &str, columns: usize) -> Result<Cow<'_, [f32]>, String> {
        if self.has(name) { self.values(name, &[columns]) } else { Ok(Cow::Owned(vec![0.0; columns])) }
    }

    /// A layer normalization; its bias is zero where the model has none. Models of 2018 call gain and bias `gamma` and `beta`.
    pub(super) fn norm(&self, name: &str, width: usize) -> Result<OwnedNorm<'_>, String> {
        let old = format!("{name}.gamma");
        if self.has(&old) {
            return Ok(OwnedNorm {
                gain: self.values(&old, &[width])?,
                bias: self.values(&format!("{name}.beta"), &[width])?,
            });
        }
        let gain = self.values(&format!("{name}.weight"), &[width])?;
        Ok(OwnedNorm { gain, bias: self.bias(&format!("{name}.bias"), width)? })
    }
}
